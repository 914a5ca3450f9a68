"""What a rank keeps of its timed steps: the seconds of each, and what was done in some of them. Torch-free.

A step's actions take some kilobytes, its seconds eight bytes. Of the first some hundred steps all actions are kept;
when they are too many, those of every second step are dropped, and from then on fewer are taken: what is kept is
bounded however long the run is, and evenly spread over it. Which steps are kept depends on their numbers alone, so that
all ranks keep the same ones.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from executor.observe.events import Action, StepTrace

MOST_STEPS = 256
# Of the actions of all kept steps, where a step has so many that fewer steps must do.
MOST_BYTES = 2**22
# Medians are taken over at least half of so many.
LEAST_STEPS = 8


@dataclass(frozen=True, slots=True)
class _Packed:
    """A step's trace in few bytes: of each action its kind, as a number, and its two times."""

    start_seconds: float
    stop_seconds: float
    ready_seconds: float | None
    kinds: array[int]
    times: array[float]

    @property
    def num_bytes(self) -> int:
        return len(self.kinds) * self.kinds.itemsize + len(self.times) * self.times.itemsize


class KeptSteps:
    """The steps of one rank: `seconds` of every one, and the traces of every `stride`-th."""

    def __init__(self) -> None:
        self.seconds: array[float] = array("d")
        self.stride = 1
        self._packed: list[_Packed] = []
        self._num_bytes = 0
        self._kinds: dict[tuple[str, int, int], int] = {}

    def __len__(self) -> int:
        """How many traces are kept."""
        return len(self._packed)

    def add(self, trace: StepTrace) -> None:
        """Take one more step."""
        number = len(self.seconds)
        self.seconds.append(trace.seconds)
        if number % self.stride:
            return
        self._packed.append(self._pack(trace))
        self._num_bytes += self._packed[-1].num_bytes
        while len(self) > MOST_STEPS or (self._num_bytes > MOST_BYTES and len(self) > LEAST_STEPS):
            self.thin(2 * self.stride)

    def thin(self, stride: int) -> None:
        """Drop all traces but those of every `stride`-th step; a multiple of the stride there is."""
        self._packed = self._packed[:: stride // self.stride]
        self._num_bytes = sum(packed.num_bytes for packed in self._packed)
        self.stride = stride

    def traces(self, start: int, stop: int) -> list[StepTrace]:
        """The kept traces from one to another, of which the first is number 0."""
        kinds = list(self._kinds)
        return [
            StepTrace(
                start_seconds=packed.start_seconds,
                stop_seconds=packed.stop_seconds,
                ready_seconds=packed.ready_seconds,
                actions=tuple(
                    Action(name=name, microbatch=microbatch, start_seconds=begun, stop_seconds=ended, stage=stage)
                    for (name, microbatch, stage), begun, ended in zip(
                        (kinds[kind] for kind in packed.kinds), packed.times[::2], packed.times[1::2], strict=True
                    )
                ),
            )
            for packed in self._packed[start:stop]
        ]

    def _pack(self, trace: StepTrace) -> _Packed:
        kinds, times = array("I"), array("d")
        for action in trace.actions:
            key = action.name, action.microbatch, action.stage
            kinds.append(self._kinds.setdefault(key, len(self._kinds)))
            times.extend((action.start_seconds, action.stop_seconds))
        return _Packed(trace.start_seconds, trace.stop_seconds, trace.ready_seconds, kinds, times)
