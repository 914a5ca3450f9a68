"""The page of a plan says what the plan file says, draws nothing that is not known, and lets no text become code."""

from __future__ import annotations

import html
import itertools
import json
import re
import shlex
from collections import defaultdict
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from planner.ask import answer_to
from planner.notebook import Planned
from planner.pages import best_figures, content
from planner.pages.asked import words_of_plans
from planner.pages.content import Content, content_of, content_of_file
from planner.pages.page import render
from planner.pages.plan_rows import on_front, records
from planner.pages.plans_figures import MOST_LABELS, scatter
from planner.plans import Plan
from planner.purchase.terms import usual_terms
from planner.request import Request
from planner.space.beside import Questions
from planner.space.questions import sensitivity
from planner.space.topology import first_group
from profiles.units import format_bytes, format_seconds
from tests.commands import outcome
from tests.plan_builders import make_plan_file
from tests.test_reports_html import EVIL, Page

QUESTION = Request(model="llama-3.1-8b", num_devices=16, device="h100-sxm", global_batches=(64,), top=4)


@pytest.fixture(scope="module")
def planned() -> Planned:
    found = answer_to(QUESTION, Questions(tokens=1e12, terms=usual_terms(2.0)))
    return Planned(file=found.file, answer=found)


@pytest.fixture(scope="module")
def known(planned: Planned) -> Content:
    return planned._content


@pytest.fixture(scope="module")
def page(known: Content) -> Page:
    return Page(render(known))


def leaves(figure) -> dict[str, float]:
    tree = figure.data[0]
    return {one: value for one, value in zip(tree.ids, tree.values, strict=True) if one not in tree.parents}


def test_every_plan_of_the_table_stands_on_the_page(page, known):
    plans = json.loads(page.scripts["data"])["plans"]
    text = " ".join(page.text)
    assert len(plans) > len(known.file.candidates) > 4
    for own, plan in zip(known.file.candidates, plans, strict=False):
        assert (plan["id"], plan["rank"], plan["in_table"]) == (own.plan.id, own.rank, True)
        assert plan["step_seconds"] == own.prediction.step_seconds
        assert plan["peak_bytes"] == own.prediction.peak_bytes
        assert (plan["tensor"], plan["zero"]) == (own.plan.tensor_parallel, own.plan.zero_stage)
        assert own.plan.id in text
        assert own.verdict in text
        assert format_seconds(own.prediction.step_seconds) in text
    for reason, count in known.file.rejected.items():
        assert reason in text
        assert f"{count:,}" in text
    for note in known.file.notes:
        assert note in text


def test_plans_beside_the_table_are_other_plans_that_fit(known):
    ids = [own.plan.id for own in known.plans]
    assert len(set(ids)) == len(ids)
    assert all(own.prediction.peak_bytes <= known.memory_bytes for own in known.others)
    assert [own.rank for own in known.plans] == list(range(1, len(ids) + 1))


def test_days_and_money_are_those_of_the_answer_and_follow_the_speed(known):
    rows, cost = records(known), known.file.answers.cost
    assert rows[0]["days"] == pytest.approx(cost.days)
    assert rows[0]["dollars"] == pytest.approx(cost.dollars[0])
    for row in rows:
        assert row["dollars"] * row["tokens_per_second"] == pytest.approx(
            cost.dollars[0] * rows[0]["tokens_per_second"]
        )


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    assert on_front(points) == [not any(beats(other, own) for other in points) for own in points]


def test_the_front_that_is_drawn_is_the_front_of_all_plans(known):
    rows = records(known)
    points = [(row["step_seconds"], row["peak_bytes"]) for row in rows]
    expected = sorted(
        {points[index][::-1] for index in range(len(rows)) if not any(beats(other, points[index]) for other in points)}
    )
    drawn = scatter(rows).data[0]
    assert len(expected) > 1
    assert [x * 2**30 for x in drawn.x] == pytest.approx([held for held, _ in expected])
    assert sum(len(trace.customdata) for trace in scatter(rows).data[1:]) == len(rows)


def test_areas_of_the_treemap_add_up_to_the_peak(known):
    best = known.best.prediction
    figure = best_figures.treemap(known.memory, known.memory_bytes)
    assert sum(leaves(figure).values()) == pytest.approx(best.peak_bytes, rel=1e-9)
    tree, children = figure.data[0], defaultdict(float)
    for value, parent in zip(tree.values, tree.parents, strict=True):
        children[parent] += value
    for one, value in zip(tree.ids, tree.values, strict=True):
        assert one not in children or children[one] == pytest.approx(value)
    by_kind = defaultdict(float)
    for one in known.memory:
        by_kind[one.kind] += one.num_bytes
    held = best.bytes_per_rank
    assert by_kind["weights"] == pytest.approx(held["parameters"])
    assert by_kind["activations"] == pytest.approx(held["activations"])
    assert by_kind["allocator's holes"] == pytest.approx(held["slack"])
    assert by_kind["outside torch"] == pytest.approx(held["outside"])


def test_weights_are_divided_as_parameters_are(planned, known):
    sizes = planned.answer.space.at.model.transformer
    held = {one.layers: one.num_bytes for one in known.memory if one.kind == "weights"}
    blocks = next(value for name, value in held.items() if "blocks" in name)
    vocabulary = float(sizes.vocab_size[0] * sizes.hidden_size[0])
    share = vocabulary / float(sizes.num_parameters[0])
    assert known.best.plan.tensor_parallel == known.best.plan.pipeline_parallel == 1
    whole = blocks + held["embedding"] + held["head"]
    assert (held["embedding"] / whole, held["head"] / whole) == pytest.approx((share, share), rel=1e-3)


def test_the_tornado_is_the_sensitivity(planned, known):
    changes = sensitivity(planned.answer)
    assert known.changes == tuple(changes)
    figure = best_figures.tornado(changes)
    drawn = sorted(x for trace in figure.data for x in trace.x if x is not None)
    expected = [100 * one.change_fraction for one in changes]
    assert drawn == pytest.approx(sorted(x for x in expected if abs(x) >= 100 * best_figures.LEAST_CHANGE))
    named = " ".join(note.text for note in figure.layout.annotations)
    assert "half / twice the bandwidth inside nodes" in named
    assert [len(swing.changes) for swing in best_figures.swings(changes)].count(2) == 3


def test_ranks_are_written_beside_marks_that_are_apart(known):
    marks = [
        (text.strip(), x, y)
        for trace in scatter(records(known)).data[1:]
        for text, x, y in zip(trace.text or (), trace.x, trace.y, strict=False)
    ]
    written = [mark for mark in marks if mark[0]]
    assert "1" in {rank for rank, _, _ in written}
    assert 1 < len(written) <= MOST_LABELS
    wide, high = (max(column) - min(column) for column in list(zip(*marks, strict=True))[1:])
    for (_, x, y), (_, other_x, other_y) in itertools.combinations(written, 2):
        assert abs(x - other_x) > 0.05 * wide or abs(y - other_y) > 0.05 * high


def test_bars_add_up_to_the_step(known):
    shown = [own for own in known.file.candidates if not own.folded_into]
    lengths = defaultdict(float)
    for trace in best_figures.parts_bars(shown).data:
        for place, value in zip(trace.y, trace.x, strict=True):
            lengths[place] += value
    scale = 1.0 if shown[0].prediction.step_seconds >= 1 else 1e-3
    for index, own in enumerate(shown):
        assert lengths[2 * index + 1] * scale == pytest.approx(own.prediction.step_seconds, rel=2e-3)


def test_lines_of_the_drawing_are_the_groups_of_the_plan(planned):
    plan = Plan(data_parallel=2, tensor_parallel=4, pipeline_parallel=2, stage_bounds=(0, 9), schedule="1f1b",
                num_microbatches=4)  # fmt: skip
    drawing = content.drawing_of(plan, planned.answer.space.at)
    assert sorted(rank for ranks in drawing.rows.values() for rank in ranks) == list(range(16))
    for own in drawing.axes:
        assert own.ranks == tuple(first_group(plan, own.axis))
        assert own.num_domains == len({rank // 8 for rank in own.ranks})
    for one in range(16):
        for other in range(16):
            assert ((one, other) in drawing.joined) == (one // 8 == other // 8)


def test_long_timelines_are_cut_and_say_so(planned, monkeypatch):
    whole = content._timeline(planned.answer)
    assert whole.drawn_until_seconds == whole.step_seconds
    monkeypatch.setattr(content, "MOST_DRAWN", 20)
    cut = content._timeline(planned.answer)
    assert len(cut.spans) <= 20 < len(whole.spans)
    assert max(span.stop_seconds for span in cut.spans) <= cut.drawn_until_seconds < cut.step_seconds
    assert "Only its first" in cut.words
    monkeypatch.setattr(content, "MOST_SIMULATED", 0)
    assert "too many passes" in content._timeline(planned.answer).words


def test_published_runs_are_counted_by_trait(known):
    found = known.resembling
    counts = {trait.name: trait.num_runs for trait in found.traits}
    assert 0 < counts["precision on this generation"] < counts["generation of devices"] < found.num_runs
    assert found.num_in_software <= found.num_alike <= min(counts["axes that are split"], found.num_runs)
    assert {ground.origin for ground in known.grounds} >= {"published", "assumed", "unknown"}


def test_nothing_is_loaded_from_outside_and_each_drawing_has_its_table(page):
    loading = ("src", "href", "srcset", "data", "action", "poster")
    assert [value for _, name, value in page.attributes if name in loading] == ["data:,"]
    assert page.scripts["plotly"] == get_plotlyjs()
    plots = [value for tag, name, value in page.attributes if tag == "div" and name == "id"]
    assert set(plots) == {"scatter", "parallel", "parts", "timeline", "memory", "links", "tornado", "refusals"}
    for plot in plots:
        assert json.loads(page.scripts[f"{plot}-figure"])["data"]
    assert " ".join(page.text).count("Numbers of this figure") == len(plots)


def test_what_is_not_known_is_a_sentence_and_no_figure(known):
    alone = replace(known.file, answers=replace(known.file.answers, links=(), nearest_miss=None), rejected={})
    page = Page(render(content_of_file(alone)))
    plots = {value for tag, name, value in page.attributes if tag == "div" and name == "id"}
    assert not plots & {"links", "tornado", "refusals", "timeline"}
    text = " ".join(page.text)
    assert "The links of its axes are not known" in text
    assert "Sensitivity was not computed" in text
    assert "No plan was rejected" in text
    assert "No timeline" in text


def test_the_least_a_plan_file_can_hold():
    page = Page(render(content_of_file(make_plan_file(Plan()))))
    assert "single" in " ".join(page.text)
    assert not [value for _, name, value in page.attributes if name == "data-filter"]


def evil(known: Content) -> Content:
    """The same with a script in every text that is not ours."""
    own = known.best
    own = replace(own, verdict=EVIL, prediction=replace(own.prediction, assumptions=(EVIL,), mfu_denominator=EVIL))
    file = replace(
        known.file, model_name=EVIL, machine_name=EVIL, notes=(EVIL,), cluster=EVIL, attention_kernel=EVIL,
        created=EVIL, machine_origin=EVIL, rejected={EVIL: 3}, candidates=(own, *known.file.candidates[1:]),
        answers=replace(known.file.answers, cost=replace(known.file.answers.cost, price_date=EVIL)),
    )  # fmt: skip
    return replace(
        known, file=file, memory=tuple(replace(one, kind=f"{EVIL}{one.kind}", layers=EVIL) for one in known.memory[:1]),
        changes=tuple(replace(one, what=f"{EVIL}{one.what}", winner=EVIL, is_same=False) for one in known.changes),
        grounds=tuple(replace(one, what=EVIL, value=EVIL, source=EVIL) for one in known.grounds),
    )  # fmt: skip


def test_text_from_files_is_escaped(known):
    text = render(evil(known))
    page = Page(text)
    assert not [value for tag, name, value in page.attributes if tag == "img" or name == "onerror"]
    assert text.count(EVIL) == 0
    assert json.loads(page.scripts["data"])["plans"][0]["why"].startswith(EVIL)
    # What Plotly draws it reads as markup of its own: it must be escaped there too.
    for name, script in page.scripts.items():
        assert not name.endswith("-figure") or "<img" not in json.dumps(json.loads(script)), name


def test_a_notebook_has_the_page_and_the_figure(planned, tmp_path):
    made = planned.page(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").read_text(encoding="utf-8") == str(made)
    frame = Page(made._repr_html_())
    (source,) = [value for tag, name, value in frame.attributes if (tag, name) == ("iframe", "srcdoc")]
    assert source == made.html
    assert planned.best.plan.id in html.unescape(made.html)
    assert {trace.type for trace in planned.scatter().data} == {"scatter"}


def test_the_command_writes_the_page_or_says_why_not(tmp_path):
    asked = ("--model", "llama-3.2-1b", "--gpus", "2", "--device", "h100-sxm", "--top", "1")
    code, words = outcome("plan", *asked, "--page", tmp_path / "file" / "page.html")
    assert (code, "page:" in words) == (0, True)
    assert "llama-3.2-1b on 2 x h100-sxm" in (tmp_path / "file" / "page.html").read_text(encoding="utf-8")
    (tmp_path / "plain").write_text("", encoding="utf-8")
    code, words = outcome("plan", *asked, "--page", tmp_path / "plain" / "page.html")
    assert (code, "nothing was started" in words) == (5, True)
    code, words = outcome("plan", "--legend", "--page", tmp_path / "page.html")
    assert (code, "--page cannot be combined with --legend" in words) == (2, True)


def test_the_page_says_what_was_asked_and_answered(tmp_path):
    day = str(date.today() + timedelta(days=400))
    asked = ("--model", "llama-3.2-1b", "--gpus", "4", "--device", "h100-sxm", "--global-batch", "64", "--top", "1",
             "--tokens", "1T", "--price", "3.25", "--headroom", "10%", "--by", day,
             "--why-not", "tp=2,pp=2")  # fmt: skip
    code, _ = outcome("plan", *asked, "--page", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert code == 0
    for words in (shlex.join(asked), "64 x 4096 tokens", "1 T tokens", "$3.25 per device-hour", "at least 10.0 %",
                  f"by {day}, in 400 days", "PUE", "checkpoints kept", "by the step's band", "tp=2,pp=2: legal",
                  "parameters as well (FSDP)"):  # fmt: skip
        assert words in text, words


def test_memory_is_of_the_whole_device(known):
    found = answer_to(replace(QUESTION, headroom_fraction=0.1), Questions())
    less = content_of(found, offers_all=False)
    assert less.memory_bytes == known.memory_bytes
    assert less.best.prediction.peak_bytes <= 0.9 * less.memory_bytes
    (whole,) = {ground.value for ground in less.grounds if ground.what == "memory that a process may use"}
    assert whole in {ground.value for ground in known.grounds}


def test_the_legend_has_every_word_of_the_plans(known):
    words = {word for own in known.plans for word in own.plan.id.split()}
    legend = words_of_plans(known)
    assert all(any(re.fullmatch(one.pattern, word) for one in legend) for word in words)
    forms = {one.form for one in legend}
    assert "ppN" in forms
    assert "epN" not in forms


def test_a_measured_machine_says_what_was_measured():
    machine = "tests/golden/llama-26m_epyc_2_2026-11-29.machine.json"
    found = answer_to(Request(model="llama-26m", num_devices=2, machine=machine, global_batches=(8,), top=2,
                              sequence_length=128))  # fmt: skip
    known = content_of(found, offers_all=False)
    assert known.resembling is None
    shares = [ground for ground in known.grounds if ground.value.endswith("of the step")]
    assert {ground.origin for ground in shares} <= {"measured here", "scaled from measurements", "published"}
    assert sum(float(ground.value.split()[0]) for ground in shares) == pytest.approx(100, abs=0.5)
    assert sum(one.num_bytes for one in known.memory) == pytest.approx(known.best.prediction.peak_bytes)
    text = " ".join(Page(render(known)).text)
    assert "measured here" in text
    assert f"A device has {format_bytes(known.memory_bytes)}" in text
