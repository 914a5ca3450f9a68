"""What we run: a plan on torch.distributed, and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor.apply_plan import apply
    from profiles.workloads.task import user_task as Task

__all__ = ["Task", "apply"]


def __getattr__(name: str) -> Any:
    """What is public, loaded where it is asked for: it needs torch."""
    if name == "Task":
        from profiles.workloads.task import user_task

        return user_task
    if name == "apply":
        from executor.apply_plan import apply

        return apply
    raise AttributeError(f"module 'executor' has no attribute {name!r}")
