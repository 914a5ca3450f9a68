"""A task's module on one rank, as its author wrote it, with its loss; its repeated blocks are recomputed and sharded.

Every rank builds the whole module from the seed, or with the weights that its own code reads, so nothing has to be sent
before the first step; of a module on the meta device it makes or reads no more than it keeps.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from executor.axes.experts import place_experts
from executor.axes.part import Part
from executor.axes.recompute import Recomputed
from executor.axes.task_tensor import agreed, split_module
from executor.fake_group import is_fake
from executor.materialise import materialise
from executor.micro_batches import on_device
from planner.plans import Plan, recomputed_layers
from profiles.errors import InputError, PlanError
from profiles.models.profile import WorkloadSpec
from profiles.tracing.task_shares import is_proven_apart, prove_on_copy
from profiles.workloads.buffers import saved_buffers
from profiles.workloads.expert_shares import prove_shares
from profiles.workloads.foreign_code import foreign_code
from profiles.workloads.meta_values import MetaValues, on_meta
from profiles.workloads.precision import computing
from profiles.workloads.randomness import begin_random, random_kept
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.split_search import find_split
from profiles.workloads.task import Batch, Task
from profiles.workloads.tensor_splits import Split

PREFIX = "module."
# In the batch that a split is proven on; norms over a batch need two.
SAMPLES = 2


class TaskPart(Part):
    """A module and its loss; a forward pass takes a batch and gives that loss."""

    def __init__(self, module: nn.Module, task: Task, precision: str, device_kind: str) -> None:
        super().__init__(precision, device_kind, draws=True)
        self.module, self.task = module, task
        self.blocks = tuple(repeated_blocks(module).values())

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        with computing(self.precision, self.device_kind):
            return self.task.loss(self.module, batch)

    @property
    def units(self) -> Iterable[nn.Module]:
        """The blocks."""
        return self.blocks

    def global_name(self, path: str) -> str:
        """The module's own name for what it has at `path`."""
        return path.removeprefix(PREFIX)

    def leaves_unused(self) -> bool:
        """Whether a step may leave parameters without a gradient, as the first sample does, or layers that are dropped.

        It is worked off once, which changes nothing; where a task has no samples beforehand, DDP finds out.
        """
        if any(_drops_layers(part) for part in self.module.modules()):
            return True
        samples = self.task.batches(0, 1)
        if not samples:
            return False
        device = next(self.module.parameters()).device
        with unchanged(self.module):
            self(on_device(self.task.collate(samples), device)).backward()
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        unused = any(parameter.grad is None for parameter in trained)
        for parameter in trained:
            parameter.grad = None
        return unused


def _drops_layers(part: nn.Module) -> bool:
    """Whether a module says of itself, or of its configuration, that it leaves out whole layers at random."""
    for said in (part, getattr(part, "config", None)):
        values = ((name, value) for name, value in getattr(said, "__dict__", {}).items() if "layerdrop" in name.lower())
        if any(isinstance(value, float) and value > 0 for _, value in values):
            return True
    return False


def build_task_part(
    spec: WorkloadSpec,
    task: Task,
    plan: Plan,
    num_layers: int,
    seed: int,
    device: torch.device,
    mesh: DeviceMesh | None = None,
    shards: bool = False,
) -> TaskPart:
    """The module of a task on `device`, its blocks recomputed, its linears split and its experts shared as planned.

    Where it is sharded next, stored weights are left for then, so that no rank holds all of them.
    Raises: InputError where its code fails; PlanError where the plan is of another module.
    """
    module, values = (shards and _stored(spec, task, seed, device)) or _built(spec, task, seed, device)
    # Of what is shared out where it was built, no more than a rank's experts goes to its device.
    is_early = mesh is not None and plan.expert_parallel > 1 and is_proven_apart(module, spec)
    part = TaskPart(module if values is not None or is_early else module.to(device), task, plan.precision, device.type)
    part.values = values
    if mesh is not None and plan.expert_parallel > 1:
        _share_experts(part, spec, plan, mesh["experts"])
        part.module.to(device)
    if mesh is not None and plan.tensor_parallel > 1:
        proven = module if values is None else values.whole()
        split = agreed(split_of_task(proven, task, plan.tensor_parallel), mesh["tensor"])
        del proven
        part.rearranged = split_module(part.module, split, mesh["tensor"])
        part.summed = split.summed
    # Layers of a plan are what runs before the blocks, the blocks, and what runs behind them.
    positions = recomputed_layers(plan, 0, num_layers) if plan.recompute == "full" else ()
    if len(positions) > len(part.blocks):
        raise PlanError(
            f"plan {plan.id} recomputes {len(positions)} blocks, {spec.title} has {len(part.blocks)}: plan again"
        )
    for position in positions:
        recompute_block(part.blocks[position - 1])
    return part


def _share_experts(part: TaskPart, spec: WorkloadSpec, plan: Plan, mesh: DeviceMesh) -> None:
    """Keep this rank's experts of a module alone, where all of it is proven to give what the whole gives."""
    if part.values is not None:
        # The proof takes numbers, and shares of experts do not know their place in a folder's weights.
        materialise(part, part.values)
        part.values = None
    prove_experts(part.module, spec, part.task, plan.expert_parallel)
    place_experts(part.module, mesh)


def prove_experts(module: nn.Module, spec: WorkloadSpec, task: Task, degree: int) -> None:
    """Check that shares of a module's experts give what the whole gives; of a large one on a small copy, as in a trace.

    Raises: PlanError where they do not.
    """
    if is_proven_apart(module, spec):
        prove_on_copy(spec, task, (degree,))
    else:
        prove_shares(module, on_batch(module, task), degree)


def _built(spec: WorkloadSpec, task: Task, seed: int, device: torch.device) -> tuple[nn.Module, MetaValues | None]:
    module = seeded_module(spec, task, seed)
    return module, values_of(module, task, seed, device)


def _stored(spec: WorkloadSpec, task: Task, seed: int, device: torch.device) -> tuple[nn.Module, MetaValues] | None:
    """A task's module on the meta device, and its stored weights; None where these are not all of it."""
    if task.skeleton is None or is_fake():
        return None
    with torch.device("meta"), random_kept(), foreign_code(spec, f"{spec.title} cannot be built"):
        module = task.skeleton().train()
    try:
        values = MetaValues(module, seed, device, Path(task.weights))
    except InputError:
        # Whoever builds it whole says what is wrong, or knows better.
        return None
    return None if values.missing else (module, values)


def seeded_module(spec: WorkloadSpec, task: Task, seed: int) -> nn.Module:
    """The whole module of a task, ready to train.

    Raises: InputError where its code fails.
    """
    with random_kept(), foreign_code(spec, f"{spec.title} cannot be built"):
        begin_random(seed)
        return task.build().train()


def values_of(module: nn.Module, task: Task, seed: int, device: torch.device) -> MetaValues | None:
    """What the weights of a module on the meta device are to be; None where it has weights.

    Raises: InputError where the task's folder has none for it.
    """
    if not on_meta(module):
        return None
    values = MetaValues(module, seed, device, Path(task.weights) if task.weights else None)
    if (missing := values.missing) and (not dist.is_initialized() or dist.get_rank() == 0):
        more = f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        warnings.warn(f"{task.weights} has no {missing[0]}{more}: new in {type(module).__name__}", stacklevel=2)
    return values


def split_of_task(module: nn.Module, task: Task, degree: int) -> Split:
    """The split of a task's module over `degree` ranks, proven on a batch.

    Raises: PlanError where there is none.
    """
    return find_split(module, on_batch(module, task), degree)


def on_batch(module: nn.Module, task: Task) -> Callable[[nn.Module], Tensor]:
    """What gives the loss of a module on a small batch, the same one each time, where the module is."""
    device = next(module.parameters()).device
    batch = on_device(task.collate(task.batches(0, SAMPLES)), device)

    def run(module: nn.Module) -> Tensor:
        with computing("fp32", device.type):
            return task.loss(module, batch)

    return run


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """While entered, the module may run; afterwards its statistics, and random numbers, are as before."""
    before = {name: buffer.clone() for name, buffer in saved_buffers(module).items()}
    with random_kept():
        yield
    with torch.no_grad():
        for name, buffer in saved_buffers(module).items():
            buffer.copy_(before[name])


def recompute_block(block: nn.Module) -> None:
    """Let a block keep its inputs alone; whatever calls it, or hooks into its calls, sees the block as before."""
    block.forward = Recomputed(block, draws=True, forward=block.forward)
