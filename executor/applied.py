"""A plan carried out on a user's own module, for a loop that is the user's, with its data and its optimizer."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from executor.axes.loss_scale import scale_of
from executor.axes.optimizer import grouped, is_updated, make_states, sharded, states_by_parameter
from executor.measured_steps import MeasuredSteps, PredictedBesideMeasured
from executor.mesh import Coordinates
from executor.micro_batches import mean_over_replicas, on_device, split_batch
from executor.rank_model import RankModel
from executor.run.checkpoint import Progress, read_progress, restore
from executor.run.checkpoint_choice import newest_whole
from executor.run.export import export_weights
from executor.run.faults import note_step
from executor.run.loop_state import loop_state, restore_loop
from executor.run.saving import save
from planner.plans import Plan
from planner.prediction import Candidate
from profiles.errors import InputError
from profiles.ranks.rank import Rank, leave_group
from profiles.workloads.tensor_splits import OfRanks

UNUSED = "Expected to have finished reduction"


class AppliedPlan:
    """This rank's part of a user's module under a plan, and what its loop calls; all ranks call the same, in order.

    `module` is the user's own, changed in place: sharded, split, its blocks recomputed, or with other stages' parts
    left out. Each replica is given its own samples, `samples_per_step` a step; ranks of one replica the same ones:
    `replica` of `num_replicas` says which. `scale` is that of losses in fp16, else None.
    """

    def __init__(
        self,
        plan: Plan,
        module: nn.Module,
        model: RankModel,
        rank: Rank,
        *,
        seed: int,
        candidate: Candidate | None = None,
        owns_group: bool = False,
    ) -> None:
        self.plan, self.module, self.model, self.rank, self.seed = plan, module, model, rank, seed
        self.candidate, self.scale, self._owns_group = candidate, model.scale, owns_group
        self._optimizer: Optimizer | None = None
        self._window: MeasuredSteps | None = None
        # Nobody asks where the time of a user's step goes.
        model.recorder.is_on = False

    @property
    def replica(self) -> int:
        """Which share of the global batch this rank works on."""
        return self.model.place.data

    @property
    def num_replicas(self) -> int:
        """Into how many shares the global batch is cut."""
        return self.plan.data_parallel

    @property
    def samples_per_step(self) -> int:
        """Samples that a replica takes in one step."""
        return self.plan.micro_batch_size * self.plan.num_microbatches

    @property
    def num_steps(self) -> int:
        """Steps taken, those before a checkpoint included."""
        return self.model.num_steps

    def optimizer(
        self,
        kind: type[Optimizer],
        groups: Callable[[str, nn.Parameter], Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Optimizer:
        """An optimizer of this rank's parameters, its states sharded where the plan says ZeRO stage 1.

        `kind` is a class such as torch.optim.AdamW. `groups(name, parameter)` gives options of a parameter that differ
        from the rest, {} where none do: `{"weight_decay": 0.0}` for those of one dimension.
        """
        named = {name: own for name, own in self.model.named_parameters.items() if own.requires_grad}
        own_groups = grouped(named, groups)
        if self.plan.zero_stage == 1 and self.model.replicas is not None:
            self._optimizer = sharded(kind, own_groups, self.model.replicas, **options)
        else:
            self._optimizer = kind(own_groups, **options)
        return self._optimizer

    def step(self, batch: Any) -> Tensor:
        """Forward and backward over this replica's samples by the plan's schedule; gradients are averaged, not applied.

        Gives the mean loss over all replicas, on every rank, a tensor on the device. Gradients of the step before are
        dropped; in fp16 there are none where one is no number on any rank, and the optimizer changes nothing. Raises:
        InputError where the batch is of another size; ToleranceError where no scale of fp16 helps.
        """
        parts = self._parts(batch)
        self._forget_gradients()
        note_step(self.plan, self.rank, self.num_steps + 1)
        if self._window is not None:
            self._window.begin()
        loss = self._passes(parts)
        if self.model.unscale() and self.scale is not None:
            self.scale.put_aside(self.named_parameters.values())
        self.model.finish_step()
        return mean_over_replicas(loss, self.rank)

    def evaluate(self, batch: Any) -> Tensor:
        """The mean loss of a batch over all replicas, dropout off and nothing changed; a tensor, on every rank.

        Raises: InputError where the batch is of another size than a step's.
        """
        loss = self.model.loss_of(self._parts(batch))
        if self.model.pipeline is not None:
            # Stages went backward too, which is what their schedules do.
            self._forget_gradients()
        return mean_over_replicas(loss, self.rank)

    def clip_(self, max_norm: float) -> float:
        """Scale all gradients so that their 2-norm over the whole model is at most `max_norm`; what it was.

        Not a number where the step is skipped.
        """
        if self.scale is not None and self.scale.is_skipping:
            return math.nan
        norm = self.model.norm_of_gradients()
        if norm > max_norm:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(max_norm / norm)
        return norm

    def save(self, folder: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint into `folder`, whole or not at all; the two newest are kept. Says where it is.

        Weights, buffers and what the optimizer keeps are read again on any layout of the same model; `extra` is yours,
        anything that JSON holds, such as a schedule's state or where the data stands.
        """
        loop = loop_state(self._own_optimizer, extra)
        return save(Path(folder), self._progress(self.num_steps), self, loop)

    def load(self, folder: str | Path) -> dict[str, Any]:
        """Go on from the newest whole checkpoint in `folder`; the `extra` saved with it, {} where there is none.

        Warns: of newer ones that are damaged. Raises: InputError for a checkpoint of another model, ArtifactError where
        all are damaged.
        """
        choice = newest_whole(Path(folder))
        for notice in choice.notices if self.rank.rank == 0 else ():
            warnings.warn(notice, stacklevel=2)
        return {} if choice.path is None else self.go_on_from(choice.path)

    def go_on_from(self, path: Path) -> dict[str, Any]:
        """Go on from one checkpoint; the `extra` saved with it.

        Raises: InputError for a checkpoint of another model, ArtifactError for a damaged one.
        """
        found = read_progress(path)
        if found.model != self._progress(0).model:
            raise InputError(f"{path} belongs to another model: its parameters have other names")
        restore(path, self)
        self.model.num_steps = found.step
        if self.scale is not None:
            self.scale.go_on_with(found.scale)
        return restore_loop(path, self._own_optimizer)

    def export(self, folder: str | Path) -> Path:
        """Write the whole weights as safetensors, with the module's configuration where it has one.

        A model of transformers is read again by `from_pretrained(folder)`.
        """
        return export_weights(Path(folder), self)

    def measure(self, num_steps: int = 20) -> None:
        """Time the next steps, each until the one after it begins; on GPUs each then waits for the device first."""
        self._window = MeasuredSteps(num_steps=num_steps, device=self.rank.device)

    def measured(self) -> PredictedBesideMeasured:
        """What was measured beside what the plan file predicted; collective.

        Raises: InputError where no step was measured.
        """
        if self._window is None:
            raise InputError("no step was measured: call measure(num_steps) before the steps")
        return self._window.beside(self.candidate, self.rank)

    def close(self) -> None:
        """Leave the process group, where `apply` has joined it."""
        if self._owns_group:
            self._owns_group = False
            leave_group()

    def __enter__(self) -> AppliedPlan:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    @property
    def place(self) -> Coordinates:
        """Where this rank stands on every axis."""
        return self.model.place

    @property
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by the names that the user's module gave them."""
        return self.model.named_parameters

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers that belong to the state, by name."""
        return self.model.buffers

    @property
    def rearranged(self) -> dict[str, tuple[int, OfRanks]]:
        """Of fused weights that are split, the dimension and what each rank has of the whole, by name."""
        return self.model.rearranged

    @property
    def moments_by_parameter(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What the optimizer keeps of each parameter that this rank updates."""
        return states_by_parameter(self._own_optimizer)

    def make_moments(self, names: Collection[str]) -> None:
        """Let the optimizer make what it keeps of some parameters, where it has taken no step."""
        make_states(self._own_optimizer, [own for name, own in self.named_parameters.items() if name in names])

    def updates(self, parameter: nn.Parameter) -> bool:
        """Whether this rank updates the parameter, rather than receiving it."""
        return is_updated(self._own_optimizer, parameter)

    @property
    def _own_optimizer(self) -> Optimizer:
        if self._optimizer is None:
            raise InputError("the job has no optimizer yet: call job.optimizer(torch.optim.AdamW, lr=...) first")
        return self._optimizer

    def _parts(self, batch: Any) -> Sequence[Any]:
        """This replica's batch as the micro-batches that `RankModel.passes` takes."""
        parts = split_batch(batch, self.plan.micro_batch_size, self.plan.num_microbatches)
        return [(on_device(part, self.rank.device), None) for part in parts]

    def _passes(self, parts: Sequence[Any]) -> Tensor | None:
        try:
            return self.model.passes(parts)
        except RuntimeError as error:
            if UNUSED in str(error):
                raise InputError(
                    f"{type(self.module).__name__} leaves parameters without a gradient: give apply(..., example=batch)"
                ) from error
            raise

    def _forget_gradients(self) -> None:
        if self.scale is not None:
            self.scale.put_back()
        for parameter in self.model.parameters():
            if not self.model.keeps_gradients:
                parameter.grad = None
            elif parameter.grad is not None:
                with torch.no_grad():
                    parameter.grad.zero_()

    def _progress(self, step: int) -> Progress:
        return Progress(
            step=step,
            model=_digest(self),
            seed=self.seed,
            global_batch_size=self.plan.global_batch_size,
            scale=scale_of(self.scale),
        )


def _digest(job: AppliedPlan) -> str:
    """What tells models apart: the module's class and the names of all its parameters."""
    names: list[Any] = [sorted(job.model.named_parameters)]
    if dist.is_initialized():
        names = [None] * dist.get_world_size()
        dist.all_gather_object(names, sorted(job.model.named_parameters))
    every = sorted(set().union(*names))
    return hashlib.sha256("\n".join([type(job.module).__name__, *every]).encode()).hexdigest()[:12]
