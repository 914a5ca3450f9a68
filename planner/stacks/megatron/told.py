"""What a file says in Megatron's arguments: each with its place, contradictions refused, the rest sorted out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planner.stacks.megatron.neutral import UNPRICED, is_neutral, is_unpriced
from planner.stacks.megatron.words import LAYOUT, SAME, SOFTWARE, WORDS, Word
from planner.stacks.secrets import HIDDEN, is_secret
from profiles.errors import InputError

NOTHING_WORDS = ("none", "null", "")
ON_WORDS, OFF_WORDS = ("true", "1", "yes"), ("false", "0", "no")
# What follows from others, does nothing any more, or is the same whatever the layout.
FOLLOWING = (
    "world-size", "data-parallel-size", "use-mcore-models", "ckpt-format", "seq-length", "decoder-seq-length",
)  # fmt: skip
# Two of a group cannot be meant at once.
EXCLUSIVE = (
    ("bf16", "fp16"),
    ("fp8-format", "fp4-format"),
    ("group-query-attention", "multi-latent-attention"),
    ("use-megatron-fsdp", "use-torch-fsdp2"),
    ("use-torch-fsdp2", "use-distributed-optimizer"),
    ("num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank", "pipeline-model-parallel-layout"),
    ("decoder-first-pipeline-num-layers", "pipeline-model-parallel-layout"),
    ("decoder-last-pipeline-num-layers", "pipeline-model-parallel-layout"),
    ("swiglu", "squared-relu", "quick-geglu"),
    ("num-layers", "encoder-num-layers"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One setting as a file has it: the argument without dashes, its values, and where it stands.

    `is_open`: a value could not be worked out.
    """

    name: str
    values: tuple[str, ...]
    place: str
    is_open: bool = False

    @property
    def text(self) -> str:
        """The setting with its place, as a user is shown it."""
        values = (HIDDEN,) if self.values and is_secret(self.name) else self.values
        return f"{self.place}: --{' '.join((self.name, *values))}"


class Told:
    """Settings by name; what is asked for is of the kind that the table says.

    `accepted`: Megatron itself has taken them, and filled in what they imply.
    """

    def __init__(self, where: str, said: Sequence[Said], *, accepted: bool = False) -> None:
        self.where = where
        self.said: dict[str, Said] = {}
        self.unread: list[str] = []
        self.unpriced: list[str] = []
        for one in said:
            self._add(one)
        self.unpriced += [self.said[name].text for name in UNPRICED if self.is_on(name)]
        for group in () if accepted else EXCLUSIVE:
            self._exclude([self.said[name] for name in group if self.is_on(name)])

    def _add(self, one: Said) -> None:
        name = SAME.get(one.name, one.name)
        if name not in WORDS:
            if not is_neutral(name):
                (self.unpriced if is_unpriced(name) else self.unread).append(one.text)
            return
        if one.is_open:
            self.unread.append(f"{one.text} (not worked out)")
            return
        before = self.said.get(name)
        if before is not None and _spelled(before.values) != _spelled(one.values):
            raise InputError(f"{self.where}: {before.text} and {one.text} contradict each other: keep one")
        self.said[name] = one

    def _exclude(self, those: Sequence[Said]) -> None:
        if len(those) > 1:
            raise InputError(f"{self.where}: {those[0].text} and {those[1].text} cannot both hold: keep one")

    def refuse(self, why: str, *names: str) -> InputError:
        """The error that a setting cannot be, with the places of those that say so."""
        places = "; ".join(self.said[name].text for name in names if name in self.said)
        return InputError(f"{self.where}: {f'{places}: ' if places else ''}{why}")

    def is_on(self, name: str) -> bool:
        """Whether a setting is there and not switched off."""
        one = self.said.get(name)
        if one is None:
            return False
        value = " ".join(one.values).lower()
        if WORDS[name].kind == "switch":
            return not value or value in ON_WORDS
        return value not in (*NOTHING_WORDS, "false")

    @property
    def chosen(self) -> dict[str, str]:
        """What is said of layout and software and is not as usual, by argument; of a switch that is on nothing more."""
        result = {}
        for word in (*LAYOUT, *SOFTWARE):
            if word.name in self.said and self.is_on(word.name) and word.name not in FOLLOWING:
                text = "" if word.kind == "switch" else " ".join(self.said[word.name].values)
                if text.lower() != str(word.usual).lower():
                    result[f"--{word.name}"] = text
        return result

    def word(self, name: str) -> str | None:
        """A setting's words as one text; what is usual where it is not there."""
        if self.is_on(name):
            return " ".join(self.said[name].values)
        usual = WORDS[name].usual
        return None if usual is None else str(usual)

    def words(self, name: str) -> tuple[str, ...]:
        """A setting's words, which may stand in brackets as Python writes lists."""
        text = " ".join(self.said[name].values) if self.is_on(name) else ""
        return tuple(text.replace("[", " ").replace("]", " ").replace(",", " ").replace("'", " ").split())

    def number(self, name: str) -> float | None:
        """A setting as a number; what is usual where it is not there.

        Raises: InputError for what is none.
        """
        text = self.word(name)
        if text is None:
            return None
        try:
            value = float(text.replace("_", ""))
        except ValueError:
            raise self.refuse(f"{name} should be a number", name) from None
        if not math.isfinite(value):
            raise self.refuse(f"{name} should be a number", name)
        return value

    def whole(self, name: str) -> int | None:
        """A setting as a whole number of at least 0; what is usual where it is not there.

        Raises: InputError for what is none.
        """
        value = self.number(name)
        if value is None:
            return None
        if not math.isfinite(value) or value != int(value) or value < 0:
            raise self.refuse(f"{name} should be a whole number", name)
        return int(value)

    def size(self, name: str) -> int | None:
        """A whole number of at least 1, None for 0 and for what is neither there nor usual."""
        return self.whole(name) or None


def _spelled(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value.lower() for value in values)


def of_words(words: Sequence[tuple[str, str, bool]]) -> tuple[list[Said], list[str]]:
    """Settings of a command line, whose words have places and may be open; and words that belong to none."""
    found: list[Said] = []
    lost: list[str] = []
    for text, place, is_open in words:
        if text.startswith("--") and len(text) > 2:
            name, equals, value = text[2:].partition("=")
            found.append(Said(name=name, values=(value,) if equals else (), place=place, is_open=is_open))
        elif not found or (is_open and found[-1].values and not _takes_more(found[-1].name)):
            lost.append(f"{place}: {text}")
        else:
            last = found[-1]
            found[-1] = Said(
                name=last.name, values=(*last.values, text), place=last.place, is_open=last.is_open or is_open
            )
    return [_settled(one, lost) for one in found], lost


def _takes_more(name: str) -> bool:
    word = WORDS.get(SAME.get(name, name))
    return word is None or word.kind == "list"


def _settled(one: Said, lost: list[str]) -> Said:
    """The setting without what stands behind a switch and is open, as ${EXTRA_ARGS} may be."""
    word: Word | None = WORDS.get(SAME.get(one.name, one.name))
    if word is not None and word.kind == "switch" and one.values and one.is_open:
        lost.append(f"{one.place}: {' '.join(one.values)}")
        return Said(name=one.name, values=(), place=one.place)
    return one
