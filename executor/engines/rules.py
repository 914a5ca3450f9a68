"""What other runtimes refuse of a plan, each by the field, its value and the nearest choice that they carry out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.legality import refusal
from planner.model_facts import ModelFacts
from planner.plans import Plan
from planner.schedules.registry import NONE, USUAL
from profiles.models.profile import SCALED

# In the order of the fields: more than one of which no engine here divides a layer over.
SPLITS = ("tensor_parallel", "context_parallel", "expert_parallel")


def deepspeed_refusal(plan: Plan, model: ModelFacts, sequence_length: int) -> str:
    """Why DeepSpeed does not carry out a plan, or ""."""
    for reason in (*_anyones(plan, model, "DeepSpeed"), *_of_deepspeed(plan, model)):
        return f"plan {reason}"
    return _of_the_module(plan, model, sequence_length)


def horovod_refusal(plan: Plan, model: ModelFacts, sequence_length: int) -> str:
    """Why Horovod does not carry out a plan, or ""."""
    for reason in (*_anyones(plan, model, "Horovod"), *_of_horovod(plan)):
        return f"plan {reason}"
    return _of_the_module(plan, model, sequence_length)


def _anyones(plan: Plan, model: ModelFacts, title: str) -> Iterator[str]:
    for name in SPLITS:
        if (degree := getattr(plan, name)) > 1:
            yield f"{name}={degree}: {title} cannot split layers of this model, use data_parallel"
    if plan.replica_microbatches:
        yield f"replica_microbatches={plan.replica_microbatches}: {title} gives all replicas as many, leave it out"
    if plan.shard_degree:
        yield f"shard_degree={plan.shard_degree}: {title} shards over all replicas, use shard_degree=0"
    if plan.compiled:
        yield f"compiled: not tried with {title}, leave it out"
    if plan.precision == SCALED:
        yield f"precision={SCALED}: losses are not scaled for {title}, use bf16"
    if model.adapters.freezes:
        yield f"of a model with adapters: frozen weights were not tried with {title}, use --engine trainwright"


def _of_deepspeed(plan: Plan, model: ModelFacts) -> Iterator[str]:
    if plan.precision not in ("fp32", "tf32", "bf16"):
        yield f"precision={plan.precision}: DeepSpeed is only run in fp32, tf32 or bf16, use bf16"
    if plan.codec != "none":
        yield f"codec={plan.codec}: DeepSpeed sends gradients uncompressed, use none"
    if plan.offload == "activations":
        yield "offload=activations: DeepSpeed only offloads the optimizer, use offload=optimizer or none"
    if plan.offload == "optimizer" and not plan.zero_stage:
        yield "offload=optimizer with zero_stage=0: DeepSpeed only offloads what ZeRO shards, use zero_stage=1"
    if plan.pipeline_parallel == 1:
        return
    if plan.zero_stage >= 2:
        yield (
            f"zero_stage={plan.zero_stage} with pipeline_parallel={plan.pipeline_parallel}: DeepSpeed's pipeline keeps "
            "gradients whole, use zero_stage=1"
        )
    if plan.schedule not in (NONE, USUAL) or plan.virtual_stages > 1:
        yield f"schedule={plan.schedule}: DeepSpeed's pipeline only has {USUAL}, use that"
    order = [axis for axis in plan.axis_order if plan.degree(axis) > 1]
    if order.index("pipeline") != len(order) - 1:
        yield f"axis_order={plan.axis_order}: DeepSpeed places replicas on neighbouring ranks, name the pipeline last"
    if model.is_task:
        yield (
            f"pipeline_parallel={plan.pipeline_parallel}: stages of {model.name} send one another more than DeepSpeed "
            "does, use data_parallel"
        )


def _of_horovod(plan: Plan) -> Iterator[str]:
    if plan.pipeline_parallel > 1:
        yield f"pipeline_parallel={plan.pipeline_parallel}: Horovod is data parallel only, use data_parallel"
    if plan.zero_stage:
        yield f"zero_stage={plan.zero_stage}: Horovod shards nothing, use zero_stage=0"
    if plan.codec not in ("none", "fp16"):
        yield f"codec={plan.codec}: Horovod only compresses to fp16, use that or none"
    if plan.offload != "none":
        yield f"offload={plan.offload}: Horovod offloads nothing, use none"


def _of_the_module(plan: Plan, model: ModelFacts, sequence_length: int) -> str:
    """What the layers themselves, which are this program's, do not allow."""
    return refusal(replace(plan, zero_stage=0, offload="none"), model, sequence_length)
