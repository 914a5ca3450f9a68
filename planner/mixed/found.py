"""Plans across two kinds of devices as plans that can be written down, and what each would take part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.error_bands import band, spread
from planner.cost.factors import Learned
from planner.cost.layers import Pass
from planner.cost.memory.footprint import Footprint
from planner.mixed.mixture import Mixture, Rows
from planner.mixed.replayed_stages import Timed, layers_of
from planner.mixed.replicas import Shared
from planner.mixed.stages import bytes_by_part
from planner.parts import PART_NAMES
from planner.plans import Plan, Recompute
from planner.prediction import KINDS, MAX_SPANS, Prediction
from planner.schedules.registry import NONE, USUAL
from planner.schedules.replay import replay_spans
from planner.space.predictions import model_flops, peak_flops_per_second
from planner.space.to_plans import DATA_OUTSIDE, KIND_OF
from planner.space.to_plans import stage_layers as even_layers
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A plan across both pools; `predict` says what it would take part by part."""

    plan: Plan
    step_seconds: float
    predict: Callable[[], Prediction]


def of_stages(asked: Mixture, timed: Timed, learned: Learned) -> Found:
    """A pipeline across both pools."""
    dealt, row = timed.dealt, timed.row
    counts = dealt.layers[row]
    bounds = (0, *(int(start) + 1 for start in np.cumsum(counts)[:-1]))
    plan = _plan(asked, dealt.rows, row, bounds, data_outside=False)
    step = timed.step_seconds * _straggling(asked, learned)
    return Found(plan=plan, step_seconds=step, predict=lambda: _predict_stages(asked, timed, plan, step, learned))


def _predict_stages(asked: Mixture, timed: Timed, plan: Plan, step: float, learned: Learned) -> Prediction:
    dealt, row = timed.dealt, timed.row
    fullest = int(dealt.allocated_bytes[row].argmax())
    parts = bytes_by_part(dealt, row, fullest)
    seconds = _parts_of_stages(timed, step)
    busiest = dealt.passes[dealt.pool_of(int(dealt.stage_seconds[row].argmax()))]
    columns = {name: np.array([seconds[name]]) for name in PART_NAMES}
    width = float(np.exp(spread(busiest.made.jobs.take(np.array([row])), columns, learned) * learned.band_scale)[0])
    is_short = 2 * timed.shape.num_stages * timed.shape.num_microbatches <= MAX_SPANS
    edge = dealt.second * asked.num_devices // plan.pipeline_parallel
    words = (
        f"stages 0 to {dealt.second - 1} stand on {asked.first.at.device.title} (ranks 0 to {edge - 1}), "
        f"the others on {asked.second.at.device.title}: start the nodes in this order"
    )
    prediction = _prediction(
        asked,
        step=step,
        width=width,
        seconds=seconds,
        parts=parts,
        device_bytes=float(dealt.device_bytes[row]),
        stage_bytes=tuple(map(float, dealt.allocated_bytes[row])),
        words=words,
    )
    if is_short:
        prediction = replace(prediction, spans=replay_spans(timed.shape, timed.stages)[1])
    return prediction


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


def of_replicas(shared: Shared, row: int, learned: Learned) -> Found:
    """Replicas that stand on one pool each."""
    asked, rows = shared.asked, shared.rows
    own, at = rows.layouts.row(row), asked.first.at
    counts = [int(count[row]) for count in shared.counts]
    numbers = [own["data"] * part.num_devices // asked.num_devices for part in asked.parts]
    starts = np.cumsum([0, *even_layers(at.model.num_layers, own["pipeline"], 1, 0, 0)])[1:-1] + 1
    plan = _plan(asked, rows, row, (0, *map(int, starts)), data_outside=bool(own["data_outside"]))
    uneven = counts[0] != counts[1]
    by_replica = tuple(count for count, number in zip(counts, numbers, strict=True) for _ in range(number))
    plan = replace(plan, num_microbatches=max(counts), replica_microbatches=by_replica if uneven else ())
    step = float(shared.step_seconds[row])
    return Found(plan=plan, step_seconds=step, predict=lambda: _predict_replicas(shared, row, step, learned))


def _predict_replicas(shared: Shared, row: int, step: float, learned: Learned) -> Prediction:
    asked, rows = shared.asked, shared.rows
    counts = [int(count[row]) for count in shared.counts]
    totals = [float(sum(values[row] for values in parts.values())) for parts in shared.parts]
    slower = int(np.argmax(totals))
    seconds = dict.fromkeys(PART_NAMES, 0.0) | {
        name: float(values[row]) for name, values in shared.parts[slower].items()
    }
    memory: Footprint = max(shared.memory, key=lambda held: float(held.device_bytes[row]))
    jobs = rows.take(np.array([row])).jobs(asked.parts[slower].at, np.array([float(counts[slower])]))
    low, _ = band(
        np.array([step]), spread(jobs, {name: np.array([v]) for name, v in seconds.items()}, learned), learned
    )
    stages = memory.stage_allocated_bytes[row]
    words = (
        f"replicas on {asked.first.at.device.title} (ranks 0 to {asked.first.num_devices - 1}) take {counts[0]} "
        "micro-batches, those on "
        f"{asked.second.at.device.title} {counts[1]}"
    )
    return _prediction(
        asked,
        step=step,
        width=step / float(low[0]),
        seconds=seconds,
        parts={name: float(values[row]) for name, values in memory.parts.items()},
        device_bytes=float(memory.device_bytes[row]),
        stage_bytes=tuple(float(value) for value in stages[np.isfinite(stages)]),
        words=words,
    )


def _prediction(
    asked: Mixture,
    *,
    step: float,
    width: float,
    seconds: dict[str, float],
    parts: dict[str, float],
    device_bytes: float,
    stage_bytes: tuple[float, ...],
    words: str,
) -> Prediction:
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, value in parts.items():
        kinds[KIND_OF.get(name, name)] += value
    kinds["slack"] = device_bytes - sum(kinds.values())
    at = asked.first.at
    peak = sum(part.num_devices * peak_flops_per_second(part.at) for part in asked.parts)
    return Prediction(
        step_seconds=step,
        low_seconds=step / width,
        high_seconds=step * width,
        seconds=seconds,
        bytes_per_rank=kinds,
        peak_bytes=device_bytes,
        stage_peak_bytes=stage_bytes,
        fits=True,
        tokens_per_second=at.global_batch_size * at.sequence_length / step,
        mfu=model_flops(at) / step / peak,
        mfu_denominator=(
            f"{peak / 1e15:.4g} PFLOP/s {at.precision} of all devices (data sheets, dense); full attention, no "
            "recomputation counted"
        ),
        method="two kinds of devices",
        assumptions=(
            words,
            f"kernels, links and {at.stack.name} as published runs of each kind alone taught: none mixes devices",
        ),
    )


def _plan(asked: Mixture, rows: Rows, row: int, bounds: tuple[int, ...], data_outside: bool) -> Plan:
    own, at = rows.layouts.row(row), asked.first.at
    method: dict[str, Recompute] = {"none": "none", "selective": "selective", "full": "full"}
    usual = Plan().axis_order
    return Plan(
        data_parallel=own["data"],
        tensor_parallel=own["tensor"],
        pipeline_parallel=own["pipeline"],
        context_parallel=own["context"],
        expert_parallel=own["expert"],
        sequence_parallel=bool(own["sequence_parallel"]),
        vocab_parallel=own["tensor"] > 1,
        axis_order=DATA_OUTSIDE if data_outside else usual,
        micro_batch_size=int(rows.micro_batch[row]),
        num_microbatches=int(rows.count[row]),
        stage_bounds=bounds,
        schedule=USUAL if own["pipeline"] > 1 else NONE,
        zero_stage=own["zero_stage"],
        recompute=method[str(rows.recompute[row])],
        compiled=at.compiled,
        precision=at.precision,
    )


def _straggling(asked: Mixture, learned: Learned) -> float:
    nodes = sum(max(1.0, part.num_devices / part.at.devices_per_node) for part in asked.parts)
    return float(1 + learned.factors.straggling * np.log2(nodes))
