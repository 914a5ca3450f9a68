"""The page of a purchase says what the answer says, draws nothing that is not known, and lets no text become code."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.answers import Cost
from planner.notebook import bought
from planner.pages.purchase import best_plans, figures
from planner.pages.purchase.page import render
from planner.pages.purchase.points import front, kinds
from planner.purchase.answer import Assumption, PurchaseAnswer, Row
from planner.purchase.compare import compare, marks
from planner.purchase.questions import Place, Purchase
from profiles.units import format_bytes, format_count, format_percent, format_seconds, three_digits
from tests.commands import outcome
from tests.test_purchase import COUNTS, DEVICES, FAILED, REQUEST, TOKENS, terms_of
from tests.test_reports_html import EVIL, Page


@functools.cache
def buy() -> PurchaseAnswer:
    places = tuple(Place(device=name) for name in DEVICES)
    return compare(Purchase(request=REQUEST, num_devices=COUNTS, places=places, terms=terms_of(), tokens=TOKENS))


@pytest.fixture(scope="module")
def found() -> PurchaseAnswer:
    return buy()


@pytest.fixture(scope="module")
def page(found) -> Page:
    return Page(render(found))


def words_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def with_rows(answer: PurchaseAnswer, rows: list[Row]) -> PurchaseAnswer:
    ranked = tuple(replace(row, rank=rank) for rank, row in enumerate(rows, 1))
    return replace(answer, rows=ranked, **marks(ranked))


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def test_rows_of_the_page_are_the_answers(page, found):
    ranks = [int(value) for tag, name, value in page.attributes if (tag, name) == ("tr", "data-rank")]
    assert ranks == [row.rank for row in found.rows]
    text = words_of(page)
    ends = [text.index(f" {row.rank} {row.title} ") for row in found.rows]
    assert ends == sorted(ends)
    for row, start, end in zip(found.rows, ends, [*ends[1:], text.index(" Speed ")], strict=True):
        own = text[start:end]
        marked = {"cheapest": found.cheapest, "fastest": found.fastest, "enough in time": found.enough}
        assert all((name in own) == (rank == row.rank) for name, rank in marked.items())
        if row.refusal:
            assert row.refusal in own
            continue
        assert row.plan in own
        for said in (
            format_seconds(row.step_seconds), format_count(row.tokens_per_second), format_percent(row.mfu),
            format_percent(row.efficiency_fraction), format_bytes(row.peak_bytes), format_bytes(row.memory_bytes),
            three_digits(row.cost.days), f"${format_count(row.dollars)}",
        ):  # fmt: skip
            assert f" {said} " in f"{own} ", said
    assert sum(bool(row.refusal) for row in found.rows) == len(COUNTS)


def test_the_answer_stands_in_the_first_sentences(page, found):
    text = words_of(page)
    cheapest, fastest = found.row(found.cheapest), found.row(found.fastest)
    assert f"Cheapest: row {cheapest.rank}, {cheapest.title}: ${format_count(cheapest.dollars)}" in text
    assert f"Fastest: row {fastest.rank}, {fastest.title}: " in text
    assert f"Enough for 3 days: row {found.enough}" in text
    # The date first; what is cheap and too late says so.
    assert text.index("Enough for 3 days") < text.index("Cheapest: row")
    assert cheapest.cost.days > found.deadline_days
    assert text[text.index("Cheapest") :].partition(" Fastest")[0].count("(too late)") == 1
    for one in found.assumptions:
        assert one.source in text
    for row in found.rows:
        if row.plan:
            plan = json.dumps(dataclasses.asdict(found.best(row.rank).plan), indent=1)
            assert plan in " ".join(page.text)


def test_the_curve_has_each_row_its_band_and_perfect_scaling(found):
    traces = figures.scaling(found).data
    own = [row for row in found.rows if row.plan and not row.is_spot]
    lines = [trace for trace in traces if trace.mode == "lines+markers"]
    drawn = {rank: (x, y) for line in lines for rank, x, y in zip(line.customdata, line.x, line.y, strict=True)}
    assert drawn == {row.rank: (row.num_devices, row.tokens_per_second) for row in own}
    assert [line.name for line in lines] == [name for name in DEVICES if name != FAILED]
    for line, band in zip(lines, (trace for trace in traces if trace.fill == "toself"), strict=True):
        low, high = band.y[: len(line.x)], band.y[len(line.x) :][::-1]
        rows = [found.row(rank) for rank in line.customdata]
        size = [row.tokens_per_second * row.step_seconds for row in rows]
        assert low == pytest.approx([tokens / row.high_seconds for tokens, row in zip(size, rows, strict=True)])
        assert high == pytest.approx([tokens / row.low_seconds for tokens, row in zip(size, rows, strict=True)])
    dotted = [trace for trace in traces if trace.line.dash == "dot" and len(trace.x) > 1]
    for line, perfect in zip(lines, dotted, strict=True):
        assert [y / x for x, y in zip(perfect.x, perfect.y, strict=True)] == pytest.approx([line.y[0] / line.x[0]] * 3)
        shares = [y / best for y, best in zip(line.y, perfect.y, strict=True)]
        assert shares == pytest.approx([found.row(rank).efficiency_fraction for rank in line.customdata])


def test_the_front_of_an_answer_is_that_of_a_brute_force(found):
    points = {row.rank: (row.cost.days, row.dollars) for row in found.rows if row.cost}
    unbeaten = {rank for rank, own in points.items() if not any(beats(other, own) for other in points.values())}
    assert set(front(found)) == unbeaten
    assert {found.cheapest, found.fastest} <= unbeaten
    assert 1 < len(unbeaten) < len(points)
    figure = figures.bill(found)
    line, marked = figure.data[0], figure.data[1:]
    assert sorted(line.x) == list(line.x) == pytest.approx(sorted(points[rank][0] for rank in unbeaten))
    assert {rank for trace in marked for rank in trace.customdata} == set(points)
    (deadline,) = figure.layout.shapes
    assert deadline.x0 == deadline.x1 == found.deadline_days
    assert 10 ** figure.layout.annotations[0].x == pytest.approx(found.deadline_days)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_of_any_rows_is_what_no_other_beats(points):
    rows = tuple(
        Row(
            rank=rank, num_devices=8, device="h100-sxm", plan="dp8", plan_file=0,
            cost=Cost(
                tokens=1e9, days=days, device_hours=1, kwh=1, goodput_fraction=1, num_failures=0, interval_seconds=1,
                dollars=(dollars / 2, dollars * 1.5),
            ),
        )
        for rank, (days, dollars) in enumerate(points, 1)
    )  # fmt: skip
    answer = PurchaseAnswer(
        model_name="any", num_parameters=1, sequence_length=1, size_unit="tokens", stack="trainwright",
        global_batch_sizes=(1,), tokens=1e9, is_budget=True, rows=rows, plans=(),
    )  # fmt: skip
    expected = {rank for rank, own in enumerate(points, 1) if not any(beats(other, own) for other in points)}
    assert set(front(answer)) == expected


def test_bars_add_up_to_the_step_and_to_the_peak(found):
    rows = [row for row in found.rows if row.plan and not row.is_spot]
    steps = [sum(values) for values in zip(*(trace.x for trace in best_plans.parts(found).data), strict=True)]
    assert steps == pytest.approx([100.0] * len(rows), abs=0.5)
    figure = best_plans.memory(found)
    held = [sum(values) * 2**30 for values in zip(*(trace.x for trace in figure.data), strict=True)]
    assert held == pytest.approx([row.peak_bytes for row in rows], rel=0.01)
    assert [shape.x0 * 2**30 for shape in figure.layout.shapes] == pytest.approx([row.memory_bytes for row in rows])


def figure_names(page: Page) -> set[str]:
    return {name.removesuffix("-figure") for name in page.scripts if name.endswith("-figure")}


def test_what_is_not_known_is_a_sentence_and_no_figure(page, found):
    assert figure_names(page) == {"speed", "efficiency", "bill", "parts", "memory"}
    one = with_rows(found, [row for row in found.rows if row.num_devices == COUNTS[0]])
    single = Page(render(one))
    assert figure_names(single) == {"speed", "bill", "parts", "memory"}
    assert "One count of each kind does not show how speed scales" in words_of(single)
    amountless = Page(render(replace(found, is_budget=False, deadline_days=None)))
    assert figure_names(amountless) == {"speed", "efficiency", "parts", "memory"}
    assert "The number of days depends on the amount of training" in words_of(amountless)
    unpriced = [row if row.cost is None else replace(row, cost=replace(row.cost, dollars=None)) for row in found.rows]
    priceless = Page(render(with_rows(found, unpriced)))
    assert "bill" not in figure_names(priceless)
    assert "The cost is not known: give --price." in words_of(priceless)
    lonely = Page(render(with_rows(found, [found.rows[0]])))
    assert figure_names(lonely) == {"bill", "parts", "memory"}
    assert "Only one row has a plan" in words_of(lonely)
    blank = tuple(
        replace(file, candidates=(replace(best, prediction=replace(best.prediction, seconds={}, bytes_per_rank={})),))
        for file in found.plans
        for best in file.candidates[:1]
    )
    assert figure_names(Page(render(replace(found, plans=blank)))) == {"speed", "efficiency", "bill"}


def test_a_row_whose_spot_devices_train_nothing_keeps_its_plan(found):
    spot = next(row for row in found.rows if row.is_spot)
    rows = [
        replace(row, cost=None, refusal="it would never end") if row.rank == spot.rank else row for row in found.rows
    ]
    text = words_of(Page(render(with_rows(found, rows))))
    assert text.count("it would never end") == 1
    assert all(spot.rank not in [row.rank for row in kind.rows] for kind in kinds(found))


@given(st.floats(1e-3, 1e6), st.floats(1.0, 1e5))
def test_ticks_of_a_logarithmic_axis_lie_in_it_and_can_be_read(low, ratio):
    made = figures.log_ticks(low, low * ratio)
    first, last = made["range"]
    assert first < math.log10(low) <= math.log10(low * ratio) + 1e-9 < last
    assert sum(first <= math.log10(value) <= last for value in made["tickvals"]) >= min(1, int(ratio / 3))
    assert all("e" not in text for text in made["ticktext"])


def evil(answer: PurchaseAnswer) -> PurchaseAnswer:
    """The same with a script in every text that is not ours."""
    rows = tuple(
        replace(row, device=EVIL + row.device, cluster="", plan=EVIL if row.plan else "",
                refusal=EVIL if row.refusal else "",
                cost=None if row.cost is None else replace(row.cost, price_date=EVIL))
        for row in answer.rows
    )  # fmt: skip
    plans = tuple(
        replace(
            file, candidates=(replace(best, verdict=EVIL, prediction=replace(best.prediction, assumptions=(EVIL,))),)
        )
        for file in answer.plans
        for best in file.candidates[:1]
    )
    return replace(
        answer, model_name=EVIL, stack=EVIL, created=EVIL, notes=(EVIL,), rows=rows, plans=plans,
        assumptions=(Assumption(what=EVIL, value=EVIL, source=EVIL),),
    )  # fmt: skip


def test_text_from_files_is_escaped(found):
    one_count = [row for row in found.rows if row.num_devices == COUNTS[0]]
    for answer in (found, with_rows(found, one_count)):
        text = render(evil(answer))
        page = Page(text)
        assert not [value for tag, name, value in page.attributes if tag == "img" or name == "onerror"]
        assert text.count(EVIL) == 0
        # What Plotly draws it reads as markup of its own: it must be escaped there too.
        for name, script in page.scripts.items():
            assert not name.endswith("-figure") or "<img" not in json.dumps(json.loads(script)), name


def test_the_command_writes_the_page_of_a_comparison_and_of_its_file(tmp_path):
    asked = ("--model", "llama-3.2-1b", "--gpus", "2,4", "--device", "h100-sxm", "--stack", "torchtitan",
             "--precision", "bf16")  # fmt: skip
    made, again = tmp_path / "buy.html", tmp_path / "again.html"
    code, words = outcome("plan", *asked, "--page", made, "-o", tmp_path / "buy.json")
    assert (code, "page:" in words) == (0, True)
    assert "llama-3.2-1b on 2 to 4 x h100-sxm" in made.read_text(encoding="utf-8")
    code, words = outcome("plan", "--from", tmp_path / "buy.json", "--page", again)
    assert (code, "page:" in words) == (0, True)
    assert again.read_text(encoding="utf-8") == made.read_text(encoding="utf-8")
    (tmp_path / "plain").write_text("", encoding="utf-8")
    code, words = outcome("plan", *asked, "--page", tmp_path / "plain" / "page.html")
    assert (code, "nothing was started" in words) == (5, True)


def test_from_python_the_page_is_the_commands_shown_in_a_frame(found, tmp_path):
    shown = bought(found).page(tmp_path / "buy.html")
    assert (tmp_path / "buy.html").read_text(encoding="utf-8") == str(shown) == render(found)
    frame = {name: value for tag, name, value in Page(shown._repr_html_()).attributes if tag == "iframe"}
    # What is in the frame may draw, and reach neither the notebook nor anything else.
    assert (frame["sandbox"], frame["title"]) == ("allow-scripts", "what to buy")
    assert frame["srcdoc"] == str(shown)
