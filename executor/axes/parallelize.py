"""One rank's stages: their layers, split over the tensor and context axes, recomputed and compiled as the plan says.

Every rank builds its layers from the seed and their positions, so nothing has to be sent before the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from executor.axes.context import place_layer, set_core
from executor.axes.experts import place_experts
from executor.axes.tensor import split_layer
from executor.fake_group import outside_fakes
from executor.mesh import Coordinates
from planner.plans import Plan, recomputed_layers
from profiles.workloads.precision import computing, lower
from profiles.workloads.workload import Workload


class Stage(nn.Module):
    """Consecutive layers that one rank runs; `recomputed` tells which of them keep their input alone."""

    def __init__(self, layers: nn.Sequential, recomputed: tuple[bool, ...], precision: str, device_kind: str) -> None:
        super().__init__()
        self.layers, self.recomputed = layers, recomputed
        self.precision, self.device_kind = precision, device_kind

    def forward(self, hidden: Tensor) -> Tensor:
        """Token ids or hidden states to hidden states or logits."""
        # Entered here rather than around the step, so that pipeline stages and the reference do the same.
        with computing(self.precision, self.device_kind):
            for layer, recomputed in zip(self.layers, self.recomputed, strict=True):
                if recomputed:
                    # There is no dropout, so no random state has to be kept.
                    hidden = checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False)
                else:
                    hidden = layer(hidden)
        return hidden


def build_stage(
    workload: Workload,
    plan: Plan,
    stage: int,
    seed: int,
    device: torch.device,
    place: Coordinates,
    mesh: DeviceMesh | None,
) -> Stage:
    """The layers of `stage` on `device` as the rank at `place` runs them; without a mesh, whole."""
    num_layers = len(workload.layers)
    start, stop = (*plan.stage_bounds, num_layers)[stage : stage + 2]
    whole = workload.build(start, stop, seed)
    layers = nn.Sequential(
        *(lower(layer, plan.precision, start + index == num_layers - 1) for index, layer in enumerate(whole))
    )
    if device.type != "cpu":
        layers.to(device)
    covered = recomputed_layers(plan, stage, num_layers)
    context = mesh["context"].get_group() if mesh is not None and plan.context_parallel > 1 else None
    for position, layer in zip(range(start, stop), layers, strict=True):
        spec = workload.layers[position]
        set_core(layer, spec, context, plan.recompute == "selective" and position in covered)
        place_layer(layer, plan, place)
        if mesh is not None and plan.expert_parallel > 1:
            place_experts(layer, mesh["experts"])
        if mesh is not None and plan.tensor_parallel > 1:
            with outside_fakes():
                split_layer(layer, spec, plan, mesh["tensor"])
        if plan.compiled:
            layer.compile()
    recomputed = tuple(plan.recompute == "full" and position in covered for position in range(start, stop))
    return Stage(layers, recomputed, plan.precision, device.type)
