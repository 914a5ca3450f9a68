"""A GPU's memory beyond the tensors on it: what the allocator keeps, and what the driver has given out in all.

The planner predicts what is allocated. A plan fits where what is reserved, CUDA's context and the communicators do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes of one rank's GPU: allocated at most, reserved at most, and in use by anybody now; 0 where none is told."""

    allocated_bytes: float = 0.0
    reserved_bytes: float = 0.0
    in_use_bytes: float = 0.0


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a GPU since its peaks were last reset; nothing of other devices."""
    if device.type != "cuda":
        return DeviceMemory()
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(
        allocated_bytes=float(torch.cuda.max_memory_allocated(device)),
        reserved_bytes=float(torch.cuda.max_memory_reserved(device)),
        in_use_bytes=float(total - free),
    )
