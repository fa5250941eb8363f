"""The examples in the documentation, as the tests run them.

The first word after the fence is the language, for the reader's eyes; the second says what an example is, and by that
which test runs it. ``tests/unit/test_docs.py`` refuses an example that no test knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """One fenced block."""

    page: Path
    line: int
    language: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def examples(*what: str) -> list[Example]:
    """Every example, or those of a language and kind, such as ``python dag``."""
    found = []
    for page in PAGES:
        content = page.read_text()
        for match in _FENCE.finditer(content):
            language, _, kind = match["info"].strip().partition(" ")
            line = content.count("\n", 0, match.start()) + 1
            found.append(Example(page, line, language, kind, match["text"]))
    return [one for one in found if not what or f"{one.language} {one.kind}".strip() in what]


def example(page: str, what: str, containing: str = "") -> Example:
    """The one example of that kind on a page that has a certain text in it."""
    found = [one for one in examples(what) if one.page.name == page and containing in one.text]
    assert len(found) == 1, f"{page} has {len(found)} examples of {what!r} with {containing!r}"
    return found[0]
