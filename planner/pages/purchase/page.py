"""The page of a purchase: one file that works offline, drawn like the page of a plan."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner.pages.purchase import best_plans, figures, tables, words
from planner.pages.purchase.points import is_curve, planned, priced
from planner.purchase.answer import PurchaseAnswer, Row
from planner.terminal.show_answers import like_it
from profiles.files import write_text
from profiles.machines.stacks import THIS_PROGRAM
from profiles.pages.html import Picture, environment, picture, plotly_script
from profiles.units import format_bytes

ORDERS = {"days": "fastest", "dollars": "cheapest", "energy": "least energy", "efficiency": "most efficient"}


def write_page(path: Path, answer: PurchaseAnswer) -> None:
    """Write the page.

    Raises: EnvironmentFailure where it cannot be written.
    """
    write_text(path, render(answer))


def render(answer: PurchaseAnswer) -> str:
    """The whole page as HTML text."""
    names = tables.header(answer)
    return environment("planner.pages").get_template("purchase.html").render(
        title=words.title(answer),
        verdict=words.verdict(answer),
        tiles=words.tiles(answer),
        notes=answer.notes,
        header=names,
        orders=_orders(answer),
        rows=[_row(answer, row) for row in answer.rows],
        speed=_speed(answer),
        speed_words=words.speed_words(answer),
        efficiency=picture("efficiency", figures.efficiency(answer), tables.efficiency_table(answer))
        if is_curve(answer)
        else None,
        efficiency_words=words.efficiency_words(answer),
        bill=picture("bill", figures.bill(answer), tables.bill_table(answer))
        if answer.is_budget and list(priced(answer))
        else None,
        bill_words=words.bill_words(answer),
        parts=picture("parts", best_plans.parts(answer), best_plans.parts_table(answer))
        if best_plans.has_parts(answer)
        else None,
        memory=picture("memory", best_plans.memory(answer), best_plans.memory_table(answer))
        if best_plans.has_kinds(answer)
        else None,
        failures=tables.failures_table(answer),
        prices=tables.prices_table(answer),
        assumptions=tables.assumptions_table(answer),
        rests=words.rests(answer),
        facts=tables.facts(answer),
        plans=[_plan(answer, row) for row in planned(answer)],
        plotly=plotly_script(),
    ).lstrip()  # fmt: skip


def _orders(answer: PurchaseAnswer) -> list[tuple[str, str]]:
    """What rows can be put in order by: what differs between them."""
    values = {name: {tables.sorting(row)[name] for row in answer.rows} - {None} for name in ORDERS}
    return [(name, title) for name, title in ORDERS.items() if len(values[name]) > 1]


def _speed(answer: PurchaseAnswer) -> Picture | None:
    """The curve where there are several counts, bars where there are several kinds alone."""
    if is_curve(answer):
        return picture("speed", figures.scaling(answer), tables.speed_table(answer))
    if len(planned(answer)) > 1:
        return picture("speed", figures.speeds(answer), tables.speed_table(answer))
    return None


def _row(answer: PurchaseAnswer, row: Row) -> dict[str, Any]:
    """A row of the page's table."""
    held = "" if row.peak_bytes is None else format_bytes(row.peak_bytes)
    room = "" if row.memory_bytes is None else f" of {format_bytes(row.memory_bytes)}"
    return {
        "rank": row.rank,
        "title": row.title,
        "tags": tables.tags(answer, row),
        "cells": tables.cells(answer, row),
        "plan": row.plan,
        "memory": f"{held}{room}",
        "refusal": row.refusal,
        "sorting": tables.sorting(row),
    }


def _plan(answer: PurchaseAnswer, row: Row) -> dict[str, Any]:
    """A row's best plan, to be copied."""
    best = answer.best(row.rank)
    is_planned_only = answer.stack == THIS_PROGRAM and not best.executable
    return {
        "rank": row.rank,
        "title": row.title,
        "id": best.plan.id,
        "why": f"{best.verdict}{like_it(best)}{'; simulate only' if is_planned_only else ''}",
        "json": json.dumps(asdict(best.plan), indent=1),
    }
