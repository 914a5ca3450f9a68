"""Plans across two kinds of devices as plans that can be written down, and what each would take part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.error_bands import band, half_width, remarks
from planner.cost.factors import Learned
from planner.cost.job import Jobs
from planner.cost.layers import Pass
from planner.cost.memory.footprint import Footprint
from planner.cost.software_memory import memory_rules
from planner.mixed.mixture import Mixture, Rows
from planner.mixed.replayed_stages import Timed, layers_of
from planner.mixed.replicas import Shared
from planner.mixed.stages import bytes_by_part
from planner.parts import PART_NAMES
from planner.plans import Plan
from planner.prediction import Prediction, Span
from planner.schedules.registry import NONE, USUAL
from planner.space.explore import Memory
from planner.space.layouts import Ints
from planner.space.predictions import parts_at, peak_flops_per_second, prediction_of, spans_of, work_of
from planner.space.to_plans import bounds_of, plan_with
from planner.space.to_plans import stage_layers as even_layers
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPlan:
    """A plan across both pools; `predict` says what it would take part by part."""

    plan: Plan
    step_seconds: float
    predict: Callable[[], Prediction]


def of_stages(asked: Mixture, timed: Timed, learned: Learned) -> MixedPlan:
    """A pipeline across both pools."""
    dealt, row = timed.dealt, timed.row
    plan = _plan(asked, dealt.rows, row, dealt.layers[row], dealt.rows.count[row])
    step = timed.step_seconds * _straggling(asked, learned)
    return MixedPlan(plan=plan, step_seconds=step, predict=lambda: _predict_stages(asked, timed, plan, step, learned))


def _predict_stages(asked: Mixture, timed: Timed, plan: Plan, step: float, learned: Learned) -> Prediction:
    dealt, row = timed.dealt, timed.row
    fullest = int(dealt.allocated_bytes[row].argmax())
    busiest = dealt.passes[dealt.pool_of(int(dealt.stage_seconds[row].argmax()))]
    jobs, spans = busiest.ingredients.jobs.take(np.array([row])), spans_of(timed.shape, timed.stages)
    memory = Memory(
        parts=bytes_by_part(dealt, row, fullest),
        stages=tuple(map(float, dealt.allocated_bytes[row])),
        device=float(dealt.device_bytes[row]),
        outside=float(memory_rules(jobs).context_bytes[0]),
    )
    edge = dealt.second * asked.num_devices // plan.pipeline_parallel
    words = (
        f"stages 0 to {dealt.second - 1} run on {asked.first.at.device.title} (ranks 0 to {edge - 1}), "
        f"the others on {asked.second.at.device.title}: start the nodes in this order"
    )
    return _prediction(asked, jobs, learned, step, _parts_of_stages(timed, step), memory, words, spans)


def _parts_of_stages(timed: Timed, step: float) -> dict[str, float]:
    """Seconds by part on the slowest stage; what it waits for is bubble and messages."""
    dealt, row = timed.dealt, timed.row
    stage = int(dealt.stage_seconds[row].argmax())
    passes, layers = dealt.passes[dealt.pool_of(stage)], layers_of(dealt, row)
    count = float(dealt.rows.count[row])

    def seconds(name: str) -> float:
        def part(own: Pass) -> Array:
            return np.asarray(getattr(own, name))

        return count * float(passes.forward(layers, row, part)[stage] + passes.backward(layers, row, part)[stage])

    parts = dict.fromkeys(PART_NAMES, 0.0) | {name: seconds(name) for name in Pass.__slots__}
    busy = sum(parts.values())
    once = float(dealt.once_seconds[row])
    parts["bubble"] = timed.silent_seconds - busy
    parts["pipeline_comm"] = timed.makespan_seconds - timed.silent_seconds
    # The exchange of gradients is most of what is done once; the optimizer's share is small and told apart by no rule.
    parts["data_comm"] += once
    parts["stragglers"] = step - timed.step_seconds
    return parts


def of_replicas(shared: Shared, row: int, learned: Learned) -> MixedPlan:
    """Replicas that stand on one pool each."""
    asked, rows = shared.asked, shared.rows
    counts = [int(count[row]) for count in shared.counts]
    layers = even_layers(asked.first.at.model.num_layers, int(rows.layouts.pipeline[row]), 1, 0, 0)
    plan = _plan(asked, rows, row, layers, max(counts))
    if counts[0] != counts[1]:
        numbers = [plan.data_parallel * part.num_devices // asked.num_devices for part in asked.parts]
        by_replica = tuple(count for count, number in zip(counts, numbers, strict=True) for _ in range(number))
        plan = replace(plan, replica_microbatches=by_replica)
    step = float(shared.step_seconds[row])
    return MixedPlan(plan=plan, step_seconds=step, predict=lambda: _predict_replicas(shared, row, step, learned))


def _predict_replicas(shared: Shared, row: int, step: float, learned: Learned) -> Prediction:
    asked, rows = shared.asked, shared.rows
    counts = [int(count[row]) for count in shared.counts]
    totals = [float(sum(values[row] for values in parts.values())) for parts in shared.parts]
    slower = int(np.argmax(totals))
    held: Footprint = max(shared.memory, key=lambda own: float(own.device_bytes[row]))
    jobs = rows.take(np.array([row])).jobs(asked.parts[slower].at, np.array([float(counts[slower])]))
    stages = held.stage_allocated_bytes[row]
    memory = Memory(
        parts={name: float(values[row]) for name, values in held.parts.items()},
        stages=tuple(float(value) for value in stages[np.isfinite(stages)]),
        device=float(held.device_bytes[row]),
        outside=float(held.context_bytes[row]),
    )
    words = (
        f"replicas on {asked.first.at.device.title} (ranks 0 to {asked.first.num_devices - 1}) take {counts[0]} "
        "micro-batches, those on "
        f"{asked.second.at.device.title} {counts[1]}"
    )
    return _prediction(asked, jobs, learned, step, parts_at(shared.parts[slower], row), memory, words)


def _prediction(
    asked: Mixture,
    jobs: Jobs,
    learned: Learned,
    step: float,
    seconds: dict[str, float],
    memory: Memory,
    words: str,
    spans: tuple[Span, ...] = (),
) -> Prediction:
    """The prediction of a plan across both pools, with the band of one job; `words` say what stands where."""
    columns = {name: np.array([value]) for name, value in seconds.items()}
    low, high = band(np.array([step]), half_width(jobs, columns, learned))
    at = asked.first.at
    peak = sum(part.num_devices * peak_flops_per_second(part.at) for part in asked.parts)
    peak_words = f"{peak / 1e15:.4g} PFLOP/s {at.precision} of all devices (data sheets, dense)"
    taught = f"kernels, links and {at.stack.name} learned from published runs of each kind alone: none mixes devices"
    return prediction_of(
        replace(work_of(at), peak_flops_per_second=peak, peak_words=peak_words),
        step,
        (float(low[0]), float(high[0])),
        seconds,
        memory,
        fits=True,
        method="two kinds of devices",
        assumptions=(words, taught, *remarks(jobs, learned)[0]),
        spans=spans,
    )


def _plan(asked: Mixture, rows: Rows, row: int, counts: Sequence[int] | Ints, num_microbatches: float) -> Plan:
    """Row `row` as a plan, with so many layers on each stage."""
    layout = rows.layouts.row(row)
    return plan_with(
        asked.first.at,
        layout,
        stage_bounds=bounds_of(counts),
        micro_batch=rows.micro_batch[row],
        count=num_microbatches,
        schedule=USUAL if layout["pipeline"] > 1 else NONE,
        method=str(rows.recompute[row]),
    )


def _straggling(asked: Mixture, learned: Learned) -> float:
    nodes = sum(max(1.0, part.num_devices / part.at.devices_per_node) for part in asked.parts)
    return float(1 + learned.factors.straggling * np.log2(nodes))
