"""Where each rank stands: the plan's axes as a device mesh, innermost axis on neighbouring ranks."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from planner.plans import AXES, Plan
from profiles.ranks.rank import TIMEOUT_SECONDS, unpinned


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
    like one whose process groups are gone would be given those.
    """

    def __init__(self, device_kind: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._device_kind, self._timeout_seconds = device_kind, timeout_seconds
        self._meshes: dict[tuple[tuple[str, int], ...], DeviceMesh] = {}

    def of(self, plan: Plan) -> DeviceMesh:
        """The plan's mesh, one dimension per axis; collective: all ranks must ask for the same plans in one order.

        The data axis of a plan that shards over fewer ranks is two dimensions: "replicate", and "shard" inside it; of
        one that shares experts, "expert_replicas", and "experts" inside it.
        """
        dims = _dims(plan)
        if dims not in self._meshes:
            names, shape = zip(*dims, strict=True)
            with unpinned():
                mesh = init_device_mesh(
                    self._device_kind, shape, mesh_dim_names=names, backend_override=self._backends(dims)
                )
                if plan.context_parallel > 1:
                    # Made now, because threads of its process group must not be pinned either.
                    _with_context(mesh)
            self._meshes[dims] = mesh
        return self._meshes[dims]

    def _backends(self, dims: Sequence[tuple[str, int]]) -> dict[int | str, Any] | None:
        """Groups that wait no longer than the job's own, which a dimension of all ranks uses.

        Of themselves they would wait 30 minutes (gloo) or 10 (NCCL), whatever the job's group was told.
        """
        backend, limit = dist.get_backend(), datetime.timedelta(seconds=self._timeout_seconds)
        options: Any
        if backend == "gloo":
            options = dist.ProcessGroupGloo.Options(backend, limit)  # type: ignore[call-arg]
        elif backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
        else:
            return None
        return {name: (backend, options) for name, size in dims if size not in (1, dist.get_world_size())}


def replica_mesh(plan: Plan, mesh: DeviceMesh) -> DeviceMesh:
    """The ranks that hold copies of one another's parameters, which average their gradients: data and context axes.

    Of one dimension, or of two where parameters are sharded over fewer ranks than that.
    """
    if plan.shard_degree:
        return mesh["replicate", "shard"]
    if plan.expert_parallel > 1:
        return mesh["expert_replicas", "experts"]._flatten("replicas")
    return _with_context(mesh) if plan.context_parallel > 1 else mesh["data"]


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


def _with_context(mesh: DeviceMesh) -> DeviceMesh:
    names = tuple(name for name in mesh.mesh_dim_names or () if name in ("data", "context"))
    return mesh[names]._flatten("replicas")  # underscored, yet what torch's own training stack uses; no public way


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
