"""What is asked of a study of recipes, and what they share on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from executor.compress.evaluation import held_out
from executor.mesh import Meshes
from executor.run.batches import Samples
from planner.prediction import PlanFile
from profiles.artifacts import STRICT
from profiles.machines.counters import Watch
from profiles.ranks.rank import Rank
from profiles.workloads.workload import Workload

# One device judges while the others wait for it.
JUDGE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionOrder:
    """What is asked for: `first_steps` of the model as it is, and `more_steps` of each that trains on."""

    __pydantic_config__ = STRICT

    first_steps: int
    more_steps: int
    seed: int
    data_file: str
    device_kind: str
    timeout_seconds: float
    export_folder: str = ""
    runtimes: tuple[str, ...] = ()
    compiles: bool = False


@dataclass(slots=True, kw_only=True)
class Study:
    """What the recipes share on this rank; `found` is rank 0's, `watch` looks on during whatever is timed."""

    file: PlanFile
    order: CompressionOrder
    rank: Rank
    meshes: Meshes
    samples: Samples
    held_out: tuple[Tensor, Tensor]
    folder: Path
    workload: Workload
    watch: Watch
    models: dict[str, nn.Module] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judged(self, model: nn.Module, workload: Workload) -> tuple[float, float]:
        """The loss of a complete model on held-out samples, and the share of its answers that are right."""
        return held_out(model, workload, self.held_out)
