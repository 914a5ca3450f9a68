"""Layers to stages under a memory limit: exact, by dynamic programming or, where ranks hold several stages, by MILP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.schedules.partition import partition
from planner.schedules.registry import held_at_peak, stage_ranks
from planner.schedules.steps import Shape
from profiles.errors import PlanError

Array = NDArray[np.float64]
# What the solver may spend, and how far from the best it may stop; a plan is no better than its costs anyway.
INFEASIBLE = 2  # scipy.optimize.milp's status
SOLVER_SECONDS, SOLVER_GAP_FRACTION = 5.0, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What each layer costs, embedding, head and loss as layers of their own. Shapes: (layer,), in model order.

    `seconds` are those of forward and backward of one micro-batch; `state_bytes` of parameters, gradients and
    optimizer; `kept_bytes` of what one micro-batch keeps until its backward; `working_bytes` of one layer at a time.
    `starts` are the layers at which a stage of a rank that has no other may begin: all, unless they are given.
    """

    seconds: Array
    state_bytes: Array
    kept_bytes: Array
    working_bytes: Array
    starts: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The first layer of each stage; seconds of one micro-batch on the slowest rank, and on the slowest stage.

    `is_proven` tells whether nothing is better, or the solver ran out of time with the best that it had found.
    """

    bounds: tuple[int, ...]
    slowest_rank_seconds: float
    slowest_stage_seconds: float
    is_proven: bool = True


def place(layers: Layers, shape: Shape, memory_bytes: float) -> Placement:
    """The placement of contiguous layers with which a step is fastest, of those that fit on every rank.

    Model: each micro-batch costs the slowest rank's seconds, and the bubble the slowest stage's on every rank but one
    (see `objective_seconds`); with one stage per rank both are the same. A rank holds the states of its stages, what
    its schedule keeps in flight, and the working bytes of its neediest layer. With one stage per rank the choice of one
    boundary tells nothing of the others but the next, and a dynamic programme over boundaries is exact. Several stages
    of one rank share its memory and its time, which couples boundaries far apart: a mixed-integer programme, exact to
    SOLVER_GAP_FRACTION where it ends in time, and never worse than the even partition.
    Raises: PlanError where there are too few layers, or nothing fits.
    """
    num_layers = len(layers.seconds)
    if shape.num_stages > num_layers:
        raise PlanError(f"{shape.num_stages} stages need at least as many layers, the model has only {num_layers}")
    solve = _dynamic_programme if shape.virtual_stages == 1 else _mixed_integer_programme
    bounds, is_proven = solve(layers, shape, memory_bytes)
    if not is_proven:
        even = partition(layers.seconds, shape.num_stages)
        known = [found for found in (bounds, even) if found and rank_bytes(layers, shape, found).max() <= memory_bytes]
        bounds = min(known, key=lambda found: objective_seconds(layers, shape, found), default=bounds)
    if bounds is None:
        found = "no placement" if is_proven else f"in {SOLVER_SECONDS:g} s no placement was found"
        raise PlanError(
            f"{found} of {num_layers} layers on {shape.num_ranks} ranks of {shape.virtual_stages} stages fits "
            f"{memory_bytes / 2**30:.3g} GiB: use more ranks, smaller micro-batches or recomputation"
        )
    return Placement(
        bounds=bounds,
        slowest_rank_seconds=float(rank_seconds(layers, shape, bounds).max()),
        slowest_stage_seconds=float(np.add.reduceat(layers.seconds, bounds).max()),
        is_proven=is_proven,
    )


def objective_seconds(layers: Layers, shape: Shape, bounds: tuple[int, ...]) -> float:
    """What `place` makes small: roughly a step's seconds per micro-batch."""
    slowest_stage = float(np.add.reduceat(layers.seconds, bounds).max())
    return float(rank_seconds(layers, shape, bounds).max()) + _bubble_weight(shape) * slowest_stage


def _bubble_weight(shape: Shape) -> float:
    return (shape.num_ranks - 1) / shape.num_microbatches


def rank_seconds(layers: Layers, shape: Shape, bounds: tuple[int, ...]) -> Array:
    """Seconds that each rank needs for one micro-batch. Shapes: (rank,)."""
    return _per_rank(shape, np.add.reduceat(layers.seconds, bounds))


def rank_bytes(layers: Layers, shape: Shape, bounds: tuple[int, ...]) -> Array:
    """Bytes that each rank holds at its peak. Shapes: (rank,)."""
    held = _per_rank(
        shape, np.add.reduceat(layers.state_bytes, bounds) + _held(shape) * np.add.reduceat(layers.kept_bytes, bounds)
    )
    working = np.maximum.reduceat(layers.working_bytes, bounds)
    owners = stage_ranks(shape)
    return np.array([held[rank] + working[owners == rank].max() for rank in range(shape.num_ranks)])


def _per_rank(shape: Shape, of_stages: Array) -> Array:
    return np.bincount(stage_ranks(shape), weights=of_stages, minlength=shape.num_ranks).astype(np.float64)


def _held(shape: Shape) -> Array:
    """Micro-batches that each stage holds when its rank holds most. Shapes: (stage,)."""
    result, owners = np.zeros(shape.num_stages), stage_ranks(shape)
    for rank, held in enumerate(held_at_peak(shape)):
        result[owners == rank] = held
    return result


def _dynamic_programme(layers: Layers, shape: Shape, memory_bytes: float) -> tuple[tuple[int, ...] | None, bool]:
    """Best[s][j], the slowest of s stages over the first j layers, from all i < j at which the last may start."""
    num_layers = len(layers.seconds)
    until = [np.concatenate([[0.0], np.cumsum(values)]) for values in (layers.seconds, layers.state_bytes)]
    kept = np.concatenate([[0.0], np.cumsum(layers.kept_bytes)])
    # (start, stop) of a stage; a stage holds at least one layer.
    seconds, states, keeps = (sums[None, :] - sums[:, None] for sums in (*until, kept))
    seconds = np.where(np.arange(num_layers + 1)[:, None] < np.arange(num_layers + 1), seconds, np.inf)
    if layers.starts is not None:
        seconds[:-1][~layers.starts] = np.inf
    working = np.zeros_like(seconds)
    for start in range(num_layers):
        working[start, start + 1 :] = np.maximum.accumulate(layers.working_bytes[start:])
    best = np.full(num_layers + 1, np.inf)
    best[0] = 0.0
    chosen = []
    for held in _held(shape):
        fits = states + held * keeps + working <= memory_bytes * (1 + 1e-12)
        table = np.maximum(best[:, None], np.where(fits, seconds, np.inf))
        chosen.append(table.argmin(axis=0))
        best = table.min(axis=0)
    if not np.isfinite(best[-1]):
        return None, True
    bounds, stop = [], num_layers
    for starts in reversed(chosen):
        stop = int(starts[stop])
        bounds.append(stop)
    return tuple(reversed(bounds)), True


def _mixed_integer_programme(layers: Layers, shape: Shape, memory_bytes: float) -> tuple[tuple[int, ...] | None, bool]:
    """The same as a solver sees it.

    Variables: reached[s, l], whether layer l is in stage s or a later one; working bytes per rank; bounds on the
    seconds of every rank, and of every stage.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import vstack

    stages, num_layers, ranks = shape.num_stages, len(layers.seconds), shape.num_ranks
    reached, size = stages * num_layers, stages * num_layers + ranks + 2
    matrix = vstack([*_order_rows(stages, num_layers, size), *_cost_rows(layers, shape, memory_bytes)]).tocsr()
    limits = np.zeros(matrix.shape[0])
    # The last rows are one per rank: its bytes, in units of what there is.
    limits[-ranks:] = 1.0
    low, high = np.zeros(size), np.full(size, np.inf)
    high[:reached] = 1.0
    low[:num_layers] = 1.0
    for stage in range(1, stages):
        # Every earlier stage has a layer, and so has every later one.
        high[stage * num_layers : stage * num_layers + stage] = 0.0
        low[(stage + 1) * num_layers - stages + stage : (stage + 1) * num_layers] = 1.0
    found = milp(
        c=np.concatenate([np.zeros(size - 2), [1.0, _bubble_weight(shape)]]),
        constraints=LinearConstraint(matrix, ub=limits),
        integrality=np.arange(size) < reached,
        bounds=Bounds(low, high),
        options={"time_limit": SOLVER_SECONDS, "mip_rel_gap": SOLVER_GAP_FRACTION},
    )
    if found.x is None:
        return None, found.status == INFEASIBLE
    starts = num_layers - np.round(found.x[:reached]).reshape(stages, num_layers).sum(axis=1)
    return tuple(starts.astype(int).tolist()), found.status == 0


def _order_rows(stages: int, num_layers: int, size: int) -> list[Any]:
    """A layer after one that is reached is reached too; a stage is reached only when the one before has a layer."""
    from scipy.sparse import eye_array, hstack, kron

    def wide(block: Any) -> Any:
        return hstack([block, _zeros(block.shape[0], size - block.shape[1])])

    this, following = eye_array(num_layers - 1, num_layers), eye_array(num_layers - 1, num_layers, k=1)
    earlier, later = eye_array(stages - 1, stages), eye_array(stages - 1, stages, k=1)
    rises = kron(eye_array(stages), this - following)
    return [wide(rises), wide(kron(later, following) - kron(earlier, this))] if stages > 1 else [wide(rises)]


def _cost_rows(layers: Layers, shape: Shape, memory_bytes: float) -> list[Any]:
    """Seconds of ranks and stages below their bounds; working bytes of each layer below its rank's; bytes of a rank."""
    from scipy.sparse import diags_array, eye_array, hstack, kron

    stages, num_layers, ranks = shape.num_stages, len(layers.seconds), shape.num_ranks
    # inside[s, l], whether layer l is in stage s, is reached[s, l] without reached[s + 1, l].
    inside = kron(eye_array(stages) - eye_array(stages, k=1), eye_array(num_layers)).tocsr()
    owns = (np.arange(ranks)[:, None] == stage_ranks(shape)).astype(float)
    each = np.ones((1, num_layers))
    share = layers.seconds[None] / layers.seconds.sum()
    seconds = np.kron(owns, share)
    held = np.kron(owns, layers.state_bytes[None]) + np.kron(owns * _held(shape), layers.kept_bytes[None])
    working = diags_array(np.tile(layers.working_bytes, stages) / memory_bytes)
    return [
        hstack([seconds @ inside, _zeros(ranks, ranks), -np.ones((ranks, 1)), _zeros(ranks, 1)]),
        hstack([np.kron(np.eye(stages), share) @ inside, _zeros(stages, ranks + 1), -np.ones((stages, 1))]),
        hstack([working @ inside, -np.kron(owns, each).T, _zeros(stages * num_layers, 2)]),
        hstack([held / memory_bytes @ inside, np.eye(ranks), _zeros(ranks, 2)]),
    ]


def _zeros(rows: int, columns: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((rows, columns))
