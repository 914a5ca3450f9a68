"""What a pipeline schedule asks for: how many stages each rank has, and which numbers of micro-batches it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.schedules.steps import STAGES_OF_V, Shape, num_rounds
from profiles.models.transformer import Array, Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """How many stages of the model a rank has: from `least` to `most`, which is 0 where there is no end to it.

    `is_v` where they go there and back over the ranks, and are not dealt out in turns. `words` follow "has".
    """

    words: str
    least: int
    most: int
    is_v: bool = False

    def allows(self, number: int) -> bool:
        """Whether each rank may have `number` stages."""
        return self.least <= number and (number <= self.most or not self.most)


ONE_STAGE = Stages(words="one stage per rank", least=1, most=1)
ANY_STAGES = Stages(words="one stage per rank or several", least=1, most=0)
SEVERAL_STAGES = Stages(words="several stages per rank", least=2, most=0)
STAGES_THROUGH_V = Stages(words="two stages per rank", least=STAGES_OF_V, most=STAGES_OF_V, is_v=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Which numbers of micro-batches a schedule takes.

    `allow` tells it of ranks, stages per rank and micro-batches, which broadcast. `others` are the ones it does not
    take, in the words of a search's tally, and `rule` what one plan is told, after the schedule's name. `in_rounds`
    where they go through one stage of a rank in rounds of equal length, before the next stage has them.
    """

    allow: Callable[[Array, Array, Array], Flags]
    others: str = ""
    rule: Callable[[Shape], str] = lambda shape: ""
    in_rounds: bool = False

    def allows(self, shape: Shape) -> bool:
        """Whether a pipeline of this shape can be."""
        sizes = (shape.num_ranks, shape.virtual_stages, shape.num_microbatches)
        return bool(self.allow(*(np.asarray(float(size)) for size in sizes)))


def _one_per_stage(pipeline: Array, chunks: Array, count: Array) -> Flags:
    return np.asarray(count >= pipeline * chunks)


def _whole_rounds(pipeline: Array, chunks: Array, count: Array) -> Flags:
    return np.asarray(count % np.maximum(count // pipeline, 1) == 0)


ANY_COUNT = Counts(allow=lambda pipeline, chunks, count: np.ones(np.shape(count), dtype=bool))
ONE_PER_STAGE = Counts(
    allow=_one_per_stage,
    others="fewer micro-batches than pipeline stages",
    rule=lambda shape: f"needs at least one per stage, {shape.num_stages}",
)
WHOLE_ROUNDS = Counts(
    allow=_whole_rounds,
    others="micro-batches that do not fill whole rounds of an interleaved schedule",
    rule=lambda shape: f"goes in {num_rounds(shape)} rounds of equal length, use a multiple",
    in_rounds=True,
)
