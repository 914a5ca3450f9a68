"""Which kernels computed attention in a step, by torch's names of its operators; none is chosen by its users."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.profiler import ProfilerActivity, profile

# torch's operators of scaled dot-product attention, and what its documentation calls them. A newer torch may have
# others, which are told under their own names.
OPERATOR = "aten::_scaled_dot_product_"
KERNELS = {
    "flash_attention": "flash",
    "flash_attention_for_cpu": "flash",
    "efficient_attention": "efficient",
    "cudnn_attention": "cudnn",
    "attention_math": "math",
    "fused_attention_overrideable": "overrideable",
}


def kernels_of(names: Iterable[str]) -> tuple[str, ...]:
    """The attention kernels among the operators of a profile, in alphabetical order."""
    passes = {name.removeprefix(OPERATOR).removesuffix("_backward") for name in names if name.startswith(OPERATOR)}
    return tuple(sorted({KERNELS.get(name, name) for name in passes}))


class AttentionWatch:
    """While entered, notes which kernels compute attention on this thread and those of its backward passes."""

    def __init__(self) -> None:
        # Kept until they are read: torch 2.11 warns of what it would otherwise clear.
        self._profiler = profile(activities=[ProfilerActivity.CPU], acc_events=True)

    def __enter__(self) -> AttentionWatch:
        self._profiler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profiler.__exit__(*error)

    @property
    def kernels(self) -> tuple[str, ...]:
        """Those seen, when it is over."""
        return kernels_of(event.key for event in self._profiler.key_averages())


def is_worth_watching(device: torch.device) -> bool:
    """Whether there is a choice of kernels: CPUs have one."""
    return device.type == "cuda"
