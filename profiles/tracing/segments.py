"""A recording of a whole module cut into its segments, each with numbers of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from torch import nn

from profiles.models.operators import PHASES, Phase
from profiles.tracing.cuts import Cuts
from profiles.tracing.operator_recorder import RecordedOperator, Recording
from profiles.tracing.segment_recorder import SegmentRecorder
from profiles.tracing.stage_cuts import SeenCuts, seen_cuts
from profiles.workloads.experts import expert_parameters
from profiles.workloads.fake_tensors import storage_of

# What segments before and behind all blocks are called; a module without blocks is one segment.
FIRST, LAST, ALL = "first", "last", "model"


# A segment, a direction, and bytes.
Sent: TypeAlias = tuple[int, Phase, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment of a run: its kernels in order, forward then backward, and what it keeps and needs.

    `saved` are bytes of each kernel's outputs that backward needs; paths are those within the block. Of its parameters
    `frozen` are not trained; `experts` are trained ones of mixtures. `peak_members` are the storages that lived when
    most did. `gives_what_it_takes`: whether its block could run on what it gives, beside what other blocks take too.
    `messages` are what a rank of several sends in which direction.
    """

    name: str
    path: str
    operators: tuple[RecordedOperator, ...]
    saved: tuple[int, ...]
    saved_bytes: int
    peaks: Mapping[Phase, int]
    peak_members: Mapping[Phase, frozenset[int]]
    input_bytes: int
    output_bytes: int
    shapes: tuple[tuple[int, ...], ...]
    frozen: int
    experts: int
    gives_what_it_takes: bool
    messages: tuple[tuple[Phase, int], ...] = ()
    carried_bytes: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal in segments that are alike."""
        kernels = tuple((op.signature, op.dims, op.read_bytes, op.written_bytes) for op in self.operators)
        sizes = self.saved_bytes, self.input_bytes, self.output_bytes
        return self.name, self.shapes, self.frozen, kernels, *sizes, self.messages

    @property
    def signature(self) -> tuple[tuple[str, ...], ...]:
        """The kernels without their sizes."""
        return tuple(op.signature for op in self.operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A module run once at one size, cut; `cuts` are where stages may begin."""

    segments: tuple[Segment, ...]
    recording: Recording
    cuts: SeenCuts
    # By the id of another run, which lives as long: whether the two are alike.
    like: dict[int, bool] = field(default_factory=dict)

    def peak(self, segment: int, phase: Phase, base: Run) -> int:
        """The most that lives in a segment, at the moment at which most did in `base`, where both did the same."""
        own = self.segments[segment]
        # Autocast keeps weights that it has converted until the forward pass ends.
        carried = own.carried_bytes if phase == "forward" else 0
        if not self.is_like(base):
            return own.peaks.get(phase, 0) + carried
        members = base.segments[segment].peak_members.get(phase, frozenset())
        return sum(map(self.recording.bytes_of, members)) + carried

    def is_like(self, other: Run) -> bool:
        """Whether the two ran the same kernels, on the same storages."""
        if id(other) not in self.like:
            self.like[id(other)] = self._ran_the_same(other)
        return self.like[id(other)]

    def _ran_the_same(self, other: Run) -> bool:
        ours, theirs = self.recording, other.recording
        return len(ours.storage_bytes) == len(theirs.storage_bytes) and all(
            a.signature == b.signature and a.outputs == b.outputs
            for a, b in zip(ours.operators, theirs.operators, strict=False)
        )


def cut(
    recorder: SegmentRecorder,
    module: nn.Module,
    seen: Cuts,
    sent: Sequence[Sent] = (),
    between: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Run:
    """The segments of what was recorded, beside which cuts were `seen` and messages were `sent`.

    `between` are the blocks behind which others were taken out, though not all, and those that they are like.
    """
    recording, cuts = recorder.recording, recorder.cuts.segments
    parameters = _parameters(recorder, module)
    of_experts = {id(one) for part in module.modules() for one in expert_parameters(part).values()}
    saved: list[int] = [0] * len(cuts)
    for index, segment in recording.saved.items():
        saved[segment] += recording.bytes_of(index)
    operators = _by_segment(recording, [own.path for own in cuts])
    made, carried = list[Segment](), 0
    for number, own in enumerate(cuts):
        peaks = {phase: recording.peaks[number, phase] for phase in PHASES if (number, phase) in recording.peaks}
        name = FIRST if number == 0 else LAST
        if own.path:
            name = type(recorder.blocks[own.path]).__name__
        made.append(
            Segment(
                name=ALL if len(cuts) == 1 else name,
                path=own.path,
                operators=tuple(operators[number]),
                saved=tuple(_saved_of(recording, op) for op in operators[number]),
                saved_bytes=saved[number],
                peaks={phase: most for phase, (most, _) in peaks.items()},
                peak_members={phase: members for phase, (_, members) in peaks.items()},
                input_bytes=own.input_bytes,
                output_bytes=own.output_bytes,
                shapes=tuple(tuple(one.shape) for one in parameters[number]),
                frozen=sum(one.numel() for one in parameters[number] if not one.requires_grad),
                experts=sum(one.numel() for one in parameters[number] if id(one) in of_experts and one.requires_grad),
                gives_what_it_takes=not Counter(own.gives) - Counter(own.takes),
                messages=tuple((phase, num_bytes) for segment, phase, num_bytes in sent if segment == number),
                carried_bytes=carried,
            )
        )
        like = between.get(own.path, ())
        if like:
            period = len(set(like))
            carried += (own.kept_bytes - cuts[number - period].kept_bytes) * (len(like) // period)
    return Run(segments=tuple(made), recording=recording, cuts=seen_cuts(seen))


def _saved_of(recording: Recording, op: RecordedOperator) -> int:
    return sum(recording.storage_bytes[index] for index in op.outputs if index in recording.saved)


def _by_segment(recording: Recording, paths: Sequence[str]) -> list[list[RecordedOperator]]:
    """The kernels of each segment, their inputs counted within it: what comes from others is left out."""
    found: list[list[RecordedOperator]] = [[] for _ in paths]
    place: dict[int, tuple[int, int]] = {}
    for phase in PHASES:
        for number, op in enumerate(recording.operators):
            if op.phase != phase:
                continue
            own, path = found[op.segment], paths[op.segment]
            place[number] = op.segment, len(own)
            inputs = (place[source] for source in op.inputs)
            own.append(
                replace(
                    op,
                    inputs=tuple(sorted(position for segment, position in inputs if segment == op.segment)),
                    path=_within(op.path, path),
                )
            )
    return found


def _within(path: str, block: str) -> str:
    return path[len(block) + 1 :] if block and path.startswith(f"{block}.") else ("" if path == block else path)


def _parameters(recorder: SegmentRecorder, module: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each segment: of blocks their own, of others those that are used there first.

    Those that nothing uses belong to the last; each counts once.
    """
    cuts = recorder.cuts.segments
    found: list[list[nn.Parameter]] = [[] for _ in cuts]
    owners: dict[int, int] = {}
    for number, own in enumerate(cuts):
        for parameter in recorder.blocks[own.path].parameters() if own.path else ():
            owners.setdefault(storage_of(parameter), number)
    for parameter in module.parameters():
        place = storage_of(parameter)
        number = owners.get(place, recorder.cuts.first_used.get(place, len(cuts) - 1))
        found[number].append(parameter)
    return found
