"""Replicas on two kinds of devices: each stands on one kind, and the faster ones may take more micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.factors import Learned
from planner.cost.ingredients import ingredients_of
from planner.cost.memory.footprint import Footprint, footprint
from planner.mixed.mixture import Mixture, Rows
from planner.published.learn import predict, total_seconds
from planner.space.question import Setting
from profiles.models.transformer import Array, Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Plans whose replicas share the batch. Shapes: all (plan,), but for `parts` and `memory` by pool.

    `counts` are the micro-batches of a replica on the first and on the second pool.
    """

    asked: Mixture
    rows: Rows
    counts: tuple[Array, Array]
    parts: tuple[dict[str, Array], dict[str, Array]]
    memory: tuple[Footprint, Footprint]
    fits: Flags

    @property
    def step_seconds(self) -> Array:
        """Seconds of a step: the slower pool's."""
        first, second = (total_seconds(own) for own in self.parts)
        return np.maximum(first, second)

    @property
    def is_even(self) -> Flags:
        """Whether all replicas take equally many micro-batches, as the executor does."""
        return np.asarray(self.counts[0] == self.counts[1])


def share(asked: Mixture, rows: Rows, learned: Learned) -> Shared:
    """All plans of `rows` twice: micro-batches shared out evenly, and so that both pools are done at the same time.

    Model: a pool's step grows by the same for every micro-batch. Gradients go at the pace of the slowest network.
    """
    settings = tuple(_joined(asked, part.at) for part in asked.parts)
    replicas = tuple(rows.layouts.data * part.num_devices / asked.num_devices for part in asked.parts)
    data = rows.layouts.data.astype(float)
    even = np.floor(rows.count / data)
    is_whole = even * data == rows.count
    least = rows.layouts.pipeline.astype(float)
    lines = [_line(rows, at, least, learned) for at in settings]
    best = balanced(rows.count, replicas, least, lines)
    both = np.concatenate([np.arange(len(rows)), np.arange(len(rows))])
    firsts = np.concatenate([even, best[0]])
    seconds = np.concatenate([even, best[1]])
    # Where the balanced way is the even way, it is there already.
    usable = np.concatenate([is_whole, np.isfinite(best[0]) & ((best[0] != best[1]) | ~is_whole)])
    chosen = np.flatnonzero(usable)
    own, counts = rows.take(both[chosen]), (firsts[chosen], seconds[chosen])
    jobs = [own.jobs(at, count) for at, count in zip(settings, counts, strict=True)]
    memory = (footprint(jobs[0]), footprint(jobs[1]))
    fits = [held.device_bytes <= at.memory_bytes for held, at in zip(memory, settings, strict=True)]
    first, second = (predict(ingredients_of(each), learned) for each in jobs)
    return Shared(
        asked=asked, rows=own, counts=counts, parts=(first, second), memory=memory, fits=np.asarray(fits[0] & fits[1])
    )


def _joined(asked: Mixture, at: Setting) -> Setting:
    """A pool's setting with the network that its replicas and the other pool's have in common."""
    slowest = min(asked.between_bytes_per_second, *(part.at.network_bytes_per_second for part in asked.parts))
    return replace(at, network_bytes_per_second=slowest)


def _line(rows: Rows, at: Setting, least: Array, learned: Learned) -> tuple[Array, Array]:
    """Seconds of a step of no micro-batches, and of each micro-batch."""
    few, more = (
        total_seconds(predict(ingredients_of(rows.jobs(at, count)), learned)) for count in (least + 1, 2 * least + 2)
    )
    each = (more - few) / (least + 1)
    return few - each * (least + 1), each


def balanced(
    total: Array, replicas: tuple[Array, ...], least: Array, lines: list[tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Micro-batches per replica of each pool with which the slower one is done first; inf where none add up."""
    first, second = np.full(len(total), np.inf), np.full(len(total), np.inf)
    for row in range(len(total)):
        a, b, low = int(replicas[0][row]), int(replicas[1][row]), int(least[row])
        ours = np.arange(low, (total[row] - low * b) // a + 1)
        theirs, left = np.divmod(total[row] - a * ours, b)
        ours, theirs = ours[left == 0], theirs[left == 0]
        if len(ours):
            done = np.maximum(
                *(base[row] + each[row] * n for (base, each), n in zip(lines, (ours, theirs), strict=True))
            )
            first[row], second[row] = ours[done.argmin()], theirs[done.argmin()]
    return first, second
