"""What a rehearsal taught: types of its file, and how far it is from what was predicted. Torch-free, for reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from executor.observe.events import Message
from planner.expected_counts import Volumes
from planner.plans import Plan
from planner.prediction import Prediction
from profiles.artifacts import STRICT
from profiles.errors import ArtifactError
from profiles.inputs.ranges import Amount, Count, Devices, Samples, Seconds, Tokens, Whole
from profiles.models.profile import WorkloadSpec

# What a rehearsal may differ by: the planner's laws and the program's own count should be the same thing twice.
TOLERANCE_FRACTIONS = {"FLOPs": 0.01, "bytes": 0.01, "peak memory": 0.05, "memory to build": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What one rank would do in a step like all that follow the first ones.

    `place` is its index on every axis; `flops` are of products, with what is recomputed; `peak_bytes` of live tensors,
    as on a real CPU rank, `build_peak_bytes` until the first step; `state_bytes` what parameters and optimizer take of
    them; `seconds` what rehearsing took.
    """

    __pydantic_config__ = STRICT

    rank: Whole
    place: dict[str, Whole]
    num_operators: Whole
    flops: dict[str, Amount]
    messages: tuple[Message, ...]
    peak_bytes: Amount
    state_bytes: dict[str, Amount]
    seconds: Seconds
    build_peak_bytes: Amount = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRehearsal:
    """One rank as rehearsed beside what was expected of it."""

    __pydantic_config__ = STRICT

    rehearsed: Rehearsed
    expected: Volumes
    expected_peak_bytes: Amount
    expected_build_bytes: Amount = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRehearsal:
    """One plan with the prediction made for it and the ranks that were rehearsed."""

    __pydantic_config__ = STRICT

    rank: Count
    plan: Plan
    prediction: Prediction
    ranks: tuple[RankRehearsal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalFile:
    """What `execute --rehearse -o` writes and `compare` reads."""

    __pydantic_config__ = STRICT

    model_name: str
    workload: WorkloadSpec
    num_parameters: Whole
    machine_name: str
    num_devices: Devices
    global_batch_size: Samples
    sequence_length: Tokens
    plans: tuple[PlanRehearsal, ...]
    torch: str
    started: str
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Check that something was rehearsed, and its workload.

        Raises: ArtifactError.
        """
        self.workload.check()
        if not self.plans or not all(plan.ranks for plan in self.plans):
            raise ArtifactError(f"{self.model_name}: plans should hold at least one plan, with ranks: rehearse again")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One quantity expected and rehearsed; `fraction` is expected over rehearsed - 1."""

    what: str
    expected: float
    rehearsed: float
    unit: str
    tolerance_fraction: float

    @property
    def fraction(self) -> float:
        """How far the expectation is off; infinite where nothing was rehearsed of it."""
        if self.rehearsed:
            return self.expected / self.rehearsed - 1
        return 0.0 if not self.expected else float("inf")

    @property
    def is_within(self) -> bool:
        """Whether both agree as far as they should."""
        return abs(self.fraction) <= self.tolerance_fraction


def differences(own: RankRehearsal) -> Iterator[Difference]:
    """FLOPs and bytes by axis and collective of a step, and peak memory, of one rank."""
    yield Difference(
        what="FLOPs",
        expected=own.expected.flops,
        rehearsed=sum(own.rehearsed.flops.values()),
        unit="FLOP",
        tolerance_fraction=TOLERANCE_FRACTIONS["FLOPs"],
    )
    expected = {(traffic.axis, traffic.collective): traffic.num_bytes for traffic in own.expected.traffic}
    sent = {(message.axis, message.collective): message.num_bytes for message in own.rehearsed.messages}
    for key in sorted({*expected, *sent}):
        yield Difference(
            what=f"{key[0]} {key[1].replace('_', '-')}",
            expected=expected.get(key, 0.0),
            rehearsed=sent.get(key, 0.0),
            unit="B",
            tolerance_fraction=TOLERANCE_FRACTIONS["bytes"],
        )
    yield Difference(
        what="peak memory",
        expected=own.expected_peak_bytes,
        rehearsed=own.rehearsed.peak_bytes,
        unit="B",
        tolerance_fraction=TOLERANCE_FRACTIONS["peak memory"],
    )
    if own.rehearsed.build_peak_bytes:
        yield Difference(
            what="memory to build",
            expected=own.expected_build_bytes,
            rehearsed=own.rehearsed.build_peak_bytes,
            unit="B",
            tolerance_fraction=TOLERANCE_FRACTIONS["memory to build"],
        )
