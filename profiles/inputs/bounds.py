"""Bounds of numbers on the command lines of all four commands, and lists of numbers in one option. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

import typer

from profiles.errors import InputError
from profiles.inputs import limits

Check = Callable[[typer.CallbackParam, float | None], float | None]


def between(least: float, most: float) -> Check:
    """What an option calls with its value: it refuses what lies outside a range, and what is no number."""

    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        limits.check(param.opts[-1], value, least, most)
        return value

    return check


def whole_numbers(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    """The numbers of a list with commas, ascending and each once.

    Raises: InputError where one is none, or outside the range, or there are too many.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(limits.is_whole(word) for word in words):
        raise InputError(f"{option} {text}: give whole numbers with commas between, such as 1,2,4")
    numbers = sorted({int(word) for word in words})
    for number in numbers:
        limits.check(option, number, least, most)
    if len(numbers) > limits.COMPARED:
        raise InputError(f"{option}: {len(numbers)} numbers are given, at most {limits.COMPARED} can be")
    return tuple(numbers)


# What each option may be; a bound without a reason beside it is one of profiles/inputs/limits.
DEVICES = between(1, limits.DEVICES)
SEQUENCE = between(1, limits.SEQUENCE)
RANK = between(0, limits.DEVICES - 1)
# Processes of one host.
RANKS = between(1, 1024)
# Layouts of a table, or plans of a file: whoever wants more wants `--all`.
SHOWN = between(1, 1000)
# Dollars per device and hour.
PRICE = between(0, limits.PRICE)
# Hours of one device between failures: from one every few seconds to one in 100,000 years.
FAILURE_HOURS = between(1e-3, 1e9)
# Seconds that a checkpoint takes: from a millisecond to eleven days.
CHECKPOINT_SECONDS = between(1e-3, 1e6)
# Steps of a run; its file lists them all.
STEPS = between(1, 1_000_000)
STEPS_OR_NONE = between(0, 1_000_000)
# What generators of random numbers take as seeds, with steps counted on top.
SEED = between(0, 2**32 - 1)
RESTARTS = between(0, 1000)
# Seconds: up to a week.
TIMEOUT = between(1, 604_800)
# A fraction: up to a thousand times.
TOLERANCE = between(0, 1000)
