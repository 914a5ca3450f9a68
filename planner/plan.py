"""One plan: every choice that the executor obeys literally."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from profiles.artifacts import STRICT
from profiles.errors import PlanError

Schedule = Literal["none", "gpipe", "1f1b"]
Recompute = Literal["none", "full"]
AXES: tuple[str, ...] = ("tensor", "data", "pipeline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout of one training step.

    `axis_order` names the mesh axes, innermost (neighbouring ranks) first. `num_microbatches` is per data-parallel
    replica; without a pipeline they are gradient-accumulation steps. `stage_bounds` is the first layer of each stage.
    """

    __pydantic_config__ = STRICT

    data_parallel: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    axis_order: tuple[str, ...] = AXES
    micro_batch_size: int = 1
    num_microbatches: int = 1
    stage_bounds: tuple[int, ...] = (0,)
    schedule: Schedule = "none"
    zero_stage: int = 0
    recompute: Recompute = "none"
    codec: str = "none"
    precision: str = "fp32"

    @property
    def num_devices(self) -> int:
        """Ranks of the job."""
        return self.data_parallel * self.tensor_parallel * self.pipeline_parallel

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.data_parallel * self.micro_batch_size * self.num_microbatches

    @property
    def id(self) -> str:
        """A short readable name, unique among the plans of one search."""
        words = [
            f"{label}{degree}"
            for label, degree in (
                ("dp", self.data_parallel),
                ("tp", self.tensor_parallel),
                ("pp", self.pipeline_parallel),
            )
            if degree > 1
        ] or ["single"]
        words.append(f"mb{self.micro_batch_size}x{self.num_microbatches}")
        words += [self.schedule] if self.schedule != "none" else []
        words += [f"zero{self.zero_stage}"] if self.zero_stage else []
        words += ["recompute"] if self.recompute == "full" else []
        words += [f"grad-{self.codec}"] if self.codec != "none" else []
        words.append(self.precision)
        words += ["order-" + "-".join(axis[0] for axis in self.axis_order)] if self.axis_order != AXES else []
        return " ".join(words)

    def check(self, num_layers: int) -> None:
        """Check what needs no model but its number of layers.

        Raises: PlanError that names the field, its value and the rule.
        """
        for name in (
            "data_parallel",
            "tensor_parallel",
            "pipeline_parallel",
            "micro_batch_size",
            "num_microbatches",
        ):
            if getattr(self, name) < 1:
                raise PlanError(f"plan {name}={getattr(self, name)}: must be at least 1")
        if sorted(self.axis_order) != sorted(AXES):
            raise PlanError(f"plan axis_order={self.axis_order}: must name each of {', '.join(AXES)} once")
        if len(self.stage_bounds) != self.pipeline_parallel:
            raise PlanError(f"plan has {len(self.stage_bounds)} stage_bounds for {self.pipeline_parallel} stages")
        ends = (*self.stage_bounds[1:], num_layers)
        if self.stage_bounds[0] != 0 or any(start >= end for start, end in zip(self.stage_bounds, ends, strict=True)):
            raise PlanError(f"plan stage_bounds={self.stage_bounds}: must rise from 0 to below {num_layers} layers")
        if (self.schedule == "none") != (self.pipeline_parallel == 1):
            raise PlanError(
                f"plan schedule={self.schedule} with {self.pipeline_parallel} stages: only one stage has none"
            )


def is_recomputed(position: int, num_layers: int) -> bool:
    """Whether full recomputation covers the layer at `position`: all but the first and the last."""
    return 0 < position < num_layers - 1
