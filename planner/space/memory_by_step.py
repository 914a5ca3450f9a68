"""Memory of pipelines: the laws for jobs asked about every stage, and what lists of steps hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.job import Jobs
from planner.cost.memory.footprint import hidden_bytes, loss_bytes, memory_of, num_received, parameters_of
from planner.cost.memory.layer_parameters import LayerParameters
from planner.cost.memory.stage_content import StageContent
from planner.cost.memory.stage_states import WHOLE_GRADIENT_BYTES, StageStates, stage_states
from planner.cost.software_memory import MemoryRules, memory_rules
from planner.plans import Plan
from planner.schedules.activations import Chunk, Layer, Rank
from planner.schedules.registry import orders, schedule, stage_ranks
from planner.schedules.steps import Ints, Shape
from planner.space.explore import Place, Space
from planner.space.stage_passes import StageLayers, shape_of, shared_of, stage_layers
from planner.space.to_plans import jobs_at, plan_of
from profiles.models.transformer import Array

# Passes of all ranks that are gone through; longer pipelines keep the closed form.
MOST_PASSES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes of the fullest rank by part, as planner/cost/memory/peak has them, and of every rank. Shapes: (rank,)."""

    parts: dict[str, float]
    rank_bytes: Array


def held_exactly(space: Space, place: Place) -> Held | None:
    """What the plan at `place` holds by its list of steps; None where it has no pipeline, or other software runs it."""
    plan = plan_of(space, place)
    if not space.at.stack.habits.follows_stage_bounds or plan.pipeline_parallel == 1 or plan.offload != "none":
        return None
    whole = shape_of(plan)
    shape = Shape(whole.schedule, whole.num_ranks, whole.virtual_stages, schedule(whole.schedule).settled(whole))
    if shape.num_stages * shape.num_microbatches > MOST_PASSES:
        return None
    laws = _laws(space, place, plan, shape)
    owners, chunks = stage_ranks(shape), list(_chunks(laws))
    each_rank = []
    for rank, order in enumerate(orders(shape)):
        stages = np.flatnonzero(owners == rank)
        own = Rank(chunks={int(stage): chunks[stage] for stage in stages})
        own.go_through(order)
        each_rank.append(_with_states(laws, stages, own.most))
    totals = np.array([sum(parts.values()) for parts in each_rank])
    return Held(parts=each_rank[int(totals.argmax())], rank_bytes=totals)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Laws:
    """What is asked about a plan: itself as a job for every stage, with and without recomputation. Shapes: (stage,)."""

    plan: Plan
    jobs: Jobs
    plain: Jobs
    rules: MemoryRules
    layers: StageLayers
    content: StageContent
    parameters: LayerParameters
    states: StageStates


def _laws(space: Space, place: Place, plan: Plan, shape: Shape) -> _Laws:
    rows = np.zeros(shape.num_stages, dtype=np.int64)
    jobs, plain = (jobs_at(space, [place], method).take(rows) for method in (None, "none"))
    rules, layers = memory_rules(jobs), stage_layers(plan, space.at.model.transformer)
    stage = np.arange(shape.num_stages)
    content = StageContent(
        index=stage_ranks(shape).astype(np.float64),
        exists=stage >= 0,
        is_first=stage == 0,
        is_last=stage == shape.num_stages - 1,
        layers=layers.count,
        shared=shared_of(plan.stage_bounds, space.at.model.transformer),
    )
    parameters = parameters_of(jobs, rules)
    states = stage_states(jobs, rules, parameters, content)
    return _Laws(
        plan=plan, jobs=jobs, plain=plain, rules=rules, layers=layers, content=content, parameters=parameters,
        states=states,
    )  # fmt: skip


def _chunks(laws: _Laws) -> Iterator[Chunk]:
    """Every stage of the model."""
    jobs, rules, states, content = laws.jobs, laws.rules, laws.states, laws.content
    hidden, gathered = hidden_bytes(jobs, rules)
    logits = np.where(content.is_last, jobs.tokens * laws.parameters.vocabulary / jobs.model.hidden_size, 0.0)
    gradient = laws.parameters.vocabulary * rules.head_gradient_bytes
    final = hidden * (2 + rules.norm_extra_bytes / rules.element_bytes)
    at_loss = 2 * hidden + logits * loss_bytes(jobs, rules) + states.head_gathered
    at_head = 3 * hidden + gathered + logits * rules.head_logit_bytes + gradient + states.head_gathered
    count, has_head = np.asarray(sum(laws.layers.count.values())), content.is_last & (jobs.model.first_position > 0)
    again = sum(laws.layers.recomputed.values()) * (jobs.recompute == "full") / np.maximum(count, 1)
    # Of experts autocast keeps no copies: what they multiply with are views of their weights, one by one.
    common = sum(
        number * (own.common + np.where(rules.experts_in_turns, 0.0, own.experts))
        for own, number in ((laws.parameters.kinds[kind], number) for kind, number in content.layers.items())
    )
    columns = {
        "casts": states.casts * (1 - again) + states.head_casts,
        "lingering": np.where(jobs.tensor > 1, states.casts + states.head_casts, 0.0),
        "cached": again * rules.cast_bytes * common,
        "weights": states.whole,
        "gradients": states.accumulated + states.fresh,
        "shards": states.parameters * rules.gradient_bytes / rules.weight_bytes,
        "reducing": states.reducing,
        "waiting": np.where(has_head, final, 0.0) + logits * rules.waiting_logit_bytes,
        "at_loss": np.where(has_head, at_loss, 0.0),
        "at_head": np.where(has_head, at_head, 0.0),
        "embedding": np.where(content.is_first, gradient + states.passing, 0.0),
    }
    stays = laws.plan.zero_stage == 2
    for stage, layers in enumerate(_of_layers(laws)):
        own = {name: float(values[stage]) for name, values in columns.items()}
        yield Chunk(layers=layers, stays_whole=stays and own["weights"] > 0, **own)


def _of_layers(laws: _Laws) -> Iterator[tuple[Layer, ...]]:
    """The layers of each stage: the first are recomputed, dense ones lead."""
    kinds = {
        (kind, is_again): _of_kind(laws, kind, is_again) for kind in laws.layers.count for is_again in (True, False)
    }
    output = hidden_bytes(laws.jobs, laws.rules)[0]
    for stage in range(len(laws.jobs)):
        names = [kind for kind, count in laws.layers.count.items() for _ in range(round(count[stage]))]
        covered = round(sum(float(values[stage]) for values in laws.layers.recomputed.values()))
        own = [kinds[name, index < covered][stage] for index, name in enumerate(names)]
        if covered < len(own):
            # A pipeline keeps what a stage gave; a recomputed layer's input stands for it, as the first one's came.
            own[-1] = replace(own[-1], kept=own[-1].kept + float(output[stage]))
        yield tuple(own)


def _of_kind(laws: _Laws, kind: str, is_again: bool) -> list[Layer]:
    """A layer as it is on every stage.

    Model: a recomputed layer goes backward with autocast's copies of its weights, which no micro-batch kept. Gradients
    of experts' weights come one by one and are put together in one tensor of all experts, which DDP's autocast converts
    beside its copy of the weights; FSDP2 reduces those of the layer as they are.
    """
    jobs, rules, parameters = laws.jobs if is_again else laws.plain, laws.rules, laws.parameters
    law, layer, experts = memory_of(jobs, rules, kind), parameters.kinds[kind].total, parameters.kinds[kind].experts
    copies = rules.cast_bytes * layer * (jobs.recompute == "full")
    passing, finishing = laws.states.passing, np.zeros(len(jobs))
    if np.any(experts > 0) and rules.experts_in_turns.any():
        size, is_sharded = rules.element_bytes, laws.states.whole > 0
        largest = experts * np.where(jobs.model.gated, 2 / 3, 1 / 2)
        converted = np.where(rules.cast_bytes > 0, WHOLE_GRADIENT_BYTES + rules.cast_bytes * is_again, 0.0)
        weights = size * largest + np.where(is_sharded, size * layer, converted * largest)
        passing, finishing = 0 * passing, law.attention + weights
    columns = (law.kept, law.backward + copies, passing, finishing)
    return [Layer(*map(float, values)) for values in zip(*columns, strict=True)]


def _with_states(laws: _Laws, stages: Ints, changing: dict[str, float]) -> dict[str, float]:
    """All parts of a rank that has `stages`: at its fullest step, or while its weights are updated."""
    states, rules, jobs = laws.states, laws.rules, laws.jobs
    first, last = (np.full(len(jobs), of[stages].any()) for of in (laws.content.is_first, laws.content.is_last))
    content = replace(laws.content, is_first=first, is_last=last)
    received = num_received(jobs, rules, content) * jobs.num_microbatches * hidden_bytes(jobs, rules)[0]
    buckets = rules.bucket_bytes if laws.plan.data_parallel * laws.plan.context_parallel > 1 else 0 * received
    step = float(states.step[stages].sum())
    if step > sum(changing.values()):
        changing = dict.fromkeys(changing, 0.0) | {"buffers": step}
    return {
        "parameters": float(states.parameters[stages].sum()),
        "gradients": float((states.gradients - states.fresh)[stages].sum()) + changing["gradients"],
        "optimizer": float(states.optimizer[stages].sum()),
        "activations": changing["activations"],
        "logits": changing["logits"],
        "buffers": changing["buffers"] + float(received[0] + buckets[0] + states.scratch[stages].max()),
        "workspace": float(rules.workspace_bytes[0]),
    }
