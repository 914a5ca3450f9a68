"""The steps of every pipeline schedule on one rank, generated from their papers' definitions.

Four schedules alternate: so many forwards to fill the pipeline, then a forward and a backward in turns, then the
backwards that are left. Two go through a V: every rank holds a stage of the way there and one of the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiles.errors import PlanError

Ints = NDArray[np.int64]
# F forward, B whole backward; or its two halves apart: I input gradients, W weight gradients.
Action = Literal["F", "B", "I", "W"]
ACTIONS: tuple[Action, ...] = ("F", "B", "I", "W")
F, B, I, W = range(4)  # noqa: E741
STAGES_OF_V = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One action of a stage on one micro-batch; `paired` where it may overlap with the step before (DualPipeV)."""

    action: Action
    stage: int
    microbatch: int
    paired: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """A pipeline without its times: what the lists of steps depend on. `virtual_stages` are the stages per rank."""

    schedule: str
    num_ranks: int
    virtual_stages: int
    num_microbatches: int

    @property
    def num_stages(self) -> int:
        """Stages of all ranks together."""
        return self.num_ranks * self.virtual_stages


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The steps of one rank as columns of equal length; `action` counts in ACTIONS."""

    action: Ints
    stage: Ints
    microbatch: Ints
    paired: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.action)

    def steps(self) -> tuple[Step, ...]:
        """The same as objects."""
        columns = (self.action, self.stage, self.microbatch, self.paired)
        return tuple(
            Step(ACTIONS[action], stage, microbatch, paired)
            for action, stage, microbatch, paired in zip(*(column.tolist() for column in columns), strict=True)
        )


def num_rounds(shape: Shape) -> int:
    """Rounds in which the micro-batches of a step go, where a rank has several stages in turns."""
    return max(1, shape.num_microbatches // shape.num_ranks)


def round_length(shape: Shape) -> int:
    """Micro-batches that a looped schedule takes through one chunk before it goes on to the next.

    Model: rounds of as many micro-batches as ranks where those divide; otherwise fewer, longer rounds of equal length.
    Raises: PlanError where there are no equal rounds.
    """
    rounds = num_rounds(shape)
    if shape.num_microbatches % rounds:
        raise PlanError(
            f"num_microbatches={shape.num_microbatches}: {shape.schedule} goes in {rounds} rounds of equal length"
        )
    return shape.num_microbatches // rounds


def gpipe(shape: Shape, rank: int) -> Order:
    """All forwards, then all backwards. Source: Huang et al., GPipe, 2019 (arXiv 1811.06965)."""
    return _alternating(shape, rank, warm_up=shape.num_microbatches, round_of=shape.num_microbatches)


def one_f_one_b(shape: Shape, rank: int) -> Order:
    """Forwards until the first gradient can arrive. Source: Narayanan et al., PipeDream-flush (arXiv 2006.09503)."""
    return _alternating(shape, rank, warm_up=shape.num_ranks - 1 - rank, round_of=shape.num_microbatches)


def interleaved(shape: Shape, rank: int) -> Order:
    """Several stages per rank, each for a round of micro-batches. Source: Narayanan et al., 2021 (arXiv 2104.04473)."""
    length = round_length(shape)
    warm_up = (shape.virtual_stages - 1) * length + 2 * (shape.num_ranks - 1 - rank)
    return _alternating(shape, rank, warm_up=warm_up, round_of=length)


def interleaved_zero_bubble(shape: Shape, rank: int) -> Order:
    """ZB-H1 over several stages: weight gradients lag by the rank and fill its bubble.

    Source: Qi et al., Zero Bubble Pipeline Parallelism, 2023 (arXiv 2401.10241, section 3).
    """
    length = round_length(shape)
    warm_up = (shape.virtual_stages - 1) * length + shape.num_ranks - 1 - rank
    return _alternating(shape, rank, warm_up=warm_up, round_of=length, weight_lag=rank)


def _alternating(shape: Shape, rank: int, *, warm_up: int, round_of: int, weight_lag: int = -1) -> Order:
    """Forwards alone to warm up; then turns of a forward, a backward, and weight gradients.

    Turn i holds forward number `warm_up + i`, backward i and, where that is split, weight gradients `i - weight_lag`,
    each as long as there are any. `round_of` micro-batches go through one chunk, then the next.
    """
    chunks, splits = shape.virtual_stages, weight_lag >= 0
    count = chunks * shape.num_microbatches
    number = np.arange(count)
    chunk = number // round_of % chunks
    microbatch = number // (round_of * chunks) * round_of + number % round_of
    forward = chunk * shape.num_ranks + rank
    backward = (chunks - 1 - chunk) * shape.num_ranks + rank
    turns = [number - min(warm_up, count), number, number + weight_lag]
    parts = 3 if splits else 2
    # Within a turn a forward comes first and weight gradients last.
    place = np.argsort(np.concatenate([turn * 3 + i for i, turn in enumerate(turns[:parts])]), kind="stable")
    action = np.repeat([F, I, W] if splits else [F, B], count)
    return Order(
        action=action[place],
        stage=np.concatenate([forward, backward, backward][:parts])[place],
        microbatch=np.tile(microbatch, parts)[place],
        paired=np.zeros(parts * count, dtype=bool),
    )


def zbv(shape: Shape, rank: int) -> Order:
    """ZB-V: no bubble where forward and both halves of backward take equally long.

    With few micro-batches it is the order of enough of them without those too many. Source: Qi et al., Zero Bubble
    Pipeline Parallelism, 2023 (arXiv 2401.10241, section 6).
    """
    after = shape.num_ranks - rank
    enough = max(2 * shape.num_ranks - 1, shape.num_microbatches)
    phases = (
        ("F0", 2 * after - 1),
        ("F1 F0", rank),
        ("F1 I1 W1", after),
        ("F0 I0 W0 F1 I1 W1", enough - shape.num_ranks - after + 1),
        ("I0 W0 F1 I1 W1", after - 1),
        ("I0 I1", rank),
        ("I0 W0", after),
        ("W1", rank),
        ("W0", rank),
    )
    return _phased(shape, rank, phases)


def dualpipev(shape: Shape, rank: int) -> Order:
    """DualPipe folded into a V: forward and backward in pairs that may overlap; halves of backward at the ends.

    Source: DeepSeek-V3, 2024 (arXiv 2412.19437), and its DualPipe repository. Raises: PlanError for few micro-batches.
    """
    if shape.num_microbatches < shape.num_stages:
        raise PlanError(f"num_microbatches={shape.num_microbatches}: dualpipev needs at least {shape.num_stages}")
    after, before = shape.num_ranks - rank - 1, rank + 1
    steady = shape.num_microbatches - 2 * shape.num_ranks + before
    # The last rank has nothing to wait for at the turn of the V, and overlaps nothing there.
    first = "F0 B1 F1+B0" if after == 0 else "F0+B1 F1+B0"
    last = ("B1 B0 " * before).split()[:before] + ("I1 I0 " * before).split()[before:]
    phases = (
        ("F0", 2 * after),
        ("F0 F1", before),
        ("I1 W F1", after),
        (first, 1),
        ("F0+B1 F1+B0", steady - 1),
        ("B1 F1+B0", after),
        (" ".join(last), 1),
        ("W I0", after),
        ("W", before),
    )
    return _phased(shape, rank, phases)


def _phased(shape: Shape, rank: int, phases: tuple[tuple[str, int], ...]) -> Order:
    """Phases that are each repeated, as words: an action with 0 for the way there and 1 for the way back.

    The n-th forward, backward or weight gradient of a stage is that of micro-batch n; W alone takes the oldest input
    gradients whose weights are missing; a + joins a pair.
    """
    words = [word for phase, times in phases for word in phase.split() * times]
    parts = [(part, place > 0) for word in words for place, part in enumerate(word.split("+"))]
    stages = (rank, shape.num_stages - 1 - rank)
    seen: dict[tuple[str, int], int] = {}
    waiting: list[tuple[int, int]] = []
    rows = []
    for name, paired in parts:
        action = ACTIONS.index(name[0])
        if name == "W":
            stage, microbatch = waiting.pop(0)
        else:
            stage = stages[int(name[1])]
            kind = "backward" if action in (B, I) else name[0]
            microbatch = seen.get((kind, stage), 0)
            seen[kind, stage] = microbatch + 1
        if action == I:
            waiting.append((stage, microbatch))
        if microbatch < shape.num_microbatches:
            rows.append((action, stage, microbatch, paired))
    columns = np.array(rows, dtype=np.int64).T
    return Order(action=columns[0], stage=columns[1], microbatch=columns[2], paired=columns[3].astype(bool))
