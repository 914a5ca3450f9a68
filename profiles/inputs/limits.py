"""How large a number from outside may be: beyond all that there ever was, and within what can be computed.

One place for files, tables and command lines. Torch-free.
"""

from __future__ import annotations

import math

from profiles.errors import InputError
from profiles.inputs.foreign import shown

# Devices of one job: five times the largest clusters there are, and searched within a minute or two.
DEVICES = 2**20
# Tokens of a sample: the longest context that is sold, of ten million, rounded up.
SEQUENCE = 2**24
# Samples of a step: the largest published batches have 65,536; 64 for each of as many devices as there may be.
SAMPLES = 2**26
# Global batches, or micro-batches, that are compared in one call.
COMPARED = 64
# Tokens of a training: 10,000 times the longest published ones, of some 4e13 to 1e14.
TOKENS = 1e18
# Dollars per device and hour.
PRICE = 1e6
# Days until a training must end: a hundred years.
DEADLINE_DAYS = 36_525
# Of a device's memory, what plans may leave free.
HEADROOM = 0.9

# Sizes of a model, each ten times or more the largest published.
LAYERS = 5_000
HIDDEN = 1_000_000
FFN = 10_000_000
HEADS = 100_000
VOCABULARY = 100_000_000
EXPERTS = 100_000
POSITIONS = 2**30
PIXELS = 2**16
CHANNELS = 1024

# Of a number, beyond all that are meant.
MOST_DIGITS = 30


def is_whole(text: str) -> bool:
    """Whether a text is a whole number of at least 0, of no more digits than any has that is meant."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def check(name: str, value: float | None, least: float, most: float) -> None:
    """Check that a number that was given as `name` lies in its range; None is none, and fine.

    Raises: InputError that names both and the rule.
    """
    if value is None or least <= value <= most:
        return
    if math.isnan(value):
        rule = f"must be a number from {_plain(least)} to {_plain(most)}"
    else:
        rule = f"must be at least {_plain(least)}" if value < least else f"must be at most {_plain(most)}"
    given = f"{value:g}" if isinstance(value, float) else shown(value)
    raise InputError(f"{name} {given}: {rule}")


def _plain(value: float) -> str:
    return f"{int(value):,}" if value == int(value) < 1e15 else f"{value:g}"
