"""Traces a task into a ModelProfile: the module as its author wrote it, cut at its repeated blocks.

The module runs forward and backward with its labels at a grid of micro-batches and sample sizes. Each number of a
segment is the polynomial through what those runs gave; segments that gave the same in all of them are one kind of
layer. Where samples have one size, or kernels are others at another one, the polynomials are of the micro-batch alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from profiles.errors import InputError
from profiles.models.cutting import Cutting
from profiles.models.layer_profile import LayerProfile
from profiles.models.operators import evaluate
from profiles.models.profile import USUAL_PRECISIONS, ModelProfile, WorkloadSpec
from profiles.tracing.dropout import Dropout
from profiles.tracing.kinds_to_layers import layer_of, unique_names
from profiles.tracing.module_copies import forget_cached
from profiles.tracing.probes import CURVED, STEPPED, STRAIGHT, Probes, looks, probes
from profiles.tracing.segments import Run
from profiles.tracing.stage_cuts import check_equal, cutting_of
from profiles.tracing.task_runs import Subject, TooLarge, subjects
from profiles.tracing.task_shares import share_layers
from profiles.tracing.task_splits import split_layers
from profiles.tracing.whole_check import check_against_whole, check_between
from profiles.workloads.task import Task

# By how much a run may differ from what the polynomials say of it, in FLOPs and in what is saved, and what is refused.
TOLERANCE, MOST = 0.002, 0.05
# Samples of a batch that none is run with.
MANY = 64
# Grids in the order in which they are tried: whether samples vary in size, and the micro-batches. Where numbers grow in
# line with samples of one size, it is those of other sizes that the first grid failed for.
GRIDS = (
    (True, STRAIGHT),
    (False, STRAIGHT),
    (True, CURVED),
    (True, STEPPED),
    (False, CURVED),
    (False, STEPPED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Sizes at which a module runs, and by how much what it did in another run differs from what those say."""

    subject: Subject
    probes: Probes
    difference: float


def trace_task(
    spec: WorkloadSpec, task: Task, precisions: Sequence[str] = USUAL_PRECISIONS, device_kind: str = "cpu"
) -> ModelProfile:
    """The profile of a task at each precision, over fp32 parameters, with the dropout of a kind of device.

    Raises: InputError where the module does not run, or what it does depends on its numbers.
    """
    if "fp8" in precisions:
        raise InputError(f"{spec.title}: fp8 is for models of known families: use bf16")
    failure: InputError | None = None
    for build in subjects(spec, task):
        try:
            subject = build()
            subject.dropout = Dropout(fused=device_kind == "cuda")
            try:
                return _traced(subject, precisions)
            finally:
                forget_cached(subject.module)
        except TooLarge as error:
            told = InputError(f"{error}; without: {failure}")
            told.details = failure.details if failure is not None else ""
            raise told from failure
        except InputError as error:
            # What fails with real tensors fails in the module's own words.
            failure = error
    assert failure is not None
    raise failure


def _traced(subject: Subject, precisions: Sequence[str]) -> ModelProfile:
    _check_shortened(subject, precisions)
    chosen = _choose(subject, precisions[0])
    points = chosen.grid.points
    if subject.taken and subject.spec.kind == "module":
        # Of transformers' own modules their configurations say how blocks differ.
        check_against_whole(subject, precisions[0], points[0])
    runs = {precision: [subject.run(precision, *point) for point in points] for precision in precisions}
    kinds = _kinds(subject.spec, runs)
    paths = [segment.path for segment in runs[precisions[0]][0].segments]
    for one in chain.from_iterable(runs.values()):
        check_between(subject, kinds, one)
    layers = {precision: _layers(kinds, own, chosen) for precision, own in runs.items()}
    seen = {precision: [run.cuts for run in own] for precision, own in runs.items()}
    cutting = cutting_of(subject.spec.title, paths, subject.taken, seen, chosen.grid)
    profile = _profile(subject, _whole(subject, kinds, paths), layers, chosen.varies, cutting)
    layers, splitting = split_layers(subject, chosen, kinds, layers)
    sharing = share_layers(subject, chosen, kinds, tuple(layers))
    return replace(
        profile, layers=layers, splitting=splitting, sharing=sharing, can_tensor_parallel=bool(splitting.degrees)
    )


def _check_shortened(subject: Subject, precisions: Sequence[str]) -> None:
    """Check that what was taken out of a module would run behind what was left, each on what the one before it gives.

    Raises: InputError.
    """
    small = looks(subject.task)
    point = 2, small[0] if small else subject.task.size
    try:
        run = subject.run(precisions[0], *point)
    except InputError:
        # Not all say which sizes they take.
        point = 2, subject.task.size
        run = subject.run(precisions[0], *point)
    shapes = {segment.path: segment.shapes for segment in run.segments}
    count = sum(math.prod(shape) for segment in run.segments for shape in segment.shapes)
    ends = [segment for segment in run.segments if segment.path in subject.taken]
    count += sum(math.prod(shape) for end in ends for path in subject.taken[end.path] for shape in shapes.get(path, ()))
    if (
        count != subject.num_parameters
        or len(ends) < len(subject.taken)
        or not all(end.gives_what_it_takes for end in ends)
    ):
        raise InputError(f"{subject.spec.title}: its blocks do not run one after the other: it cannot be traced")
    # All runs are held to these later on: a module that fails here need not be run at all sizes.
    for precision in precisions if subject.taken else ():
        run = subject.run(precision, *point)
        check_equal(subject.spec.title, [own.path for own in run.segments if own.path], subject.taken, run.cuts)
        check_between(subject, [segment.key for segment in run.segments], run)


def _choose(subject: Subject, precision: str) -> Probes:
    """The sizes that tell what the module does at any other.

    Raises: InputError where none do.
    """
    task, attempts, failure = subject.task, list[Attempt](), None
    sizes = looks(task)
    try:
        # Kernels that are more the longer a text is make its runs long. Of images they differ where windows are filled
        # up, and small ones would not tell what large ones take.
        is_looped = task.unit != "pixels" and sizes is not None and not _runs_alike(subject, precision, sizes)
        is_small = subject.is_real or is_looped
    except InputError:
        is_small = subject.is_real
    for varies, batches in GRIDS:
        chosen = probes(task, is_small, varies, batches)
        if chosen is None:
            continue
        try:
            attempts.append(Attempt(subject=subject, probes=chosen, difference=_difference(subject, precision, chosen)))
        except InputError as error:
            failure = error
            continue
        if attempts[-1].difference <= TOLERANCE:
            return chosen
    if not attempts:
        assert failure is not None
        raise failure
    best = min(attempts, key=lambda attempt: attempt.difference)
    if best.difference > MOST:
        raise InputError(
            f"{subject.spec.title}: its work differs by {best.difference:.0%} between batches of the same size: "
            "it cannot be traced"
        )
    return best.probes


def _runs_alike(subject: Subject, precision: str, sizes: tuple[int, int]) -> bool:
    first, second = (subject.run(precision, 2, size) for size in sizes)
    return first.is_like(second)


def _layers(kinds: Sequence[int], runs: Sequence[Run], chosen: Probes) -> tuple[LayerProfile, ...]:
    first = [kinds.index(kind) for kind in range(max(kinds) + 1)]
    names = unique_names([runs[0].segments[position].name for position in first])
    return tuple(layer_of(name, place, runs, chosen.grid) for name, place in zip(names, first, strict=True))


def _kinds(spec: WorkloadSpec, runs: Mapping[str, Sequence[Run]]) -> list[int]:
    """For each segment, which distinct one it is: segments are alike that are alike in every run."""
    every = list(chain.from_iterable(runs.values()))
    if any(len(run.segments) != len(every[0].segments) for run in every):
        raise InputError(f"{spec.title}: which of its blocks run depends on the input: it cannot be traced")
    known: dict[tuple[object, ...], int] = {}
    keys = zip(*([segment.key for segment in run.segments] for run in every), strict=True)
    return [known.setdefault(key, len(known)) for key in keys]


def _whole(subject: Subject, kinds: Sequence[int], paths: Sequence[str]) -> tuple[int, ...]:
    """The kinds of all segments of the whole module: blocks that were taken out are of the kind that they are like."""
    last = dict(zip(paths, kinds, strict=True))
    structure: list[int] = []
    for path, kind in zip(paths, kinds, strict=True):
        structure.append(kind)
        structure.extend(last[like] for like in subject.taken.get(path, ()))
    return tuple(structure)


def _profile(
    subject: Subject,
    structure: tuple[int, ...],
    layers: dict[str, tuple[LayerProfile, ...]],
    varies: bool,
    cutting: Cutting,
) -> ModelProfile:
    spec, task = subject.spec, subject.task
    return ModelProfile(
        # A factory is often called "task"; what it returns has a name of its own.
        name=task.name if spec.kind == "module" and task.name != "module" else spec.name,
        workload=replace(spec, task=task.name),
        hidden_size=0,
        num_heads=1,
        num_kv_heads=1,
        ffn_size=0,
        vocab_size=0,
        max_sequence_length=task.longest_size if varies else task.size,
        tied_embeddings=False,
        can_tensor_parallel=False,
        can_pipeline=bool(cutting.positions),
        structure=structure,
        layers=layers,
        traced_with=f"torch {torch.__version__}",
        unit=task.unit,
        usual_size=task.size,
        is_fixed=not varies,
        traced_for=("cuda" if subject.dropout.fused else "cpu") if subject.dropout.seen else "",
        cutting=cutting,
    )


def _difference(subject: Subject, precision: str, chosen: Probes) -> float:
    """By how much a run differs from what the polynomials of others say: the largest share, of FLOPs and of saved.

    Raises: InputError where they say that more samples are less work.
    """
    runs = [subject.run(precision, *point) for point in chosen.grid.points]
    wanted = subject.run(precision, *chosen.checked)
    samples, size = chosen.checked
    # Those that are planned, where samples have any size.
    sizes = (size, max(size, subject.task.size)) if chosen.varies else (size,)
    shares = []
    for total in (_saved, _forward_flops, _backward_flops):
        polynomial = chosen.grid.fit([total(run) for run in runs])
        expected, *more = (float(evaluate(polynomial, many, each, 1)) for many in (samples, MANY) for each in sizes)
        if min(more, default=expected) < expected * (1 - TOLERANCE):
            raise InputError(f"{subject.spec.title}: its work in large batches cannot be derived from small ones")
        shares.append(abs(expected - total(wanted)) / max(total(wanted), 1))
    return max(shares)


def _saved(run: Run) -> int:
    return sum(segment.saved_bytes for segment in run.segments)


def _forward_flops(run: Run) -> int:
    return sum(op.flops for segment in run.segments for op in segment.operators if op.phase == "forward")


def _backward_flops(run: Run) -> int:
    return sum(op.flops for segment in run.segments for op in segment.operators if op.phase == "backward")
