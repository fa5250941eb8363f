"""Fuzzing: what must hold of anything that somebody may send."""
