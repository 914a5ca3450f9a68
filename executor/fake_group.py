"""One rank of a job of any size in one process: a process group that sends nothing, and tensors that hold nothing.

What a rehearsal needs of torch beyond its public interface stands here: the fake process group, with which torch's own
tests stand in for any number of ranks; the look for a fake mode that is on; how DTensor works out shapes; how DDP
orders its buckets. Fake tensors are handed on from where workloads are built, which need them too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch._guards import detect_fake_mode
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.nn.parallel import DistributedDataParallel

from profiles.errors import EnvironmentFailure
from profiles.ranks.rank import Rank
from profiles.workloads.fake_tensors import FakeTensor, FakeTensorMode, unset_fake_temporarily

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "fake_mode",
    "fake_rank",
    "is_fake",
    "keep_first_buckets",
    "outside_fakes",
    "whole_shapes_apart",
]


@contextlib.contextmanager
def fake_rank(rank: int, num_ranks: int) -> Iterator[Rank]:
    """Be `rank` of `num_ranks` whose others do not exist: messages come back as they were, at no cost.

    Raises: EnvironmentFailure where this process is in a process group already, or this torch has no fake one.
    """
    if dist.is_initialized():
        raise EnvironmentFailure("a rehearsal needs a separate process: this one is a rank of a real job")
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise EnvironmentFailure(f"torch {torch.__version__} has no fake process group: {error}") from error
    dist.init_process_group("fake", rank=rank, world_size=num_ranks, store=FakeStore())
    try:
        yield Rank(rank=rank, local_rank=0, num_ranks=num_ranks, device=torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def fake_mode() -> FakeTensorMode:
    """While entered, tensors have shapes and types alone; real ones that code brings along are taken as such."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_fake() -> bool:
    """Whether tensors that are made hold nothing."""
    return detect_fake_mode() is not None


def outside_fakes() -> contextlib.AbstractContextManager[object]:
    """While entered, tensors are real even in a rehearsal: bookkeeping of meshes and shards reads values."""
    return unset_fake_temporarily()


@contextlib.contextmanager
def whole_shapes_apart() -> Iterator[None]:
    """While entered, DTensor works out shapes of whole tensors with fakes of its own, as in a real run.

    It would take the rehearsal's, and tensors that no rank has would count as the rank's.
    """
    propagate = ShardingPropagator._propagate_tensor_meta_non_cached

    def apart(propagator: ShardingPropagator, schema: Any) -> Any:
        with outside_fakes():
            return propagate(propagator, schema)

    ShardingPropagator._propagate_tensor_meta_non_cached = apart  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        ShardingPropagator._propagate_tensor_meta_non_cached = propagate  # type: ignore[method-assign]


def keep_first_buckets(module: DistributedDataParallel) -> None:
    """In a rehearsal, stop DDP from ordering its buckets anew after the first step, for which it reads values.

    Gradients then travel in the order of the parameters rather than in that of their arrival, in as many bytes.
    """
    if detect_fake_mode() is not None:
        module.reducer = _FirstBuckets(module.reducer)  # type: ignore[assignment]


class _FirstBuckets:
    """DDP's reducer, but for what the rehearsal leaves out."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False
