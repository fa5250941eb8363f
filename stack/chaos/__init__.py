"""Chaos: one fault after another, injected for real into a real stack; see :mod:`stack.chaos.__main__`."""
