"""How a layer is split over the tensor axis: its linears, the sequence between them, the vocabulary at both ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from planner.plans import Plan
from profiles.workloads.blocks import Embedding, Head, set_local_split
from profiles.workloads.tensor_splits import OfRanks
from profiles.workloads.workload import LayerSpec

QKV_PARTS = 3
# Dims of hidden states (batch, sequence, hidden), and of queries before they are turned (batch, sequence, head, size).
SEQUENCE, HEAD, LAST = 1, 2, -1

Loss = Callable[[Tensor, Tensor], Tensor]


def split_layer(layer: nn.Module, spec: LayerSpec, plan: Plan, mesh: DeviceMesh) -> dict[str, tuple[int, OfRanks]]:
    """Split what the plan says over the one axis of `mesh`; everything else stays whole on every rank.

    Gives by path the weights that stand rank by rank, along which dimension, and each rank's pieces of the whole.
    """
    rearranged: dict[str, tuple[int, OfRanks]] = {}
    for path, style in spec.styles.items():
        if style == "colwise_qkv":
            linear = layer.get_submodule(path)
            pieces = _interleave_parts(linear, mesh.size())
            set_local_split(layer.get_submodule(path.rpartition(".")[0]), style, mesh.size())
            rearranged |= {f"{path}.{name}": (0, pieces) for name, _ in linear.named_parameters()}
    ways = _linear_ways(spec, plan)
    # Every rank norms its own heads with the same weights, whose gradients therefore add up over the ranks.
    ways |= {path: SequenceParallel(sequence_dim=HEAD, use_local_output=True) for path in spec.paths.head_norms}
    if plan.sequence_parallel:
        ways |= {path: SequenceParallel() for path in spec.paths.norms}
        ways |= {path: _gather_input(keyword) for path, keyword in spec.paths.gathers.items()}
    if isinstance(layer, Embedding):
        ways |= _embedding_ways(layer, plan, mesh)
    if isinstance(layer, Head):
        ways |= _head_ways(plan)
    if ways:
        # Every rank has the same full weights already: nothing to broadcast.
        parallelize_module(layer, mesh, ways, src_data_rank=None)
    return rearranged


def _linear_ways(spec: LayerSpec, plan: Plan) -> dict[str, ParallelStyle]:
    ways: dict[str, ParallelStyle] = {}
    for path, style in spec.styles.items():
        if style == "rowwise":
            ways[path] = RowwiseParallel(output_layouts=Shard(SEQUENCE) if plan.sequence_parallel else Replicate())
        else:
            ways[path] = ColwiseParallel()
    return ways


def _gather_input(keyword: str) -> ParallelStyle:
    """A module that is given its rank's tokens and works on all of them."""
    if keyword:
        return PrepareModuleInput(
            input_kwarg_layouts={keyword: Shard(SEQUENCE)}, desired_input_kwarg_layouts={keyword: Replicate()}
        )
    return PrepareModuleInput(input_layouts=(Shard(SEQUENCE),), desired_input_layouts=(Replicate(),))


def _embedding_ways(layer: Embedding, plan: Plan, mesh: DeviceMesh) -> dict[str, ParallelStyle]:
    """Rows of the vocabulary on their ranks; the sequence is cut last, after positions were added to all of it."""
    ways: dict[str, ParallelStyle] = {}
    cut_at_once = plan.sequence_parallel and plan.vocab_parallel and layer.positions is None
    if plan.vocab_parallel:
        layout = Shard(SEQUENCE) if cut_at_once else Replicate()
        ways["tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=layout)
    if plan.sequence_parallel and not cut_at_once:
        cut = PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=Shard(SEQUENCE))
        parallelize_module(layer, mesh, cut)
    return ways


def _head_ways(plan: Plan) -> dict[str, ParallelStyle]:
    ways: dict[str, ParallelStyle] = {}
    if plan.sequence_parallel:
        ways["norm"] = SequenceParallel()
    if plan.vocab_parallel:
        layout = Shard(SEQUENCE) if plan.sequence_parallel else Replicate()
        ways["projection"] = ColwiseParallel(input_layouts=layout)
    elif plan.sequence_parallel:
        ways["projection"] = PrepareModuleInput(
            input_layouts=(Shard(SEQUENCE),), desired_input_layouts=(Replicate(),), use_local_output=True
        )
    return ways


def _interleave_parts(linear: nn.Module, degree: int) -> OfRanks:
    """Reorder the rows of a fused query-key-value so that each shard holds its own of each part; which those are."""
    with torch.no_grad():
        for parameter in linear.parameters():
            parts = parameter.reshape(QKV_PARTS, degree, -1, *parameter.shape[1:])
            parameter.copy_(parts.transpose(0, 1).reshape(parameter.shape).clone())
    own = linear.get_parameter("weight").shape[0] // (QKV_PARTS * degree)
    return tuple(
        tuple(((part * degree + rank) * own, (part * degree + rank + 1) * own) for part in range(QKV_PARTS))
        for rank in range(degree)
    )


def loss_over(plan: Plan, loss: Loss, mesh: DeviceMesh | None) -> Loss:
    """`loss` itself, or one of logits that are each rank's columns of the vocabulary."""
    if mesh is None or not plan.vocab_parallel:
        return loss
    tensor_mesh = mesh["tensor"]

    def of_columns(logits: Tensor, targets: Tensor) -> Tensor:
        value = loss(DTensor.from_local(logits, tensor_mesh, (Shard(LAST),), run_check=False), targets)
        assert isinstance(value, DTensor)
        return value.to_local()

    return of_columns


def loss_context(plan: Plan) -> contextlib.AbstractContextManager[None]:
    """Entered around forward and backward: cross-entropy over a split vocabulary, where the plan has one."""
    return loss_parallel() if plan.vocab_parallel else contextlib.nullcontext()
