"""Modules of a user's own with what layers of known families do not have, and what the ranks of their tests run."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from executor.mesh import Meshes
from executor.run.batches import default_text, load_text
from executor.run.checkpoint import state_of
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.models.profile import WorkloadSpec
from profiles.ranks.rank import join_group
from profiles.workloads.loading import load_workload

SEED, SEQUENCE, BATCH, NUM_STEPS = 5, 16, 8, 3


class Block(nn.Module):
    """A residual layer with dropout, a scale of its own initial value, and a norm that keeps statistics."""

    def __init__(self, dropout: float, scalar: bool, statistics: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16,), 1e-1))
        self.warmth = nn.Parameter(torch.tensor(5.0)) if scalar else None
        self.norm = nn.BatchNorm1d(16) if statistics else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.down(self.dropout(torch.relu(self.up(hidden)))) * self.scale
        if self.warmth is not None:
            out = out * self.warmth
        return hidden + self.norm(out.transpose(1, 2)).transpose(1, 2)


def _layers(tied: bool = False, **options: Any) -> nn.Sequential:
    blocks = [Block(**{"dropout": 0.0, "scalar": False, "statistics": False, **options}) for _ in range(2)]
    model = nn.Sequential(nn.Embedding(256, 16), *blocks, nn.Linear(16, 256, bias=False))
    if tied:
        model[-1].weight = model[0].weight
    return model


def plain() -> nn.Module:
    return _layers()


def dropping() -> nn.Module:
    return _layers(dropout=0.5)


def tied() -> nn.Module:
    return _layers(tied=True)


def warm() -> nn.Module:
    return _layers(scalar=True)


def counting() -> nn.Module:
    return _layers(statistics=True)


def spec(name: str) -> WorkloadSpec:
    return WorkloadSpec(kind="module", name=name, factory=f"tests.own_module_entries:{name}")


def train(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Per case, what rank 0 tells of it: losses, gradient norms, and the state after the last step, whole."""
    text = load_text(default_text(), SEQUENCE, SEED)
    results = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for name, fields in payload["cases"]:
            plan = validate(fields, Plan, "the test")
            trainer = Trainer(
                plan, load_workload(spec(name), ["tests.own_module_entries"]), rank, SEED, meshes.of(plan)
            )
            trainer.measures_norm = True
            losses, norms = [], []
            for step in range(NUM_STEPS):
                loss, _ = trainer.step(*text.batch(step, BATCH))
                losses.append(0.0 if loss is None else float(loss))
                norms.append(trainer.gradient_norm)
            state = {
                key: getattr(value, "full_tensor", lambda value=value: value)().tolist()
                for key, value in state_of(trainer).items()
                if key.startswith("model.")
            }
            everyone: list[Any] = [None] * rank.num_ranks
            dist.all_gather_object(everyone, (losses, state))
            ranks = [losses for losses, _ in everyone]
            results.append(
                {
                    "losses": [sum(values) / len(values) for values in zip(*ranks, strict=True)],
                    "norms": norms,
                    "states": [state for _, state in everyone],
                }
            )
    return results


def without_values() -> nn.Module:
    with torch.device("meta"):
        return _layers()
