"""Sentences, links, headings and words of code on a page."""

from __future__ import annotations

import re

from tests.documented.pages import prose, read

MOST_WORDS = 30
# What ends no sentence.
SHORT = re.compile(r"\b(e\.g|i\.e|vs|etc|Fig|no|al)\.\s")


def sentences(page: str) -> list[str]:
    """The sentences of a page: of paragraphs, of entries of lists, of headings, and of cells of tables."""
    found: list[str] = []
    for piece in _pieces(prose(page)):
        text = re.sub(r"`[^`]*`", lambda code: code[0].replace(".", "_").replace("?", "_"), piece)
        text = SHORT.sub(lambda own: own[0].replace(".", ""), text)
        found.extend(re.split(r"(?<=[.!?])[*)\"]*\s+(?=\S)", text))
    return [sentence.strip() for sentence in found if sentence.strip()]


def num_words(sentence: str) -> int:
    """Words of a sentence; code counts as one, whatever it says."""
    text = re.sub(r"\]\([^)]*\)", "", sentence)
    text = re.sub(r"`[^`]*`", "code", text)
    return len(re.findall(r"[\w][\w'/.,+-]*", text))


def _pieces(text: str) -> list[str]:
    """Paragraphs and entries of lists as one line each, cells of tables apart."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found.extend([cell] for cell in line.strip("|").split("|"))
            found.append([])
        elif not line.strip() or line.startswith("#"):
            found.append([line.strip("# ")])
            found.append([])
        elif re.match(r"\s*([-*]|\d+\.) ", line):
            found.append([re.sub(r"^\s*([-*]|\d+\.) ", "", line)])
        else:
            found[-1].append(line.strip())
    return [" ".join(piece) for piece in found]


def links(page: str) -> list[str]:
    """Where a page links to."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))


def anchors(page: str) -> set[str]:
    """What can be linked to on a page, as GitHub makes it of headings."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_words(page: str) -> list[str]:
    """What stands between backquotes in the text of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"`\n?([^`]*)\n([^`]*)`", r"`\1 \2`", prose(page)))
