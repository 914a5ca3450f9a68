"""Whether a stack can run a plan: the same rules for a table of layouts in the search and for one plan of a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.plans import AXES, Plan
from planner.prediction import PlanFile
from planner.schedules.registry import NONE, torch_names
from planner.stacks.layout_rules import RULES, UNKNOWN, Degrees, Known, spelled
from profiles.errors import InputError
from profiles.machines.abilities import Abilities
from profiles.machines.stacks import Stack
from profiles.models.sizes import sizes_of
from profiles.models.transformer import Array, Flags, Transformer

NEEDING, LACKING = "need ", ", which {} lacks"


def known_of(model: Transformer, sequence_length: int) -> Known:
    """What rules ask of a model by its sizes. Shapes: it has one entry."""
    return Known(
        num_kv_heads=int(model.num_kv_heads[0]),
        num_experts=int(model.num_experts[0]),
        sequence_length=sequence_length,
        is_tied=bool(model.tied[0]),
    )


def lacking(stack: Stack, own: Degrees) -> Mapping[str, Flags]:
    """Which layouts a stack has no words for, by what it lacks; each counts for the first alone."""
    result: dict[str, Flags] = {}
    if stack.runs is None:
        return result
    seen = np.zeros(len(own.tensor), dtype=bool)
    for name, rule in RULES:
        broken = rule(stack.runs, own) & ~seen
        if broken.any():
            result[name] = broken
            seen |= broken
    return result


def needs(what: str, stack: Stack) -> str:
    """What is said of plans, behind their number, that a stack has no words for."""
    return f"{NEEDING}{what}{LACKING.format(stack.name)}"


def lacked(reason: str, stack: str) -> str:
    """What a stack lacks by such a reason, "" where the reason is another."""
    end = LACKING.format(stack)
    is_lacking = reason.startswith(NEEDING) and reason.endswith(end)
    return reason.removeprefix(NEEDING).removesuffix(end) if is_lacking else ""


def allows_uneven(runs: Abilities, counts: Array) -> bool:
    """Whether stages may have so many blocks each, in model order."""
    if len(set(counts.tolist())) == 1 or runs.uneven_stages == "any":
        return True
    return runs.uneven_stages == "ends" and len(set(counts[1:-1].tolist())) <= 1


def allows_recompute(runs: Abilities, recomputed: Array, counts: Array) -> bool:
    """Whether so many of the blocks of each stage may be recomputed, the first ones of each."""
    if (recomputed == counts).all() or runs.partial_recompute == "any":
        return True
    most = recomputed.max()
    return runs.partial_recompute == "even" and bool((recomputed == np.minimum(counts, most)).all())


def lacking_recompute(stack: Stack, method: str, num_blocks: int, of_blocks: int, chunks: int) -> str:
    """What a stack lacks to recompute so many of a pipeline rank's blocks, which are cut into chunks, or ""."""
    runs = stack.runs
    if runs is None or method == "none":
        return ""
    if method not in runs.recompute:
        return f"recomputation '{method}'"
    if method == "selective" or num_blocks == of_blocks:
        return ""
    is_even = num_blocks % chunks == 0
    if runs.partial_recompute == "any" or (runs.partial_recompute == "even" and is_even):
        return ""
    unlike = ", unlike in chunks" if runs.partial_recompute == "even" else ""
    return f"recomputation of some blocks{unlike}"


def check_setting(stack: Stack, precision: str, codec: str, family: str) -> None:
    """Check that a stack has a precision and a codec, and models of a family (`model_type`).

    Raises: InputError that names what it has.
    """
    runs = stack.runs
    if runs is None:
        return
    for option, value, known in (("--precision", precision, runs.precisions), ("--codecs", codec, runs.codecs)):
        if value not in known:
            raise InputError(f"{option} {value}: {stack.title} has {', '.join(known)}")
    if why := lacking_family(stack, family):
        raise InputError(f"--model: {why}")


def lacking_family(stack: Stack, family: str) -> str:
    """Why a stack cannot run models of a family, or ""."""
    if stack.runs is None or not stack.runs.families or family in stack.runs.families:
        return ""
    return f"{stack.name} has no models of type {family or 'your own'}: it has {', '.join(stack.runs.families)}"


def refusal_of(stack: Stack, plan: Plan, file: PlanFile) -> str:
    """Why a stack cannot run a plan of a file's model, whose family it may lack, or ""."""
    known = UNKNOWN
    if file.workload.reads_text:
        known = known_of(sizes_of(file.model_name, file.workload.config).transformer, file.sequence_length)
    family = str(file.workload.config.get("model_type", ""))
    return lacking_family(stack, family) or refusal(stack, plan, file.num_layers, known)


def refusal(stack: Stack, plan: Plan, num_layers: int, known: Known = UNKNOWN) -> str:
    """Why a stack cannot run a plan of so many layers, embedding and head among them, or ""."""
    runs = stack.runs
    if runs is None:
        return ""
    for name in lacking(stack, degrees_of(plan, known)):
        return f"{stack.name} has no {name}"
    order = "".join(axis[0] for axis in plan.axis_order if plan.degree(axis) > 1)
    if not any(order == "".join(letter for letter in known if letter in order) for known in runs.orders):
        return f"{stack.name} has no axes in the order {spelled(order)}"
    counts = np.diff([*plan.stage_bounds, num_layers])
    # The embedding goes with the first stage, the head with the last.
    counts[0], counts[-1] = counts[0] - 1, counts[-1] - 1
    recomputed = np.minimum(counts, np.array(plan.recompute_layers or counts))
    for is_lacking, what in (
        (plan.schedule not in (NONE, *(stack.schedules or torch_names())), f"schedule {plan.schedule}"),
        (not allows_uneven(runs, counts), "stages of so many blocks each: " + ", ".join(map(str, counts))),
        (plan.recompute not in runs.recompute, f"recomputation '{plan.recompute}'"),
        (plan.recompute_layers and not allows_recompute(runs, recomputed, counts), "recomputation of some blocks"),
        (plan.precision not in runs.precisions, f"precision {plan.precision}"),
        (plan.codec not in runs.codecs, f"codec {plan.codec}"),
        (plan.offload not in runs.offload, f"offload of {plan.offload}"),
        (plan.compiled and not runs.compiles, "compiled layers"),
        (plan.replica_microbatches, "replicas with different numbers of micro-batches"),
    ):
        if is_lacking:
            return f"{stack.name} has no {what}"
    return ""


def degrees_of(plan: Plan, known: Known = UNKNOWN) -> Degrees:
    """A plan as a table of one layout."""
    replicas = plan.data_parallel * plan.context_parallel
    order = [axis for axis in plan.axis_order if axis in AXES]
    is_outside = {"data", "pipeline"} <= set(order) and order.index("data") > order.index("pipeline")
    columns = {
        "tensor": plan.tensor_parallel,
        "context": plan.context_parallel,
        "expert": plan.expert_parallel,
        "pipeline": plan.pipeline_parallel,
        "data": plan.data_parallel,
        "sequence_parallel": plan.sequence_parallel,
        "vocab_parallel": plan.vocab_parallel,
        "zero_stage": plan.zero_stage,
        "shard": plan.shard_degree or replicas,
        "data_outside": is_outside,
        "first_fewer": 0,
        "last_fewer": 0,
        "optimizer_offload": plan.offload == "optimizer",
        # Stages are known one by one.
        "left_over": 0,
    }
    return Degrees(**{name: np.array([value]) for name, value in columns.items()}, known=known)
