"""The page of a plan: one file that works offline, drawn like the pages about runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from planner.pages import asked, best_figures, tables
from planner.pages.content import Content
from planner.pages.gantt import gantt, spans_table
from planner.pages.machine_drawing import drawing_figure
from planner.pages.plan_rows import band_words, cells, filters, header, records
from planner.pages.plans_figures import is_near, memory_scale, parallel, scatter
from planner.pages.words import (
    links_words,
    memory_words,
    notes,
    refusal_words,
    rests_words,
    scatter_words,
    tiles,
    tornado_words,
    verdict,
)
from planner.prediction import Candidate
from planner.timeline import PREDICTED, bubble_fraction
from profiles.machines.stacks import THIS_PROGRAM
from profiles.pages.figures import money_unit, time_unit
from profiles.pages.html import Picture, environment, json_script, picture, plotly_script

# Plans whose steps are drawn part by part.
MOST_BARS: Final = 6


def render(content: Content) -> str:
    """The whole page as HTML text."""
    file, rows = content.file, records(content)
    shown = [own for own in file.candidates if not own.folded_into][:MOST_BARS]
    made = _measures(rows)
    where = file.machine_name if " + " in file.machine_name else f"{file.num_devices} x {file.machine_name}"
    return environment("planner.pages").get_template("plan.html").render(
        title=f"{file.model_name} on {where}",
        verdict=verdict(content),
        tiles=tiles(content),
        notes=notes(content),
        filters=filters(rows),
        measures=[(name, measure["label"]) for name, measure in made.items()],
        rows=[
            (row, cells(content, own), band_words(own.prediction))
            for row, own in zip(rows, content.plans, strict=True)
        ],
        header=header(content),
        marks_simulated=file.stack == THIS_PROGRAM,
        scatter=picture("scatter", scatter(rows, content.memory_bytes), tables.points_table(rows)),
        scatter_words=scatter_words(content, _draws_device(rows, content)),
        parallel=picture("parallel", parallel(rows), tables.choices_table(rows)) if len(rows) > 1 else None,
        parts=picture("parts", best_figures.parts_bars(shown), tables.parts_table(shown)),
        **_best(content),
        compression=tables.compression_table(file.compression) if file.compression else None,
        grounds=tables.grounds_table(content.grounds) if content.grounds else None,
        resembling=tables.resembling_table(content.resembling) if content.resembling else None,
        rests_words=rests_words(content),
        command=content.command,
        facts=asked.facts(content),
        answered=asked.answered(content),
        legend=asked.words_of_plans(content),
        best_id=content.best.plan.id,
        best_json=_plan_json(content.best),
        data=json_script({"plans": rows, "measures": made, "bytes": memory_scale(rows)[0]}),
        plotly=plotly_script(),
    ).lstrip()  # fmt: skip


def _draws_device(rows: Sequence[dict[str, Any]], content: Content) -> bool:
    return content.memory_bytes is not None and is_near(rows, content.memory_bytes)


def _best(content: Content) -> dict[str, Any]:
    """What is drawn of the best plan, and what is said where nothing is."""
    timeline, rejected = content.timeline, content.file.rejected
    return {
        "timeline": _timeline(content) if timeline.spans else None,
        "timeline_words": timeline.words,
        "memory": picture(
            "memory",
            best_figures.treemap(content.memory, content.memory_bytes),
            tables.memory_table(content.memory),
        )
        if content.memory
        else None,
        "memory_words": memory_words(content),
        "links": picture("links", drawing_figure(content.drawing), tables.links_table(content.drawing))
        if content.drawing
        else None,
        "links_words": links_words(content),
        "tornado": picture("tornado", best_figures.tornado(content.changes), tables.changes_table(content.changes))
        if content.changes
        else None,
        "tornado_words": tornado_words(content),
        "refusals": picture(
            "refusals", best_figures.refusals(rejected, content.file.stack), tables.refusals_table(rejected)
        )
        if rejected
        else None,
        "refusal_words": refusal_words(content),
    }


def _timeline(content: Content) -> Picture:
    spans = content.timeline.spans
    is_whole = content.timeline.drawn_until_seconds >= content.timeline.step_seconds
    bubbles = {PREDICTED: bubble_fraction(spans) if is_whole else None}
    figure = gantt(spans_table(spans, ()), "Timeline of the best plan", bubbles, (PREDICTED,), "rank")
    return picture("timeline", figure, tables.timeline_table(spans))


def _measures(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What may be drawn against memory: the record's key, what it is divided by, and the axis's title."""
    scale, unit = time_unit(max(row["step_seconds"] for row in rows))
    found = {"step": {"key": "step_seconds", "over": scale, "title": f"step time ({unit})", "label": "step time"}}
    if "days" in rows[0]:
        found["days"] = {"key": "days", "over": 1.0, "title": "days for the tokens asked about", "label": "days"}
    if "dollars" in rows[0]:
        over, name = money_unit(max(row["dollars"] for row in rows))
        title = f"money ({name}dollars, lowest price)" if rows[0]["dollars"] < rows[0]["most_dollars"] else (
            f"money ({name}dollars)"
        )  # fmt: skip
        found["dollars"] = {"key": "dollars", "over": over, "title": title, "label": "money"}
    return found


def _plan_json(own: Candidate) -> str:
    return json.dumps(asdict(own.plan), indent=1)
