"""What a step on a measured machine rests on: timings, laws scaled to timings, data sheets; and how sure it is.

Each part of a step rests on one of these, by the size of its layers and the groups that it sends over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from planner.cost.axes.groups import experts_inside, members_inside, pipeline_stride, replicas_inside
from planner.cost.job import Jobs
from planner.cost.links import SheetLinks, fabric_of
from planner.cost.measured.corrections import Corrections
from planner.cost.measured.kernels import OnMachine
from planner.cost.measured.links import MeasuredLinks, inside_of
from planner.parts import PART_SPREADS
from profiles.codecs.codec import FSDP_STAGES
from profiles.machines.profile import Collective
from profiles.models.transformer import Array

# Repeated steps of one plan differ by this much (README, "How right it is").
REPEAT_FRACTION = 0.08
# Half of a 90 % band in standard errors of a normal distribution.
BAND_WIDTH = 1.64
# Standard errors of compute. From layers timed at the plan's own size: 7.7 % root mean square over the README's five
# runs on two CPU ranks, rounded up, so that how many of those lie inside their band is in sample. From layers timed at
# other sizes, and from kernels run alone: assumed.
TIMED_ERROR, SCALED_ERROR, KERNELS_ERROR = 0.08, 0.15, 0.15
# Of tasks kernel by kernel, assumed: many of theirs are priced by others, convolutions by few that were timed.
TASK_KERNELS_ERROR = 0.3
# Of communication, all assumed: how much of a message compute hides is less certain than how long it takes alone, and
# groups that were not measured are less certain than those that were.
GROUP_ERROR, SCALED_GROUP_ERROR = 0.2, 0.3
MEASURED, SCALED, SHEET = "measurements", "published laws scaled to those", "data sheets"
PASSES = ("compute", "recompute", "bubble", "host")
ONCE = ("optimizer", "codec")
# What nothing that is measured tells.
UNMEASURED = ("offload", "stragglers")
# Shares of less than this are not worth a word; and shares are rounded, so that like plans share a line.
WORTH_SAYING, ROUNDING = 0.025, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What seconds of a step rest on, and their relative standard error; those of one `name` err together."""

    name: str
    rests_on: str
    error: float
    seconds: float


def bases(traced: OnMachine, jobs: Jobs, seconds: Mapping[str, Array], row: int) -> list[Basis]:
    """What the parts of one job's step rest on."""
    one = jobs.take(np.array([row]))
    result = [_of_passes(traced, one, sum(float(seconds[name][row]) for name in PASSES if name in seconds))]
    once = sum(float(seconds[name][row]) for name in ONCE if name in seconds)
    result.append(Basis(name="kernels", rests_on=MEASURED, error=KERNELS_ERROR, seconds=once))
    links = MeasuredLinks(machine=traced.machine, law=SheetLinks(fabric=fabric_of(one)), knows_network=True)
    for part, collective, size, inside in _groups(one):
        taken = float(seconds[part][row]) if part in seconds else 0.0
        rests_on, error = _of_group(links, collective, float(size[0]), float(inside[0]), PART_SPREADS[part])
        result.append(Basis(name=f"groups from {rests_on}", rests_on=rests_on, error=error, seconds=taken))
    for part in UNMEASURED:
        if part in seconds:
            taken = float(seconds[part][row])
            result.append(Basis(name=part, rests_on=SHEET, error=PART_SPREADS[part], seconds=taken))
    return [basis for basis in result if basis.seconds > 0]


def _of_passes(traced: OnMachine, job: Jobs, seconds: float) -> Basis:
    """Of forward and backward passes: their layers as timed at the job's size, at others, or kernel by kernel."""
    layers = [*traced.layers.kinds.values(), *traced.layers.ends.values()]
    timings = [traced.timings(layer) for layer in layers]
    if not all(timings):
        error = TASK_KERNELS_ERROR if traced.layers.model.workload.task else KERNELS_ERROR
        return Basis(name="kernels", rests_on=MEASURED, error=error, seconds=seconds)
    own = tuple(float(column[0]) for column in (job.micro_batch, job.sequence, job.tensor))
    is_split = bool(job.context[0] > 1 or (job.sequence_parallel[0] and job.tensor[0] > 1))
    is_timed = not is_split and all(
        any((one.micro_batch_size, one.sequence_length, one.tensor_parallel) == own for one in of_layer)
        for of_layer in timings
    )
    if is_timed:
        return Basis(name="layers", rests_on=MEASURED, error=TIMED_ERROR, seconds=seconds)
    return Basis(name="layers", rests_on=SCALED, error=SCALED_ERROR, seconds=seconds)


def _groups(job: Jobs) -> Iterator[tuple[str, Collective, Array, Array]]:
    """The part that each kind of message makes, its collective, how many ranks it goes over, and of those on a node."""
    one = np.ones(1)
    is_spread, zero = bool(job.sequence_parallel[0]), int(job.zero_stage[0])
    replicas = job.shard if zero == max(FSDP_STAGES) else job.data * job.context
    pair = np.minimum(job.pipeline, 2.0)
    yield "tensor_comm", "all_gather" if is_spread else "all_reduce", job.tensor, members_inside(job, job.tensor, one)
    yield "context_comm", "all_gather", job.context, members_inside(job, job.context, job.tensor)
    yield "expert_comm", "all_to_all", job.expert, experts_inside(job, job.expert)
    yield "pipeline_comm", "send_receive", pair, members_inside(job, pair, pipeline_stride(job))
    shares = zero in FSDP_STAGES
    yield (
        "data_comm", "reduce_scatter" if shares else "all_reduce", replicas,
        replicas_inside(job, replicas, job.tensor),
    )  # fmt: skip


def _of_group(
    links: MeasuredLinks, collective: Collective, size: float, inside: float, unmeasured: float
) -> tuple[str, float]:
    """What messages over a group rest on, and their error; where no such group was measured, `unmeasured`."""
    inside = min(inside, size)
    curve = links.nearest(collective, size, inside)
    if curve is None:
        return SHEET, max(unmeasured, SCALED_GROUP_ERROR)
    if (curve.group_size, inside_of(curve, links.machine)) == (size, inside):
        return MEASURED, max(curve.error_fraction, GROUP_ERROR)
    return SCALED, max(curve.error_fraction, SCALED_GROUP_ERROR)


def spread_of(rests: list[Basis]) -> float:
    """The relative standard error of a step: seconds of one origin err together, those of several apart."""
    total = sum(basis.seconds for basis in rests)
    off: dict[str, float] = {}
    for basis in rests:
        off[basis.name] = off.get(basis.name, 0.0) + basis.seconds * basis.error
    return float(np.sqrt(sum(value**2 for value in off.values()))) / total


def band_of(rests: list[Basis]) -> tuple[float, float]:
    """The ends of a band of 90 %, as multiples of the step."""
    width = float(np.exp(BAND_WIDTH * spread_of(rests)))
    return 1 / width, width


def words_of(rests: list[Basis]) -> str:
    """What a step rests on, in one line."""
    total, shares = sum(basis.seconds for basis in rests), {MEASURED: 0.0, SCALED: 0.0, SHEET: 0.0}
    for basis in rests:
        shares[basis.rests_on] += basis.seconds / total
    said = {name: share for name, share in shares.items() if share >= WORTH_SAYING}
    if len(said) == 1:
        return f"the step rests on {next(iter(said))}"
    parts = [f"{ROUNDING * round(share / ROUNDING):.0%} on {name}" for name, share in said.items()]
    return f"of the step rest about {', '.join(parts)}"


def compute_words(traced: OnMachine) -> str:
    """What the seconds of compute come from."""
    layers = [*traced.layers.kinds.values(), *traced.layers.ends.values()]
    timed = "layers" if all(map(traced.timings, layers)) else "kernels"
    return f"compute from {timed} timed on this machine"


def taught_words(corrections: Corrections) -> str:
    """What is said of plans whose predictions are corrected."""
    return f"corrected by {corrections.num_plans} plans that ran here"
