"""Whether a stack can run a plan: the same rules for a table of layouts in the search and for one plan of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planner.plans import AXES, Plan
from planner.schedules.registry import NONE, torch_names
from profiles.errors import InputError
from profiles.machines.abilities import Abilities
from profiles.machines.stacks import Stack
from profiles.models.transformer import Array, Flags, Transformer

# The axes of a layout from the inside out, by initial, and where data parallelism is outermost.
USUAL_ORDER, DATA_OUTSIDE_ORDER = "tcdp", "tcpd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What rules ask of a model and its samples; 0 is not known."""

    num_kv_heads: int = 0
    sequence_length: int = 0
    is_tied: bool = False


UNKNOWN = Known()


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """What the rules read of layouts, as planner/space/layouts has it. Shapes: one entry per layout.

    `left_over`: blocks that remain when stages have as many each, but for what the ends have fewer. `known` is alike
    for all.
    """

    tensor: Array
    context: Array
    expert: Array
    pipeline: Array
    data: Array
    sequence_parallel: Array
    vocab_parallel: Array
    zero_stage: Array
    shard: Array
    data_outside: Array
    first_fewer: Array
    last_fewer: Array
    optimizer_offload: Array
    left_over: Array
    known: Known = UNKNOWN

    @property
    def replicas(self) -> Array:
        """Ranks that hold the same weights before any are sharded."""
        return self.data * self.context


Rule = tuple[str, Callable[[Abilities, Degrees], Flags]]


def _lacks(axis: str) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        return np.asarray((getattr(own, axis) > 1) & (not getattr(runs, axis)))

    return f"{axis} parallel", broken


def _lacks_stage(stage: int, *, in_pipeline: bool) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        known = runs.pipeline_zero_stages if in_pipeline else runs.zero_stages
        is_meant = (own.pipeline > 1) == in_pipeline
        return np.asarray(is_meant & (own.replicas > 1) & (own.zero_stage == stage) & (stage not in known))

    name = f"ZeRO stage {stage}" if stage else "replicas without ZeRO"
    return name + (" with a pipeline" if in_pipeline else ""), broken


def _apart(axis: str) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        is_both = (own.zero_stage > 1) & (getattr(own, axis) > 1)
        return np.asarray(is_both & (axis not in runs.zero_beside))

    return f"ZeRO stages 2 and 3 with {axis} parallel", broken


def _whole_apart(axis: str) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        is_both = (own.zero_stage == 0) & (own.replicas > 1) & (getattr(own, axis) > 1)
        return np.asarray(is_both & (axis not in runs.whole_beside))

    return f"replicas without ZeRO beside {axis} parallel", broken


def _copies_heads(runs: Abilities, own: Degrees) -> Flags:
    is_copied = (own.tensor > 1) & (own.known.num_kv_heads % own.tensor > 0)
    return np.asarray(is_copied & (not runs.copies_heads))


def _ties_stages(runs: Abilities, own: Degrees) -> Flags:
    return np.asarray((own.pipeline > 1) & own.known.is_tied & (not runs.ties_stages))


def _cuts_samples(runs: Abilities, own: Degrees) -> Flags:
    pieces = own.context * runs.context_pieces * np.where(own.sequence_parallel, own.tensor, 1)
    return np.asarray((own.context > 1) & (own.known.sequence_length % pieces > 0))


def _offloads_whole(runs: Abilities, own: Degrees) -> Flags:
    is_off = np.asarray(own.optimizer_offload, dtype=bool) & (own.replicas > 1)
    return np.asarray(is_off & ~np.isin(own.zero_stage, runs.offload_zero_stages))


def _split(name: str, *, is_on: bool) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        is_split = np.asarray(getattr(own, f"{name}_parallel"), dtype=bool)
        return np.asarray((own.tensor > 1) & (is_split == is_on) & (is_on not in getattr(runs, f"{name}_parallel")))

    return f"tensor parallel {'with' if is_on else 'without'} {name} parallel", broken


def _in_part(runs: Abilities, own: Degrees) -> Flags:
    # Whose shards the context axis has beside the data axis, no plan says.
    is_lacking = (not runs.shards_in_part) | (own.context > 1)
    return np.asarray((own.zero_stage == 3) & (own.shard < own.replicas) & is_lacking)


def _uneven(runs: Abilities, own: Degrees) -> Flags:
    if runs.uneven_stages == "any":
        return np.zeros(len(own.left_over), dtype=bool)
    has_short_ends = own.first_fewer + own.last_fewer > 0
    return np.asarray((own.left_over > 0) | has_short_ends & (runs.uneven_stages == "no"))


def _order(order: str, *, is_outside: bool) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        has_both = (own.data > 1) & (own.pipeline > 1)
        return np.asarray(has_both & (own.data_outside == is_outside) & (order not in runs.orders))

    return f"axes in the order {order}", broken


RULES: tuple[Rule, ...] = (
    *(_lacks(axis) for axis in ("tensor", "context", "expert", "pipeline")),
    *(_lacks_stage(stage, in_pipeline=piped) for piped in (False, True) for stage in range(4)),
    *(_apart(axis) for axis in ("tensor", "context", "expert")),
    *(_whole_apart(axis) for axis in ("tensor", "context", "expert", "pipeline")),
    ("ZeRO stage 3 over some of the replicas", _in_part),
    ("optimizer states offloaded at this stage of ZeRO", _offloads_whole),
    ("pipelines of models whose embedding is their head", _ties_stages),
    ("more tensor-parallel ranks than heads of keys", _copies_heads),
    ("samples of such a length cut into so many pieces", _cuts_samples),
    ("stages of so unlike length", _uneven),
    *(_split(name, is_on=on) for name in ("sequence", "vocab") for on in (False, True)),
    _order(USUAL_ORDER, is_outside=False),
    _order(DATA_OUTSIDE_ORDER, is_outside=True),
)


def known_of(model: Transformer, sequence_length: int) -> Known:
    """What rules ask of a model by its sizes. Shapes: it has one entry."""
    return Known(num_kv_heads=int(model.num_kv_heads[0]), sequence_length=sequence_length, is_tied=bool(model.tied[0]))


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
    return f"need {what}, which {stack.name} lacks"


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


def refusal(stack: Stack, plan: Plan, num_layers: int, known: Known = UNKNOWN) -> str:
    """Why a stack cannot run a plan of so many layers, embedding and head among them, or ""."""
    runs = stack.runs
    if runs is None:
        return ""
    for name in lacking(stack, degrees_of(plan, known)):
        return f"{stack.name} has no {name}"
    order = "".join(axis[0] for axis in plan.axis_order if plan.degree(axis) > 1)
    if not any(order == "".join(letter for letter in known if letter in order) for known in runs.orders):
        return f"{stack.name} has no axes in the order {order}"
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
        (plan.replica_microbatches, "replicas with micro-batches of their own"),
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
