"""What one rank does, in numbers: FLOPs of its products, messages by axis and collective, bytes that live.

The same counter serves a rehearsal and a real run, so that one can be checked against the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from executor.fake_group import FakeTensorMode
from executor.mesh import replica_mesh
from executor.observe.events import Message
from executor.observe.live_tensors import LiveTensors
from planner.plans import Plan

# Collectives by torch's operator, and the argument whose bytes count: the whole tensor that the group has between it.
# Source: the schemas of c10d (calls of a process group) and _c10d_functional (those of DTensor), as in torch 2.13.
COLLECTIVES: dict[str, tuple[str, str]] = {
    "c10d::allreduce_": ("all_reduce", "tensors"),
    "c10d::allreduce_coalesced_": ("all_reduce", "tensors"),
    "c10d::allgather_": ("all_gather", "output_tensors"),
    "c10d::_allgather_base_": ("all_gather", "output_tensor"),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", "outputs"),
    "c10d::reduce_scatter_": ("reduce_scatter", "input_tensors"),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", "input_tensor"),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs"),
    "c10d::alltoall_": ("all_to_all", "input_tensors"),
    "c10d::alltoall_base_": ("all_to_all", "input"),
    "c10d::broadcast_": ("broadcast", "tensors"),
    "c10d::send": ("send", "tensors"),
    "c10d::recv_": ("receive", "tensors"),
    "_c10d_functional::all_reduce": ("all_reduce", "input"),
    "_c10d_functional::all_reduce_": ("all_reduce", "input"),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", "result"),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", "input"),
    "_c10d_functional::all_to_all_single": ("all_to_all", "input"),
    "_c10d_functional::broadcast": ("broadcast", "input"),
}
NAMESPACES = ("c10d", "_c10d_functional")
# Not messages of tensors, or the waiting for one.
SILENT = ("wait_tensor", "_wrap_tensor_autograd", "barrier", "check_for_nan")
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
# Dims of the mesh that are parts of the plan's data axis.
AXIS_OF_DIM = {"replicate": "data", "shard": "data", "expert_replicas": "data", "experts": "expert"}


class Ledger(LiveTensors):
    """Counts while it is entered; on a real rank, or with `fakes` on a rehearsed one.

    Process groups are known by their ranks in the plan's mesh; what another one sends is counted under "world".
    """

    def __init__(self, plan: Plan, mesh: DeviceMesh, fakes: FakeTensorMode | None = None) -> None:
        super().__init__(fakes)
        self.axes = axes_of(plan, mesh)
        # Their groups are the data axis's own where that has no other ranks.
        self.exchanges = "expert" if plan.expert_parallel > 1 else "context"
        self.flops: Counter[str] = Counter()
        self.num_operators = 0
        self._messages: Counter[tuple[str, str]] = Counter()
        self._sent: Counter[tuple[str, str]] = Counter()

    def clear(self) -> None:
        """Forget what was counted, but for what lives."""
        self.flops.clear()
        self._messages.clear()
        self._sent.clear()
        self.num_operators = 0
        self.reset_peak()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was sent, by axis and collective."""
        return tuple(
            Message(axis=axis, collective=name, count=count, num_bytes=float(self._sent[axis, name]))
            for (axis, name), count in sorted(self._messages.items())
        )

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator and count it."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if result is NotImplemented or not isinstance(func, torch._ops.OpOverload):
            return result
        self.num_operators += 1
        if func.namespace in NAMESPACES:
            self._send(func, args, kwargs or {}, result)
        elif any(self.holds(value) for value in tree_iter(args)):
            self._multiply(func, args, kwargs or {}, result)
        return result

    def _multiply(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Count the FLOPs of a product, as torch's own counter does; of attention on CPU it knows nothing."""
        packet = func.overloadpacket
        name = packet.__name__
        if name == ATTENTION:
            query, key, value = (_beside(args[0], value) for value in args[:3])
            self.flops["attention"] += sdpa_flop_count(query, key, value)
        elif name == f"{ATTENTION}_backward":
            gradient, query, key, value = (_beside(args[0], value) for value in args[:4])
            self.flops["attention"] += sdpa_backward_flop_count(gradient, query, key, value)
        elif packet in flop_registry:
            self.flops["matmul"] += flop_registry[packet](*args, **kwargs, out_val=result)

    def _send(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        name = func.overloadpacket._qualified_op_name
        if name.rpartition("::")[2] in SILENT:
            return
        if name not in COLLECTIVES:
            raise RuntimeError(f"{name} is a message that the ledger does not know how to count")
        collective, where = COLLECTIVES[name]
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
        counted = result if where == "result" else given[where]
        num_bytes = sum(value.nbytes for value in tree_iter(counted) if isinstance(value, Tensor))
        axis = self.exchanges if collective == "all_to_all" else self.axes.get(_group_ranks(given), "world")
        key = axis, collective
        self._messages[key] += 1
        self._sent[key] += num_bytes


def _beside(query: Tensor, value: Tensor) -> tuple[int, ...]:
    """The shape of an operand of attention with as many heads as the query has: torch 2.11 counts no others."""
    batch, _, length, size = value.shape
    return batch, query.shape[1], length, size


def _group_ranks(given: Mapping[str, Any]) -> tuple[int, ...]:
    """The ranks of the group that a collective is given, as itself or by its name."""
    group = dist.ProcessGroup.unbox(given["process_group"]) if "process_group" in given else given["group_name"]
    if not isinstance(group, dist.ProcessGroup):
        group = c10d._resolve_process_group(group)  # type: ignore[attr-defined]  # no public way from a name
    return _ranks(group)


def _ranks(group: dist.ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


def axes_of(plan: Plan, mesh: DeviceMesh) -> dict[tuple[int, ...], str]:
    """The plan's axis of every process group of its mesh, by the ranks in it.

    By ranks, because DTensor may send through the equal group of an equal mesh that was made before.
    """
    axes = {_ranks(mesh[dim].get_group()): AXIS_OF_DIM.get(dim, dim) for dim in mesh.mesh_dim_names or ()}
    if plan.context_parallel > 1 or plan.expert_parallel > 1:
        # Data and context axes together average gradients, and so do all that share experts.
        axes[_ranks(replica_mesh(plan, mesh).get_group())] = "data"
    return axes
