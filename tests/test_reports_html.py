"""The page as a browser gets it: complete, self-contained, escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from profiles.units import format_seconds
from reports.comparison import Source
from reports.pages.html import render
from reports.report import Report, build
from tests.report_builders import beside, demo_run_file, load, run_file, simple_run

EVIL = "</script><img src=https://example.com/x onerror=alert(1)>"


class Page(HTMLParser):
    """Collects attributes, visible text and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self._is_style = False
        self.styles = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self._script = dict(attrs).get("id") or f"script-{len(self.scripts)}"
            self.scripts[self._script] = ""
        self._is_style = tag == "style"

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None
        self._is_style = False

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] += data
        elif self._is_style:
            self.styles += data
        else:
            self.text.append(data)


def page_of(report: Report) -> Page:
    return Page(render(report))


@pytest.fixture(scope="module")
def report() -> Report:
    return build([Source(name="run.json", file=demo_run_file())])


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return page_of(report)


def test_nothing_is_loaded_from_outside(page):
    loading = ("src", "href", "srcset", "data", "action", "poster")
    values = [value for _, name, value in page.attributes if name in loading]
    assert values == ["data:,"]
    assert not re.search(r"url\(|@import", page.styles)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy.startswith("default-src 'none'")


def test_plotly_is_embedded_exactly_once(page):
    assert page.scripts["plotly"] == get_plotlyjs()
    assert sum("plotly.js v" in script for script in page.scripts.values()) == 1


def test_every_plan_and_number_is_on_the_page(page, report):
    text = " ".join(page.text)
    for row in report.rows:
        assert row.plan_id in text
        assert format_seconds(row.predicted_seconds) in text
        assert format_seconds(row.measured_seconds) in text
        assert f"{row.error_fraction * 100:+.1f} %" in text
        assert f'"micro_batch_size": {row.run.plan.micro_batch_size}' in text
    for fact in ("2.13.0+cpu", "741dd9e", "0123456789ab", "execute plan.json --steps 20", "bytes as tokens"):
        assert fact in text
    assert "gradients are reduced in buckets of 25 MiB" in text
    assert "not observable" in text


def test_embedded_numbers_are_the_machine_readable_ones(page, report):
    assert json.loads(page.scripts["data"]) == json.loads(json.dumps(report.to_json()))


def test_each_drawing_has_its_figure_and_table(page):
    plots = [value for tag, name, value in page.attributes if tag == "div" and name == "id"]
    assert {"scatter", "parts", "memory"} <= set(plots)
    assert sum(plot.startswith("timeline-") for plot in plots) == 7
    for plot in plots:
        assert json.loads(page.scripts[f"{plot}-figure"])["data"]
    assert " ".join(page.text).count("Numbers of this figure") == len(plots)


def test_text_from_files_is_escaped():
    file = demo_run_file()
    run = file.runs[0]
    run = replace(run, plan=replace(run.plan, codec=EVIL), prediction=replace(run.prediction, assumptions=(EVIL,)))
    file = replace(
        file, runs=(run,), model_name=EVIL, notes=(EVIL,), environment=replace(file.environment, command=EVIL)
    )
    page = page_of(build([Source(name=EVIL, file=file)]))
    assert not [value for tag, name, value in page.attributes if tag == "img" or name == "onerror"]
    assert json.loads(page.scripts["data"])["rows"][0]["plan"]["codec"] == EVIL


def test_the_least_a_run_can_hold():
    least = simple_run(1.0, [1.0])
    page = page_of(build([Source(name="run.json", file=run_file([least], oversubscribed=True))]))
    text = " ".join(page.text)
    assert "Not judged" in text
    assert "no run of this report is judged" in text


def test_a_busy_machine_is_marked():
    run = beside(simple_run(1.0, [2.0]), 0.97)
    file = run_file([run])
    file = replace(file, environment=replace(file.environment, load_before=load(1.9)))
    text = " ".join(page_of(build([Source(name="run.json", file=file)])).text)
    assert "not judged: a busy machine" in text
    assert "-50.0 %" in text
    assert "machine before the run 1.9 of 2 cores taken by other processes" in " ".join(text.split())
    assert "machine during timed steps 0.97 of 2 cores taken by other processes" in " ".join(text.split())
    quiet = " ".join(page_of(build([Source(name="run.json", file=run_file([beside(run, 0.01)]))])).text)
    assert "machine before the run unknown machine during timed steps quiet" in " ".join(quiet.split())


def test_several_files_name_their_runs():
    sources = [Source(name=f"run{seed}.json", file=demo_run_file(seed)) for seed in (1, 2)]
    text = " ".join(page_of(build(sources)).text)
    assert "run1.json" in text
    assert "run2.json" in text
