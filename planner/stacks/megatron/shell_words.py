"""Shell scripts cut into words, with the line of every character. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from profiles.errors import InputError

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(?:\[\w+\])?\+?=$")
OPERATORS = ("&&", "||", ";;", ";", "&", "|", "\n", "(", ")")
HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
CLOSING = {"(": ")", "{": "}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A word as it is written, quotes and all; an operator; or an assignment of an array, with its words."""

    kind: str
    text: str
    line: int
    items: tuple[Token, ...] = ()


class Cutter:
    """Cuts a script into tokens."""

    def __init__(self, where: str, text: str) -> None:
        self.where, self.text = where, text
        self.place, self.line = 0, 1
        self.waiting: list[str] = []

    def tokens(self, until: str = "") -> Iterator[Token]:
        """The tokens up to a closing bracket, which is eaten, or the end."""
        while self.place < len(self.text):
            char = self.text[self.place]
            if until and char == until:
                self.place += 1
                return
            if char == "\\" and self.text[self.place + 1 : self.place + 2] == "\n":
                self._go(2)
            elif char == "\n":
                yield Token(kind="operator", text="\n", line=self.line)
                self._go(1)
                self._skip_documents()
            elif char in " \t\r":
                self._go(1)
            elif char == "#":
                end = self.text.find("\n", self.place)
                self.place = end if end >= 0 else len(self.text)
            elif not self._redirection():
                yield self._token()

    def _go(self, count: int) -> None:
        self.line += self.text.count("\n", self.place, self.place + count)
        self.place += count

    def _redirection(self) -> bool:
        """Skip what sends a command's output elsewhere, or feeds it a document."""
        document = HEREDOC.match(self.text, self.place)
        if document and not self.text.startswith("<<<", self.place):
            self.waiting.append(document.group(2))
            self._go(len(document.group(0)))
            return True
        found = re.compile(r"\d*(?:>>|>&|>\||&>>|&>|>|<<<|<)[ \t]*").match(self.text, self.place)
        if not found:
            return False
        self._go(len(found.group(0)))
        if self.place < len(self.text) and self.text[self.place] not in "\n;&|":
            self._word()
        return True

    def _skip_documents(self) -> None:
        for name in self.waiting:
            end = re.compile(rf"^\s*{re.escape(name)}\s*$", re.MULTILINE).search(self.text, self.place)
            self._go((end.end() if end else len(self.text)) - self.place)
        self.waiting = []

    def _token(self) -> Token:
        line = self.line
        for operator in OPERATORS:
            if self.text.startswith(operator, self.place):
                self._go(len(operator))
                return Token(kind="operator", text=operator, line=line)
        text = self._word()
        if ASSIGNMENT.match(text) and self.text.startswith("(", self.place):
            self._go(1)
            return Token(kind="array", text=text, line=line, items=tuple(self.tokens(until=")")))
        return Token(kind="word", text=text, line=line)

    def _word(self) -> str:
        start = self.place
        while self.place < len(self.text):
            char = self.text[self.place]
            if char in " \t\r\n;&|()<>":
                break
            self._piece(char)
        if self.place == start:
            # An operator that nothing here knows.
            self._go(1)
        return self.text[start : self.place]

    def _piece(self, char: str) -> None:
        """Step over one character, or over what is quoted or substituted."""
        if char == "\\":
            self._go(2)
        elif char == "'":
            self._go(self._end_of("'", self.place + 1) + 1 - self.place)
        elif char == '"':
            self._go(self._end_of_quoted(self.place + 1) + 1 - self.place)
        elif char == "`":
            self._go(self._end_of("`", self.place + 1) + 1 - self.place)
        elif char == "$" and self.text[self.place + 1 : self.place + 2] in CLOSING:
            self._go(closing(self.text, self.place + 1, self._broken) + 1 - self.place)
        else:
            self._go(1)

    def _end_of(self, char: str, start: int) -> int:
        end = self.text.find(char, start)
        if end < 0:
            raise self._broken()
        return end

    def _end_of_quoted(self, start: int) -> int:
        place = start
        while place < len(self.text):
            char = self.text[place]
            if char == '"':
                return place
            if char == "\\":
                place += 2
            elif char == "$" and self.text[place + 1 : place + 2] in CLOSING:
                place = closing(self.text, place + 1, self._broken) + 1
            else:
                place += 1
        raise self._broken()

    def _broken(self) -> InputError:
        return InputError(f"{self.where}: line {self.line}: a quote or bracket opened here is not closed")


def closing(text: str, start: int, broken: object = None) -> int:
    """Where the bracket at `start` is closed, of its own kind."""
    opens, closes = text[start], CLOSING[text[start]]
    depth, place = 0, start
    while place < len(text):
        char = text[place]
        if char == "\\":
            place += 1
        elif char == "'" and opens == "(":
            place = max(text.find("'", place + 1), place)
        elif char == opens:
            depth += 1
        elif char == closes:
            depth -= 1
            if depth == 0:
                return place
        place += 1
    if callable(broken):
        raise broken()
    return len(text) - 1
