"""A stage of a task's module: its own forward, entered with what earlier stages give and left where the next begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from executor.axes.part import Part
from executor.axes.task_part import recompute_block, seeded_module, unchanged, values_of
from planner.plans import Plan, recomputed_layers
from profiles.errors import PlanError
from profiles.models.profile import WorkloadSpec
from profiles.tracing.atoms import Call, Walk, atoms_of, watching
from profiles.tracing.cuts import Cuts, Key, record, stand_in
from profiles.workloads.buffers import saved_buffers
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.precision import computing
from profiles.workloads.randomness import begin_random
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task import Batch, Task


class _Left(BaseException):
    """Raised where the next stage begins; no code of the module's takes it for a failure of its own."""


class _Run(Walk):
    """The forward pass of one stage."""

    def __init__(self, cuts: Cuts, stage: int, received: Mapping[Key, Tensor], device: torch.device) -> None:
        super().__init__()
        self.cuts, self.stage, self.received, self.device = cuts, stage, received, device
        self.now = 0
        self.sent: dict[Key, Tensor] = {}
        self.wanted = frozenset(cuts.crossing.get(stage + 1, ()))

    def atom(self, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an atom of this stage; one of an earlier stands in with zeros, one of the next ends the pass."""
        call = (path, self.counts[path])
        self.counts[path] += 1
        if call not in self.cuts.stages:
            raise PlanError(f"{path} runs more often for one micro-batch than for another: stages cannot be cut")
        self.now = self.cuts.stages[call]
        if self.now > self.stage:
            raise _Left
        if self.now == self.stage:
            leaves, spec = tree_flatten(forward(*args, **kwargs))
        else:
            leaves, spec = stand_in(self.cuts.given[call], self.device)
        return tree_unflatten(self._exchanged(call, leaves), spec)

    def made(self, call: Call, output: Any, given: Sequence[Tensor], changed: Sequence[Tensor], func: Any) -> Any:
        """Hand on what a function gave, or what was received in its place."""
        names = self.cuts.names.get(call, {}).values()
        if not any(key in self.received or key in self.wanted for key in names):
            return output
        leaves, spec = tree_flatten(output)
        own = list(leaves)
        leaves = self._exchanged(call, leaves)
        for place, (made, received) in enumerate(zip(own, leaves, strict=True)):
            if made is not received and any(made is tensor for tensor in changed):
                # The code may go on with the tensor that it changed, rather than with what it is given.
                leaves[place] = made.copy_(received)
        return tree_unflatten(leaves, spec)

    def _exchanged(self, call: Call, leaves: list[Any]) -> list[Any]:
        for place, key in self.cuts.names.get(call, {}).items():
            if self.now < self.stage and key in self.received:
                leaves[place] = self.received[key]
            if key in self.wanted:
                self.sent[key] = leaves[place]
        return leaves


class TaskStage(Part):
    """One stage of a task's module; `microbatches` are those of the step, of which `current` is worked on.

    Random numbers of a micro-batch begin with its seed on every stage.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        precision: str,
        device_kind: str,
        stage: int,
        cuts: Cuts,
        blocks: Iterable[str],
    ) -> None:
        super().__init__(precision, device_kind, draws=True)
        self.module, self.task, self.stage, self.cuts = module, task, stage, cuts
        self.atoms = atoms_of(module, blocks)
        self.microbatches: list[Batch] = []
        self.seeds: list[int] = []
        self.current = 0
        names = {parameter: name for name, parameter in module.named_parameters()}
        holders = {
            name: [at for at, used in cuts.used.items() if parameter in used] for parameter, name in names.items()
        }
        # By name, the looks of what several stages hold, and what this one leaves to an earlier.
        self.shared = {name: p.detach().to("meta") for p, name in names.items() if len(holders[name]) > 1}
        self.counted_elsewhere = frozenset(name for name in self.shared if min(holders[name]) < stage)
        self._drop(names)

    def forward(self, *received: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the next stage receives, from what this one does; the last gives the loss."""
        keys = self.cuts.crossing.get(self.stage, ())
        device = next(self.parameters()).device
        # A view, so that what is only passed on is not the very tensor that came in.
        given = {key: tensor.view_as(tensor) for key, tensor in zip(keys, received, strict=False)}
        if self.seeds:
            begin_random(self.seeds[self.current])
        run = _Run(self.cuts, self.stage, given, device)
        with computing(self.precision, self.device_kind):
            try:
                with watching(self.atoms, run):
                    loss = self.task.loss(self.module, self.microbatches[self.current])
            except _Left:
                sent = self.cuts.crossing[self.stage + 1]
                if missing := [key for key in sent if key not in run.sent]:
                    raise PlanError(f"what a stage sends depends on the micro-batch: {missing[0][0]} differs") from None
                # Messages are of memory without gaps.
                return tuple(run.sent[key].contiguous() for key in sent)
        return loss

    def edges(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Examples of what the stage is given and gives."""
        given = tuple(self.cuts.examples[key].empty() for key in self.cuts.crossing.get(self.stage, ()))
        gives = tuple(self.cuts.examples[key].empty() for key in self.cuts.crossing.get(self.stage + 1, ()))
        first = torch.empty(1, dtype=torch.int64, device="meta")
        return given or (first,), gives or (torch.empty((), device="meta", requires_grad=True),)

    def add_up(self, parameters: Mapping[str, nn.Parameter], group: dist.ProcessGroup) -> None:
        """Sum the gradients of parameters that several stages hold; collective."""
        own = [parameters.get(name) for name in self.shared]
        if not own:
            return
        device = next(self.parameters()).device
        gradients = [
            torch.zeros_like(look, device=device) if parameter is None or parameter.grad is None else parameter.grad
            for parameter, look in zip(own, self.shared.values(), strict=True)
        ]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message, group=group)
        pieces = message.split([gradient.numel() for gradient in gradients])
        for parameter, piece in zip(own, pieces, strict=True):
            if parameter is not None:
                parameter.grad = piece.view_as(parameter).to(parameter.dtype)

    @property
    def units(self) -> Iterable[nn.Module]:
        """The atoms."""
        return self.atoms.values()

    def global_name(self, path: str) -> str:
        """The module's own name for what it has at `path`."""
        return path.removeprefix("module.")

    def _drop(self, names: Mapping[nn.Parameter, str]) -> None:
        """Leave other stages' parameters and statistics to them."""
        used, held = self.cuts.used.get(self.stage, set()), self.cuts.held.get(self.stage, set())
        for part in list(self.module.modules()):
            for name, parameter in list(part.named_parameters(recurse=False)):
                if parameter not in used:
                    # No parameter any more, but of use to code that looks at its device.
                    delattr(part, name)
                    part.__dict__[name] = torch.empty(0)
        self.elsewhere = frozenset(path for path in self.atoms if path not in held)

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Buffers by path, without those of atoms that other stages run."""
        return {
            path: buffer
            for path, buffer in saved_buffers(self).items()
            if not any(path.startswith(f"module.{other}.") for other in self.elsewhere)
        }


def build_task_stage(
    spec: WorkloadSpec, task: Task, plan: Plan, num_layers: int, stage: int, seed: int, device: torch.device
) -> TaskStage:
    """One stage of a task's module on `device`, which begins and ends at blocks of it.

    Every stage begins with the whole module, and leaves to the others what it does not need. One on the meta device is
    run for it with weights that take no memory.
    Raises: InputError where its code fails; PlanError where it cannot be cut there.
    """
    module = seeded_module(spec, task, seed)
    values = values_of(module, task, seed, device)
    run = module if values is None else values.hollow()
    blocks, bounds = repeated_blocks(module), plan.stage_bounds[1:]
    batch = task.collate(task.batches(0, plan.micro_batch_size))

    def loss() -> Tensor:
        with computing(plan.precision, "cpu"):
            return task.loss(run, batch)

    with unchanged(run), foreign_code(spec, f"plan {plan.id} of {spec.title}"):
        seen = record(atoms_of(run, blocks), blocks, loss)
        if bounds[-1] > len(seen.order):
            raise PlanError(
                f"plan {plan.id} cuts behind block {len(seen.order)} of {spec.title}, the last: trace and plan again"
            )
        cuts = seen.at(bounds)
    if run is not module:
        names = {parameter: name for name, parameter in run.named_parameters()}
        cuts.used = {at: {module.get_parameter(names[own]) for own in used} for at, used in cuts.used.items()}
    if plan.recompute == "full":
        for path in dict.fromkeys(seen.order[place - 1] for place in recomputed_layers(plan, stage, num_layers)):
            recompute_block(blocks[path])
    built = TaskStage(module, task, plan.precision, device.type, stage, cuts, blocks)
    built.values = values
    return built if values is not None else built.to(device)
