"""Knowledge distillation: a whole model says beside the text what the smaller one should have answered.

The teacher stands on the same ranks, in the same way as its student: whole beside DDP, split over the tensor axis where
the student is, sharded by FSDP2 where the student is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from executor.axes.data import shard
from executor.axes.parallelize import Stage, build_stage
from executor.axes.tensor import Loss
from executor.mesh import coordinates, replica_mesh
from executor.run.checkpoint import restore_part
from planner.plans import Plan
from profiles.codecs.codec import FSDP_STAGES
from profiles.ranks.rank import Rank
from profiles.workloads.workload import Workload

# The share of the teacher's word in the loss, and how much both answers are softened. Source: Hinton et al. 2015.
TEACHER_SHARE, TEMPERATURE = 0.5, 2.0
# The share of what hidden states differ by, beside that (Romero et al. 2015, FitNets): a choice of ours, not tuned.
HIDDEN_SHARE = 0.1


def place_teacher(plan: Plan, workload: Workload, folder: Path, rank: Rank, mesh: DeviceMesh) -> Stage:
    """A frozen model with the weights of `folder` as a student of `plan` would stand; collective."""
    plain = replace(plan, recompute="none", recompute_layers=(), compiled=False)
    stage = build_stage(workload, plain, 0, 0, rank.device, coordinates(plain, rank.rank), mesh)
    assert isinstance(stage, Stage)
    stage.requires_grad_(False)
    if plan.zero_stage in FSDP_STAGES:
        # No backward pass would shard again what stage 2 gathers.
        shard(stage, replace(plain, zero_stage=max(FSDP_STAGES)), replica_mesh(plan, mesh))
    restore_part(folder, stage)
    return stage


class Teacher:
    """A frozen model on this rank that sees what its student sees, and where wanted what the student's blocks give."""

    def __init__(self, model: Stage, matches_hidden: bool = False) -> None:
        self.model = model.eval()
        self.matches_hidden = matches_hidden
        self._tokens: Tensor | None = None
        self._own: dict[int, Tensor] = {}
        self._students: dict[int, Tensor] = {}

    def watch(self, student: nn.Module) -> None:
        """Note the tokens of every forward pass of the student, and what its blocks give."""
        assert isinstance(student, Stage)
        student.register_forward_pre_hook(lambda module, given: setattr(self, "_tokens", given[0]))
        if self.matches_hidden:
            pairs = matched(len(self.model.layers), len(student.layers))
            _note([layer for layer, _ in pairs], self.model.layers, self._own)
            _note([layer for _, layer in pairs], student.layers, self._students)

    def beside(self, loss: Loss) -> Loss:
        """`loss` with the teacher's word in it."""

        def taught(logits: Tensor, targets: Tensor) -> Tensor:
            assert self._tokens is not None
            with torch.no_grad():
                wanted = self.model(self._tokens)
            said = (1 - TEACHER_SHARE) * loss(logits, targets) + TEACHER_SHARE * divergence(logits, wanted)
            if not self.matches_hidden:
                return said
            pairs = zip(self._students.values(), self._own.values(), strict=True)
            apart = sum((distance(own, hidden) for own, hidden in pairs), torch.zeros_like(said))
            return said + HIDDEN_SHARE * apart / len(self._own)

        return taught


def matched(num_teacher: int, num_student: int) -> list[tuple[int, int]]:
    """Places of blocks whose hidden states should be alike: of the teacher, of the student, ends of the model left out.

    Each block of the student answers for as many of the teacher, evenly spread (Jiao et al. 2020, TinyBERT).
    """
    blocks, own = num_teacher - 2, num_student - 2
    return [(round(place * blocks / own), place) for place in range(1, own + 1)]


def _note(places: Sequence[int], layers: nn.Sequential, noted: dict[int, Tensor]) -> None:
    for number, place in enumerate(places):
        layers[place].register_forward_hook(lambda module, given, gave, number=number: noted.__setitem__(number, gave))


def distance(hidden: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of what hidden states differ by, over that of the wanted ones. Shapes: any, both the same."""
    wanted = wanted.detach().float()
    return nn.functional.mse_loss(hidden.float(), wanted) / wanted.square().mean()


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of softened answers, times the squared temperature, so that gradients keep size.

    Shapes: both (batch, sequence, vocabulary).
    """
    own = nn.functional.log_softmax(logits.float().flatten(0, -2) / TEMPERATURE, dim=-1)
    other = nn.functional.log_softmax(wanted.float().flatten(0, -2) / TEMPERATURE, dim=-1)
    return nn.functional.kl_div(own, other, reduction="batchmean", log_target=True) * TEMPERATURE**2
