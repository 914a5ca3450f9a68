"""One table of words per stack: which setting says what, for writing and reading alike.

What is said is a `fact`: mostly a field of Plan, else what the stack has in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from planner.stacks.said import AUTO, Settings

NOTHING: Mapping[Any, Any] = MappingProxyType({})
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A setting and the fact that it states.

    `words`: the setting's values by those of the fact; empty where both are the same. `also`: what else the setting may
    be, by the fact's value for it, in reading alone. `kind`: what the value has to be, where it is written as it is.
    A whole number is `least` or more. `is_old`: read where it is found, and never written.
    """

    key: str
    fact: str
    words: Mapping[Any, Any] = field(default_factory=lambda: NOTHING)
    also: Mapping[Any, Any] = field(default_factory=lambda: NOTHING)
    kind: type = object
    least: int = 1
    is_old: bool = False


def flag(key: str, fact: str, value: Any = True, *, is_old: bool = False) -> Word:
    """A setting that is true where the fact has a value, and false or missing where it does not."""
    return Word(key=key, fact=fact, words={value: True}, also={False: None}, is_old=is_old)


def number(key: str, fact: str, least: int = 1, *, is_old: bool = False) -> Word:
    """A setting that is a whole number, the fact's own."""
    return Word(key=key, fact=fact, kind=int, least=least, is_old=is_old)


def written(table: Sequence[Word], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that state the facts, by key; facts that are None, or have no word for their value, have none."""
    result: dict[str, Any] = {}
    for word in table:
        value = facts.get(word.fact)
        if word.is_old or value is None or (word.words and value not in word.words):
            continue
        result[word.key] = word.words[value] if word.words else value
    return result


def read_facts(table: Sequence[Word], settings: Settings, assumed: list[str]) -> Facts:
    """What the settings state, by fact; what is left to other files (`auto`) is noted.

    Raises: InputError where two of them contradict, or a value is none that the setting can have.
    """
    facts: Facts = {}
    stated: dict[str, str] = {}
    for word in table:
        found = settings.find(word.key)
        if found is None or found.value is None:
            continue
        if found.value == AUTO:
            assumed.append(f"{found}: said elsewhere")
            continue
        value = _meant(word, settings, found.value)
        if value is None:
            continue
        if facts.get(word.fact, value) != value:
            raise settings.contradiction((stated[word.fact], word.key), "they contradict each other: leave one out")
        facts[word.fact] = value
        stated[word.fact] = word.key
    return facts


def _meant(word: Word, settings: Settings, value: Any) -> Any:
    if not word.words and not word.also:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        is_wrong_number = word.kind is int and not (is_number and value >= word.least)
        if is_wrong_number or not isinstance(value, word.kind):
            raise settings.contradiction(
                (word.key,), f"no {f'whole number from {word.least}' if word.kind is int else 'such value'}"
            )
        return value
    key = value.lower() if isinstance(value, str) else value
    for meant, spelled in word.words.items():
        if key == (spelled.lower() if isinstance(spelled, str) else spelled) and type(value) is type(spelled):
            return meant
    for spelled, meant in word.also.items():
        if key == (spelled.lower() if isinstance(spelled, str) else spelled):
            return meant
    known = ", ".join(str(one) for one in dict.fromkeys((*word.words.values(), *word.also)))
    raise settings.contradiction((word.key,), f"it may be {known}")
