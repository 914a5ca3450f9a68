"""A plan's layout, batch and recomputation in Megatron's arguments."""

from __future__ import annotations

from collections.abc import Sequence

from planner.plans import AXES, Plan, recomputable_layers
from planner.schedules.registry import NONE, USUAL, USUAL_OF_SEVERAL
from planner.schedules.steps import Shape, round_length
from planner.stacks.megatron.say_model import Settings
from planner.stacks.megatron.words import WORDS, of_meaning
from profiles.errors import PlanError

# How Megatron can count ranks, innermost first.
DATA_INSIDE, DATA_OUTSIDE = AXES, ("tensor", "context", "pipeline", "data")
FSDP_STAGES = (2, 3)


def say_layout(plan: Plan, num_layers: int, *, has_experts: bool) -> Settings:
    """Degrees, stages, sharding, batch and recomputation; `num_layers` counts embedding and head.

    Raises: PlanError for what Megatron has no argument for.
    """
    _refuse(plan)
    settings: Settings = {}
    for name, word in of_meaning("plan").items():
        value = getattr(plan, name)
        if value != word.usual:
            settings[word.name] = value
    settings["global-batch-size"] = plan.global_batch_size
    if has_experts and (plan.expert_parallel > 1 or plan.tensor_parallel > 1):
        # Experts are whole: Megatron would split them as other layers.
        settings["expert-tensor-parallel-size"] = 1
    settings |= _order(plan, has_experts=has_experts)
    settings |= _sharding(plan, has_experts=has_experts)
    settings |= _stages(plan, num_layers)
    return settings | _recompute(plan, num_layers)


def _refuse(plan: Plan) -> None:
    for is_there, what in (
        (bool(plan.replica_microbatches), f"replica_microbatches={plan.replica_microbatches}: leave them out"),
        (plan.offload != "none", f"offload={plan.offload}: use none"),
        (plan.codec != "none", f"codec={plan.codec}: use none"),
        (plan.compiled, "compiled layers: Megatron's layers are fused by hand, leave compiled out"),
        (
            plan.tensor_parallel > 1 and not plan.vocab_parallel,
            f"tensor_parallel={plan.tensor_parallel} with a whole vocabulary: use vocab_parallel",
        ),
        (
            plan.schedule not in (NONE, USUAL, USUAL_OF_SEVERAL),
            f"schedule={plan.schedule}: use {USUAL} or {USUAL_OF_SEVERAL}",
        ),
        (
            (plan.schedule == USUAL_OF_SEVERAL) != (plan.virtual_stages > 1),
            f"schedule={plan.schedule} with virtual_stages={plan.virtual_stages}: {USUAL_OF_SEVERAL} has more than one",
        ),
        (
            plan.zero_stage in FSDP_STAGES and plan.pipeline_parallel > 1,
            f"zero_stage={plan.zero_stage} with pipeline_parallel={plan.pipeline_parallel}: use zero_stage=1",
        ),
        (
            bool(plan.shard_degree) and plan.zero_stage not in (1, *FSDP_STAGES),
            f"shard_degree={plan.shard_degree} with zero_stage={plan.zero_stage}: nothing is sharded, leave it out",
        ),
    ):
        if is_there:
            raise PlanError(f"Megatron has no argument for {what}")


def _order(plan: Plan, *, has_experts: bool) -> Settings:
    """How ranks are counted; axes of one rank have no place."""

    def wide(axes: Sequence[str]) -> list[str]:
        return [axis for axis in axes if plan.degree(axis) > 1]

    order = wide(plan.axis_order)
    if order == wide(DATA_INSIDE):
        return {}
    if order != wide(DATA_OUTSIDE):
        raise PlanError(f"Megatron has no argument for axis_order={plan.axis_order}: use {AXES}")
    # Replicas of experts would not lie as those of other layers do, which it refuses.
    ranks = plan.tensor_parallel * plan.context_parallel
    own = plan.expert_parallel if has_experts else plan.tensor_parallel
    if own != ranks:
        raise PlanError(
            f"Megatron lets data-parallel ranks lie outside pipelines only where experts have as many ranks as tensor "
            f"and context axis together, {ranks}, not {own}: use axis_order={AXES}"
        )
    return {"use-tp-pp-dp-mapping": True}


def _sharding(plan: Plan, *, has_experts: bool) -> Settings:
    if plan.zero_stage == 0:
        return {}
    settings: Settings = {"use-distributed-optimizer": True}
    if plan.zero_stage in FSDP_STAGES:
        strategy = WORDS["data-parallel-sharding-strategy"].their(str(plan.zero_stage)) or ""
        settings |= {
            "use-megatron-fsdp": True,
            "data-parallel-sharding-strategy": strategy,
            "no-gradient-accumulation-fusion": True,
            "ckpt-format": "fsdp_dtensor",
        }
    replicas = plan.data_parallel * plan.context_parallel
    if plan.shard_degree and plan.shard_degree != replicas:
        if replicas % plan.shard_degree:
            raise PlanError(f"shard_degree={plan.shard_degree}: must divide the {replicas} replicas of a layer")
        copies = replicas // plan.shard_degree
        of_experts = replicas * plan.tensor_parallel // plan.expert_parallel
        if has_experts and of_experts % copies:
            raise PlanError(
                f"Megatron has no {copies} copies of shards (shard_degree={plan.shard_degree}) of experts with "
                f"{of_experts} replicas: leave shard_degree out"
            )
        settings["num-distributed-optimizer-instances"] = copies
    return settings


def stage_counts(plan: Plan, num_layers: int) -> list[int]:
    """Transformer layers of each stage: without the embedding, position 0, and the head, the last."""
    ends = (*plan.stage_bounds[1:], num_layers)
    counts = [end - start for start, end in zip(plan.stage_bounds, ends, strict=True)]
    counts[0] -= 1
    counts[-1] -= 1
    return counts


def _stages(plan: Plan, num_layers: int) -> Settings:
    if plan.pipeline_parallel == 1:
        return {}
    settings: Settings = {}
    if plan.virtual_stages > 1:
        shape = Shape(plan.schedule, plan.pipeline_parallel, plan.virtual_stages, plan.num_microbatches)
        length = round_length(shape)
        if length != plan.pipeline_parallel:
            settings["microbatch-group-size-per-virtual-pipeline-stage"] = length
    counts = stage_counts(plan, num_layers)
    if len(set(counts)) == 1:
        return settings | (
            {"num-virtual-stages-per-pipeline-rank": plan.virtual_stages} if plan.virtual_stages > 1 else {}
        )
    if plan.virtual_stages == 1 and min(counts[0], counts[-1]) >= 1 and len(set(counts[1:-1])) <= 1:
        return settings | _ends(counts)
    return settings | {"pipeline-model-parallel-layout": say_stages(counts)}


def _ends(counts: Sequence[int]) -> Settings:
    """Layers of the first and the last stage, as far as the others' share does not say them."""
    first, last = {"decoder-first-pipeline-num-layers": counts[0]}, {"decoder-last-pipeline-num-layers": counts[-1]}
    if len(set(counts[1:])) == 1:
        return dict(first)
    return dict(last) if len(set(counts[:-1])) == 1 else {**first, **last}


def say_stages(counts: Sequence[int]) -> str:
    """Layers of every stage as Megatron reads them: Et*8|t*9|t*8L."""
    stages = [f"t*{count}" if count > 1 else "t" * count for count in counts]
    stages[0] = "E" + stages[0]
    stages[-1] += "L"
    return "|".join(stages)


def _recompute(plan: Plan, num_layers: int) -> Settings:
    if plan.recompute == "none" or (plan.recompute_layers and not any(plan.recompute_layers)):
        return {}
    if plan.recompute == "selective":
        return {"recompute-granularity": "selective", "recompute-modules": ("core_attn",)}
    settings: Settings = {"recompute-granularity": "full"}
    if not plan.recompute_layers:
        return settings | {"recompute-method": "uniform", "recompute-num-layers": 1}
    most = max(plan.recompute_layers)
    for stage, count in enumerate(plan.recompute_layers):
        present = len(recomputable_layers(plan, stage, num_layers))
        if count != min(most, present):
            raise PlanError(
                f"Megatron recomputes as many layers of every stage, {most} or all that it has: recompute_layers has "
                f"{count} of {present} for stage {stage}"
            )
    return settings | {"recompute-method": "block", "recompute-num-layers": most}
