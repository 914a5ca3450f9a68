"""What a run taught: types of the run file. Torch-free, so that reports can read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from planner.parts import Multiples
from planner.plans import Plan
from planner.prediction import Prediction, Span
from profiles.artifacts import STRICT
from profiles.inputs.ranges import Amount, Count, Devices, Finite, Fraction, Positive, Samples, Timed, Tokens, Whole
from profiles.machines.load import MachineLoad, busiest, causes
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.profile import WorkloadSpec

Status = Literal["passed", "failed", "exempt", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCheck:
    """The check of a plan: its gradients and weights against a plain loop's, its first losses against one device.

    `status` is passed, failed, exempt (a lossy codec, where there is no more than one device's losses) or skipped.
    `found` are the largest differences of each kind in shares of what is allowed, null where there is no number; of
    older files there are none.
    """

    __pydantic_config__ = STRICT

    status: Status
    reason: str
    tolerance_fraction: Fraction
    largest_difference_fraction: Fraction | None = None
    reference_losses: tuple[Finite, ...] = ()
    norm_tolerance_fraction: Fraction = 0.0
    largest_norm_difference_fraction: Fraction | None = None
    gradient_tolerance_fraction: Fraction = 0.0
    largest_gradient_difference_fraction: Fraction | None = None
    largest_weight_difference_fraction: Fraction | None = None
    found: dict[str, Fraction | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The mean loss on samples that are not trained on, after so many steps."""

    __pydantic_config__ = STRICT

    step: Whole
    loss: Finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One plan as it ran.

    `step_seconds` are all timed steps (slowest rank each); `seconds` the parts, medians of the slowest rank, null where
    they cannot be observed; `peak_bytes` per rank in the sense that `peak_kind` says; `losses` of every step, warm-up
    first, from the `first_step` that a checkpoint had not, and `losses_before` those of the steps up to it, as far as
    they are known; `spans` of one step, in seconds from its start; `load` what else the machine did during the timed
    steps, None where nobody looked; `evaluations` those of a training.
    Of GPUs alone: `reserved_bytes`, what each rank's allocator kept at most, and `in_use_bytes`, what its driver had
    given out to anybody; `attention`, the kernels that computed it; `settings`, what of rank 0's software decides
    times.
    """

    __pydantic_config__ = STRICT

    num_warmup_steps: Whole
    step_seconds: tuple[Timed, ...]
    seconds: dict[str, Finite | None]
    peak_bytes: tuple[Amount, ...]
    peak_kind: str
    losses: tuple[Finite, ...]
    loss_check: LossCheck
    tokens_per_second: Positive
    first_step: Whole = 0
    losses_before: tuple[Finite, ...] = ()
    spans: tuple[Span, ...] = ()
    load: MachineLoad | None = None
    evaluations: tuple[Evaluation, ...] = ()
    reserved_bytes: tuple[Amount, ...] = ()
    in_use_bytes: tuple[Amount, ...] = ()
    attention: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where and how a run took place; `load_before` is what the machine did just before, None where nobody looked.

    `trainwright` is this program's version, "" in files that are older than the field.
    """

    __pydantic_config__ = STRICT

    device: str
    num_devices: Devices
    num_cores: Count
    torch: str
    python: str
    backend: str
    commit: str
    started: str
    fingerprint: str
    oversubscribed: bool
    command: str
    data: str
    load_before: MachineLoad | None = None
    trainwright: str = ""

    def why_not_judged(self, load: MachineLoad | None) -> str:
        """What makes times say little that were taken here, under this load; "" where they are judged."""
        if self.oversubscribed:
            return "more ranks than cores"
        return "a busy machine" if load is not None and load.is_busy else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRun:
    """One plan with the prediction made before it ran and the measurement.

    `engine` carried it out, of `engine_version` where that is not this program.
    """

    __pydantic_config__ = STRICT

    rank: Count
    plan: Plan
    prediction: Prediction
    measurement: Measurement
    is_baseline: bool = False
    engine: str = THIS_PROGRAM
    engine_version: str = ""

    @property
    def is_own(self) -> bool:
        """Whether this program carried it out."""
        return self.engine == THIS_PROGRAM

    @property
    def engine_words(self) -> str:
        """The engine with its version, "" where it was this program."""
        return "" if self.is_own else f"{self.engine} {self.engine_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """What `execute -o` writes and `compare` reads; `stack`, `size_unit` and `learned` as in the plan file."""

    __pydantic_config__ = STRICT

    model_name: str
    workload: WorkloadSpec
    num_parameters: Whole
    machine_name: str
    machine_fingerprint: str
    global_batch_size: Samples
    sequence_length: Tokens
    seed: Whole
    runs: tuple[PlanRun, ...]
    environment: Environment
    notes: tuple[str, ...] = ()
    learned: Multiples = field(default_factory=dict)
    size_unit: str = "tokens"
    stack: str = THIS_PROGRAM


def busy_words(runs: Sequence[PlanRun]) -> str:
    """How many of the plans ran on a busy machine, and how busy it was at worst; "" where none did."""
    loads = [run.measurement.load for run in runs]
    worst = busiest(loads)
    if worst is None or not worst.is_busy:
        return ""
    count = sum(load is not None and load.is_busy for load in loads)
    return f"{count} of {len(runs)} plans ran on a busy machine (at worst {causes(worst)})"
