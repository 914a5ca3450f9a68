"""Whether a plan can be carried out, and if not why: one list of rules for the table of plans and for the executor.

Each rule says what the stock library cannot do, or what the model does not allow, and the nearest choice that runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.model_facts import ModelFacts
from planner.plans import Plan, recomputable_layers
from planner.schedules.registry import USUAL, USUAL_OF_SEVERAL, schedule
from planner.schedules.steps import Shape
from profiles.codecs.codec import codec
from profiles.models.profile import PRECISIONS, SCALED

# Codecs that are a precision to reduce in, which FSDP2 has an option for.
FSDP_CODECS = ("none", "bf16")


def refusal(plan: Plan, model: ModelFacts, sequence_length: int) -> str:
    """Why `plan` cannot be carried out on `model`, naming field, value and the nearest choice that runs; or ""."""
    for rules in RULES:
        for reason in rules(plan, model, sequence_length):
            return f"plan {reason}"
    return ""


def _names(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    if plan.precision not in PRECISIONS:
        yield f"precision={plan.precision}: the executor has {', '.join(PRECISIONS)}"
    if plan.zero_stage not in range(4):
        yield f"zero_stage={plan.zero_stage}: must be 0 to 3"
    if plan.replica_microbatches:
        yield f"replica_microbatches={plan.replica_microbatches}: can be planned but not run, leave it out"
    if plan.offload != "none":
        yield f"offload={plan.offload}: can be planned but not run, use offload=none"


def _fp8(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    """What torchao's linears do not go together with."""
    if plan.precision != "fp8":
        return
    if plan.tensor_parallel > 1:
        yield (
            f"precision=fp8 with tensor_parallel={plan.tensor_parallel}: torch would send the largest number of every "
            "split tensor in a message of its own (rehearsed), use bf16 or data_parallel"
        )
    if plan.rules.splits_backward:
        yield (
            f"precision=fp8 with schedule={plan.schedule}: torchao computes both gradients of a linear at once, and "
            f"would do so twice (rehearsed), use {USUAL_OF_SEVERAL}"
        )
    if model.num_experts:
        yield f"precision=fp8 with the experts of {model.name}: torchao rounds linears alone, use bf16"


def _fp16(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    """What scaled gradients do not go together with: a step is skipped where one of them is no number."""
    if plan.precision == SCALED and plan.codec not in FSDP_CODECS:
        yield (
            f"precision={plan.precision} with codec={plan.codec}: scaled gradients would overflow in it, or what is "
            f"no number be rounded to one and kept, use codec={' or '.join(FSDP_CODECS)}"
        )


def _data(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    replicas = plan.data_parallel * plan.context_parallel
    if codec(plan.codec).lossy and replicas == 1:
        yield f"codec={plan.codec} with data_parallel=1: no gradients are sent, so there is nothing to compress"
    if codec(plan.codec).gathered and plan.tensor_parallel > 1:
        yield (
            f"codec={plan.codec} with tensor_parallel={plan.tensor_parallel}: its messages mix gradients that are "
            "whole on every tensor rank with parts of others, and copies would drift apart: use bf16, fp16 or powersgd"
        )
    if plan.zero_stage and replicas == 1:
        yield f"zero_stage={plan.zero_stage} with data_parallel=1: nothing to shard over, use zero_stage=0"
    if plan.zero_stage >= 2 and plan.codec not in FSDP_CODECS:
        yield (
            f"zero_stage={plan.zero_stage} with codec={plan.codec}: FSDP reduces in {' or '.join(FSDP_CODECS[1:])} "
            "and takes no other codec, use that or zero_stage=1"
        )
    if plan.shard_degree and plan.zero_stage < 2:
        yield f"shard_degree={plan.shard_degree} with zero_stage={plan.zero_stage}: HSDP is FSDP, use zero_stage=2 or 3"
    if plan.shard_degree and plan.context_parallel > 1:
        yield (
            f"shard_degree={plan.shard_degree} with context_parallel={plan.context_parallel}: the context axis is "
            "sharded over as well, use shard_degree=0"
        )
    if plan.zero_stage >= 2 and model.tied_embeddings:
        yield (
            f"zero_stage={plan.zero_stage}: embedding and head of {model.name} share a weight that FSDP would shard "
            "twice, use zero_stage=1"
        )


def _tensor(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    degree = plan.tensor_parallel
    for name in ("sequence_parallel", "vocab_parallel"):
        if getattr(plan, name) and degree == 1:
            yield f"{name} with tensor_parallel=1: there is nothing to split, leave it out"
        if getattr(plan, name) and not model.is_transformer:
            yield f"{name}: it is unknown where {model.name} has its norms and vocabulary, leave it out"
    if degree == 1:
        return
    known = model.splitting
    if not model.can_tensor_parallel and known.refusal:
        yield f"tensor_parallel={degree}: {known.refusal}"
    elif not model.can_tensor_parallel:
        yield f"tensor_parallel={degree}: {model.name} does not say how its linears are split, use data_parallel"
    if known.degrees and degree not in known.degrees:
        degrees = ", ".join(map(str, known.degrees))
        yield f"tensor_parallel={degree}: {model.name} was traced for {degrees} ranks, use one of these"
    yield from _tensor_sizes(plan, model, sequence_length)


def _tensor_sizes(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    """What the tensor degree must divide; a task's module is split as it is found to be."""
    degree = plan.tensor_parallel
    if model.is_task:
        return
    for what in ("num_heads", "num_kv_heads", "ffn_size"):
        if getattr(model, what) % degree:
            yield f"tensor_parallel={degree}: {what}={getattr(model, what)} of {model.name} is not divisible by it"
    if plan.sequence_parallel and sequence_length % (degree * plan.context_parallel):
        yield f"sequence_parallel: {sequence_length} tokens cannot be cut into {degree * plan.context_parallel} pieces"
    if plan.vocab_parallel and model.vocab_size % degree:
        yield f"vocab_parallel: a vocabulary of {model.vocab_size} is not divisible by tensor_parallel={degree}"
    if plan.vocab_parallel and model.tied_embeddings:
        yield f"vocab_parallel: embedding and head of {model.name} share a weight, and are not split yet; leave it out"


def _context(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    degree = plan.context_parallel
    if degree == 1:
        return
    if not model.is_transformer:
        yield f"context_parallel={degree}: it is unknown where {model.name} has its attention, use data_parallel"
    if sequence_length % degree:
        yield f"context_parallel={degree}: {sequence_length} tokens cannot be cut into as many pieces"
    for what in ("num_heads", "num_kv_heads"):
        own = getattr(model, what) // plan.tensor_parallel
        if own % degree:
            yield (
                f"context_parallel={degree}: heads are exchanged for tokens, but {what}={getattr(model, what)} / "
                f"tensor_parallel={plan.tensor_parallel} is not a multiple of it"
            )


def _experts(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    """Experts are shared out over ranks of the data axis, and averaged beside DDP."""
    degree = plan.expert_parallel
    if model.num_experts and plan.context_parallel > 1:
        yield f"context_parallel={plan.context_parallel} with the experts of {model.name}: not tried, use data_parallel"
    if model.num_experts and plan.rules.splits_backward:
        yield f"schedule={plan.schedule} with the experts of {model.name}: not tried, use {USUAL}"
    if model.num_experts and plan.compiled:
        yield f"compiled with the experts of {model.name}: the number of tokens that each gets varies, leave it out"
    if degree == 1:
        return
    if model.sharing.refusal:
        yield f"expert_parallel={degree}: {model.sharing.refusal}"
    if (known := model.sharing.degrees) and degree not in known:
        yield f"expert_parallel={degree}: {model.name} was traced for {known} ranks, use one of these"
    if model.num_experts is not None and (not model.num_experts or model.num_experts % degree):
        yield f"expert_parallel={degree}: {model.name} has {model.num_experts} experts, not a multiple of it"
    if plan.data_parallel % degree:
        yield (
            f"expert_parallel={degree}: ranks that share experts lie on the data axis, but data_parallel="
            f"{plan.data_parallel} is not a multiple of it"
        )
    if plan.zero_stage or codec(plan.codec).lossy:
        yield (
            f"expert_parallel={degree} with zero_stage={plan.zero_stage} and codec={plan.codec}: experts are averaged "
            "beside DDP, use zero_stage=0 and codec=none"
        )


def _pipeline(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    stages = plan.pipeline_parallel
    if stages == 1:
        if plan.virtual_stages > 1:
            yield f"virtual_stages={plan.virtual_stages} with pipeline_parallel=1: use virtual_stages=1"
        return
    cuts = model.cutting
    if not model.can_pipeline and cuts.refusal:
        yield f"pipeline_parallel={stages}: {cuts.refusal}"
    elif not model.can_pipeline:
        why = f"{model.shared_weights[0]} are one weight" if model.shared_weights else "tied weights or a single layer"
        yield f"pipeline_parallel={stages}: {model.name} cannot be cut into stages ({why})"
    if cuts.positions and not set(plan.stage_bounds[1:]) <= set(cuts.positions):
        places = ", ".join(map(str, cuts.positions))
        yield f"stage_bounds={plan.stage_bounds}: stages of {model.name} can begin at layers {places}"
    yield from _schedule(plan)
    yield from _pipeline_and_data(plan)


def _schedule(plan: Plan) -> Iterator[str]:
    """What a schedule asks for, and whether torch has it."""
    rules = plan.rules
    if not rules.torch_class:
        yield f"schedule={plan.schedule}: can be planned but not run, as torch has no such schedule, use {USUAL}"
    if not rules.stages.allows(plan.virtual_stages):
        other = next(name for name in (USUAL, USUAL_OF_SEVERAL) if schedule(name).stages.allows(plan.virtual_stages))
        yield (
            f"virtual_stages={plan.virtual_stages}: {plan.schedule} has {rules.stages.words}, use "
            f"virtual_stages={rules.stages.least} or {other}"
        )
    shape = Shape(plan.schedule, plan.pipeline_parallel, plan.virtual_stages, plan.num_microbatches)
    if not rules.counts.allows(shape):
        yield f"num_microbatches={plan.num_microbatches}: {plan.schedule} {rules.counts.rule(shape)}"


def _pipeline_and_data(plan: Plan) -> Iterator[str]:
    """What torch's pipelining does not do together with an axis that averages gradients."""
    if plan.rules.splits_backward and codec(plan.codec).lossy:
        yield (
            f"codec={plan.codec} with schedule={plan.schedule}: its weight gradients bypass DDP, which codecs work in; "
            f"use codec=none, or {USUAL_OF_SEVERAL}"
        )
    if plan.rules.splits_backward and plan.zero_stage == 1 and plan.tensor_parallel > 1:
        yield (
            f"zero_stage=1 with schedule={plan.schedule} and tensor_parallel={plan.tensor_parallel}: without DDP, "
            "weights stay DTensors, which ZeroRedundancyOptimizer cannot send (rehearsed); use zero_stage=2"
        )
    if plan.rules.splits_backward and plan.zero_stage == 3:
        yield (
            f"zero_stage=3 with schedule={plan.schedule}: FSDP gives its parameters back between the two halves of a "
            "backward pass, and weight gradients are lost (tried: losses differ); use zero_stage=2"
        )


def _recompute(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    if plan.recompute == "selective" and not model.is_transformer:
        yield f"recompute=selective: it is unknown where {model.name} has its attention, use recompute=full"
    if plan.recompute == "full" and plan.rules.splits_backward:
        yield (
            f"recompute=full with schedule={plan.schedule}: torch recomputes a layer for every linear whose weight "
            f"gradient it takes apart (rehearsed: up to 3.6 times the FLOPs); use selective, or {USUAL_OF_SEVERAL}"
        )
    if not plan.recompute_layers:
        return
    if plan.recompute == "none":
        yield f"recompute_layers={plan.recompute_layers} with recompute=none: leave them out"
    if len(plan.recompute_layers) != plan.num_stages:
        yield f"recompute_layers={plan.recompute_layers}: must give {plan.num_stages} counts, one per stage"
    for stage, count in enumerate(plan.recompute_layers):
        present = len(recomputable_layers(plan, stage, model.num_layers))
        if not 0 <= count <= present:
            yield f"recompute_layers={plan.recompute_layers}: stage {stage} has {present} layers that can be recomputed"


def _compile(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    if plan.compiled and plan.rules.splits_backward:
        words = f"torch cannot split a compiled backward pass, use {USUAL_OF_SEVERAL}"
        yield f"compiled with schedule={plan.schedule}: {words}"


def _adapters(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    """What is not built where weights are frozen."""
    own = model.adapters
    if not own.freezes:
        return
    if own.base_bytes:
        yield f"with a base in {own.base}: frozen weights keep the computing precision, leave it out"
    for axis, degree in (("tensor", plan.tensor_parallel), ("expert", plan.expert_parallel)):
        if degree > 1:
            yield f"{axis}_parallel={degree} with adapters: can be planned but not run, use data_parallel"
    if plan.rules.splits_backward:
        yield f"schedule={plan.schedule} with adapters: frozen weights have no weight gradient to delay, use {USUAL}"
    if plan.precision == "fp8":
        yield "precision=fp8 with adapters: can be planned but not run, use bf16"
    if codec(plan.codec).lossy:
        yield f"codec={plan.codec} with adapters: they have few gradients, use codec=none"


def _task(plan: Plan, model: ModelFacts, sequence_length: int) -> Iterator[str]:
    """What is not done to a module that is trained as its author wrote it."""
    if not model.is_task:
        return
    if plan.precision == "fp8":
        yield f"precision=fp8: {model.name} is trained unchanged, use bf16"
    if plan.compiled:
        yield f"compiled: {model.name} is trained unchanged, leave it out"
    if plan.pipeline_parallel > 1 and plan.tensor_parallel > 1:
        yield f"tensor_parallel={plan.tensor_parallel} with a pipeline of {model.name}: not tried, use one of the two"
    if plan.expert_parallel > 1 and plan.tensor_parallel * plan.pipeline_parallel > 1:
        yield f"expert_parallel={plan.expert_parallel} with tp or pp of {model.name}: not tried, use one of them"
    if plan.pipeline_parallel > 1 and (plan.zero_stage > 1 or plan.virtual_stages > 1 or plan.rules.splits_backward):
        yield (
            f"zero_stage={plan.zero_stage}, virtual_stages={plan.virtual_stages} and schedule={plan.schedule}: "
            f"{model.name} has one stage per rank and undivided backward passes: use zero_stage=0 or 1, "
            f"virtual_stages=1 and schedule={USUAL}"
        )


RULES = (
    _names, _fp8, _fp16, _data, _tensor, _context, _experts, _pipeline, _recompute, _compile, _adapters, _task,
)  # fmt: skip
