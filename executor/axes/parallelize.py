"""One rank's stages: their layers, split over the tensor and context axes, recomputed and compiled as the plan says.

Every rank builds its layers from the seed and their positions, so nothing has to be sent before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from executor.axes.context import place_layer, set_core
from executor.axes.experts import place_experts
from executor.axes.part import Part
from executor.axes.recompute import Recomputed
from executor.axes.task_part import build_task_part
from executor.axes.task_stage import build_task_stage
from executor.axes.tensor import split_layer
from executor.fake_group import outside_fakes
from executor.mesh import Coordinates
from planner.plans import Plan, recomputed_layers
from profiles.workloads.precision import computing, lower
from profiles.workloads.randomness import holds_dropout
from profiles.workloads.tensor_splits import OfRanks
from profiles.workloads.workload import LayerSpec, Workload


class Stage(Part):
    """Consecutive layers that one rank runs, from position `first` of the model on.

    `calls` are the layers, or what recomputes them, one each.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        calls: tuple[nn.Module | Recomputed, ...],
        plan: Plan,
        device_kind: str,
        draws: bool,
        first: int,
    ) -> None:
        super().__init__(plan.precision, device_kind, draws)
        self.layers, self.first = layers, first
        # In a tuple, so that layers are not registered once more.
        self.calls = calls

    @property
    def units(self) -> Iterable[nn.Module]:
        """The layers."""
        return cast(Iterable[nn.Module], self.layers)

    def global_name(self, path: str) -> str:
        """The position in the whole model of the layer that has it, and the path within that."""
        _, position, rest = path.split(".", 2)
        return f"{self.first + int(position)}.{rest}"

    def forward(self, hidden: Tensor) -> Tensor:
        """Token ids or hidden states to hidden states or logits."""
        # Entered here rather than around the step, so that pipeline stages and the reference do the same.
        with computing(self.precision, self.device_kind):
            for call in self.calls:
                hidden = call(hidden)
        return hidden


def build_stage(
    workload: Workload,
    plan: Plan,
    stage: int,
    seed: int,
    device: torch.device,
    place: Coordinates,
    mesh: DeviceMesh | None,
    shard_each: Callable[[nn.Module], None] | None = None,
) -> Part:
    """The layers of `stage` on `device` as the rank at `place` runs them; without a mesh, whole.

    `shard_each` is called on every layer as soon as it is there, but for those that may share a weight.
    """
    num_layers = len(workload.layers)
    if workload.task is not None and plan.pipeline_parallel > 1:
        return build_task_stage(workload.spec, workload.task, plan, num_layers, stage, seed, device)
    if workload.task is not None:
        shards = shard_each is not None
        return build_task_part(workload.spec, workload.task, plan, num_layers, seed, device, mesh, shards)
    start, stop = (*plan.stage_bounds, num_layers)[stage : stage + 2]
    covered = recomputed_layers(plan, stage, num_layers)
    context = mesh["context"].get_group() if mesh is not None and plan.context_parallel > 1 else None
    # Layers that may share a weight are sharded when all of them are there.
    ends = (start, stop - 1) if workload.shares_ends(start, stop) else ()
    shard_each = shard_each if workload.whole is None else None
    layers = nn.Sequential()
    rearranged: dict[str, tuple[int, OfRanks]] = {}
    # One after the other, so that no more than one of them is whole on this rank.
    for position, whole in zip(range(start, stop), workload.each(start, stop, seed), strict=True):
        layer = lower(whole, plan.precision, position == num_layers - 1)
        if device.type != "cpu":
            layer.to(device)
        spec = workload.layers[position]
        set_core(layer, spec, context, plan.recompute == "selective" and position in covered, holds_dropout(layer))
        place_layer(layer, plan, place)
        rearranged |= {f"{position}.{path}": own for path, own in _split(layer, spec, plan, mesh).items()}
        if plan.compiled:
            layer.compile()
        if shard_each is not None and position not in ends:
            shard_each(layer)
        layers.append(layer)
    calls = tuple(
        Recomputed(layer, _draws(workload, layer)) if plan.recompute == "full" and position in covered else layer
        for position, layer in zip(range(start, stop), layers, strict=True)
    )
    built = Stage(layers, calls, plan, device.type, any(_draws(workload, layer) for layer in layers), start)
    built.rearranged = rearranged
    return built


def _split(layer: nn.Module, spec: LayerSpec, plan: Plan, mesh: DeviceMesh | None) -> dict[str, tuple[int, OfRanks]]:
    """Split a layer over the expert and tensor axes; what stands rank by rank then, as `split_layer` gives it."""
    if mesh is not None and plan.expert_parallel > 1:
        place_experts(layer, mesh["experts"])
    if mesh is None or plan.tensor_parallel == 1:
        return {}
    with outside_fakes():
        return split_layer(layer, spec, plan, mesh["tensor"])


def _draws(workload: Workload, layer: nn.Module) -> bool:
    """Whether a layer draws random numbers, as far as that can be told: what a user's own code does cannot."""
    return workload.whole is not None or holds_dropout(layer)
