"""Groups of a job's meshes: of the ranks along one axis, few for many plans, waiting no longer than the job does."""

import itertools
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from executor.fake_group import fake_rank
from executor.mesh import Meshes, coordinates, groups_of, parts_along, replica_mesh
from planner.plans import Plan

RANKS = 8
AXES = ("data", "tensor", "context", "pipeline")


def plans():
    """Every way to share eight ranks between four axes."""
    for degrees in itertools.product((1, 2, 4, 8), repeat=4):
        if torch.tensor(degrees).prod() == RANKS:
            yield Plan(**{f"{axis}_parallel": degree for axis, degree in zip(AXES, degrees, strict=True)})


def along(plan, rank, axes):
    """The ranks whose place differs from that of `rank` along some of `axes` alone."""
    own = asdict(coordinates(plan, rank))
    places = {other: asdict(coordinates(plan, other)) for other in range(RANKS)}
    return [other for other, at in places.items() if all(at[axis] == own[axis] for axis in AXES if axis not in axes)]


@pytest.mark.parametrize("rank", [0, 5])
def test_a_group_has_the_ranks_along_its_axis_and_many_plans_share_a_few(rank):
    with fake_rank(rank, RANKS):
        meshes, layouts = Meshes("cpu"), list(plans())
        for plan in layouts:
            mesh = meshes.of(plan)
            assert meshes.of(plan) is mesh
            for axis in AXES:
                ranks = dist.get_process_group_ranks(mesh[axis].get_group())
                assert ranks == along(plan, rank, (axis,)), (plan.id, axis)
            copies = dist.get_process_group_ranks(replica_mesh(plan, mesh).get_group())
            assert copies == along(plan, rank, ("data", "context") if plan.context_parallel > 1 else ("data",))
            assert groups_of(plan, mesh).tensor == (mesh["tensor"].get_group() if plan.tensor_parallel > 1 else None)
        # Alone; pairs at distance 1, 2 and 4; fours at distance 1 and 2: dimensions of all ranks use the job's group.
        assert len(meshes._groups) == 6
        assert len(layouts) == 20


@pytest.fixture
def told(monkeypatch):
    """A backend that is made up, and what is asked of it."""
    noted = SimpleNamespace(asked=[], backend="nccl", world=SimpleNamespace(bound_device_id=torch.device("cuda", 0)))
    monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=noted.world))
    monkeypatch.setattr(dist, "get_backend", lambda: noted.backend)
    monkeypatch.setattr(dist, "get_world_size", lambda: RANKS)
    for name in ("split_group", "new_subgroups_by_enumeration"):
        monkeypatch.setattr(
            dist, name, lambda *lists, name=name, **told: noted.asked.append((name, lists, told)) or ("a group", [])
        )
    return noted


def test_nccl_splits_the_jobs_group_once_for_every_partition(told):
    meshes, parts = Meshes("cuda", 7.0), parts_along(torch.arange(RANKS).reshape(4, 2), 0)
    assert parts == ((0, 2, 4, 6), (1, 3, 5, 7))
    for _ in range(2):
        meshes._group(parts)
    [(name, _, options)] = told.asked
    assert name == "split_group"
    assert options["split_ranks"] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert options["timeout"].total_seconds() == 7


@pytest.mark.parametrize(("kind", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_groups_are_made_one_by_one_where_the_jobs_cannot_be_split(told, kind, backend):
    # Of NCCL, where a user's own init_process_group has bound it to no device.
    told.backend, told.world.bound_device_id = backend, None
    Meshes(kind, 8.0)._group(parts_along(torch.arange(RANKS).reshape(4, 2), 0))
    [(name, lists, options)] = told.asked
    assert (name, lists, options["timeout"].total_seconds()) == (
        "new_subgroups_by_enumeration", ([[0, 2, 4, 6], [1, 3, 5, 7]],), 8,
    )  # fmt: skip


def test_flattened_dimensions_wait_no_longer_than_the_job(monkeypatch, told):
    options = SimpleNamespace(_timeout=None)
    monkeypatch.setattr(dist, "ProcessGroupNCCL", SimpleNamespace(Options=lambda: options), raising=False)
    assert Meshes("cuda", 7.0)._override(4) == ("nccl", options)
    assert options._timeout.total_seconds() == 7
    told.backend = "gloo"
    backend, own = Meshes("cpu", 8.0)._override(4)
    assert (backend, own._timeout.total_seconds()) == ("gloo", 8)
    # torch takes the job's own group for all ranks where nothing else is said.
    assert Meshes("cpu", 8.0)._override(RANKS) is None
