"""Faults that a layout may have, put into one for the time of a check; the plain loop beside it has none of them."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.futures import Future
from torch.optim import AdamW

from executor import rank_model
from executor.axes import data, optimizer, parallelize
from executor.axes.pipeline import Pipeline
from executor.run import check_training
from executor.run.adamw_by_hand import own_part
from executor.run.batches import Text
from executor.run.checkpoint import restore
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.codecs import ddp_hooks
from profiles.codecs.ddp_hooks import GradBucket, Reduction, average
from profiles.workloads.blocks import set_attention_core

Patch = contextlib.AbstractContextManager[Any]
TWO = {"micro_batch_size": 2, "num_microbatches": 2}
DATA = Plan(data_parallel=2, **TWO)
CONTEXT = Plan(context_parallel=2, **TWO)
STAGES = Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 3), micro_batch_size=2, num_microbatches=4)
EXPERTS = Plan(data_parallel=2, expert_parallel=2, **TWO)
SPLIT = Plan(tensor_parallel=2, sequence_parallel=True, **TWO)
SHARDED = Plan(data_parallel=2, zero_stage=3, **TWO)
SHARED_OUT = Plan(data_parallel=2, zero_stage=1, **TWO)


def of_first_rank(original: Callable[..., Any], self: Trainer, samples: Any) -> Any:
    size = self.plan.micro_batch_size * self.plan.num_microbatches
    return original(self, samples[:size].repeat(2, *(1,) * (samples.dim() - 1)))


def unsent(reduction: Reduction, bucket: GradBucket) -> Future[Tensor]:
    done: Future[Tensor] = Future()
    done.set_result(bucket.buffer())
    return done


def unsent_second(reduction: Reduction, bucket: GradBucket) -> Future[Tensor]:
    return unsent(reduction, bucket) if bucket.index() == 1 else average(reduction, bucket)


def summed(reduction: Reduction, bucket: GradBucket) -> Future[Tensor]:
    bucket.buffer().mul_(reduction.group.size())
    return average(reduction, bucket)


def small_buckets() -> Patch:
    return patch.object(data, "bucket_options", lambda codec, stage: {"bucket_cap_mb": 0.1})


def with_losses(change: Callable[[Tensor, int, int], Tensor]) -> Patch:
    """The losses of micro-batches changed by their numbers."""
    original = Trainer._accumulate

    def accumulate(self: Trainer, parts: Any) -> Tensor:
        own, numbers = self.loss, iter(range(len(parts)))
        self.loss = lambda given, wanted: change(own(given, wanted), next(numbers), len(parts))
        try:
            return original(self, parts)
        finally:
            self.loss = own

    return patch.object(Trainer, "_accumulate", accumulate)


def after_averaging(change: Callable[[Trainer], None]) -> Patch:
    original = Trainer._average

    def averaged(self: Trainer) -> None:
        original(self)
        change(self)

    return patch.object(Trainer, "_average", averaged)


def after_steps(change: Callable[[Trainer], None]) -> Patch:
    original = Trainer.step

    def stepped(self: Trainer, *batch: Any) -> Any:
        result = original(self, *batch)
        change(self)
        return result

    return patch.object(Trainer, "step", stepped)


def forget_moments(trainer: Trainer) -> None:
    for moments in trainer.moments_by_parameter.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments:
                moments[name].zero_()


def own_share_of_norms(trainer: Trainer) -> None:
    for name, parameter in trainer.named_parameters.items():
        gradient = parameter.grad
        if "norm" not in name or not isinstance(gradient, DTensor):
            continue
        if any(isinstance(place, Partial) for place in gradient.placements):
            parameter.grad = DTensor.from_local(gradient.to_local(), gradient.device_mesh, [Replicate()])


def not_causal() -> Patch:
    original = rank_model.build_stage

    def core(attend: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    def build(workload: Any, *arguments: Any) -> Any:
        stage = original(workload, *arguments)
        for layer, spec in zip(stage.layers, workload.layers, strict=True):
            if spec.paths.attention:
                set_attention_core(layer.get_submodule(spec.paths.attention), core)
        return stage

    return patch.object(rank_model, "build_stage", build)


def stale(path: Any, trainer: Trainer) -> None:
    parameter = list(trainer.named_parameters.values())[-1]
    before = own_part(parameter.detach()).clone()
    restore(path, trainer)
    if dist.get_rank() == 1:
        with torch.no_grad():
            own_part(parameter.detach()).copy_(before)


def other_order(original: Callable[..., Any], self: Text, step: int, count: int) -> Any:
    return original(self, step + 1, count)


def not_divided(self: Pipeline, logits: Tensor, targets: Tensor) -> Tensor:
    self.recorder.extend("F")
    return self.loss(logits, targets)


def method(owner: Any, name: str, changed: Callable[..., Any]) -> Patch:
    """A method, replaced by a function of the original, the object and the arguments."""
    original = getattr(owner, name)
    return patch.object(owner, name, lambda self, *arguments: changed(original, self, *arguments))


def only_on_second(change: Callable[[Trainer], None]) -> Callable[[Trainer], None]:
    return lambda trainer: change(trainer) if dist.get_rank() == 1 else None


def shifted(trainer: Trainer) -> None:
    with torch.no_grad():
        own_part(next(iter(trainer.named_parameters.values())).detach()).add_(1e-6)


# By name: the model and the plan that have it, and how it is put in.
FAULTS: dict[str, tuple[str, Plan, Callable[[], list[Patch]]]] = {
    "rank 1 fed rank 0's data": ("llama", DATA, lambda: [method(Trainer, "own_slice", of_first_rank)]),
    "all-reduce skipped": ("llama", DATA, lambda: [patch.object(ddp_hooks, "average", unsent)]),
    "one bucket skipped": (
        "llama", DATA, lambda: [small_buckets(), patch.object(ddp_hooks, "average", unsent_second)],
    ),
    "a micro-batch dropped": ("llama", DATA, lambda: [with_losses(lambda loss, at, count: loss * (at > 0))]),
    "only the last micro-batch's gradients": (
        "llama", DATA,
        lambda: [with_losses(lambda loss, at, count: loss if at == count - 1 else loss.detach() + 0 * loss)],
    ),
    "context gradients not averaged": (
        "llama", CONTEXT, lambda: [patch.object(data, "replica_mesh", lambda plan, mesh: mesh["data"])],
    ),
    "attention not causal": ("llama", DATA, lambda: [not_causal()]),
    "positions of context ranks wrong": (
        "llama", CONTEXT, lambda: [patch.object(parallelize, "place_layer", lambda layer, plan, place: None)],
    ),
    "learning rate x 1.1": ("llama", DATA, lambda: [patch.object(optimizer, "LEARNING_RATE", 1.1e-3)]),
    "weight decay missing": (
        "llama", SHARED_OUT, lambda: [patch.object(optimizer, "AdamW", functools.partial(AdamW, weight_decay=0.0))],
    ),
    "moments reset": ("llama", DATA, lambda: [after_steps(forget_moments)]),
    "gradients summed": ("llama", DATA, lambda: [patch.object(ddp_hooks, "average", summed)]),
    "pipeline division missing": ("llama", STAGES, lambda: [patch.object(Pipeline, "_share_of_loss", not_divided)]),
    "expert division missing": (
        "mixtral", EXPERTS,
        lambda: [patch.object(rank_model, "average_experts", lambda own, group, count: None)],
    ),
    "partial gradients of norms": ("llama", SPLIT, lambda: [after_averaging(own_share_of_norms)]),
    "a stale shard after resume": ("llama", SHARDED, lambda: [patch.object(check_training, "restore", stale)]),
    "data order changed": ("llama", DATA, lambda: [method(Text, "batch", other_order)]),
    "a copy that drifts": ("llama", DATA, lambda: [after_steps(only_on_second(shifted))]),
}  # fmt: skip
NEEDS_A_FOLDER = ("a stale shard after resume",)


@contextlib.contextmanager
def injected(name: str) -> Iterator[None]:
    """While entered, training has the fault called `name`; "" is none."""
    with contextlib.ExitStack() as stack:
        for one in FAULTS[name][2]() if name else ():
            stack.enter_context(one)
        yield
