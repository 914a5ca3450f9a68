"""What a plan file trains: the layers of a known family or of a user's own, or a task's module as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from executor.run.own_data import given_data
from planner.prediction import PlanFile
from profiles.models.profile import WorkloadSpec
from profiles.workloads.loading import load_workload
from profiles.workloads.task import Task
from profiles.workloads.task_loading import load_task
from profiles.workloads.workload import LayerSpec, Workload


def load_subject(file: PlanFile, trusted: Sequence[str] = (), data: str = "", where: str = "the file") -> Workload:
    """The workload of a plan file; a task's is trained on `data`, a function's name, where one is given.

    `where` is what names the model, for errors.
    Raises: InputError where code that the file names is not trusted, or fails.
    """
    if not file.workload.task:
        return load_workload(file.workload, trusted, where)
    task = load_task(file.workload, trusted, where, file.sequence_length)
    return workload_of_task(file.workload, given_data(data, task), file.num_layers)


def workload_of_task(spec: WorkloadSpec, task: Task, num_layers: int) -> Workload:
    """A task as a workload, whose layers are the blocks of its module, and what runs before and behind them."""
    return Workload(
        spec=spec,
        layers=(LayerSpec(name="segment", build=_no_layer),) * num_layers,
        hidden_size=0,
        num_heads=0,
        num_kv_heads=0,
        ffn_size=0,
        vocab_size=0,
        max_sequence_length=task.longest_size,
        tied_embeddings=False,
        example_input=_no_example,
        loss=_the_loss_itself,
        task=task,
    )


def _no_layer() -> nn.Module:
    raise NotImplementedError("a task's module is built as a whole")


def _no_example(*_: Any) -> Tensor:
    raise NotImplementedError("a task has its own examples")


def _the_loss_itself(output: Tensor, _: Any) -> Tensor:
    """A task's module gives its loss."""
    return output
