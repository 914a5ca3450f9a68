"""Words of a shell script with variables put in, as far as the script itself says them. Nothing is executed."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from planner.stacks.megatron.shell_words import CLOSING, Token, closing
from profiles.errors import InputError

PARAMETER = re.compile(r"(#?)([A-Za-z_]\w*|\d+|[@*#?$!-])(\[[@*\d]+\])?(.*)", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*|\d|[@*#?$!-]")
LONGEST_VALUE, LARGEST, DEEPEST = 200_000, 10**12, 20
SUMS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: lambda left, right: int(left / right), ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
TESTS: dict[type, Callable[[int, int], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    """A text, and the line of its every character; `is_open`: a part of it is not known, and shown as it is written."""

    text: str = ""
    lines: tuple[int, ...] = ()
    is_open: bool = False

    @property
    def line(self) -> int:
        """The line that it begins in."""
        return self.lines[0] if self.lines else 0

    def split(self) -> list[Text]:
        """Its words between spaces."""
        return [
            Text(found.group(0), self.lines[found.start() : found.end()], self.is_open and "$" in found.group(0))
            for found in re.finditer(r"\S+", self.text)
        ]


class _Words:
    """Builds words, some of whose parts are split at spaces."""

    def __init__(self) -> None:
        self.words: list[Text] = []
        self.parts: list[str] = []
        self.lines: list[int] = []
        self.is_open = self.is_there = False

    def add(self, text: str, lines: Iterable[int], *, is_open: bool = False) -> None:
        self.parts.append(text)
        self.lines.extend(lines)
        self.is_open |= is_open
        self.is_there = True

    def end(self) -> None:
        if self.is_there:
            self.words.append(Text("".join(self.parts), tuple(self.lines), self.is_open))
        self.parts, self.lines, self.is_open, self.is_there = [], [], False, False

    def add_split(self, value: Text) -> None:
        """Part of a word that is not quoted: it is split at spaces."""
        if value.text[:1].isspace():
            self.end()
        for number, piece in enumerate(value.split()):
            if number:
                self.end()
            self.add(piece.text, piece.lines, is_open=piece.is_open)
        if value.text[-1:].isspace():
            self.end()


class Values:
    """Variables by name: a text, or the words of an array."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.known: dict[str, Text | list[Text]] = {}

    def set(self, name: str, value: Text | list[Text], *, more: bool = False) -> None:
        """Assign, or append."""
        name = name.split("[")[0]
        before = self.known.get(name)
        if more and before is not None:
            if isinstance(before, Text) and isinstance(value, Text):
                is_open = before.is_open or value.is_open
                value = Text(before.text + value.text, before.lines + value.lines, is_open)
            else:
                value = [*_listed(before), *_listed(value)]
        if sum(len(one.text) for one in _listed(value)) > LONGEST_VALUE:
            line = _listed(value)[0].line
            raise InputError(f"{self.where}: line {line}: {name} grows beyond {LONGEST_VALUE} characters")
        self.known[name] = value

    def words(self, token: Token, depth: int = 0) -> list[Text]:
        """What a word becomes."""
        return self._expanded(token.text, token.line, depth)

    def joined(self, text: str, line: int, depth: int = 0) -> Text:
        """What a text becomes where it is not split, as in an assignment."""
        words = self._expanded(text, line, depth, whole=True)
        return words[0] if words else Text("", (line,))

    def _expanded(self, raw: str, line: int, depth: int, *, whole: bool = False) -> list[Text]:
        built = _Words()
        place, quoted = 0, False
        while place < len(raw):
            char = raw[place]
            if char == '"':
                quoted = not quoted
                built.add("", ())
            elif char == "'" and not quoted:
                end = raw.find("'", place + 1)
                inner = raw[place + 1 : end]
                built.add(inner, self._lines(inner, line))
                line, place = line + inner.count("\n"), end
            elif char == "\\":
                after = raw[place + 1 : place + 2]
                if after != "\n":
                    keeps = quoted and after not in '"\\$`'
                    built.add(char * keeps + after, [line] * (keeps + len(after)))
                line, place = line + (after == "\n"), place + 1
            elif char == "`":
                end = raw.find("`", place + 1)
                built.add(raw[place : end + 1], [line] * (end + 1 - place), is_open=True)
                place = end
            elif char == "$" and place + 1 < len(raw):
                end = self._substituted(built, raw, place, line, quoted=quoted or whole, depth=depth)
                line, place = line + raw.count("\n", place, end), end - 1
            else:
                built.add(char, [line])
                line += char == "\n"
            place += 1
        built.end()
        return built.words

    def _lines(self, text: str, line: int) -> list[int]:
        lines = []
        for char in text:
            lines.append(line)
            line += char == "\n"
        return lines

    def _substituted(self, built: _Words, raw: str, place: int, line: int, *, quoted: bool, depth: int) -> int:
        """Put in what stands behind a dollar; where it ends."""
        after = raw[place + 1]
        if after in CLOSING:
            end = closing(raw, place + 1) + 1
        else:
            found = NAME.match(raw, place + 1)
            end = found.end() if found else place + 1
        written = raw[place:end]
        value: Text | list[Text] | None = None
        if written.startswith("$((") and written.endswith("))"):
            value = self._sum(written[3:-2], line)
        elif after == "{" and depth < DEEPEST:
            value = self._parameter(written[2:-1], line, depth)
        elif after not in CLOSING and end > place + 1:
            value = self._first(written[1:])
        if value is None:
            built.add(written, [line] * len(written), is_open=end > place + 1)
        elif isinstance(value, list):
            for number, one in enumerate(value):
                if number:
                    built.end()
                if quoted:
                    built.add(one.text, one.lines, is_open=one.is_open)
                else:
                    built.add_split(one)
        elif quoted:
            built.add(value.text, value.lines, is_open=value.is_open)
        else:
            built.add_split(value)
        return max(end, place + 1)

    def _first(self, name: str) -> Text | None:
        value = self.known.get(name)
        if isinstance(value, list):
            return value[0] if value else Text()
        return value

    def _parameter(self, inner: str, line: int, depth: int) -> Text | list[Text] | None:
        """The value of ${...}: a variable, all of an array, or what holds where it is not set; None for other forms."""
        found = PARAMETER.fullmatch(inner)
        if found is None:
            return None
        length, name, index, rest = found.groups()
        value = self.known.get(name)
        if index in ("[@]", "[*]"):
            value = None if value is None else _listed(value)
        elif index:
            own, at = _listed(value) if value is not None else [], int(index[1:-1])
            value = own[at] if at < len(own) else None
        elif isinstance(value, list):
            value = value[0] if value else Text()
        if length:
            return None if value is None else _told(len(value if isinstance(value, list) else value.text), line)
        if not rest:
            return value
        return self._or_else(name, value, rest, line, depth)

    def _or_else(
        self, name: str, value: Text | list[Text] | None, rest: str, line: int, depth: int
    ) -> Text | list[Text] | None:
        form = rest[:2] if rest.startswith(":") else rest[:1]
        word = rest[len(form) :]
        is_set = bool(value) and (not form.startswith(":") or any(one.text for one in _listed(value or [])))
        if form in (":-", "-", ":=", "="):
            if is_set:
                return value
            usual = self.joined(word, line, depth + 1)
            if form.endswith("=") and not name.isdigit():
                self.set(name, usual)
            return usual
        if form in (":+", "+"):
            return self.joined(word, line, depth + 1) if is_set else Text("", ())
        return value if form in (":?", "?") else None

    def _sum(self, written: str, line: int) -> Text | None:
        """The value of arithmetic of whole numbers, None where something in it is not known."""
        result = self.number(written)
        return None if result is None else _told(result, line)

    def number(self, written: str) -> int | None:
        """What arithmetic of whole numbers and variables comes to."""
        known = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda found: self._digits(found.group(1)), written)
        try:
            return _computed(ast.parse(known.strip().replace("&&", " and ").replace("||", " or "), mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
            return None

    def _digits(self, name: str) -> str:
        value = self._first(name)
        text = value.text.strip() if value is not None else ""
        return text.lstrip("0") or "0" if re.fullmatch(r"\d+", text) else "?"


def _listed(value: Text | list[Text]) -> list[Text]:
    return value if isinstance(value, list) else [value]


def _told(number: int, line: int) -> Text:
    text = str(number)
    return Text(text, (line,) * len(text))


def _computed(node: ast.expr) -> int:
    """The value of an expression of whole numbers; ValueError for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        result = int(node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        result = -_computed(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in SUMS:
        result = SUMS[type(node.op)](_computed(node.left), _computed(node.right))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in TESTS:
        result = int(TESTS[type(node.ops[0])](_computed(node.left), _computed(node.comparators[0])))
    else:
        raise ValueError("not integer arithmetic")
    if abs(result) > LARGEST:
        raise ValueError("too large")
    return result
