"""The layout, batch and recomputation that Megatron's arguments describe, as a plan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planner.plans import Plan, recomputable_layers
from planner.schedules.registry import NONE, USUAL, USUAL_OF_SEVERAL
from planner.schedules.steps import Shape, round_length
from planner.space.to_plans import bounds_of
from planner.stacks.megatron.say_layout import DATA_INSIDE, DATA_OUTSIDE
from planner.stacks.megatron.told import Told
from planner.stacks.megatron.words import SHARDING_OPTIMIZERS, WORDS
from profiles.errors import PlanError

USUAL_DEVICES, MOST_TRIED = 8, 64
GROUPED, REPEATED = re.compile(r"\(([^()]+)\)\*(\d{1,6})"), re.compile(r"(.)\*(\d{1,6})")
LONGEST_STAGES = 20000
# Modules that are computed again, by the names that tables of runs have.
MODULES = {
    "core_attn": "core-attention", "moe_act": "moe-act", "layernorm": "layernorm", "mla_up_proj": "mla-up-proj",
    "mlp": "mlp", "moe": "mlp", "shared_experts": "mlp",
}  # fmt: skip


@dataclass(slots=True)
class ReadLayout:
    """A layout as it was read; `cells` say what a plan has no field for."""

    plan: Plan
    global_batch_size: int
    cells: dict[str, str] = field(default_factory=dict)


def least_devices(told: Told, *, has_experts: bool) -> int:
    """How many devices a layout can have that does not say: eight, or the fewest above that everything divides."""
    tensor, pipeline, context = _degrees(told)
    base = tensor * pipeline * context
    own = (told.size("expert-model-parallel-size") or 1) * _expert_tensor(told, tensor) * pipeline if has_experts else 1
    micro, samples = told.size("micro-batch-size") or 1, told.size("global-batch-size")
    fitting = [
        base * copies
        for copies in range(1, MOST_TRIED + 1)
        if (base * copies) % own == 0 and (samples is None or samples % (micro * copies) == 0)
    ]
    return next((count for count in fitting if count >= USUAL_DEVICES), max(fitting, default=max(base, own)))


def _degrees(told: Told) -> tuple[int, int, int]:
    names = ("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size")
    tensor, pipeline, context = (told.size(name) or 1 for name in names)
    return tensor, pipeline, context


def _expert_tensor(told: Told, tensor: int) -> int:
    return told.size("expert-tensor-parallel-size") or tensor


def read_layout(told: Told, num_layers: int, devices: int, *, has_experts: bool, whence: str = "") -> ReadLayout:
    """The plan; `num_layers` are without embedding and head, `whence` tells in words where `devices` is from.

    Raises: InputError for degrees, stages and batches that do not go together, with the places that say so.
    """
    tensor, pipeline, context = _degrees(told)
    started = f"{devices} devices ({whence})" if whence else f"{devices} devices"
    if devices % (tensor * pipeline * context):
        raise told.refuse(
            f"{started} are not a multiple of tensor x pipeline x context, {tensor} x {pipeline} x {context}: "
            f"correct them, or give --gpus {tensor * pipeline * context} or a multiple of it",
            *("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size", "world-size"),
        )
    data = devices // (tensor * pipeline * context)
    expert = (told.size("expert-model-parallel-size") or 1) if has_experts else 1
    split = _expert_tensor(told, tensor) if has_experts else 1
    if has_experts and devices % (expert * split * pipeline):
        raise told.refuse(
            f"{started} are not a multiple of expert x expert-tensor x pipeline, {expert} x {split} x {pipeline}: "
            f"correct them, or give --gpus {expert * split * pipeline} or a multiple of it",
            *("expert-model-parallel-size", "expert-tensor-parallel-size", "pipeline-model-parallel-size"),
        )
    micro = told.size("micro-batch-size") or 1
    samples = told.size("global-batch-size") or micro * data
    if samples % (micro * data):
        raise told.refuse(
            f"{samples} samples are not a whole number of micro-batches of {micro} on {data} replicas",
            *("global-batch-size", "micro-batch-size"),
        )
    counts, virtual = _stages(told, num_layers, pipeline)
    plan = Plan(
        data_parallel=data, tensor_parallel=tensor, pipeline_parallel=pipeline, context_parallel=context,
        expert_parallel=expert, sequence_parallel=tensor > 1 and told.is_on("sequence-parallel"),
        vocab_parallel=tensor > 1, micro_batch_size=micro, num_microbatches=samples // (micro * data),
        axis_order=DATA_OUTSIDE if told.is_on("use-tp-pp-dp-mapping") and pipeline > 1 else DATA_INSIDE,
        stage_bounds=bounds_of(counts), virtual_stages=virtual,
        schedule=NONE if pipeline == 1 else USUAL_OF_SEVERAL if virtual > 1 else USUAL,
    )  # fmt: skip
    _read_rounds(told, plan)
    found = ReadLayout(_recomputed(told, plan, num_layers + 2), samples)
    if has_experts:
        found.cells["etp"] = str(split)
    _read_sharding(told, found)
    _read_modules(told, found)
    try:
        found.plan.check(num_layers + 2)
    except PlanError as error:
        raise told.refuse(str(error)) from None
    return found


def _stages(told: Told, num_layers: int, pipeline: int) -> tuple[list[int], int]:
    """Layers of each stage, and stages of each rank."""
    layout = told.word("pipeline-model-parallel-layout")
    if pipeline == 1:
        return [num_layers], 1
    if layout is not None:
        counts = read_stages(layout)
        if counts is None or sum(counts) != num_layers or len(counts) % pipeline:
            raise told.refuse(
                f"it should name {num_layers} layers in a multiple of {pipeline} stages",
                *("pipeline-model-parallel-layout", "num-layers", "pipeline-model-parallel-size"),
            )
        return counts, len(counts) // pipeline
    virtual = told.size("num-virtual-stages-per-pipeline-rank") or told.size("virtual-pipeline-model-parallel-size")
    virtual = virtual or 1
    first, last = told.size("decoder-first-pipeline-num-layers"), told.size("decoder-last-pipeline-num-layers")
    ends = [int(told.is_on(f"account-for-{end}-in-pipeline-split")) for end in ("embedding", "loss")]
    each = told.size("num-layers-per-virtual-pipeline-stage")
    if each and not told.is_on("virtual-pipeline-model-parallel-size"):
        virtual, rest = divmod(num_layers + sum(ends), pipeline * each)
        if rest or not virtual:
            raise told.refuse(
                f"{num_layers} layers on {pipeline} ranks cannot be cut into stages of {each}",
                *("num-layers", "pipeline-model-parallel-size", "num-layers-per-virtual-pipeline-stage"),
            )
    if pipeline * virtual > num_layers + sum(ends):
        raise told.refuse(
            f"{num_layers} layers are fewer than {pipeline} x {virtual} stages",
            *("num-layers", "pipeline-model-parallel-size", "num-virtual-stages-per-pipeline-rank"),
        )
    if first or last:
        return _uneven(told, num_layers, pipeline, virtual, first, last), virtual
    stages = pipeline * virtual
    share, rest = divmod(num_layers + sum(ends), stages)
    if rest or share < 1:
        raise told.refuse(
            f"{num_layers} layers cannot be cut into {stages} equal stages",
            *("num-layers", "pipeline-model-parallel-size", "num-layers-per-virtual-pipeline-stage"),
        )
    counts = [share] * stages
    counts[0] -= ends[0]
    counts[-1] -= ends[1]
    return counts, virtual


def _uneven(told: Told, layers: int, pipeline: int, virtual: int, first: int | None, last: int | None) -> list[int]:
    """Layers of each stage where the first or the last rank has its own number of them."""
    own = {0: first, pipeline - 1: last}
    others = [rank for rank in range(pipeline) if not own.get(rank)]
    rest = layers - sum(count or 0 for count in own.values())
    share, left = divmod(rest, len(others)) if others else (0, rest)
    ranks = [own.get(rank) or share for rank in range(pipeline)]
    if left or min(ranks) < 1 or any(count % virtual for count in ranks):
        raise told.refuse(
            f"{layers} layers cannot be cut into {pipeline} x {virtual} stages with these ends",
            *("decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers", "num-layers"),
        )
    return [ranks[rank] // virtual for _ in range(virtual) for rank in range(pipeline)]


def read_stages(layout: str) -> list[int] | None:
    """Layers of each stage of a layout such as Et*8|(t*9|)*2t*8L; None for what is no such."""
    text = layout.replace(",", "").replace(" ", "").strip("'\"")
    for pattern in (GROUPED, REPEATED):
        for _ in range(64):
            found = pattern.search(text)
            if found is None:
                break
            body, times = found.group(1), int(found.group(2))
            if len(text) + len(body) * times > LONGEST_STAGES:
                return None
            text = text[: found.start()] + body * times + text[found.end() :]
    if not set(text) <= set("EtmL|") or text[:1] != "E" or text[-1:] != "L":
        return None
    return [stage.count("t") for stage in text.split("|")]


def _read_sharding(told: Told, found: ReadLayout) -> None:
    plan = found.plan
    replicas = plan.data_parallel * plan.context_parallel
    owners = ("use-distributed-optimizer", "use-layer-wise-distributed-optimizer")
    stage = int(any(told.is_on(name) for name in owners) or told.word("optimizer") in SHARDING_OPTIMIZERS)
    if told.is_on("use-megatron-fsdp"):
        word = WORDS["data-parallel-sharding-strategy"]
        stage = int(word.ours.get(told.word(word.name) or "", "3"))
    elif told.is_on("use-torch-fsdp2"):
        stage = 3
        if told.is_on("torch-fsdp2-no-reshard-after-forward"):
            found.cells["reshard_after_forward"] = "no"
    elif told.is_on("no-gradient-accumulation-fusion"):
        # What shards weights has to do without.
        told.unpriced.append(told.said["no-gradient-accumulation-fusion"].text)
    if replicas == 1:
        # Nothing is shared out, whatever is said.
        stage = 0
    copies = told.size("num-distributed-optimizer-instances") or 1
    shard = 0
    if copies > 1 and stage:
        if replicas % copies:
            raise told.refuse(
                f"{replicas} replicas of a layer cannot have {copies} copies of shards",
                "num-distributed-optimizer-instances",
            )
        shard = replicas // copies
        found.cells["dp_shard"] = str(shard)
    found.plan = replace(plan, zero_stage=stage, shard_degree=shard if shard and plan.data_parallel % shard == 0 else 0)


def _read_rounds(told: Told, plan: Plan) -> None:
    """Tell of rounds of an interleaved schedule that are longer or shorter than its price has them."""
    name = "microbatch-group-size-per-virtual-pipeline-stage"
    if plan.virtual_stages > 1 and told.is_on(name):
        shape = Shape(plan.schedule, plan.pipeline_parallel, plan.virtual_stages, plan.num_microbatches)
        if told.size(name) != round_length(shape):
            told.unpriced.append(told.said[name].text)


def _recomputed(told: Told, plan: Plan, num_layers: int) -> Plan:
    """The plan with what is computed again; `num_layers` counts embedding and head."""
    granularity, method = told.word("recompute-granularity"), told.word("recompute-method")
    count = told.size("recompute-num-layers")
    if told.is_on("checkpoint-activations") or told.is_on("activations-checkpoint-method"):
        granularity, method = "full", told.word("activations-checkpoint-method")
        count = told.size("activations-checkpoint-num-layers")
    if told.is_on("recompute-activations"):
        if granularity == "full":
            raise told.refuse("they contradict each other: keep one", "recompute-activations", "recompute-granularity")
        granularity = "selective"
    if granularity is None:
        return plan
    if granularity == "selective":
        return replace(plan, recompute="selective")
    if granularity != "full":
        raise told.refuse("it should be full or selective", "recompute-granularity")
    if method is None and not told.is_on("checkpoint-activations"):
        raise told.refuse("also say which layers by --recompute-method, uniform or block", "recompute-granularity")
    if method == "uniform" and (count or 1) > 1:
        told.unpriced.append(f"{told.said['recompute-num-layers'].text} (layers together, priced one by one)")
    if method != "block" or count is None:
        return replace(plan, recompute="full")
    present = [len(recomputable_layers(plan, stage, num_layers)) for stage in range(plan.num_stages)]
    return replace(plan, recompute="full", recompute_layers=_counts(present, count))


def _counts(present: Sequence[int], count: int) -> tuple[int, ...]:
    """Layers of each stage that are recomputed; none named where all are."""
    own = tuple(min(count, layers) for layers in present)
    return () if own == tuple(present) else own


def _read_modules(told: Told, found: ReadLayout) -> None:
    """What selective recomputation covers beside attention's core."""
    if found.plan.recompute != "selective" or not told.is_on("recompute-modules"):
        return
    modules = [MODULES.get(name) for name in told.words("recompute-modules")]
    told.unread.extend(
        f"{told.said['recompute-modules'].place}: {name} of --recompute-modules"
        for name in told.words("recompute-modules")
        if name not in MODULES
    )
    known = sorted({module for module in modules if module})
    if known != ["core-attention"] and known:
        found.cells |= {"recompute_class": "partial", "recompute_modules": ";".join(known)}
