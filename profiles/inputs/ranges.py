"""Numbers in files with their ranges: types that the strict reader holds them to. Torch-free.

Bounds keep out what is no size, time or rate of this world, so that sums and products of them stay finite.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from profiles.inputs import limits

# Whole numbers that a float holds exactly.
Whole: TypeAlias = Annotated[int, Field(ge=0, le=2**53)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=2**53)]
Devices: TypeAlias = Annotated[int, Field(ge=1, le=limits.DEVICES)]
Samples: TypeAlias = Annotated[int, Field(ge=1, le=limits.SAMPLES)]
Tokens: TypeAlias = Annotated[int, Field(ge=1, le=limits.SEQUENCE)]
# What a transformer's sizes are raised to, in traces of micro-batch, sequence length and degree.
Exponent: TypeAlias = Annotated[int, Field(ge=-8, le=8)]
ZeroStage: TypeAlias = Annotated[int, Field(ge=0, le=3)]
# Seconds: 1e10 are 300 years. What was timed took more than a clock can tell.
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=1e10)]
Timed: TypeAlias = Annotated[float, Field(ge=1e-12, le=1e10)]
# Bytes, FLOPs, parameters, and points that were measured at.
Amount: TypeAlias = Annotated[float, Field(ge=0, le=1e30)]
# Sizes that were measured at, and memory.
Size: TypeAlias = Annotated[float, Field(ge=1, le=1e30)]
Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e30)]
# Bytes or FLOPs per second, fitted ones too, of which a term that hardly counts is very fast.
Rate: TypeAlias = Annotated[float, Field(ge=1, le=1e30)]
# GB/s of a device's network, and microseconds of a hop: at most a second.
Bandwidth: TypeAlias = Annotated[float, Field(ge=1e-6, le=1e6)]
Latency: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]
# Errors, spreads and slowdowns, in shares of what they are of: measured ones may be many times that.
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
# What may be below 0.
Finite: TypeAlias = Annotated[float, Field(ge=-1e30, le=1e30)]


def _none_or_rate(value: float) -> float:
    if 0 < value < 1:
        raise ValueError("a rate should be 0 or at least 1")
    return value


# A rate, or 0 where it does not apply.
OptionalRate: TypeAlias = Annotated[float, Field(ge=0, le=1e30), AfterValidator(_none_or_rate)]

# Sizes of a model.
Layers: TypeAlias = Annotated[int, Field(ge=1, le=limits.LAYERS)]
Hidden: TypeAlias = Annotated[int, Field(ge=1, le=limits.HIDDEN)]
Ffn: TypeAlias = Annotated[int, Field(ge=1, le=limits.FFN)]
Heads: TypeAlias = Annotated[int, Field(ge=1, le=limits.HEADS)]
Vocabulary: TypeAlias = Annotated[int, Field(ge=1, le=limits.VOCABULARY)]
Experts: TypeAlias = Annotated[int, Field(ge=1, le=limits.EXPERTS)]
Positions: TypeAlias = Annotated[int, Field(ge=1, le=limits.POSITIONS)]
Pixels: TypeAlias = Annotated[int, Field(ge=1, le=limits.PIXELS)]
Channels: TypeAlias = Annotated[int, Field(ge=1, le=limits.CHANNELS)]
