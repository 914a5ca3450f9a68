"""What some stages of every layout hold, priced once; blocks of plans gather from here."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from planner.cost.job import Jobs
from planner.cost.memory.footprint import loss_bytes
from planner.cost.memory.layer_parameters import LayerParameters
from planner.cost.memory.stage_content import StageContent, stage_content
from planner.cost.memory.stage_states import StageStates, held_beside, stage_states
from planner.cost.memory.traced import whole_beside
from planner.cost.software_memory import MemoryRules
from planner.schedules.steps import STAGES_OF_V
from planner.space.layouts import Ints, Layouts, divisors
from planner.space.question import Setting
from planner.space.schedule_choices import NUM_PLACES, fullest_stages, last_full_stage, num_leading
from profiles.models.transformer import Array, Flags

# An odd number of many bits (2^64 over the golden ratio), which makes numbers that differ little weigh differently.
SPREADING = np.uint64(0x9E3779B97F4A7C15)
STATES = tuple(field.name for field in fields(StageStates))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """What the stages of `fullest_stages` hold, with one number of model chunks on a rank.

    By place: numbers of the layouts that may have as many chunks, whose names are those of StageStates, of the kinds of
    layers, and of what `_numbers` has: `columns`, whose `names` stand beside, and what is `alike` in all layouts.
    `rows` is where each of all layouts stands in the columns, of which many layouts share one.
    Shapes: (number, row), (1, 1, 1, 1), (place, layout).
    `state_bytes`: states of the fullest place with what is fixed beside; inf of other layouts. Shapes: (layout,).
    """

    names: tuple[tuple[str, ...], ...]
    columns: tuple[Array, ...]
    alike: tuple[dict[str, Array], ...]
    rows: Ints
    state_bytes: Array

    def at(self, place: int, layouts: Ints) -> dict[str, Array]:
        """The numbers of some layouts. Shapes: (layout, 1, 1, 1), or (1, 1, 1, 1) of what is alike in all."""
        taken = self.columns[place][:, self.rows[place, layouts], None, None, None]
        return self.alike[place] | dict(zip(self.names[place], taken, strict=True))


def of_kind(kind: str) -> str:
    """The name of the column that says how many layers of a kind a stage has."""
    return f"{kind} layers"


def of_whole(kind: str) -> str:
    """The name of the column that says by how much what is whole in a layer's backward differs from the usual."""
    return f"{kind} whole"


def stage_tables(
    at: Setting, layouts: Layouts, jobs: Jobs, rules: MemoryRules, layer: LayerParameters
) -> dict[tuple[int, bool], StageTable]:
    """Tables by number of chunks, and whether they go through a V."""
    tables = {}
    for (chunks, is_v), degrees in _chunk_counts(at, layouts).items():
        which = np.flatnonzero(np.isin(layouts.pipeline, sorted(degrees)))
        first, alike = _alike_in_memory(layouts.take(which))
        chosen = replace(jobs.take(which[first]), chunks=np.full(len(first), float(chunks)))
        table = _stage_table(at, chosen, _taken(rules, which[first]), layer.take(which[first]), is_v)
        rows, state_bytes = np.zeros((len(table.rows), len(layouts)), dtype=np.int64), np.full(len(layouts), np.inf)
        rows[:, which], state_bytes[which] = table.rows[:, alike], table.state_bytes[alike]
        tables[chunks, is_v] = replace(table, rows=rows, state_bytes=state_bytes)
    return tables


def _alike_in_memory(layouts: Layouts) -> tuple[Ints, Ints]:
    """Layouts that differ in more than the order of the axes, and which of them each is like."""
    columns = [getattr(layouts, field.name) for field in fields(layouts) if field.name != "data_outside"]
    return _distinct(np.stack(columns))


def _taken(rules: MemoryRules, which: Ints) -> MemoryRules:
    """The rules of some layouts."""
    return replace(rules, **{field.name: getattr(rules, field.name)[which] for field in fields(rules)})


def _chunk_counts(at: Setting, layouts: Layouts) -> dict[tuple[int, bool], set[int]]:
    """Numbers of chunks that make a difference, dealt out in turns or there and back, with the degrees that have them.

    Those are all that any schedule may have where dense layers lead; elsewhere chunks change nothing.
    """
    degrees = set(layouts.pipeline.tolist())
    if not num_leading(at):
        return {(1, False): degrees, (1, True): degrees}
    result = {(1, False): degrees, (STAGES_OF_V, True): degrees}
    for degree in degrees:
        for chunks in divisors(-(-at.model.num_layers // degree)) if degree > 1 else ():
            result.setdefault((chunks, False), set()).add(degree)
    return result


def _stage_table(at: Setting, jobs: Jobs, rules: MemoryRules, layer: LayerParameters, is_v: bool) -> StageTable:
    """The table of some layouts, given as jobs."""
    chunks = int(jobs.chunks.max(initial=1))
    pipeline = jobs.pipeline.astype(int).tolist()
    places = {degree: fullest_stages(at, degree, -(-at.model.num_layers // degree), chunks) for degree in set(pipeline)}
    most = max(map(len, places.values()), default=NUM_PLACES)
    # Of fewer stages the last stands for those that there are not.
    padded = {degree: (*own, *(own[-1:] * (most - len(own)))) for degree, own in places.items()}
    stages = np.minimum(np.array([padded[degree] for degree in pipeline]).reshape(-1, most).T, jobs.pipeline - 1)
    if at.model.transformer.is_alike:
        full = {degree: last_full_stage(at, degree) for degree in set(pipeline)}
        stages[-1] = np.where(is_uneven(jobs), np.array([full[degree] for degree in pipeline]), stages[-1])
    own_units = {kind: whole_beside(jobs, rules, kind) for kind in jobs.model.kinds}
    names, columns, alike, rows, held = [], [], [], [], []
    for stage in stages:
        content = stage_content(jobs, stage, is_v)
        states = stage_states(jobs, rules, layer, content)
        numbers = {name: getattr(states, name) for name in STATES} | _numbers(jobs, rules, layer, content)
        numbers |= {of_kind(kind): count for kind, count in content.layers.items()}
        numbers |= {of_whole(kind): beside for kind, beside in own_units.items() if beside is not None}
        differing = {name: values for name, values in numbers.items() if np.any(values != values.flat[:1])}
        names.append(tuple(differing))
        each = np.array(list(differing.values())).reshape(len(differing), len(jobs))
        first, row = _distinct(each)
        columns.append(each[:, first])
        rows.append(row)
        alike.append(
            {name: values[:1].reshape(1, 1, 1, 1) for name, values in numbers.items() if name not in differing}
        )
        fixed = numbers["workspace"] + numbers["buckets"]
        held.append(states.parameters + states.gradients + states.optimizer + fixed)
    return StageTable(
        names=tuple(names),
        columns=tuple(columns),
        alike=tuple(alike),
        rows=np.array(rows),
        state_bytes=np.max(held, axis=0),
    )


def _distinct(table: Array | Ints) -> tuple[Ints, Ints]:
    """Where columns first stand that differ from each other, and which of them each is. Shapes: (number, column).

    They are told apart by a sum of their bits, each number's by a weight of its own; were two ever to agree in that
    alone, all stay.
    """
    weights = (2 * np.arange(len(table), dtype=np.uint64) + 1) * SPREADING
    sums = (np.ascontiguousarray(table).view(np.uint64) * weights[:, None]).sum(axis=0)
    _, first, which = np.unique(sums, return_index=True, return_inverse=True)
    if not np.array_equal(table[:, first[which]], table):
        return np.arange(table.shape[1]), np.arange(table.shape[1])
    return first, which


def is_uneven(jobs: Jobs) -> Flags:
    """Whether some stages have a layer more than others, the ends aside. Shapes: one entry per job."""
    return np.asarray((np.mod(jobs.model.num_layers, jobs.pipeline) > 0) & (jobs.first_fewer + jobs.last_fewer == 0))


def _numbers(jobs: Jobs, rules: MemoryRules, layer: LayerParameters, content: StageContent) -> dict[str, Array]:
    """What the law of the peak reads of a stage beside its states; `per_token` of a micro-batch."""
    vocabulary, hidden_size = layer.vocabulary, jobs.model.hidden_size
    first, last = content.is_first.astype(float), content.is_last.astype(float)
    token = hidden_size * rules.element_bytes
    is_split = jobs.sequence_parallel.astype(float)
    per_rank = token / np.where(jobs.sequence_parallel, jobs.tensor, 1.0)
    sends = (jobs.pipeline > 1) & ~content.is_last
    return {
        "is_first": first,
        "is_last": last,
        "hidden_per_token": per_rank,
        "output_per_token": np.where(sends, per_rank * rules.outputs_kept, 0.0),
        "gathered_per_token": 2 * token * is_split,
        "logits_per_token": vocabulary * last / hidden_size,
        "loss_logit": loss_bytes(jobs, rules),
        "head_logit": rules.head_logit_bytes,
        "waiting_logit": rules.waiting_logit_bytes,
        "head_gradient": vocabulary * rules.head_gradient_bytes * last,
        "embedding_gradient": vocabulary * rules.head_gradient_bytes * first,
        "workspace": rules.workspace_bytes,
        "buckets": np.where(jobs.data * jobs.context > 1, rules.bucket_bytes, 0.0),
        "held_beside": held_beside(jobs, rules, layer, content),
        "logit_slack": rules.element_bytes * rules.logit_slack,
        "working_slack": rules.working_slack,
        "context_bytes": rules.context_bytes,
    }
