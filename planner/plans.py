"""One plan: every choice that the executor obeys literally."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from planner.schedules.registry import NONE, Schedule, plan_names, schedule_of
from profiles.artifacts import STRICT
from profiles.errors import PlanError, UnknownNameError
from profiles.inputs.ranges import Devices, Samples, Whole, ZeroStage


def _known_schedule(name: str) -> str:
    if name not in plan_names():
        raise UnknownNameError("schedule", name, plan_names())
    return name


ScheduleName = Annotated[str, AfterValidator(_known_schedule)]
Recompute = Literal["none", "selective", "full"]
Offload = Literal["none", "optimizer", "activations"]
AXES: tuple[str, ...] = ("tensor", "context", "data", "pipeline")
POSITIVE_FIELDS = (
    "data_parallel",
    "tensor_parallel",
    "context_parallel",
    "pipeline_parallel",
    "expert_parallel",
    "virtual_stages",
    "micro_batch_size",
    "num_microbatches",
)
# What a question is taken to mean that does not say how long a sample is, or how many there are in a step.
DEFAULT_SAMPLES_PER_DEVICE, DEFAULT_SEQUENCE_LENGTH = 8, 4096
RECOMPUTE_WORDS = {"selective": "recompute-attention", "full": "recompute"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout of one training step.

    `axis_order` names the mesh axes, innermost (neighbouring ranks) first; axes of degree 1 may be left out.
    `num_microbatches` is per data-parallel replica; without a pipeline they are gradient-accumulation steps.
    `replica_microbatches` are those of each replica in the order of their ranks where they differ, of which
    `num_microbatches` is the most; empty where all are alike.
    `stage_bounds` is the first layer of each stage; `virtual_stages` of them on each pipeline rank, in model order.
    `shard_degree` is over how many ranks of the data axis ZeRO shards: 0 means all of them, fewer is HSDP.
    `expert_parallel` ranks, neighbours on the data axis, share the experts of a mixture of experts.
    `recompute_layers` is how many layers of each stage are recomputed, its first ones; empty means all.
    """

    __pydantic_config__ = STRICT

    data_parallel: Devices = 1
    tensor_parallel: Devices = 1
    pipeline_parallel: Devices = 1
    context_parallel: Devices = 1
    expert_parallel: Devices = 1
    shard_degree: Whole = 0
    sequence_parallel: bool = False
    vocab_parallel: bool = False
    axis_order: tuple[str, ...] = AXES
    micro_batch_size: Samples = 1
    num_microbatches: Samples = 1
    replica_microbatches: tuple[Samples, ...] = ()
    stage_bounds: tuple[Whole, ...] = (0,)
    virtual_stages: Devices = 1
    schedule: ScheduleName = NONE
    zero_stage: ZeroStage = 0
    recompute: Recompute = "none"
    recompute_layers: tuple[Whole, ...] = ()
    offload: Offload = "none"
    compiled: bool = False
    codec: str = "none"
    precision: str = "fp32"

    @property
    def rules(self) -> Schedule:
        """What its schedule does and asks for; without a pipeline, the usual one of a single stage.

        Raises: UnknownNameError.
        """
        return schedule_of(self.schedule)

    @property
    def num_devices(self) -> int:
        """Ranks of the job."""
        return self.data_parallel * self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline, all virtual ones counted."""
        return self.pipeline_parallel * self.virtual_stages

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        of_replicas = sum(self.replica_microbatches) or self.data_parallel * self.num_microbatches
        return self.micro_batch_size * of_replicas

    @property
    def id(self) -> str:
        """A short readable name, unique among the plans of one search."""
        words = [
            f"{label}{degree}"
            for label, degree in (
                ("dp", self.data_parallel),
                ("tp", self.tensor_parallel),
                ("cp", self.context_parallel),
                ("pp", self.pipeline_parallel),
                ("ep", self.expert_parallel),
            )
            if degree > 1
        ] or ["single"]
        words += ["sp"] if self.sequence_parallel else []
        words += ["vocab"] if self.vocab_parallel else []
        counts = _in_runs(self.replica_microbatches) if self.replica_microbatches else self.num_microbatches
        words.append(f"mb{self.micro_batch_size}x{counts}")
        words += [self.schedule] if self.schedule != NONE else []
        words += [f"v{self.virtual_stages}"] if self.virtual_stages > 1 else []
        words += [f"zero{self.zero_stage}"] if self.zero_stage else []
        words += [f"shard{self.shard_degree}"] if self.shard_degree else []
        words += [RECOMPUTE_WORDS[self.recompute]] if self.recompute != "none" else []
        words += ["of-" + _in_runs(self.recompute_layers)] if self.recompute_layers else []
        words += [f"offload-{self.offload}"] if self.offload != "none" else []
        words += [f"grad-{self.codec}"] if self.codec != "none" else []
        words += ["compiled"] if self.compiled else []
        words.append(self.precision)
        # Axes of one rank have no place worth naming.
        order, usual = ([axis for axis in axes if self.degree(axis) > 1] for axes in (self.axis_order, AXES))
        words += ["order-" + "-".join(axis[0] for axis in order)] if order != usual else []
        return " ".join(words)

    def degree(self, axis: str) -> int:
        """Ranks along one of the mesh axes."""
        return int(getattr(self, f"{axis}_parallel"))

    def check(self, num_layers: int) -> None:
        """Check what needs no model but its number of layers.

        Raises: PlanError that names the field, its value and the rule.
        """
        for name in POSITIVE_FIELDS:
            if getattr(self, name) < 1:
                raise PlanError(f"plan {name}={getattr(self, name)}: must be at least 1")
        named = sorted(set(self.axis_order) | {axis for axis in AXES if self.degree(axis) == 1})
        if named != sorted(AXES) or len(set(self.axis_order)) < len(self.axis_order):
            raise PlanError(f"plan axis_order={self.axis_order}: must name each of {', '.join(AXES)} once")
        if len(self.stage_bounds) != self.num_stages:
            raise PlanError(f"plan has {len(self.stage_bounds)} stage_bounds for {self.num_stages} stages")
        ends = (*self.stage_bounds[1:], num_layers)
        if self.stage_bounds[0] != 0 or any(start >= end for start, end in zip(self.stage_bounds, ends, strict=True)):
            raise PlanError(f"plan stage_bounds={self.stage_bounds}: must rise from 0 to below {num_layers} layers")
        if (self.schedule == NONE) != (self.pipeline_parallel == 1):
            raise PlanError(
                f"plan schedule={self.schedule} with {self.pipeline_parallel} stages: only one stage has none"
            )
        own = self.replica_microbatches
        if own and (len(own) != self.data_parallel or min(own) < 1 or max(own) != self.num_microbatches):
            raise PlanError(
                f"plan replica_microbatches={own}: one count for each of {self.data_parallel} replicas, the largest of "
                f"them num_microbatches={self.num_microbatches}"
            )
        if self.data_parallel % max(1, self.shard_degree):
            raise PlanError(
                f"plan shard_degree={self.shard_degree}: must divide the data-parallel degree {self.data_parallel}"
            )


def axis_of_all(plan: Plan) -> str:
    """The axis that all ranks of a plan are on, or "world" where they are on several."""
    replicas = plan.data_parallel * plan.context_parallel
    for axis, count in (("data", replicas), *((axis, plan.degree(axis)) for axis in plan.axis_order)):
        if count == plan.num_devices:
            return axis
    return "world"


def stages_of(plan: Plan, rank: int) -> tuple[int, ...]:
    """The stages that the pipeline's `rank`-th rank runs: in turns, or for V schedules there and back."""
    if plan.rules.stages.is_v:
        return rank, plan.num_stages - 1 - rank
    return tuple(range(rank, plan.num_stages, plan.pipeline_parallel))


def recomputable_layers(plan: Plan, stage: int, num_layers: int) -> tuple[int, ...]:
    """Positions of a stage's layers that recomputation may cover."""
    start, stop = (*plan.stage_bounds, num_layers)[stage : stage + 2]
    return tuple(position for position in range(start, stop) if is_recomputed(position, num_layers))


def recomputed_layers(plan: Plan, stage: int, num_layers: int) -> tuple[int, ...]:
    """Positions of a stage's layers that are recomputed: all that may be, or the first so many."""
    if plan.recompute == "none":
        return ()
    covered = recomputable_layers(plan, stage, num_layers)
    return covered[: plan.recompute_layers[stage]] if plan.recompute_layers else covered


def is_recomputed(position: int, num_layers: int) -> bool:
    """Whether full recomputation covers the layer at `position`: all but the first and the last."""
    return 0 < position < num_layers - 1


def _in_runs(counts: tuple[int, ...]) -> str:
    """Counts in short: equal neighbours as one with how many they are, all equal as one number."""
    runs = [(value, len(list(group))) for value, group in itertools.groupby(counts)]
    if len(runs) == 1:
        return str(runs[0][0])
    return "-".join(f"{value}x{times}" if times > 1 else str(value) for value, times in runs)
