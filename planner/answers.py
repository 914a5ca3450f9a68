"""What a plan call answers beside its table: values that the plan file holds and that all text is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from profiles.artifacts import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisLinks:
    """How the first group of an axis, `degree` ranks, is joined: by so many fast domains, at a rate per direction.

    One domain: the group stays on fast links. Several: it crosses the network.
    """

    __pydantic_config__ = STRICT

    axis: str
    degree: int
    num_domains: int
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPlan:
    """A plan, by its id, that no other beats in both time and memory."""

    __pydantic_config__ = STRICT

    plan: str
    step_seconds: float
    device_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestMiss:
    """The plan, by its id, that misses the device's memory by the fewest bytes."""

    __pydantic_config__ = STRICT

    plan: str
    over_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a number of tokens takes: days, device-hours, energy, and dollars from lowest to highest price.

    Days and all that follows include `goodput_fraction`, the share of the time that a job trains between failures, of
    which `num_failures` are expected, with a checkpoint every `interval_seconds`. `low_days` to `high_days` are those
    of the step's band. `is_spot` devices may be taken back, which counts as a failure.
    `kwh` is of the devices at their rated power, `facility_kwh` of their hosts too (`host_watts` with each device) and
    of the building (`pue` times its nodes); `energy_dollars` and `co2_kg` are of the latter, None where nobody asked.
    `price_per_hour` is of a device; `dollars_by_band` are those of the step's band, at the lowest and highest price.
    A checkpoint has `checkpoint_bytes`; `stored_bytes` hold `checkpoints_kept`.
    `deadline_days` is what the training may take, None where nobody said; `deadline` the date where one was given.
    """

    __pydantic_config__ = STRICT

    tokens: float
    days: float
    device_hours: float
    kwh: float
    goodput_fraction: float
    num_failures: float
    interval_seconds: float
    dollars: tuple[float, float] | None
    dollars_by_band: tuple[float, float] | None = None
    price_date: str = ""
    price_per_hour: tuple[float, float] | None = None
    low_days: float = 0.0
    high_days: float = 0.0
    is_spot: bool = False
    facility_kwh: float = 0.0
    host_watts: float = 0.0
    pue: float = 1.0
    energy_dollars: float | None = None
    co2_kg: float | None = None
    checkpoint_bytes: float = 0.0
    checkpoints_kept: int = 0
    stored_bytes: float = 0.0
    deadline_days: float | None = None
    deadline: str = ""

    @property
    def in_time(self) -> bool | None:
        """Whether the training is done by the deadline; None where there is none."""
        return None if self.deadline_days is None else self.days <= self.deadline_days


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyNot:
    """What becomes of the plans with the degrees `asked` for, and of their best, `plan` by its id.

    `rule` is what they break where none is legal. Of legal ones `plan` is the fastest that fits; where none does, the
    one that takes the fewest bytes, `over_bytes` more than there are, or "" where the states alone are too many for
    every one, of which `peak_bytes` are then the fewest. `refusal` is why it is simulate only, "" where it can be run.
    `behind_fraction` and `difference_seconds` (by part) are against the table's best: positive where this is slower.
    """

    __pydantic_config__ = STRICT

    asked: str
    is_legal: bool
    rule: str = ""
    num_layouts: int = 0
    plan: str = ""
    fits: bool = False
    peak_bytes: float | None = None
    memory_bytes: float | None = None
    over_bytes: float | None = None
    bytes_per_rank: dict[str, float] = field(default_factory=dict)
    refusal: str = ""
    step_seconds: float | None = None
    behind_fraction: float | None = None
    difference_seconds: dict[str, float] = field(default_factory=dict)
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of the best plan under another machine, which `what` describes.

    `step_seconds` is that of today's best plan there, `change_fraction` how much longer than today; `winner` is the id
    of the plan that is fastest there, in `winner_seconds`, and `gain` the share of time that changing to it saves.
    """

    __pydantic_config__ = STRICT

    what: str
    step_seconds: float
    change_fraction: float
    winner: str
    winner_seconds: float
    is_same: bool
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPlan:
    """A plan of the table, by its id, played event by event; `off_fraction` is against its prediction."""

    __pydantic_config__ = STRICT

    plan: str
    step_seconds: float
    off_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAlone:
    """What one of several pools of devices would do by itself, in its best `plan`, against all of them together.

    `refusal` says why it would do nothing, "" where it would; `share_fraction` is of the throughput of all.
    """

    __pydantic_config__ = STRICT

    device: str
    num_devices: int
    plan: str = ""
    tokens_per_second: float | None = None
    share_fraction: float | None = None
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJob:
    """What became of the job that `source`, a file of another software, tells of: `plan` is its id, and what it takes.

    `measured_seconds` is the median step of a log, None of a file that has none. `limit` is what most of its time goes
    to besides its own computing; where it does not fit, how far. `better` is the plan of the table that gains most, by
    `gain_fraction` of the job's time, "" where none is faster, and `changes` the lines of the software's words that
    differ, as `- yours` and `+ its`. `unread`: settings that were not understood; `assumed`: what was filled in.
    """

    __pydantic_config__ = STRICT

    source: str
    version: str
    plan: str
    step_seconds: float
    low_seconds: float
    high_seconds: float
    peak_bytes: float
    memory_bytes: float
    limit: str
    measured_seconds: float | None = None
    better: str = ""
    gain_fraction: float = 0.0
    changes: tuple[str, ...] = ()
    refusal: str = ""
    unread: tuple[str, ...] = ()
    unpriced: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All answers; what was not asked, or cannot be answered for the machine, is left out.

    `links` are those of the best plan, `pareto` goes from the fastest plan to the one of the fewest bytes, `simulated`
    is in the table's order with the best's timeline in the file `timeline`. `read` is of a job of the user's.
    """

    __pydantic_config__ = STRICT

    read: ReadJob | None = None
    links: tuple[AxisLinks, ...] = ()
    pareto: tuple[ParetoPlan, ...] = ()
    nearest_miss: NearestMiss | None = None
    pools: tuple[PoolAlone, ...] = ()
    cost: Cost | None = None
    spot_cost: Cost | None = None
    why_not: WhyNot | None = None
    simulated: tuple[SimulatedPlan, ...] = ()
    timeline: str = ""
    sensitivity: tuple[Change, ...] = ()
