"""What was noted of a step, as values: actions with their times, messages with their bytes, per rank. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.artifacts import STRICT
from profiles.inputs.ranges import Amount, Whole

# Names of actions, beside those of a gradient bucket. WEIGHT is the weight gradients' part of a backward pass where a
# schedule computes it apart.
FORWARD, BACKWARD, WEIGHT = "F", "B", "W"
PASSES = (FORWARD, BACKWARD, WEIGHT)
OPTIMIZER = "optimizer"
# What a profiler is told of the exchanges of attention and of experts, by the axis they are of.
EXCHANGES = {"context": "context all-to-all", "expert": "expert all-to-all"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing a rank did; times are seconds on the rank's clock. `stage` is -1 for what is no stage's alone."""

    name: str
    microbatch: int
    start_seconds: float
    stop_seconds: float
    stage: int = -1

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.stop_seconds - self.start_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """One step of one rank. `ready_seconds` is when the last gradient bucket had been handed over, if any was."""

    start_seconds: float
    stop_seconds: float
    actions: tuple[Action, ...]
    ready_seconds: float | None

    @property
    def seconds(self) -> float:
        """Duration of the step on this rank."""
        return self.stop_seconds - self.start_seconds

    def named(self, *names: str) -> list[Action]:
        """The actions of these names by their start."""
        return sorted((a for a in self.actions if a.name in names), key=lambda a: a.start_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """All messages of one collective on one axis: how many, and bytes of the tensors that they work on.

    Those are the whole tensor: the sum of an all-reduce, what is gathered, what is scattered, what is exchanged.
    """

    __pydantic_config__ = STRICT

    axis: str
    collective: str
    count: Whole
    num_bytes: Amount
