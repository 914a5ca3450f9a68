"""Collectives that torch has renamed, under one name for all versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def all_gather(output: Tensor, part: Tensor, group: dist.ProcessGroup, *, async_op: bool = False) -> dist.Work | None:
    """Gather every rank's `part` into `output`; asynchronously, what is waited for."""
    call = _named("all_gather_single", "all_gather_into_tensor")
    work: dist.Work | None = call(output, part, group=group, async_op=async_op)
    return work


def reduce_scatter(part: Tensor, whole: Tensor, group: dist.ProcessGroup) -> None:
    """Sum every rank's `whole` and keep one `part` of it."""
    _named("reduce_scatter_single", "reduce_scatter_tensor")(part, whole, group=group)


def _named(name: str, name_before_torch_2_13: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, name_before_torch_2_13)
    return function
