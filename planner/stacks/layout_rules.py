"""Rules of layouts by what a stack has words for: each gives the layouts of a table that break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.plans import AXES
from profiles.machines.abilities import Abilities
from profiles.models.transformer import Array, Flags

# The axes of a layout from the inside out, by initial, and where data parallelism is outermost.
USUAL_ORDER, DATA_OUTSIDE_ORDER = "tcdp", "tcpd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What rules ask of a model and its samples; 0 is not known."""

    num_kv_heads: int = 0
    num_experts: int = 0
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


def _routes_whole(runs: Abilities, own: Degrees) -> Flags:
    is_whole = (own.tensor > 1) & ~np.asarray(own.sequence_parallel, dtype=bool)
    return np.asarray(is_whole & (own.known.num_experts > 0) & (not runs.routes_whole_sequences))


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
    return np.asarray((own.zero_stage == 3) & (own.shard < own.replicas) & (not runs.shards_in_part))


def _in_part_of_context(runs: Abilities, own: Degrees) -> Flags:
    # Whose shards the context axis has beside the data axis, no plan says.
    return np.asarray((own.zero_stage == 3) & (own.shard < own.replicas) & (own.context > 1))


def _uneven(runs: Abilities, own: Degrees) -> Flags:
    if runs.uneven_stages == "any":
        return np.zeros(len(own.left_over), dtype=bool)
    has_short_ends = own.first_fewer + own.last_fewer > 0
    return np.asarray((own.left_over > 0) | has_short_ends & (runs.uneven_stages == "no"))


def spelled(order: str) -> str:
    """The axes of an order by name, innermost first."""
    return "-".join(axis for letter in order for axis in AXES if axis[0] == letter)


def _order(order: str, *, is_outside: bool) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        has_both = (own.data > 1) & (own.pipeline > 1)
        return np.asarray(has_both & (own.data_outside == is_outside) & (order not in runs.orders))

    return f"axes in the order {spelled(order)}", broken


def _narrow(order: str, *, is_outside: bool) -> Rule:
    def broken(runs: Abilities, own: Degrees) -> Flags:
        has_both = (own.data > 1) & (own.pipeline > 1)
        is_split = (own.expert > 1) | (own.tensor > 1) & (own.known.num_experts > 0)
        is_wide = (own.context > 1) | is_split
        return np.asarray(has_both & (own.data_outside == is_outside) & is_wide & (order in runs.narrow_orders))

    return f"axes in the order {spelled(order)} with context-parallel ranks or experts", broken


RULES: tuple[Rule, ...] = (
    *(_lacks(axis) for axis in ("tensor", "context", "expert", "pipeline")),
    *(_lacks_stage(stage, in_pipeline=piped) for piped in (False, True) for stage in range(4)),
    *(_apart(axis) for axis in ("tensor", "context", "expert")),
    *(_whole_apart(axis) for axis in ("tensor", "context", "expert", "pipeline")),
    ("ZeRO stage 3 over some of the replicas", _in_part),
    ("ZeRO stage 3 over some of the replicas beside context parallel", _in_part_of_context),
    ("optimizer states offloaded at this stage of ZeRO", _offloads_whole),
    ("experts beside tensor parallel without sequence parallel", _routes_whole),
    ("pipelines of models with tied embeddings", _ties_stages),
    ("more tensor-parallel ranks than key-value heads", _copies_heads),
    ("samples of this length cut into this many pieces", _cuts_samples),
    ("stages of such different lengths", _uneven),
    *(_split(name, is_on=on) for name in ("sequence", "vocab") for on in (False, True)),
    _order(USUAL_ORDER, is_outside=False),
    _order(DATA_OUTSIDE_ORDER, is_outside=True),
    _narrow(DATA_OUTSIDE_ORDER, is_outside=True),
)
