"""What is chosen beside a layout: micro-batch, schedule with its chunks, and how many layers are recomputed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.axes.pipeline import held_microbatches, idle_terms
from planner.schedules.registry import NONE, USUAL, has, schedule, schedule_of
from planner.space.layouts import Options, divisors
from planner.space.question import Setting
from planner.stacks.abilities import lacking_recompute, needs
from profiles.models.transformer import Array, Flags

# The stages of `fullest_stages`.
NUM_PLACES = 4
METHODS = ("none", "selective", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """The choices of all layouts that share pipeline, data degree and the layers of a stage.

    Shapes: (m,) micro-batches, (s,) schedules, (k,) recomputations; `legal` (m, s, k); the pipeline's terms (m, s):
    `filling` and `rounds` as planner/cost/axes/pipeline has them, `messages` sent one after the other per step and
    `beside` passes, `opened` chunks under way at once, `held` micro-batches in flight on the stages of
    `fullest_stages`, and `held_by_last_full` on that one. `through_v`, `waits`, `forwards_first` and `in_rounds` are
    traits of schedules (s,), as their records have them. `share` is the part of a stage's layers that is recomputed,
    `method` the number in METHODS of what is done to it.
    """

    micro_batch: Array
    count: Array
    schedules: tuple[str, ...]
    chunks: Array
    through_v: Flags
    waits: Flags
    forwards_first: Flags
    in_rounds: Flags
    method: Array
    layers: Array
    share: Array
    legal: Flags
    filling: Array
    rounds: Array
    messages: Array
    beside: Array
    opened: Array
    held: tuple[Array, ...]
    held_by_last_full: Array
    illegal: Counter[str]

    @property
    def num_plans(self) -> int:
        """All combinations, legal or not."""
        return len(self.micro_batch) * len(self.schedules) * len(self.share)


def variants(at: Setting, options: Options, pipeline: int, data: int, stage_layers: int) -> Variants:
    """Every micro-batch that divides a replica's batch, every schedule and every count of recomputed layers."""
    local = at.global_batch_size // data
    micro = np.array(divisors(local), dtype=np.float64)
    count = local / micro
    named = _schedules(at, options, pipeline, stage_layers)
    num_places = len(fullest_stages(at, pipeline, stage_layers, 1))
    terms = np.zeros((6 + num_places, len(micro), len(named)))
    illegal: Counter[str] = Counter()
    recompute = _recompute(at, options, stage_layers)
    legal = np.ones((len(micro), len(named), len(recompute)), dtype=bool)
    for column, (name, chunks) in enumerate(named):
        degree, parts = np.full(len(micro), float(pipeline)), np.full(len(micro), float(chunks))
        rules = schedule_of(name)
        if name != USUAL or not options.short_pipelines:
            legal[:, column] = rules.counts.allow(degree, parts, count)[:, None]
        illegal[rules.counts.others] += int((~legal[:, column]).sum())
        filling, rounds = idle_terms(degree, parts, count)
        steady = np.where(degree > 1, 2 * count * parts, 0.0)
        beside = steady if hides_messages(at, name) else np.zeros(len(micro))
        places = (*fullest_stages(at, pipeline, stage_layers, chunks), last_full_stage(at, pipeline))
        held = [held_microbatches(name, degree, parts, count, np.full(len(micro), stage)) for stage in places]
        messages = 2 * (degree - 1) + steady - beside
        terms[:, :, column] = filling, rounds, messages, beside, rules.open_chunks(degree, parts, count), *held
    for what, column, row in _lacking(at, named, recompute, stage_layers) if options.as_stack_runs else ():
        illegal[what] += int(legal[:, column, row].sum())
        legal[:, column, row] = False
    names = tuple(name for name, _ in named)
    return Variants(
        micro_batch=micro,
        count=count,
        schedules=names,
        chunks=np.array([chunks for _, chunks in named], dtype=np.float64),
        through_v=has(names, lambda rules: rules.stages.is_v),
        waits=has(names, lambda rules: rules.waits),
        forwards_first=has(names, lambda rules: rules.forwards_first),
        in_rounds=has(names, lambda rules: rules.counts.in_rounds),
        method=np.array([METHODS.index(method) for method, _ in recompute]),
        layers=np.array([layers for _, layers in recompute], dtype=np.float64),
        share=np.array([layers / stage_layers for _, layers in recompute]),
        legal=legal,
        filling=terms[0],
        rounds=terms[1],
        messages=terms[2],
        beside=terms[3],
        opened=terms[4],
        held=tuple(terms[5:-1]),
        held_by_last_full=terms[-1],
        illegal=+illegal,
    )


def _lacking(
    at: Setting, named: list[tuple[str, int]], recompute: list[tuple[str, int]], stage_layers: int
) -> Iterator[tuple[str, int, int]]:
    """What plans need that the stack has no words for, by the numbers of schedule and recomputation."""
    for (column, (_, chunks)), (row, (method, layers)) in itertools.product(enumerate(named), enumerate(recompute)):
        lacking = lacking_recompute(at.stack, method, layers, stage_layers, chunks)
        if lacking:
            yield needs(lacking, at.stack), column, row


def fullest_stages(at: Setting, pipeline: int, stage_layers: int, chunks: int) -> tuple[float, ...]:
    """The stages one of which is the fullest: first, last, the first with all layers of a stage, and the last but one.

    Of models whose stages are not alike, every one. Later ones hold fewer micro-batches, except where weight gradients
    wait. A first stage may have fewer layers, or leading dense ones, which are smaller; those are as many in the first
    chunk of the stages as there are.
    """
    if not at.model.transformer.is_alike:
        return tuple(float(min(stage, pipeline - 1)) for stage in range(max(pipeline, NUM_PLACES)))
    full = max(1.0, np.ceil(num_leading(at) * chunks / stage_layers))
    return 0.0, pipeline - 1.0, min(full, pipeline - 1.0), max(pipeline - 2.0, 0.0)


def last_full_stage(at: Setting, pipeline: int) -> float:
    """The last stage with as many layers as any, where they do not divide evenly; else the last but one.

    Where weight gradients wait, it is that stage that holds most.
    """
    return float(at.model.num_layers % pipeline - 1 if at.model.num_layers % pipeline else max(pipeline - 2, 0))


def num_leading(at: Setting) -> int:
    """Dense layers that lead a mixture of experts."""
    model = at.model.transformer
    return int(model.num_dense_layers[0]) if model.is_moe[0] else 0


def hides_messages(at: Setting, name: str) -> bool:
    """Whether the software sends a schedule's messages beside the next micro-batch."""
    return name in at.stack.habits.hides_messages_of


def _schedules(at: Setting, options: Options, pipeline: int, stage_layers: int) -> list[tuple[str, int]]:
    """Every schedule with every number of chunks that it may have."""
    if pipeline == 1:
        return [(NONE, 1)]
    # Chunks of equal length: what divides a stage's layers. The two of a V may differ.
    even = divisors(stage_layers)
    named: list[tuple[str, int]] = []
    for name in options.schedules:
        rules = schedule(name)
        if at.compresses and rules.splits_backward:
            continue
        numbers = (
            [rules.stages.least] if rules.stages.is_v else [chunks for chunks in even if rules.stages.allows(chunks)]
        )
        named += [(name, chunks) for chunks in numbers if pipeline * chunks <= at.model.num_layers]
    return named


def _recompute(at: Setting, options: Options, stage_layers: int) -> list[tuple[str, int]]:
    """Method and number of layers of a stage; full recomputation also of some layers only, where they are alike."""
    chosen = [("none", 0)] if "none" in options.recompute else []
    if "selective" in options.recompute and at.model.workload.reads_text:
        chosen.append(("selective", stage_layers))
    if "full" in options.recompute:
        is_partial = options.partial_recompute and at.model.transformer.is_alike
        chosen += [("full", layers) for layers in range(1 if is_partial else stage_layers, stage_layers)]
        chosen.append(("full", stage_layers))
    return chosen
