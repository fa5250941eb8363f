"""Texts of events, for people's eyes. Anybody may have sent an event: what would command a terminal or forge a line of a
log is shown and not done. No I/O.
"""

from __future__ import annotations

#: Characters of one short value.
MAX_LINE = 500
#: Characters of a traceback, or another text of many lines; the end is what tells.
MAX_BLOCK = 64 * 2**10


def line(value: object, limit: int = MAX_LINE) -> str:
    """A value as one short line: nothing for None, the type's name for what is no text, number or truth value."""
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        return f"({type(value).__name__})"
    return _visible(" ".join(str(value)[:limit].split()))


def block(value: object, limit: int = MAX_BLOCK) -> str:
    """A text of many lines, without its beginning where it is too long."""
    if not isinstance(value, str):
        return line(value)
    return "\n".join(_visible(one.replace("\t", "    ")) for one in value[-limit:].split("\n"))


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        return None
    return float(value)


def _visible(text: str) -> str:
    """Control characters, and those that reorder a line, as their escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
