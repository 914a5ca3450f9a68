"""One rank's stages: their layers, split over the tensor and context axes, recomputed and compiled as the plan says.

Every rank builds its layers from the seed and their positions, so nothing has to be sent before the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from executor.axes.context import place_layer, set_core
from executor.axes.experts import place_experts
from executor.axes.recompute import Recomputed
from executor.axes.tensor import split_layer
from executor.fake_group import outside_fakes
from executor.mesh import Coordinates
from planner.plans import Plan, recomputed_layers
from profiles.workloads.precision import computing, lower
from profiles.workloads.randomness import holds_dropout
from profiles.workloads.workload import Workload


class Stage(nn.Module):
    """Consecutive layers that one rank runs; `calls` are they, or what recomputes them, one each.

    `draws` tells whether any of them draws random numbers.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        calls: tuple[nn.Module | Recomputed, ...],
        precision: str,
        device_kind: str,
        draws: bool,
    ) -> None:
        super().__init__()
        self.layers = layers
        # In a tuple, so that layers are not registered once more.
        self.calls = calls
        self.precision, self.device_kind = precision, device_kind
        self.draws = draws

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
        set_core(layer, spec, context, plan.recompute == "selective" and position in covered, holds_dropout(layer))
        place_layer(layer, plan, place)
        if mesh is not None and plan.expert_parallel > 1:
            place_experts(layer, mesh["experts"])
        if mesh is not None and plan.tensor_parallel > 1:
            with outside_fakes():
                split_layer(layer, spec, plan, mesh["tensor"])
        if plan.compiled:
            layer.compile()
    calls = tuple(
        Recomputed(layer, _draws(workload, layer)) if plan.recompute == "full" and position in covered else layer
        for position, layer in zip(range(start, stop), layers, strict=True)
    )
    return Stage(layers, calls, plan.precision, device.type, any(_draws(workload, layer) for layer in layers))


def _draws(workload: Workload, layer: nn.Module) -> bool:
    """Whether a layer draws random numbers, as far as that can be told: what a user's own code does cannot."""
    return workload.whole is not None or holds_dropout(layer)
