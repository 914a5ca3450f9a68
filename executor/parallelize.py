"""One rank's share of the model: its layers, split over the tensor axis, recomputed or not, gradients averaged.

Every rank builds its layers from the seed and their positions, so nothing has to be sent before the first step.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from executor.codecs import Reduction, bucket_options, register
from executor.recorder import Recorder
from planner.plan import Plan, is_recomputed
from profiles.blocks import Style, set_local_split
from profiles.workloads import Workload

QKV_PARTS = 3
LEARNING_RATE = 1e-3


class Stage(nn.Module):
    """Consecutive layers that one rank runs; recomputation is per layer, embedding and head excluded."""

    def __init__(self, layers: nn.Sequential, first: int, num_layers: int, plan: Plan, device_kind: str) -> None:
        super().__init__()
        self.layers = layers
        self.recomputed = [
            plan.recompute == "full" and is_recomputed(position, num_layers)
            for position in range(first, first + len(layers))
        ]
        self.precision, self.device_kind = plan.precision, device_kind

    def forward(self, hidden: Tensor) -> Tensor:
        """Token ids or hidden states to hidden states or logits."""
        # Entered here rather than around the step, so that pipeline stages and the reference do the same.
        with autocast(self.precision, self.device_kind):
            for layer, recomputed in zip(self.layers, self.recomputed, strict=True):
                if recomputed:
                    # There is no dropout, so no random state has to be kept.
                    hidden = checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False)
                else:
                    hidden = layer(hidden)
        return hidden


def autocast(precision: str, device_kind: str) -> contextlib.AbstractContextManager[object]:
    """Mixed precision as the plan says: bf16 compute over fp32 parameters, gradients and optimizer, or nothing."""
    if precision == "bf16":
        return torch.autocast(device_kind, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def build_stage(
    workload: Workload, plan: Plan, stage: int, seed: int, device: torch.device, mesh: DeviceMesh | None
) -> Stage:
    """The layers of `stage` on `device`, split over the mesh's tensor axis where the plan has one."""
    num_layers = len(workload.layers)
    start, stop = (*plan.stage_bounds, num_layers)[stage : stage + 2]
    layers = workload.build(start, stop, seed).to(device)
    if mesh is not None and plan.tensor_parallel > 1:
        for position, layer in zip(range(start, stop), layers, strict=True):
            split_layer(layer, workload.layers[position].styles, mesh["tensor"])
    return Stage(layers, start, num_layers, plan, device.type)


def split_layer(layer: nn.Module, styles: dict[str, Style], mesh: DeviceMesh) -> None:
    """Split the linears of `styles` over the one axis of `mesh`; everything else stays whole on every rank."""
    ways: dict[str, ParallelStyle] = {}
    for path, style in styles.items():
        if style == "colwise_qkv":
            _interleave_parts(layer.get_submodule(path), mesh.size())
            set_local_split(layer.get_submodule(path.rpartition(".")[0]), style, mesh.size())
        ways[path] = RowwiseParallel() if style == "rowwise" else ColwiseParallel()
    if ways:
        # Every rank has the same full weights already: nothing to broadcast.
        parallelize_module(layer, mesh, ways, src_data_rank=None)


def _interleave_parts(linear: nn.Module, degree: int) -> None:
    """Reorder the rows of a fused query-key-value so that each shard holds its own third of each part."""
    with torch.no_grad():
        for parameter in linear.parameters():
            parts = parameter.reshape(QKV_PARTS, degree, -1, *parameter.shape[1:])
            parameter.copy_(parts.transpose(0, 1).reshape(parameter.shape).clone())


def average_gradients(
    module: nn.Module, plan: Plan, mesh: DeviceMesh, recorder: Recorder
) -> tuple[nn.Module, Reduction]:
    """`module` with its gradients averaged over the data axis, and what averages them."""
    data = mesh["data"]
    wrapped = DistributedDataParallel(
        module,
        device_mesh=data,
        gradient_as_bucket_view=True,
        # Ranks start equal by construction, see build_stage, and buffers never change.
        init_sync=False,
        **_keep_buffers(),
        **bucket_options(plan.codec, module),
    )
    return wrapped, register(wrapped, plan.codec, data.get_group(), recorder)


def paused(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """While entered, backward passes add to the gradients and do not average them."""
    if isinstance(module, DistributedDataParallel):
        manager: contextlib.AbstractContextManager[None] = module.no_sync()
        return manager
    return contextlib.nullcontext()


def _keep_buffers() -> dict[str, Any]:
    """The option that stops DDP from sending buffers at every forward; torch renamed it after 2.11."""
    names = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


def build_optimizer(module: nn.Module) -> torch.optim.AdamW:
    """AdamW in its fused form; split and whole parameters in groups of their own, since one kernel takes one kind."""
    parameters = list(module.parameters())
    whole = [parameter for parameter in parameters if type(parameter.data) is Tensor]
    split = [parameter for parameter in parameters if type(parameter.data) is not Tensor]
    groups = [{"params": group} for group in (whole, split) if group]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
