"""The answer to a purchase: one row for each count and kind of devices, with its best plan, as values and as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner.answers import Cost
from planner.prediction import Candidate, PlanFile
from profiles import artifacts
from profiles.artifacts import STRICT
from profiles.errors import InputError
from profiles.inputs.ranges import Amount, Count, Devices, Fraction, Positive, Timed, Tokens, Whole

if TYPE_CHECKING:
    import pandas

ARTIFACT = "purchase"
BILLION = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """So many devices of a kind, and what their best plan does.

    `rank` is its place in the answer, from 1. `device` is the catalogue's name, or the measured machine's; `cluster` is
    the one that was named, or "". `is_spot` devices may be taken back: such a row has the plan of the one before it.
    `refusal` says why there is no plan, or why the job would come to no end, and `cost` is None; else it is "".
    `plan_file` is the index of the plan file among the answer's, -1 where no plan fits; `plan` is the id of its best.
    `low_seconds` to `high_seconds` is the step's band of about 90 %. `efficiency_fraction` is throughput per device,
    over that of the fewest devices of this kind that a plan fits. `peak_bytes` is of the fullest device, which has
    `memory_bytes` for plans. `cost` is of the answer's tokens, on this row's terms.
    """

    __pydantic_config__ = STRICT

    rank: Count
    num_devices: Devices
    device: str
    cluster: str = ""
    is_spot: bool = False
    refusal: str = ""
    plan_file: int = -1
    plan: str = ""
    step_seconds: Timed | None = None
    low_seconds: Timed | None = None
    high_seconds: Timed | None = None
    tokens_per_second: Positive | None = None
    mfu: Fraction | None = None
    efficiency_fraction: Fraction | None = None
    peak_bytes: Amount | None = None
    memory_bytes: Amount | None = None
    cost: Cost | None = None

    @property
    def place(self) -> str:
        """The kind of devices, by the cluster where one is named."""
        return self.cluster or self.device

    @property
    def title(self) -> str:
        """How many of what: `64 x h100-sxm`, `64 x h100-sxm spot`."""
        return f"{self.num_devices} x {self.place}{' spot' if self.is_spot else ''}"

    @property
    def dollars(self) -> float | None:
        """Dollars of the answer's tokens, in the middle of the range; None where no price is known."""
        return None if self.cost is None or self.cost.dollars is None else sum(self.cost.dollars) / 2

    @property
    def dollars_per_billion(self) -> tuple[float, float] | None:
        """Dollars of a billion tokens, failures included, lowest and highest; None where no price is known."""
        if self.cost is None or self.cost.dollars is None:
            return None
        low, high = (value / self.cost.tokens * BILLION for value in self.cost.dollars)
        return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """A number that a bill rests on and nobody gave: `value` in words, and whence it is."""

    __pydantic_config__ = STRICT

    what: str
    value: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PurchaseAnswer:
    """What `plan` says of several counts or kinds of devices; what `-o` writes and `--json` prints.

    `tokens` are what bills are of: a budget where `is_budget`, else an amount that was asked for by nobody, to compare
    by; `samples` where those were counted, else 0. `global_batch_sizes` are those that were asked about, the same for
    all rows. `deadline_days` is None where time is free, `deadline` the date where one was given.
    `rows` stand by kind and count where there are several counts, else fastest first. `cheapest`, `fastest` and
    `enough` are ranks of rows, 0 where there is none: the least money and the fewest days for the tokens, and of the
    rows that are done by the deadline the cheapest, or the one of the fewest devices where no price is known.
    `plans` hold each question's plan file, as `plan -o` would have written it alone.
    """

    __pydantic_config__ = STRICT

    model_name: str
    num_parameters: Whole
    sequence_length: Tokens
    size_unit: str
    stack: str
    global_batch_sizes: tuple[Count, ...]
    tokens: Positive
    is_budget: bool
    samples: Amount = 0.0
    deadline_days: Positive | None = None
    deadline: str = ""
    rows: tuple[Row, ...]
    cheapest: Whole = 0
    fastest: Whole = 0
    enough: Whole = 0
    assumptions: tuple[Assumption, ...] = ()
    notes: tuple[str, ...] = ()
    created: str = ""
    plans: tuple[PlanFile, ...]

    def row(self, rank: int) -> Row:
        """The row of a rank.

        Raises: InputError where there is none.
        """
        if not 1 <= rank <= len(self.rows):
            raise InputError(f"--rank {rank}: the rows are numbered 1 to {len(self.rows)}")
        return self.rows[rank - 1]

    def plan_of(self, rank: int) -> PlanFile:
        """The plan file of a row, which `execute` runs.

        Raises: InputError where there is no such row, or no plan fits.
        """
        row = self.row(rank)
        if row.plan_file < 0:
            raise InputError(f"--rank {rank}: {row.title} has no plan: {row.refusal}")
        return self.plans[row.plan_file]

    def best(self, rank: int) -> Candidate:
        """The best plan of a row, with its prediction.

        Raises: InputError as `plan_of`.
        """
        return self.plan_of(rank).candidates[0]

    def save(self, path: str | Path) -> None:
        """Write the answer, from which `plan --from FILE --rank N -o plan.json` takes a row's plan.

        Raises: EnvironmentFailure where it cannot be written.
        """
        artifacts.write(Path(path), ARTIFACT, self)

    def to_frame(self) -> pandas.DataFrame:
        """One row per row: the plan's totals, and the bill with `cost_` before each of its names."""
        import pandas

        return pandas.DataFrame([self._record(row) for row in self.rows])

    def _record(self, row: Row) -> Mapping[str, object]:
        whole = asdict(row)
        cost = whole.pop("cost") or {}
        marks = {name: row.rank == getattr(self, name) for name in ("cheapest", "fastest", "enough")}
        return {**whole, **marks, **{f"cost_{name}": value for name, value in cost.items()}}


def read_purchase(path: Path) -> PurchaseAnswer:
    """An answer that was written.

    Raises: ArtifactError where the file is none.
    """
    return artifacts.read(path, ARTIFACT, PurchaseAnswer)
