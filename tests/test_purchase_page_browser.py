"""The page of a purchase in a real browser: no errors, no requests, order of rows by keyboard, narrow screens."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.pages.purchase.page import render
from tests.browser import CHROMIUM, check_drawn
from tests.test_purchase_page import buy, evil

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

RANKS = '[...document.querySelectorAll("#rows tr[data-rank]")].map((row) => Number(row.dataset.rank))'


@pytest.fixture(scope="module")
def found():
    return buy()


@pytest.fixture(scope="module")
def pages(found, tmp_path_factory) -> tuple[Path, Path]:
    """A page, and the same with a script in every text that is not ours."""
    folder = tmp_path_factory.mktemp("pages")
    paths = folder / "buy.html", folder / "evil.html"
    for path, answer in zip(paths, (found, evil(found)), strict=True):
        path.write_text(render(answer), encoding="utf-8")
    return paths


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_the_page_draws_all_figures_without_errors_or_requests(browser, pages, width, dark):
    check_drawn(browser, pages[0], width, dark=dark, plots=5)


def test_rows_are_put_in_order_by_keyboard(browser, pages, found):
    browser.errors.clear()
    browser.open(pages[0], 1280)
    assert browser.run(RANKS) == [row.rank for row in found.rows]
    for _ in range(6):
        browser.press("Tab", 9)
        if browser.run('document.activeElement.id === "order"'):
            break
    assert browser.run("document.activeElement.id") == "order"
    browser.press("ArrowDown", 40)
    browser.run("new Promise((done) => setTimeout(done, 50))")
    known = sorted((row for row in found.rows if row.cost), key=lambda row: (row.cost.days, row.rank))
    rest = [row.rank for row in found.rows if not row.cost]
    assert browser.run(RANKS) == [row.rank for row in known] + rest
    assert browser.errors == []


def test_no_text_of_a_file_becomes_code(browser, pages):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(pages[1], 1280)
    assert browser.run('document.querySelectorAll("img").length') == 0
    assert set(browser.requests) == {pages[1].as_uri()}
    assert browser.errors == []
