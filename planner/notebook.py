"""The answer of `planner.plan` as an object: for notebooks and programs."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from planner.answers import Change, Cost, WhyNot
from planner.ask import answer_to, parse_batches, parse_count, parse_counts
from planner.pages.inline import Page
from planner.prediction import Candidate, PlanFile
from planner.purchase.answer import PurchaseAnswer
from planner.purchase.bill import cost_of
from planner.purchase.terms import Reliability, Terms, usual_terms
from planner.request import Request
from planner.space.answers import Answer
from planner.space.questions import sensitivity, why_not
from planner.terminal import show_answers
from profiles import artifacts
from profiles.inputs import limits
from profiles.units import format_bytes, format_percent, format_seconds

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

    from planner.pages.content import Content

COLUMNS = ("plan", "step", "tokens/s", "MFU", "memory", "why")


@dataclass(frozen=True, kw_only=True, repr=False)
class Planned:
    """A ranked table of plans that answers further questions; `file` is what `plan -o` writes.

    `offers_all` tells that plans which the executor cannot run are offered too.
    """

    file: PlanFile
    answer: Answer
    offers_all: bool = False

    @property
    def best(self) -> Candidate:
        """The plan of choice with its prediction."""
        return self.file.candidates[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader must know before trusting the table."""
        return self.file.notes

    def to_frame(self) -> pandas.DataFrame:
        """One row per plan: totals, seconds by part, bytes of the fullest rank by kind."""
        import pandas

        return pandas.DataFrame([_row(candidate) for candidate in self.file.candidates])

    def save(self, path: str | Path) -> None:
        """Write the plan file, which `execute` runs.

        Raises: EnvironmentFailure where it cannot be written.
        """
        artifacts.write(Path(path), "plan", self.file)

    def why_not(self, degrees: str) -> WhyNot:
        """What becomes of plans with such degrees, tp=8,pp=4.

        Raises: InputError for names that are none.
        """
        return why_not(self.answer, degrees, self.offers_all)

    def sensitivity(self) -> list[Change]:
        """What each unknown would cost, and whether it would change the winner."""
        return sensitivity(self.answer)

    def cost(
        self,
        tokens: float,
        price: float | None = None,
        reliability: Reliability | None = None,
        terms: Terms | None = None,
    ) -> Cost:
        """What training on so many `tokens` takes at the best plan's predicted speed.

        `price` is in dollars per device and hour, by default a dated range. `reliability` says how often devices fail,
        and how long a checkpoint and a restart take; `terms` say both, and more.
        """
        asked = terms or usual_terms(price, reliability)
        return cost_of(self.answer.space.at, self.best.prediction, tokens, asked, cluster=self.file.cluster)

    def page(self, path: str | Path | None = None) -> Page:
        """All that is known of the plans as one HTML page, as `plan --page` writes it; shown inline in a notebook.

        Raises: EnvironmentFailure where `path` cannot be written.
        """
        from planner.pages.page import render

        page = Page(html=render(self._content))
        if path is not None:
            page.save(path)
        return page

    def scatter(self) -> go.Figure:
        """Time against memory of all plans as a Plotly figure."""
        from planner.pages.plan_rows import records
        from planner.pages.plans_figures import scatter

        return scatter(records(self._content), self.answer.space.at.whole_memory_bytes)

    @cached_property
    def _content(self) -> Content:
        """What the page and the figure show."""
        from planner.pages.content import content_of

        return content_of(self.answer, self.offers_all, file=self.file)

    def __repr__(self) -> str:
        """A line: notebooks ask for it beside the table, and all fields of all plans would take half a minute."""
        count, best = len(self.file.candidates), self.best
        step = format_seconds(best.prediction.step_seconds)
        return f"<{self._title}: {count} plans, best {best.plan.id}, {step} a step>"

    @property
    def _title(self) -> str:
        return f"{self.file.model_name} on {self.file.num_devices} x {self.file.machine_name}"

    def _repr_html_(self) -> str:
        shown = (candidate for candidate in self.file.candidates if not candidate.folded_into)
        rows = "".join(_tr("td", _cells(candidate)) for candidate in shown)
        notes = "".join(
            f"<li>{html.escape(note)}</li>" for note in (*self.notes, *show_answers.notes(self.file.answers))
        )
        return (
            f"<table><caption>{html.escape(self._title)}</caption><thead>{_tr('th', COLUMNS)}</thead>"
            f"<tbody>{rows}</tbody></table><ul>{notes}</ul>"
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bought(PurchaseAnswer):
    """What `planner.buy` answers: the comparison as `plan -o` writes it, which draws itself as well."""

    def __repr__(self) -> str:
        """A line: the fields hold every question's plan file."""
        return f"<{self.model_name} on {', '.join(row.title for row in self.rows)}>"

    def page(self, path: str | Path | None = None) -> Page:
        """The comparison as one HTML page, as `plan --page` writes it; shown inline in a notebook.

        Raises: EnvironmentFailure where `path` cannot be written.
        """
        # Plotly is loaded only where something is drawn.
        from planner.pages.purchase.page import render

        page = Page(html=render(self), title="what to buy")
        if path is not None:
            page.save(path)
        return page


def bought(answer: PurchaseAnswer) -> Bought:
    """The answer, as what draws itself."""
    return Bought(**{field.name: getattr(answer, field.name) for field in fields(answer)})


def samples_of(asked: int | str | Sequence[int] | None) -> tuple[int, ...]:
    """Global batches, given as one, as several, or as the command line says them.

    Raises: InputError where it is none of these.
    """
    if isinstance(asked, str):
        return parse_batches(asked)
    several = () if asked is None else (asked,) if isinstance(asked, int) else tuple(asked)
    for samples in several:
        limits.check("--global-batch", samples, 1, limits.SAMPLES)
    return several


def counts_of(asked: int | str | Sequence[int]) -> tuple[int, ...]:
    """Counts of devices, given as one, as several, or as the command line says them; ascending, each once.

    Raises: InputError where it is none of these.
    """
    return parse_counts(
        asked if isinstance(asked, str) else ",".join(map(str, (asked,) if isinstance(asked, int) else asked))
    )


def count_of(asked: float | str | None) -> float | None:
    """A number of tokens or samples, also in a text as 1T; None of None.

    Raises: InputError where it is none.
    """
    return parse_count(asked) if isinstance(asked, str) else asked


def words_of(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names, given one by one or in a text with commas between them; each once."""
    names = () if asked is None else asked.split(",") if isinstance(asked, str) else asked
    return tuple(dict.fromkeys(name.strip() for name in names))


def planned(request: Request) -> Planned:
    """Search as `plan` does.

    Raises: InputError for what cannot be; NoFeasiblePlanError where nothing fits.
    """
    found = answer_to(request)
    return Planned(file=found.file, answer=found, offers_all=request.simulate)


def _row(candidate: Candidate) -> dict[str, object]:
    prediction = candidate.prediction
    return {
        "rank": candidate.rank,
        "plan": candidate.plan.id,
        "step_seconds": prediction.step_seconds,
        "low_seconds": prediction.low_seconds,
        "high_seconds": prediction.high_seconds,
        "tokens_per_second": prediction.tokens_per_second,
        "mfu": prediction.mfu,
        "peak_bytes": prediction.peak_bytes,
        "fits": prediction.fits,
        "executable": candidate.executable,
        "folded_into": candidate.folded_into,
        "why": candidate.verdict,
        **{f"{part}_seconds": seconds for part, seconds in prediction.seconds.items()},
        **{f"{kind}_bytes": held for kind, held in prediction.bytes_per_rank.items()},
    }


def _cells(candidate: Candidate) -> Sequence[str]:
    prediction = candidate.prediction
    return (
        candidate.plan.id,
        format_seconds(prediction.step_seconds),
        f"{prediction.tokens_per_second:,.0f}",
        format_percent(prediction.mfu),
        format_bytes(prediction.peak_bytes),
        candidate.verdict + show_answers.like_it(candidate),
    )


def _tr(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"
