"""What a training step's seconds consist of: one record per part, from which tables, bands and figures derive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One source of seconds: its `name` in files, its `title` for readers.

    `spread` is the standard deviation (of the logarithm) of what it is predicted to take; parts err apart from each
    other.
    """

    name: str
    title: str
    spread: float


# They add up to the step.
PARTS = tuple(
    Part(name=name, title=title, spread=spread)
    for name, title, spread in (
        ("compute", "compute", 0.06),
        ("recompute", "recomputation", 0.08),
        ("bubble", "pipeline bubble", 0.12),
        ("tensor_comm", "tensor-parallel communication", 0.2),
        ("context_comm", "context-parallel communication", 0.3),
        ("expert_comm", "expert-parallel communication", 0.35),
        ("data_comm", "exposed gradient exchange", 0.35),
        ("pipeline_comm", "pipeline messages", 0.4),
        ("codec", "gradient codec", 0.5),
        ("offload", "offloading", 0.4),
        ("optimizer", "optimizer", 0.25),
        ("host", "host launches", 0.25),
        ("stragglers", "stragglers", 0.8),
    )
)
PART_NAMES = tuple(part.name for part in PARTS)
PART_TITLES = {part.name: part.title for part in PARTS}
PART_SPREADS = {part.name: part.spread for part in PARTS}

# The parts that runs on a measured machine may correct, and by how much at the most: what is off by more is no cost
# that was measured a little wrong, but a law that does not hold.
CorrectedPart = Literal[
    "compute", "optimizer", "codec", "host", "tensor_comm", "data_comm", "pipeline_comm", "context_comm", "expert_comm"
]
LOWEST_MULTIPLE, HIGHEST_MULTIPLE = 0.5, 2.0
Multiples: TypeAlias = dict[CorrectedPart, Annotated[float, Field(ge=LOWEST_MULTIPLE, le=HIGHEST_MULTIPLE)]]
