"""Errors over time: dates, versions and trends by hand, the page's sections in a browser, pages read back."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from dataclasses import replace

import pytest
from scipy import stats

from executor.run.measurement import RunFile
from planner.plans import Plan
from profiles import artifacts
from reports.changes import Side
from reports.comparison import Source
from reports.history import History, history_of, time_of
from reports.pages.html import render
from reports.pages.over_time import history_figure
from reports.reading import read_sources
from reports.report import build
from tests.report_builders import beside, demo_run_file, run_file, simple_run
from tests.test_reports_command import compare
from tests.test_reports_html import EVIL, Page

PLAN = Plan(data_parallel=2, micro_batch_size=8)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def at(day: int, error: float, other_cores: float | None = None, **environment: object) -> RunFile:
    """A run of a day, with one step of a second and a prediction that is off by so much."""
    run = simple_run(1.0 + error, [1.0], plan=PLAN)
    file = run_file([run if other_cores is None else beside(run, other_cores)])
    started = f"2026-11-{day:02}T12:00:00+00:00"
    return replace(file, environment=replace(file.environment, started=started, **environment))


def sources(*files: RunFile) -> list[Source]:
    return [Source(name=f"{number}.run.json", file=file) for number, file in enumerate(files, start=1)]


def history(*files: RunFile) -> History:
    found = history_of(sources(*files))
    assert found is not None
    return found


def test_runs_stand_in_the_order_of_time_whatever_their_order_was():
    found = history(at(5, -0.3), at(3, 0.1), at(4, -0.2))
    assert [moment.source for moment in found.moments] == ["2.run.json", "3.run.json", "1.run.json"]
    assert [moment.error_fraction for moment in found.moments] == pytest.approx([0.1, 0.2, 0.3])


def test_runs_of_one_time_and_one_run_twice_are_no_history():
    assert history_of(sources(at(5, 0.1))) is None
    assert history_of(sources(at(5, 0.1), at(5, 0.2))) is None
    assert len(history(at(5, 0.1), at(5, 0.1), at(6, 0.1)).moments) == 2


def test_versions_are_marked_where_they_change_and_what_is_not_known_changes_nothing():
    found = history(
        at(1, 0.1, torch="2.12.0"),
        at(2, 0.1, torch="2.12.0", trainwright="0.2.0"),
        at(3, 0.1, torch="2.13.0", commit=""),
        at(4, 0.1, torch="2.13.0", trainwright="0.3.0"),
    )
    assert [(mark.started.day, mark.words) for mark in found.marks] == [
        (3, "torch 2.12.0 -> 2.13.0"),
        (4, "Trainwright 0.2.0 -> 0.3.0"),
    ]


@pytest.mark.parametrize(
    ("errors", "direction", "words"),
    [
        (
            [0.10, 0.08],
            "unknown",
            "Over 2 judged runs, 2026-11-01 to 2026-11-02, the median error went from 10.0 % to 8.0 %: too few",
        ),
        ([0.10, 0.09, 0.07, 0.06, 0.05, 0.01], "falls", "it falls, by 1.5 points a run"),
        ([0.01, 0.05, 0.06, 0.07, 0.09, 0.10], "rises", "it rises, by 1.5 points a run"),
        ([0.05, 0.09, 0.04, 0.10, 0.03, 0.06], "none", "no trend beyond chance"),
        ([0.05] * 6, "none", "no trend beyond chance"),
    ],
)
def test_the_trend_is_that_of_kendall_theil_and_sen(errors, direction, words):
    found = history(*(at(day, error) for day, error in enumerate(errors, start=1)))
    trend = found.trend
    assert trend is not None
    assert trend.direction == direction
    assert words in found.sentence
    slopes = [(errors[j] - errors[i]) / (j - i) for i in range(len(errors)) for j in range(i + 1, len(errors))]
    assert trend.slope_fraction == pytest.approx(statistics.median(slopes))
    if trend.chance is not None and len(set(errors)) > 1:
        assert trend.chance == pytest.approx(stats.kendalltau(range(len(errors)), errors).pvalue)


def test_runs_that_are_not_judged_are_drawn_and_do_not_count():
    found = history(at(1, 0.5, other_cores=0.6), at(2, 0.1), at(3, 0.2))
    assert found.trend is not None
    assert (found.trend.num_runs, found.trend.first_fraction) == (2, pytest.approx(0.1))
    (line,) = (trace for trace in history_figure(found).data if trace.name == PLAN.id)
    assert list(line.y) == pytest.approx([50, 10, 20])
    assert [symbol.endswith("-open") for symbol in line.marker.symbol] == [True, False, False]
    assert "fewer than two are judged" in history(at(1, 0.5, other_cores=0.6), at(2, 0.1)).sentence


def test_times_without_a_zone_are_utc_and_other_texts_are_left_out():
    assert time_of("2026-11-23T18:00:00") == time_of("2026-11-23T19:00:00+01:00")
    assert time_of("yesterday") is None
    file = at(3, 0.1)
    undated = replace(file, environment=replace(file.environment, started="yesterday"))
    assert history(at(1, 0.1), at(2, 0.1), undated).undated == ("3.run.json",)


def test_a_folder_of_runs_is_told_in_the_terminal_and_in_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for day in (1, 2, 3):
        artifacts.write(tmp_path / f"{day}.run.json", "run", at(day, day / 100, torch=f"2.1{day}.0"))
    assert compare(monkeypatch, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "Over 3 judged runs, 2026-11-01 to 2026-11-03, the median error went from 1.0 % to 3.0 %" in " ".join(lines)
    assert "2026-11-03 12:00  torch 2.12.0 -> 2.13.0" in lines
    assert compare(monkeypatch, tmp_path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert "changes" not in result
    assert [run["error_fraction"] for run in result["history"]["runs"]] == pytest.approx([0.01, 0.02, 0.03])
    assert [mark["changed"][0]["after"] for mark in result["history"]["version_changes"]] == ["2.12.0", "2.13.0"]


def test_a_page_is_read_back_as_the_runs_it_was_made_of(tmp_path, monkeypatch, capsys):
    file = demo_run_file()
    page, again = tmp_path / "page.html", tmp_path / "run.json"
    page.write_text(render(build([Source(name="run.json", file=file)])))
    (source,) = read_sources([page])
    assert source.name == "page.html: run.json"
    assert source.file == without_timelines(file)
    artifacts.write(again, "run", file)
    assert compare(monkeypatch, page, again) == 0
    out = capsys.readouterr().out
    assert "What changed from page.html to run.json" in out
    assert "Nothing changed but the time of the run" in out
    # A run that was written to break out of its script is read as it was.
    evil = replace(file, notes=(EVIL,))
    page.write_text(render(build([Source(name=EVIL, file=evil)])))
    assert read_sources([page])[0].file == without_timelines(evil)


@pytest.mark.parametrize("runs", [None, "[]", "{", '[{"file": {"artifact": "plan"}}]', '[{"file": 1}]'])
def test_pages_without_runs_are_one_clear_sentence(runs, tmp_path, monkeypatch, capsys):
    script = "" if runs is None else f'<script type="application/json" id="runs">{runs}</script>'
    (tmp_path / "page.html").write_text(f"<html>{script}</html>")
    assert compare(monkeypatch, tmp_path / "page.html") == 2
    error = capsys.readouterr().err
    assert "page.html" in error
    assert "Traceback" not in error


def without_timelines(file: RunFile) -> RunFile:
    return replace(
        file,
        runs=tuple(
            replace(run, prediction=replace(run.prediction, spans=()), measurement=replace(run.measurement, spans=()))
            for run in file.runs
        ),
    )


@pytest.fixture(scope="module")
def page_text() -> str:
    """The page of two sides, of which the second has another torch, an evil name and other data."""
    old, new = at(1, 0.1), at(2, 0.2, torch="2.14.0+cpu", data=EVIL)
    both = sources(old, new, at(3, 0.3, torch="2.14.0+cpu"))
    sides = Side(name="before.json", sources=(both[0],)), Side(name=EVIL, sources=tuple(both[1:]))
    return render(build(both, sides=sides))


def test_the_page_has_both_sections_and_escapes_what_files_say(page_text):
    page = Page(page_text)
    text = " ".join(" ".join(page.text).split())
    assert "What changed from before.json to" in text
    assert "2.13.0+cpu 2.14.0+cpu" in text
    assert "2026-11-02 12:00: torch 2.13.0+cpu -> 2.14.0+cpu" in text
    assert not [value for tag, name, value in page.attributes if tag == "img" or name == "onerror"]
    assert 'id="over-time"' not in render(build(sources(at(1, 0.1))))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_the_figure_without_errors(page_text, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(page_text)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=3000 --dump-dom"
    )
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'browser'}", page.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in found.stderr
    section = found.stdout.partition('<section id="over-time">')[2].partition("</section>")[0]
    # A marker per run and plan, and the upright line at the time that torch changed.
    assert len(re.findall(r'<path class="point"', section)) == 3
    assert section.count('class="shapelayer"') > 0
    assert re.search(r">1</text>", section)
    assert PLAN.id in section
