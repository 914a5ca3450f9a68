"""The whole space priced layout by layout: what fits, what is fastest, and why the rest is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from planner.cost.factors import Learned, load_learned
from planner.space.best import Best, Front, fastest, ranked
from planner.space.block import Tables, block, step_seconds
from planner.space.block_memory import device_bytes, host_bytes
from planner.space.layouts import Ints, Layouts, Options, groups_of, legal_layouts
from planner.space.question import Setting
from planner.space.schedule_choices import Variants, variants
from planner.space.tables import layer_table, layout_table, message_table
from planner.stacks.abilities import known_of, lacking, needs
from planner.stacks.layout_rules import Degrees
from planner.terminal.progress import OnProgress, silent
from profiles.errors import InputError, NoFeasiblePlanError
from profiles.models.transformer import Array
from profiles.units import format_count

NO_ROOM, STATES_ALONE = "does not fit in memory", "states alone do not fit in memory"
NO_ROOM_ON_HOST = "offloaded bytes do not fit in the host's memory"
# About as many plans are priced at once.
BLOCK_PLANS = 131072
# About half an hour of one core; and layouts times micro-batches, of which tables have a small part.
MOST_PLANS, MOST_ENTRIES = 4 * 10**9, 2**27
# Called with how many legal plans there are to see in all, and a block's layouts, choices, seconds and bytes.
Seen = Callable[[int, Ints, Variants, Array, Array], None]


@dataclass(frozen=True, slots=True)
class Place:
    """One plan of the space: numbers of its layout, micro-batch, schedule and recomputation."""

    layout: int
    micro_batch: int
    schedule: int
    recompute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of the fullest rank by part, as planner/cost/memory/peak has it; of each stage; as the driver shows.

    `outside` is what stands outside torch's allocator there, context and communicators; `offloaded` are activations on
    the host.
    """

    parts: dict[str, float]
    stages: tuple[float, ...]
    device: float
    outside: float = 0.0
    offloaded: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a search saw; `generated` equals the accepted plans and all rejected ones.

    `front` are the plans of all accepted ones that no other beats in both time and memory. `nearest` is, per layout,
    the fewest bytes that any of its plans takes (inf where states alone are too many, or what all of them offload is),
    with its micro-batch, schedule and recomputation in `nearest_place`. `unoffered` are the layouts that the stack has
    no words for, by what it lacks; their plans count as rejected. `placed` has the stage bounds of plans whose layers
    are not as evenly split as the layout has them; `held` what plans with their bounds were found to hold, `replayed`
    what replay reads of any bounds; spaces that differ in these alone share both.
    """

    at: Setting
    options: Options
    learned: Learned
    layouts: Layouts
    tables: Tables
    best: Best
    front: Best
    generated: int
    accepted: int
    rejected: Counter[str]
    broken: Counter[str]
    nearest: Array
    nearest_place: Ints
    unoffered: Mapping[str, Layouts] = field(default_factory=dict)
    placed: Mapping[Place, tuple[int, ...]] = field(default_factory=dict)
    held: dict[tuple[Place, tuple[int, ...] | None], Memory] = field(default_factory=dict)
    replayed: dict[Place, Any] = field(default_factory=dict)
    _known: dict[tuple[int, int], Variants] = field(default_factory=dict)

    def choices(self, layout: int) -> Variants:
        """The variants of a layout, which all of its pipeline and data degree share."""
        key = int(self.layouts.pipeline[layout]), int(self.layouts.data[layout])
        if key not in self._known:
            self._known[key] = choices_of(self.at, self.options, self.layouts, layout)
        return self._known[key]


def choices_of(at: Setting, options: Options, layouts: Layouts, layout: int) -> Variants:
    """What can be chosen beside a layout."""
    pipeline = int(layouts.pipeline[layout])
    return variants(at, options, pipeline, int(layouts.data[layout]), -(-at.model.num_layers // pipeline))


def tables_of(at: Setting, layouts: Layouts, learned: Learned) -> Tables:
    """Everything that the layouts share, priced once."""
    sizes = layouts.micro_batches(at.global_batch_size)
    return Tables(
        at=at,
        layers=layer_table(at, layouts, sizes, learned),
        messages=message_table(at, layouts, sizes, learned),
        shared=layout_table(at, layouts, learned),
        factors=learned.factors,
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Layouts that are priced at once, with what each can choose, of which `num_legal` plans are legal."""

    layouts: Ints
    choices: Variants
    num_legal: int

    @property
    def num_plans(self) -> int:
        return len(self.layouts) * self.choices.num_plans


def explore(
    at: Setting,
    options: Options,
    learned: Learned | None = None,
    seen: Seen | None = None,
    on_progress: OnProgress = silent,
) -> Space:
    """Price every plan of a setting; `seen` is shown every block.

    Layouts whose states alone take more than the device has are counted and not priced.
    Raises: NoFeasiblePlanError where no layout is legal; InputError where there are too many.
    """
    learned = learned or at.learned or load_learned()
    layouts, unoffered, broken = _layouts(at, options)
    on_progress(0.0, f"{format_count(len(layouts))} layouts, {at.precision}")
    tables = tables_of(at, layouts, learned)
    known: dict[tuple[int, int], Variants] = {}
    own, generated, rejected = _to_price(at, options, layouts, tables, known)
    num_unoffered = _num_unoffered(at, options, unoffered, known)
    generated += num_unoffered.total()
    rejected += num_unoffered
    accepted = done = 0
    blocks: list[tuple[Array | Ints, ...]] = []
    front = Front(at.memory_bytes)
    nearest, places = np.full(len(layouts), np.inf), np.zeros((len(layouts), 3), dtype=np.int64)
    total, num_legal = sum(piece.num_plans for piece in own), sum(len(p.layouts) * p.num_legal for p in own)
    for piece in own:
        chosen, choices = piece.layouts, piece.choices
        held, num_over_host = _held(tables, piece)
        fits = held <= at.memory_bytes
        accepted += (num_fitting := int(fits.sum()))
        rejected[NO_ROOM_ON_HOST] += num_over_host
        rejected[NO_ROOM] += piece.num_legal * len(chosen) - num_fitting - num_over_host
        nearest[chosen], places[chosen] = _least(held)
        # Only what fits is worth its seconds, but for those who want to see all.
        timed = fits.any(axis=(1, 2, 3)) if seen is None else np.ones(len(chosen), dtype=bool)
        if timed.any():
            seconds = step_seconds(block(tables, chosen[timed], choices))
            usable = np.where(fits[timed], seconds, np.inf)
            blocks.append(fastest(chosen[timed], usable, held[timed]))
            front.see(chosen[timed], usable, held[timed])
            if seen is not None:
                seen(num_legal, chosen, choices, seconds, held)
        done += piece.num_plans
        on_progress(done / total, f"{format_count(done)} of {format_count(total)} plans, {at.precision}")
    return Space(
        at=at, options=options, learned=learned, layouts=layouts, tables=tables, best=ranked(blocks),
        front=front.plans(), generated=generated, accepted=accepted, rejected=+rejected, broken=broken, nearest=nearest,
        nearest_place=places, unoffered=unoffered, _known=known,
    )  # fmt: skip


def _layouts(at: Setting, options: Options) -> tuple[Layouts, dict[str, Layouts], Counter[str]]:
    """The layouts to look at, those that the stack has no words for, and how many degrees break which rule.

    Raises: NoFeasiblePlanError where there are none; InputError where there are too many.
    """
    layouts, broken = legal_layouts(at, options)
    unoffered: dict[str, Layouts] = {}
    if options.as_stack_runs:
        is_offered = np.ones(len(layouts), dtype=bool)
        without = lacking(at.stack, _degrees(at, layouts))
        unoffered = {needs(what, at.stack): layouts.take(where) for what, where in without.items()}
        for where in without.values():
            is_offered &= ~where
        layouts = layouts.take(is_offered)
    if not len(layouts):
        counts = "; ".join(f"{count} x {reason}" for reason, count in broken.most_common())
        raise NoFeasiblePlanError(f"no layout of {at.model.name} on {at.num_devices} devices is legal: {counts}")
    if len(layouts) * len(layouts.micro_batches(at.global_batch_size)) > MOST_ENTRIES:
        raise _too_many(at)
    return layouts, unoffered, broken


def _degrees(at: Setting, layouts: Layouts) -> Degrees:
    known = {each.name for each in fields(Layouts)}
    columns = {each.name: getattr(layouts, each.name) for each in fields(Degrees) if each.name in known}
    whole = at.model.num_layers + layouts.first_fewer + layouts.last_fewer
    left_over = np.asarray(whole % layouts.pipeline, dtype=float)
    return Degrees(**columns, left_over=left_over, known=known_of(at.model.transformer, at.sequence_length))


def _num_unoffered(
    at: Setting, options: Options, unoffered: Mapping[str, Layouts], known: dict[tuple[int, int], Variants]
) -> Counter[str]:
    """How many plans the layouts have that a stack has no words for; variants that were not known go into `known`."""
    result: Counter[str] = Counter()
    for reason, layouts in unoffered.items():
        pairs, counts = np.unique(np.stack([layouts.pipeline, layouts.data]), axis=1, return_counts=True)
        for pipeline, data, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            if (pipeline, data) not in known:
                known[pipeline, data] = variants(at, options, pipeline, data, -(-at.model.num_layers // pipeline))
            result[reason] += known[pipeline, data].num_plans * count
    return result


def _to_price(
    at: Setting, options: Options, layouts: Layouts, tables: Tables, known: dict[tuple[int, int], Variants]
) -> tuple[list[_Piece], int, Counter[str]]:
    """The layouts to price, in pieces; how many plans there are in all, and counts of those that need no pricing.

    The variants go into `known`, by the degrees that share them.
    Raises: InputError where there are too many.
    """
    rejected: Counter[str] = Counter()
    generated, result = 0, []
    least, offloaded = _least_bytes(tables), tables.shared.offloaded_states
    for alike in groups_of(layouts):
        first = int(alike[0])
        key = int(layouts.pipeline[first]), int(layouts.data[first])
        if key not in known:
            known[key] = choices_of(at, options, layouts, first)
        choices = known[key]
        num_legal = choices.num_plans - choices.illegal.total()
        generated += choices.num_plans * len(alike)
        if generated > MOST_PLANS:
            raise _too_many(at)
        rejected.update({reason: count * len(alike) for reason, count in choices.illegal.items()})
        held_back = least[alike] > at.memory_bytes
        rejected[STATES_ALONE] += num_legal * int(held_back.sum())
        too_many = ~held_back & (offloaded[alike] > at.host_memory_bytes)
        rejected[NO_ROOM_ON_HOST] += num_legal * int(too_many.sum())
        left = alike[~(held_back | too_many)]
        result += [_Piece(chosen, choices, num_legal) for chosen in _pieces(left, choices.num_plans)]
    return result, generated, rejected


def _least(held: Array) -> tuple[Array, Ints]:
    """The fewest bytes that any plan of each layout takes, and its micro-batch, schedule and recomputation."""
    flat = held.reshape(len(held), -1)
    fewest = flat.argmin(axis=1)
    return flat[np.arange(len(held)), fewest], np.stack(np.unravel_index(fewest, held.shape[1:]), axis=1)


def _held(tables: Tables, piece: _Piece) -> tuple[Array, int]:
    """Bytes of plans, and how many legal ones offload more than their host has room for.

    Of those, and of what is not legal, bytes are inf.
    """
    plans = block(tables, piece.layouts, piece.choices)
    held = np.where(piece.choices.legal, device_bytes(plans), np.inf)
    if not plans.is_any(tables.shared.jobs.activation_offload):
        return held, 0
    is_over = host_bytes(plans) > tables.at.host_memory_bytes
    num_over = int((is_over & np.isfinite(held)).sum())
    return np.where(is_over, np.inf, held), num_over


def _too_many(at: Setting) -> InputError:
    """What is said of a space that would be priced for hours, or whose tables would not fit in memory."""
    return InputError(
        f"--gpus {at.num_devices} with --global-batch {at.global_batch_size} and {at.model.num_layers} layers has more "
        f"than {MOST_PLANS:,} plans, too many to be priced: give numbers with fewer divisors"
    )


def _pieces(layouts: Ints, num_plans: int) -> list[Ints]:
    """Layouts in pieces whose arrays stay in the processor's cache."""
    size = max(1, BLOCK_PLANS // num_plans)
    return [layouts[start : start + size] for start in range(0, len(layouts), size)]


def _least_bytes(tables: Tables) -> Array:
    """What the states of the fuller of both ends take, per layout."""
    shared = tables.shared
    return np.asarray(shared.least_state_bytes + shared.rules.context_bytes)
