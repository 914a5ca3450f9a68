"""How fast one inference runtime answers, as the compression file keeps it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Count, Finite, Fraction, Seconds, Share, Timed


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeLatency:
    """Median seconds of one forward pass of one sample, and the interquartile range of its repeats over that.

    Of TensorRT they are those of the device alone, `with_copies_seconds` those with what is sent there and back, and
    `slowest` the layers that take longest. `loss` and `right_fraction` are on held-out samples, where it was judged.
    """

    __pydantic_config__ = STRICT

    runtime: str
    version: str = ""
    precision: str = "fp32"
    latency_seconds: Timed
    spread_fraction: Fraction
    num_timed: Count
    with_copies_seconds: Seconds | None = None
    slowest: tuple[tuple[str, Seconds], ...] = ()
    loss: Finite | None = None
    right_fraction: Share | None = None
