"""What a plan would take: the vocabulary that predictions share with measurements, and the plan file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from planner.answers import Answers
from planner.compression.recipes import CompressionChoice
from planner.parts import Multiples
from planner.plans import Plan
from profiles.artifacts import STRICT
from profiles.inputs.ranges import (
    Amount,
    Count,
    Devices,
    Finite,
    Fraction,
    Positive,
    Samples,
    Seconds,
    Timed,
    Tokens,
    Whole,
)
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.profile import WorkloadSpec

# Bytes of the fullest rank by kind; they add up to the peak. `slack` is what torch's allocator holds and does not hand
# out, `outside` what stands outside of it: the device's context with its kernels, and communicators (NCCL).
KINDS: tuple[str, ...] = ("parameters", "gradients", "optimizer", "activations", "buffers", "slack", "outside")

# Spans of more steps than this are neither read nor drawn.
MAX_SPANS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One action on the timeline of a step: F, B or the name of a collective; `microbatch` is -1 where it has none."""

    __pydantic_config__ = STRICT

    stage: Whole
    action: str
    microbatch: int
    start_seconds: Seconds
    stop_seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Step time and memory of one plan; `low_seconds` to `high_seconds` is a band of about 90 %."""

    __pydantic_config__ = STRICT

    step_seconds: Timed
    low_seconds: Timed
    high_seconds: Timed
    seconds: dict[str, Finite]
    bytes_per_rank: dict[str, Finite]
    peak_bytes: Amount
    stage_peak_bytes: tuple[Amount, ...]
    fits: bool
    tokens_per_second: Positive
    mfu: Fraction
    mfu_denominator: str
    method: str
    assumptions: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan of the table: `verdict` says in a few words why it won, lost, or cannot run.

    `executable` tells whether the software that it is for can run it; False as well where nobody has tried.
    One that differs from a better one in a single choice is not shown but `folded_into` that one's rank, 0 for those
    that are shown; of the latter, `num_folded` are like it, and take at most `folded_within_fraction` longer.
    """

    __pydantic_config__ = STRICT

    rank: Count
    plan: Plan
    prediction: Prediction
    verdict: str
    executable: bool
    folded_into: Whole = 0
    num_folded: Whole = 0
    folded_within_fraction: Amount = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFor:
    """What plans are for: a model, a machine with its origin, a batch, and the software (`stack`).

    `size_unit` is what the size of a sample counts; "" where samples have one size alone, which counts as one token.
    `stack_version`: what its words were tried with, "" where nobody has. `attention_kernel` and `overlaps_tensor`: what
    it was priced with, "" where a machine or a trace has its own. `gradient_dtype`: of gradients as they are added up
    and sent, "" as the software has it. `cluster`: a shipped one, or "".
    `learned` are the multiples of parts, taught by earlier runs, that predictions were made with.
    """

    __pydantic_config__ = STRICT

    model_name: str
    workload: WorkloadSpec
    num_layers: Count
    num_parameters: Whole
    machine_name: str
    machine_origin: str
    machine_device_kind: Literal["cpu", "cuda"]
    machine_fingerprint: str
    num_devices: Devices
    global_batch_size: Samples
    sequence_length: Tokens
    size_unit: str = "tokens"
    stack: str = THIS_PROGRAM
    stack_version: str = ""
    attention_kernel: str = ""
    overlaps_tensor: bool = False
    gradient_dtype: str = ""
    devices_per_node: Whole = 0
    cluster: str = ""
    learned: Multiples = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile(PlannedFor):
    """What `plan -o` writes and `execute` reads; candidates are ranked, the first is the choice.

    `baseline` is the index of plain data parallel among the candidates, -1 where it is not legal. `answers` is what was
    asked besides; `execute` has no use for it.
    """

    __pydantic_config__ = STRICT

    candidates: tuple[Candidate, ...]
    baseline: Annotated[int, Field(ge=-1)]
    num_legal: Whole
    rejected: dict[str, Whole]
    notes: tuple[str, ...] = ()
    created: str = ""
    compression: tuple[CompressionChoice, ...] = ()
    answers: Answers = Answers()
