"""A task whose samples have one size, which is what the examples have alike."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from profiles.workloads.task import Batch, Sample, Task, Unit, module_loss, stack


def task_of(
    name: str,
    build: Callable[[], nn.Module],
    batches: Callable[[int, int], list[Sample]],
    unit: Unit,
    size: int,
    loss: Callable[[nn.Module, Batch], Tensor] = module_loss,
) -> Task:
    """The task of what builds a module, the samples of a step and a loss, where it is not the module's own."""
    return Task(
        name=name,
        build=build,
        example=lambda samples, _: stack(batches(0, samples)),
        batches=batches,
        loss=loss,
        unit=unit,
        size=size,
        least_size=size,
        longest_size=size,
    )
