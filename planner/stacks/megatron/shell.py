"""What commands a shell script would run, and with which words, as far as the script says it. Nothing is executed."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field

from planner.stacks.megatron.shell_values import Text, Values
from planner.stacks.megatron.shell_words import Cutter, Token
from planner.stacks.secrets import without_secrets
from profiles.errors import InputError

ASSIGNED = re.compile(r"([A-Za-z_]\w*(?:\[\w+\])?)(\+?)=(.*)", re.DOTALL)
DECLARING = ("export", "declare", "local", "readonly", "typeset")
ENDS = ("\n", ";", "&", "|", "&&", "||", ";;", "(", ")")
NUMBERS = {"-eq": "==", "-ne": "!=", "-lt": "<", "-le": "<=", "-gt": ">", "-ge": ">="}
# Commands that start nothing.
QUIET = (":", "echo", "printf", "mkdir", "cd", "source", ".", "set", "exit", "return", "true", "shift", "break")


@dataclass(slots=True)
class _Frame:
    """A compound command that is open: whether its present part runs, and whether an earlier one did.

    None: nothing here knows, and it is skipped.
    """

    kind: str
    outer: bool
    runs: bool | None = None
    done: bool = False
    subject: Text | None = None


@dataclass(slots=True)
class Script:
    """A script as it was read: its variables, its commands in order, and what was skipped, with the line."""

    values: Values
    commands: list[list[Text]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_script(where: str, text: str, usual: dict[str, str] | None = None) -> Script:
    """The script's commands; `usual` are variables that whoever starts it sets.

    Raises: InputError for quotes that are not closed, and values that grow beyond measure.
    """
    reader = _Reader(where)
    for name, value in (usual or {}).items():
        reader.script.values.set(name, Text(value, (0,) * len(value)))
    try:
        reader.run(list(Cutter(where, text).tokens()))
    except RecursionError:
        raise InputError(f"{where}: brackets are nested too deep to be read") from None
    return reader.script


class _Reader:
    def __init__(self, where: str) -> None:
        self.script = Script(Values(where))
        self.frames: list[_Frame] = []
        # What the last command came to, as far as it is known.
        self.last: bool | None = True

    @property
    def active(self) -> bool:
        """Whether what stands here is run."""
        return all(frame.runs is True for frame in self.frames)

    def run(self, tokens: list[Token]) -> None:
        """Read commands in order."""
        held: list[Token] = []
        link = ""
        for token in (*tokens, Token(kind="operator", text="\n", line=0)):
            if token.kind != "operator" or token.text not in ENDS:
                held.append(token)
                continue
            if token.text == ")" and self._is_pattern(held):
                self._match(held)
            elif token.text == "(" and len(held) == 1:
                # A function's name.
                continue
            elif held:
                self._command(held, link)
            if token.text == ";;" and self.frames and self.frames[-1].kind == "case":
                self.frames[-1].runs = False
            link = token.text if token.text in ("&&", "||") else ""
            held = []

    def _is_pattern(self, held: list[Token]) -> bool:
        return bool(held and self.frames and self.frames[-1].kind == "case" and held[0].kind == "word")

    def _match(self, held: list[Token]) -> None:
        frame = self.frames[-1]
        known = frame.subject is not None and not frame.subject.is_open
        patterns = [self.script.values.joined(token.text, token.line).text for token in held]
        subject = frame.subject.text if frame.subject else ""
        matches = known and any(fnmatch.fnmatchcase(subject, pattern) for pattern in patterns)
        frame.runs = matches and not frame.done if known else None
        frame.done |= bool(matches)

    def _command(self, held: list[Token], link: str) -> None:
        """One command, with the word that opens or closes a compound one in front."""
        while held and held[0].kind == "word" and self._compound(held):
            held = held[1:]
        if not held or (self.frames and self.frames[-1].kind == "loop-head"):
            return
        if not self.active:
            self._note(held)
            return
        if (link == "&&" and self.last is not True) or (link == "||" and self.last is not False):
            if self.last is None:
                self._note(held, unknown=True)
            return
        self.last = self._simple(held)

    def _compound(self, held: list[Token]) -> bool:
        """Open or close a compound command; whether the first word did."""
        word, frames = held[0].text, self.frames
        if word in ("if", "while", "until", "for", "select"):
            frames.append(_Frame("if" if word == "if" else "loop-head", self.active, True))
            self.last = True
        elif word in ("then", "elif", "else", "fi") and frames and frames[-1].kind == "if":
            self._branch(word, frames[-1])
        elif word == "do" and frames and frames[-1].kind == "loop-head":
            # How often it runs is not worked out.
            frames[-1].kind, frames[-1].runs = "loop", None
        elif word == "done" and frames and frames[-1].kind == "loop":
            frames.pop()
        elif word == "case" and len(held) > 1:
            subject = self.script.values.joined(held[1].text, held[1].line)
            frames.append(_Frame("case", self.active, False, subject=subject))
            del held[1:]
        elif word == "esac" and frames and frames[-1].kind == "case":
            frames.pop()
        elif word not in ("{", "}", "!", "time", "function"):
            return False
        return True

    def _branch(self, word: str, frame: _Frame) -> None:
        if word == "then":
            frame.runs = self.last
            frame.done |= self.last is True
            if frame.done and self.last is not True:
                frame.runs = False
        elif word == "fi":
            self.frames.pop()
            self.last = True
        elif word == "else":
            frame.runs = False if frame.done else None if frame.runs is None else True
        else:
            # The condition of an elif is looked at where no earlier one held.
            frame.runs = not frame.done and frame.runs is not None
            self.last = frame.runs if frame.runs else False

    def _note(self, held: list[Token], *, unknown: bool = False) -> None:
        """Say what is skipped because nothing here knows whether it runs, where it could matter."""
        doubtful = unknown or any(frame.runs is None for frame in self.frames)
        written = " ".join(token.text + "(...)" * (token.kind == "array") for token in held)
        if doubtful and held[0].text not in QUIET and ("--" in written or ASSIGNED.match(written)):
            command = without_secrets(" ".join(written.split()))[:200]
            self.script.skipped.append(f"line {held[0].line}: {command} (runs on a condition)")

    def _simple(self, held: list[Token]) -> bool | None:
        """A command without parts; whether it succeeds, as far as that is known."""
        values = self.script.values
        if held[0].text in ("[", "[[", "test") or held[0].text.startswith("(("):
            return self._test(held)
        if held[0].text in DECLARING:
            held = [token for token in held[1:] if token.kind == "array" or not token.text.startswith("-")]
        while held:
            token = held[0]
            found = ASSIGNED.fullmatch(token.text)
            if token.kind == "array":
                items = [word for item in token.items if item.kind == "word" for word in values.words(item)]
                values.set(token.text.rstrip("=").rstrip("+"), items, more=token.text.endswith("+="))
            elif found:
                name, more, value = found.groups()
                values.set(name, values.joined(value, token.line), more=bool(more))
            else:
                break
            held = held[1:]
        words = [word for token in held if token.kind == "word" for word in values.words(token)]
        if words and words[0].text not in QUIET:
            self.script.commands.append(words)
        return words[0].text != "false" if words and not words[0].is_open else True

    def _test(self, held: list[Token]) -> bool | None:
        values = self.script.values
        if held[0].text.startswith("(("):
            number = values.number(" ".join(token.text for token in held).strip("()"))
            return None if number is None else bool(number)
        words = [values.joined(token.text, token.line) for token in held[1:] if token.text not in ("]", "]]")]
        negated = False
        while words and words[0].text == "!":
            words, negated = words[1:], not negated
        result = self._compared(words)
        return result if result is None else result != negated

    def _compared(self, words: list[Text]) -> bool | None:
        """What a test of one, two or three words says; None for files, and for what is not known."""
        texts = [word.text for word in words]
        is_empty = [not word.text or word.is_open for word in words]
        if len(words) == 1:
            return not is_empty[0]
        if len(words) == 2 and texts[0] in ("-n", "-z"):
            # A variable that nothing sets is empty.
            return is_empty[1] == (texts[0] == "-z")
        if len(words) != 3 or any(word.is_open for word in words):
            return None
        left, sign, right = texts
        if sign in ("=", "==", "!="):
            return fnmatch.fnmatchcase(left, right) == (sign != "!=")
        if sign in NUMBERS:
            number = self.script.values.number(f"{left} {NUMBERS[sign]} {right}")
            return None if number is None else bool(number)
        return None
