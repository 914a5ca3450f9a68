"""The page of a plan in a real browser: no errors, no requests, filters, keyboard, narrow screens."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.ask import answer_to
from planner.pages.content import content_of
from planner.pages.page import render
from planner.purchase.terms import usual_terms
from planner.request import Request
from planner.space.beside import Questions
from tests.browser import CHROMIUM, Browser, check_drawn
from tests.test_plan_page import evil

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

POINTS = """document.getElementById("scatter").data.filter((trace) => trace.customdata)
  .reduce((sum, trace) => sum + trace.x.length, 0)"""
ROWS = '[...document.querySelectorAll("#plans tr[data-plan]")].filter((row) => !row.hidden).length'
LINES = 'document.getElementById("parallel").data.filter((trace) => trace.visible !== false).length'
SHOWN = 'document.getElementById("shown").textContent'
PLANS = 'JSON.parse(document.getElementById("data").textContent).plans'


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> tuple[Path, Path]:
    """A page, and the same with a script in every text that is not ours."""
    folder = tmp_path_factory.mktemp("pages")
    question = Request(model="llama-3.1-8b", num_devices=16, device="h100-sxm", global_batches=(64,), top=4)
    known = content_of(answer_to(question, Questions(tokens=1e12, terms=usual_terms(2.0))), offers_all=False)
    paths = folder / "plan.html", folder / "evil.html"
    for path, content in zip(paths, (known, evil(known)), strict=True):
        path.write_text(render(content), encoding="utf-8")
    return paths


def choose(browser: Browser, name: str, value: object) -> None:
    browser.run(f"""(() => {{
      const field = document.querySelector('[data-filter="{name}"]');
      field.value = "{value}"; field.dispatchEvent(new Event("change", {{ bubbles: true }}));
    }})()""")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_the_page_draws_all_figures_without_errors_or_requests(browser, pages, width, dark):
    check_drawn(browser, pages[0], width, dark=dark, plots=8)


def test_a_filter_leaves_the_same_plans_in_figures_and_table(browser, pages):
    browser.errors.clear()
    browser.open(pages[0], 1280)
    plans = browser.run(PLANS)
    assert browser.run(POINTS) == len(plans) == browser.run(LINES)
    assert browser.run(ROWS) == sum(plan["in_table"] and not plan["folded_into"] for plan in plans)
    browser.run('document.getElementById("every").click()')
    assert browser.run(ROWS) == len(plans)
    choose(browser, "zero", 3)
    kept = [plan for plan in plans if plan["zero"] == 3]
    assert 0 < len(kept) < len(plans)
    assert browser.run(POINTS) == browser.run(LINES) == browser.run(ROWS) == len(kept)
    assert browser.run(SHOWN) == f"{len(kept)} of {len(plans)} plans"
    front = browser.run('document.getElementById("scatter").data[0].x.length')
    points = [(plan["step_seconds"], plan["peak_bytes"]) for plan in kept]
    unbeaten = {one for one in points if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in points)}
    assert front == len(unbeaten)
    browser.run('document.querySelector(".filters button").click()')
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run(POINTS) == len(plans)
    assert browser.errors == []


def test_money_can_be_drawn_instead_of_time(browser, pages):
    browser.open(pages[0], 1280)
    browser.run("""(() => {
      const field = document.getElementById("measure");
      field.value = "dollars"; field.dispatchEvent(new Event("change", { bubbles: true }));
    })()""")
    trace = 'document.getElementById("scatter").data[1]'
    plan = browser.run(PLANS)[browser.run(f"{trace}.customdata[0]")]
    scale = browser.run('JSON.parse(document.getElementById("data").textContent).measures.dollars.over')
    assert browser.run(f"{trace}.y[0]") == pytest.approx(plan["dollars"] / scale)
    assert "money" in browser.run('document.getElementById("scatter").layout.yaxis.title.text')


def test_filters_are_reached_and_changed_by_keyboard(browser, pages):
    browser.open(pages[0], 1280)
    for _ in range(12):
        browser.press("Tab", 9)
        if browser.run('document.activeElement.dataset.filter === "zero"'):
            break
    assert browser.run("document.activeElement.dataset.filter") == "zero"
    before = browser.run(POINTS)
    browser.press("ArrowDown", 40)
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run(POINTS) < before


def test_no_text_of_a_file_becomes_code(browser, pages):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(pages[1], 1280)
    assert browser.run('document.querySelectorAll("img").length') == 0
    choose(browser, "zero", 3)
    assert set(browser.requests) == {pages[1].as_uri()}
    assert browser.errors == []
