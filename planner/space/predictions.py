"""What plans of the space would take, part by part and kind by kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.cost.error_bands import band, spread
from planner.cost.ingredients import ingredients_of
from planner.parts import PART_NAMES
from planner.prediction import KINDS, MAX_SPANS, Prediction, Span
from planner.published.learn import predict, total_seconds
from planner.schedules.replay import replay_spans
from planner.space.block import block, step_seconds, straggling
from planner.space.explore import Memory, Place, Space
from planner.space.memory import memories
from planner.space.question import Setting
from planner.space.replay_best import Retimed, corrections, retimed
from planner.space.to_plans import KIND_OF, jobs_at
from profiles.models.transformer import Array


def predictions(space: Space, places: Sequence[Place]) -> list[Prediction]:
    """What the plans at `places` would take: totals of the search, pipelines by replay, parts by the laws for jobs.

    Model: where some layers of a stage are recomputed, parts lie between those of none and of all; the memory of our
    own pipelines is followed step by step.
    """
    replayed = retimed(space, places)
    added = corrections(space, places, replayed)
    jobs, rest = jobs_at(space, places), jobs_at(space, places, "none")
    share = np.array([space.choices(place.layout).share[place.recompute] for place in places])
    parts, plain = (predict(ingredients_of(which), space.learned) for which in (jobs, rest))
    seconds = {name: plain[name] + (values - plain[name]) * share for name, values in parts.items()}
    memory = memories(space, places)
    low, high = band(total_seconds(seconds), spread(jobs, seconds, space.learned), space.learned)
    width = np.stack([low, high]) / total_seconds(seconds)
    return [
        _prediction(space, place, index, seconds, memory[index], width[:, index], float(added[index]), replayed)
        for index, place in enumerate(places)
    ]


def _prediction(
    space: Space,
    place: Place,
    index: int,
    seconds: dict[str, Array],
    memory: Memory,
    width: Array,
    added: float,
    replayed: dict[Place, Retimed],
) -> Prediction:
    at = space.at
    own = block(space.tables, np.array([place.layout]), space.choices(place.layout))
    where = (0, place.micro_batch, place.schedule, place.recompute)
    step = float(step_seconds(own)[where]) + added
    parts = dict.fromkeys(PART_NAMES, 0.0) | {name: float(values[index]) for name, values in seconds.items()}
    if place in replayed:
        found = replayed[place]
        parts["bubble"] = found.silent_seconds - found.busy_seconds
        parts["pipeline_comm"] = found.makespan_seconds - found.silent_seconds
        parts["stragglers"] = step * (1 - 1 / straggling(space.tables))
    # Of mixed recomputation the parts' sum is off by what messages hide behind other passes.
    parts["compute"] += step - sum(parts.values())
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, value in memory.parts.items():
        kinds[KIND_OF.get(name, name)] += value
    kinds["slack"] = memory.device - sum(kinds.values())
    tokens = at.global_batch_size * at.sequence_length
    peak = peak_flops_per_second(at)
    return Prediction(
        step_seconds=step,
        low_seconds=step * float(width[0]),
        high_seconds=step * float(width[1]),
        seconds=parts,
        bytes_per_rank=kinds,
        peak_bytes=memory.device,
        stage_peak_bytes=memory.stages,
        fits=memory.device <= at.memory_bytes,
        tokens_per_second=tokens / step,
        mfu=model_flops(at) / step / at.num_devices / peak,
        mfu_denominator=(
            f"{peak / 1e12:.4g} TFLOP/s {at.precision} per device ({at.device.title} data sheet, dense); full "
            "attention, no recomputation counted"
        ),
        method="schedule replay" if place in replayed else "closed form",
        spans=_spans(replayed[place]) if place in replayed else (),
        assumptions=(f"kernels, links and software ({at.stack.name}) as published runs taught",),
    )


def _spans(found: Retimed) -> tuple[Span, ...]:
    """The timeline of the pipeline, where it is short enough to be looked at."""
    is_short = 2 * found.shape.num_stages * found.shape.num_microbatches <= MAX_SPANS
    return replay_spans(found.shape, found.stages)[1] if is_short else ()


def peak_flops_per_second(at: Setting) -> float:
    """The data sheet's dense rate at the setting's precision."""
    return at.device.peak_tflops[at.precision] * 1e12


def model_flops(at: Setting) -> float:
    """FLOPs that one step must do: three times the forward pass, full attention, no recomputation."""
    model, tokens = at.model.transformer, at.global_batch_size * at.sequence_length
    attention = 2 * at.sequence_length * model.num_heads[0] * (model.qk_head_dim[0] + model.v_head_dim[0])
    per_token = 2 * model.active_matmul_parameters[0] + attention * model.num_layers[0]
    return float(3 * per_token * tokens)
