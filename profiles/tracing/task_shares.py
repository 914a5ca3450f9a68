"""Over how many ranks the experts of a traced task are shared out, and its layers as one of so many runs them.

That shares give what the whole gives is proven on a copy of the module with weights, as many blocks of it as the trace
runs. Of a large one that is made anew experts are narrow there: the proof is about who computes which rows, in which
their width has no say. Each degree is then traced as a rank of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from profiles.errors import InputError, PlanError
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import constant
from profiles.models.profile import WorkloadSpec
from profiles.models.sharing import SHARES, Sharing
from profiles.tracing.kinds_to_layers import layer_of, unique_names
from profiles.tracing.probes import Probes, looks
from profiles.tracing.segments import Run
from profiles.tracing.task_runs import FIRST, Left, Subject, is_remade, narrow_of, real_of
from profiles.tracing.task_splits import MOST_TRIED, SAMPLES, places_of
from profiles.units import format_count
from profiles.workloads.expert_shares import mixtures_of, prove_shares
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.precision import computing
from profiles.workloads.task import Task

# Parameters of a copy with narrow experts, which runs a few times: 2 GB of them.
MOST_PROVEN = 500_000_000
# Tokens of a sample that shares are tried on.
FEW = 8
# Parameters of a tensor of that copy whose gradient is compared.
MOST_COMPARED = 20_000_000


def share_layers(subject: Subject, chosen: Probes, kinds: Sequence[int], precisions: Sequence[str]) -> Sharing:
    """The degrees over which experts are shared out, with the layers of a rank of each; why there are none.

    Of a module without mixtures there is nothing to say.
    """
    counts, title = mixtures_of(subject.module).values(), subject.spec.title
    if not counts:
        return Sharing()
    degrees = tuple(degree for degree in SHARES if all(count % degree == 0 for count in counts))
    try:
        if not degrees:
            raise PlanError(f"{title}: {min(counts)} experts cannot be shared out over {SHARES[0]} ranks")
        if subject.is_real:
            raise PlanError(
                f"{title}: it is traced with random numbers, for which some experts are chosen more often than others"
            )
        _prove(subject, degrees)
        layers = {
            precision: tuple(_of_rank(subject, chosen, kinds, precision, degree) for degree in degrees)
            for precision in precisions
        }
    except (InputError, PlanError) as error:
        return Sharing(refusal=str(error))
    return Sharing(degrees=degrees, layers=layers)


def prove_on_copy(spec: WorkloadSpec, task: Task, degrees: Sequence[int], left: Left = FIRST) -> None:
    """Check on a copy with few blocks and narrow experts that shares of them give what the whole gives.

    Raises: PlanError where they do not, or where that copy is too large; InputError where it cannot be built.
    """
    module = narrow_of(spec, task, left).module
    if (count := _size_of(module)) > MOST_PROVEN:
        raise PlanError(
            f"{spec.title}: sharing its experts is tried with real weights, at most {format_count(MOST_PROVEN)} "
            f"parameters beside them, but it has {format_count(count)}: give data parallelism, with ZeRO 3"
        )
    for own in module.parameters():
        # Gradients of vocabularies take long, and say nothing of experts that those of blocks do not.
        own.requires_grad_(own.requires_grad and own.numel() <= MOST_COMPARED)
    _prove_with(module, spec, task, degrees)


def is_proven_apart(module: nn.Module, spec: WorkloadSpec) -> bool:
    """Whether a module is so large that a copy with narrow experts is proven in its place."""
    return is_remade(spec) and _size_of(module) > MOST_TRIED


def _prove(subject: Subject, degrees: Sequence[int]) -> None:
    spec = subject.spec
    if is_proven_apart(subject.module, spec):
        prove_on_copy(spec, subject.task, degrees, subject.left)
        return
    if subject.num_parameters > MOST_TRIED and not is_remade(spec):
        raise PlanError(
            f"{spec.title}: sharing its experts is tried with real weights, at most {format_count(MOST_TRIED)} "
            f"parameters, but it has {format_count(subject.num_parameters)}: give data parallelism, with ZeRO 3"
        )
    _prove_with(real_of(subject).module, spec, subject.task, degrees)


def _prove_with(module: nn.Module, spec: WorkloadSpec, task: Task, degrees: Sequence[int]) -> None:
    sizes, step = looks(task), max(task.size_step, 1)
    # Few tokens are enough, and those of text are few.
    few = min(*sizes, step * math.ceil(max(FEW, task.least_size) / step)) if sizes else task.size
    with foreign_code(spec, f"{spec.title}: shares of its experts cannot be tried"):
        batch = task.example(SAMPLES, few)

        def run(module: nn.Module) -> Tensor:
            with computing("fp32", "cpu"):
                return task.loss(module, batch)

        with torch.random.fork_rng(devices=[]):
            prove_shares(module, run, *degrees)


def _of_rank(
    subject: Subject, chosen: Probes, kinds: Sequence[int], precision: str, degree: int
) -> tuple[LayerProfile, ...]:
    """The distinct layers as one of `degree` ranks runs them."""
    runs = [subject.run(precision, *point, shares=degree) for point in chosen.grid.points]
    places = places_of(subject, kinds, runs)
    names = unique_names([runs[0].segments[place].name for place in places])
    return tuple(_layer(name, place, runs, chosen) for name, place in zip(names, places, strict=True))


def _layer(name: str, place: int, runs: Sequence[Run], chosen: Probes) -> LayerProfile:
    layer = layer_of(name, place, runs, chosen.grid)
    sent = (replace(message, collective="all_to_all") for message in layer.messages)
    experts = constant(runs[0].segments[place].experts)
    return replace(layer, messages=tuple(sent), num_expert_parameters=experts, num_parallel_linears=0)


def _size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
