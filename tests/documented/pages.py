"""The pages, their blocks of code with the marks before them, and what is left for a reader to read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = {"profile": "profiles", "plan": "planner", "execute": "executor", "compare": "reports"}
# History says what was, in the words of then.
FOLDERS, LEFT_OUT = (".", *PACKAGES.values(), "tests"), ("CHANGELOG.md",)
LANGUAGES = ("console", "sh", "python", "toml", "yaml", "text")
MARK = re.compile(r"<!-- (not run|slow|given|read as|holds): (.+?) -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of code; `marks` are the comments right before it, which readers do not see, by their word."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page, as a path from the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.name not in LEFT_OUT)


def read(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines = iter(enumerate(read(page).splitlines(), 1))
    for number, line in lines:
        if line.startswith("```"):
            text = "\n".join(own for _, own in _until_fence(lines))
            found.append(Block(page=page, line=number, language=line[3:].strip(), text=text, marks=marks))
        is_mark = MARK.fullmatch(line)
        marks = {**marks, is_mark[1]: is_mark[2]} if is_mark else {}
    return found


def _until_fence(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if line.startswith("```"):
            return
        yield number, line


def prose(page: str) -> str:
    """A page without its blocks and comments."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def indented(page: str) -> list[str]:
    """Lines of code that stand in no fence: four spaces behind an empty line, outside of lists."""
    found, is_behind_empty, is_list = [], True, False
    for line in prose(page).splitlines():
        is_list = bool(re.match(r"\s*([-*]|\d+\.) ", line)) or (is_list and (not line or line.startswith(" ")))
        if line.startswith("    ") and is_behind_empty and not is_list:
            found.append(line)
        is_behind_empty = not line
    return found
