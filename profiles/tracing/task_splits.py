"""Over how many tensor-parallel ranks a traced task is split, and its layers as functions of how many those are.

The split is found and proven on a copy of the module with weights, as many blocks of it as the trace runs; the module
is then traced as the first rank of two, and one pass as that of more is held to what follows from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import InputError, PlanError
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import evaluate
from profiles.models.splitting import DEGREES, SIZES, Splitting, operators_over_degrees, over_degrees
from profiles.tracing.kinds_to_layers import layer_of
from profiles.tracing.probes import Probes, looks
from profiles.tracing.segments import Run
from profiles.tracing.task_runs import ENDS, Subject, is_remade, real_of
from profiles.units import format_count
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.precision import computing
from profiles.workloads.split_search import find_split
from profiles.workloads.tensor_splits import EXPERTS, Split

# Parameters of a copy that splits are tried on: they are run many times over.
MOST_TRIED = 100_000_000
# In the batch that a split is proven on; norms over a batch need two.
SAMPLES = 2
# By how much a rank of more may differ from what one of two says.
TOLERANCE = 0.002

Layers = dict[str, tuple[LayerProfile, ...]]


def split_layers(subject: Subject, chosen: Probes, kinds: Sequence[int], layers: Layers) -> tuple[Layers, Splitting]:
    """Layers with their sizes at every degree, and those degrees; as they were, and why, where there are none."""
    precision = next(iter(layers))
    try:
        module = _with_values(subject)
        split = _split(subject, module, DEGREES[0])
        runs = {own: [subject.run(own, *point, split) for point in chosen.grid.points] for own in layers}
        made = {
            own: tuple(
                _over_degrees(subject, layer, layer_of(layer.name, place, runs[own], chosen.grid))
                for layer, place in zip(layers[own], places_of(subject, kinds, runs[own]), strict=True)
            )
            for own in layers
        }
    except (InputError, PlanError) as error:
        return layers, Splitting(refusal=str(error))
    whole = [made[precision][kind] for kind in kinds]
    more = itertools.takewhile(
        lambda degree: _divides(split, degree) and _follows(subject, module, chosen, precision, whole, split, degree),
        DEGREES[1:],
    )
    return made, Splitting(degrees=(DEGREES[0], *more))


def _divides(split: Split, degree: int) -> bool:
    """Whether what ranks have of heads and widths can be divided further."""
    parts = [number for own in split.attributes.values() for number in own.values()]
    return all(number % (degree // split.degree) == 0 for number in parts)


def _with_values(subject: Subject) -> nn.Module:
    """A copy of the module with weights.

    Raises: InputError where it cannot be built; PlanError where it is too large to be tried.
    """
    spec = subject.spec
    held = sum(parameter.numel() for parameter in subject.module.parameters())
    count = held if subject.left != ENDS and (is_remade(spec) or subject.is_real) else subject.num_parameters
    if count > MOST_TRIED:
        raise PlanError(
            f"{spec.title}: its split over ranks is tried with real weights, at most {format_count(MOST_TRIED)} "
            f"parameters, but it has {format_count(count)}: give data parallelism, with ZeRO 3 to share it out"
        )
    return subject.module if subject.is_real else real_of(subject).module


def _split(subject: Subject, module: nn.Module, degree: int, within: Split | None = None) -> Split:
    task, sizes = subject.task, looks(subject.task)
    with foreign_code(subject.spec, f"{subject.spec.title}: its split cannot be tried"):
        batch = task.example(SAMPLES, min(sizes) if sizes else task.size)

        def run(module: nn.Module) -> Tensor:
            with computing("fp32", "cpu"):
                return task.loss(module, batch)

        with torch.random.fork_rng(devices=[]):
            split = find_split(module, run, degree, within)
    if EXPERTS in split.styles.values():
        raise PlanError(f"tensor_parallel={degree}: the input of its experts differs between ranks, use data_parallel")
    return split


def places_of(subject: Subject, kinds: Sequence[int], runs: Sequence[Run]) -> list[int]:
    """Where each kind stands first, of segments that are as many and alike on a rank, as they are alone.

    Raises: PlanError where they are not.
    """
    first = [kinds.index(kind) for kind in range(max(kinds) + 1)]
    for run in runs:
        keys = [segment.key for segment in run.segments]
        if len(keys) != len(kinds) or any(key != keys[first[kind]] for key, kind in zip(keys, kinds, strict=True)):
            raise PlanError(f"{subject.spec.title}: equal blocks can be split in different ways; use data_parallel")
    return first


def _over_degrees(subject: Subject, one: LayerProfile, two: LayerProfile) -> LayerProfile:
    operators = operators_over_degrees(one.operators, two.operators)
    if operators is None:
        raise PlanError(f"{subject.spec.title}: {one.name} runs other products once it is split; use data_parallel")
    sizes: dict[str, Any] = {name: over_degrees(getattr(one, name), getattr(two, name)) for name in SIZES}
    return replace(
        one, **sizes, operators=operators, messages=two.messages, num_parallel_linears=two.num_parallel_linears
    )


def _follows(
    subject: Subject, module: nn.Module, chosen: Probes, precision: str, layers: Sequence[LayerProfile], split: Split,
    degree: int,
) -> bool:  # fmt: skip
    """Whether one of more ranks runs what its layers say of that degree."""
    point = chosen.grid.points[0]
    try:
        run = subject.run(precision, *point, _split(subject, module, degree, split))
    except (InputError, PlanError):
        return False
    return _is_as_said(run, layers, (*point, degree))


def _is_as_said(run: Run, layers: Sequence[LayerProfile], at: tuple[int, int, int]) -> bool:
    if len(run.segments) != len(layers):
        return False
    for segment, layer in zip(run.segments, layers, strict=True):
        sent = [num_bytes for _, num_bytes in segment.messages]
        pairs = [
            (sum(map(math.prod, segment.shapes)), layer.num_parameters),
            (segment.saved_bytes, layer.saved_bytes),
            (sum(op.flops for op in segment.operators if op.phase == "forward"), layer.flops("forward")),
            (sum(op.flops for op in segment.operators if op.phase == "backward"), layer.flops("backward")),
            *zip(sent, (message.num_bytes for message in layer.messages), strict=False),
        ]
        told = [(value, float(evaluate(size, *at))) for value, size in pairs]
        if len(sent) != len(layer.messages) or any(abs(a - b) > TOLERANCE * max(a, 1) for a, b in told):
            return False
    return True
