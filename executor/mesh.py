"""Where each rank stands: the plan's axes as a device mesh, innermost axis on neighbouring ranks."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from planner.plans import AXES, Plan
from profiles.ranks.rank import TIMEOUT_SECONDS, unpinned

# All ranks, parted into the groups of one dimension.
Parts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinates:
    """A rank's index along each axis of the plan."""

    tensor: int = 0
    context: int = 0
    data: int = 0
    pipeline: int = 0


def degrees(plan: Plan) -> dict[str, int]:
    """Number of ranks along each axis."""
    return {axis: plan.degree(axis) for axis in plan.axis_order}


def coordinates(plan: Plan, rank: int) -> Coordinates:
    """The place of `rank`: the first axis of `axis_order` varies fastest."""
    place, rest = {}, rank
    for axis in plan.axis_order:
        rest, place[axis] = divmod(rest, degrees(plan)[axis])
    return Coordinates(**place)


class Meshes:
    """The device meshes of a job, one per layout, shared by all plans of that layout.

    They live as long as the job: DTensor remembers by mesh equality what it worked out for a mesh, so a second mesh
    like one whose process groups are gone would be given those. Dimensions of all meshes that part the ranks alike
    share one group, since each holds memory of its own on a GPU: a job of 8 ranks has a handful, however many plans it
    runs.
    """

    def __init__(self, device_kind: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._device_kind, self._timeout = device_kind, datetime.timedelta(seconds=timeout_seconds)
        self._meshes: dict[tuple[tuple[str, int], ...], DeviceMesh] = {}
        self._groups: dict[Parts, dist.ProcessGroup] = {}

    def of(self, plan: Plan) -> DeviceMesh:
        """The plan's mesh, one dimension per axis; collective: all ranks must ask for the same plans in one order.

        The data axis of a plan that shards over fewer ranks is two dimensions: "replicate", and "shard" inside it; of
        one that shares experts, "expert_replicas", and "experts" inside it.
        """
        dims = _dims(plan)
        if dims not in self._meshes:
            names, shape = zip(*dims, strict=True)
            ranks = torch.arange(math.prod(shape)).reshape(shape)
            with unpinned():
                groups = [self._group(parts_along(ranks, dim)) for dim in range(len(shape))]
                mesh = DeviceMesh.from_group(groups, self._device_kind, mesh=ranks, mesh_dim_names=names)
                if plan.context_parallel > 1 or plan.expert_parallel > 1:
                    # Made now, because threads of its process group must not be pinned either.
                    _flattened(mesh, "expert_replicas" in names, self._override)
            self._meshes[dims] = mesh
        return self._meshes[dims]

    def _group(self, parts: Parts) -> dist.ProcessGroup:
        """This rank's group of a partition of all ranks, which waits no longer than the job's own.

        Of themselves groups would wait 30 minutes (gloo) or 10 (NCCL), whatever the job's group was told.
        """
        if len(parts) == 1:
            return dist.group.WORLD  # type: ignore[return-value]
        if parts not in self._groups:
            lists = [list(part) for part in parts]
            # A group that a user has made may be bound to no device; then NCCL cannot split it.
            if dist.get_backend() == "nccl" and getattr(dist.group.WORLD, "bound_device_id", None) is not None:
                # One call for all of them, where a group by itself asks every rank once for each.
                own = dist.split_group(split_ranks=lists, timeout=self._timeout)
            else:
                own, _ = dist.new_subgroups_by_enumeration(lists, timeout=self._timeout)
            assert own is not None, "a partition has every rank"
            self._groups[parts] = own
        return self._groups[parts]

    def _override(self, num_ranks: int) -> tuple[str, Any] | None:
        """What a flattened dimension's group is told of its time-out; that of all ranks is the job's own."""
        backend = dist.get_backend()
        options: Any = None
        if num_ranks == dist.get_world_size():
            return None
        if backend == "gloo":
            options = dist.ProcessGroupGloo.Options(backend, self._timeout)  # type: ignore[call-arg]
        elif backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._timeout
        return None if options is None else (backend, options)


def parts_along(ranks: Tensor, dim: int) -> Parts:
    """The partition of a mesh's ranks along one of its dimensions."""
    return tuple(map(tuple, ranks.movedim(dim, -1).reshape(-1, ranks.shape[dim]).tolist()))


def replica_mesh(plan: Plan, mesh: DeviceMesh) -> DeviceMesh:
    """The ranks that hold copies of one another's parameters, which average their gradients: data and context axes.

    Of one dimension, or of two where parameters are sharded over fewer ranks than that.
    """
    if plan.shard_degree:
        return mesh["replicate", "shard"]
    if plan.expert_parallel > 1:
        return _flattened(mesh, with_experts=True)
    return _flattened(mesh, with_experts=False) if plan.context_parallel > 1 else mesh["data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """This rank's process groups.

    `replicas` are the ranks with copies of its parameters: in one group, or in two where copies of shards stand beside
    one another; `tensor` those with the rest of its linears, `stages` those with the rest of a pipeline,
    `expert_replicas` those with copies of its experts.
    """

    replicas: tuple[dist.ProcessGroup, ...] = ()
    tensor: dist.ProcessGroup | None = None
    stages: dist.ProcessGroup | None = None
    expert_replicas: dist.ProcessGroup | None = None


def groups_of(plan: Plan, mesh: DeviceMesh | None) -> Groups:
    """The groups of a plan's mesh; none without one."""
    if mesh is None:
        return Groups()
    copies = replica_mesh(plan, mesh) if plan.data_parallel * plan.context_parallel > 1 else None
    return Groups(
        replicas=tuple(copies.get_group(dim) for dim in range(copies.ndim)) if copies is not None else (),
        tensor=mesh["tensor"].get_group() if plan.tensor_parallel > 1 else None,
        stages=mesh["pipeline"].get_group() if plan.pipeline_parallel > 1 else None,
        expert_replicas=mesh["expert_replicas"].get_group() if plan.expert_parallel > 1 else None,
    )


def _flattened(
    mesh: DeviceMesh, with_experts: bool, override: Callable[[int], tuple[str, Any] | None] = lambda num_ranks: None
) -> DeviceMesh:
    """The dimensions of ranks that average gradients as one; the first call makes it, and may tell its group's options.

    Underscored in torch, yet what its own training stack uses: there is no public way.
    """
    wanted = ("expert_replicas", "experts") if with_experts else ("data", "context")
    dims = mesh[tuple(name for name in mesh.mesh_dim_names or () if name in wanted)]
    return dims._flatten("replicas", override(dims.size()))


def _dims(plan: Plan) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the mesh's dimensions, outermost first; axes that the plan leaves out have one rank."""
    left_out = tuple(axis for axis in AXES if axis not in plan.axis_order)
    dims: list[tuple[str, int]] = []
    for axis in reversed((*left_out, *plan.axis_order)):
        if axis == "data" and plan.expert_parallel > 1:
            experts = plan.expert_parallel
            dims += [("expert_replicas", plan.data_parallel // experts), ("experts", experts)]
        elif axis == "data" and plan.shard_degree:
            dims += [("replicate", plan.data_parallel // plan.shard_degree), ("shard", plan.shard_degree)]
        else:
            dims.append((axis, plan.degree(axis)))
    return tuple(dims)
