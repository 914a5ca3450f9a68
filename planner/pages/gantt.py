"""The pipeline timeline: one side, or predicted above measured on one time axis; a row per stage, idle time as gaps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

import pandas
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from planner.prediction import Span
from planner.timeline import MEASURED, PREDICTED, SPAN_KINDS, kind_of_action
from profiles.pages.figures import axis, base_layout, time_unit
from profiles.units import format_percent

HUES: Final = {
    "forward": (0, 114, 178),
    "backward": (213, 94, 0),
    "communication": (123, 79, 163),
    "codec": (204, 121, 167),
    "optimizer": (0, 158, 115),
}
# These can run beside a stage's compute, so they have a lane of their own below it.
SIDE_LANE: Final = ("communication", "codec")
MAX_LABELLED_SPANS: Final = 240


def spans_table(predicted: Sequence[Span], measured: Sequence[Span]) -> pandas.DataFrame:
    """One record per span: side, stage, kind, action, micro-batch, start and stop in seconds."""
    records = [
        {
            "side": side,
            "stage": span.stage,
            "kind": kind_of_action(span.action),
            "action": span.action,
            "microbatch": span.microbatch,
            "start_seconds": span.start_seconds,
            "stop_seconds": span.stop_seconds,
        }
        for side, side_spans in ((PREDICTED, predicted), (MEASURED, measured))
        for span in side_spans
    ]
    return pandas.DataFrame(records)


def gantt(
    spans: pandas.DataFrame,
    title: str,
    bubbles: dict[str, float | None],
    sides: Sequence[str] = (PREDICTED, MEASURED),
    row_name: str = "stage",
) -> go.Figure:
    """The timeline of one plan by its `sides`, of which `bubbles` are the idle fractions; a row is a `row_name`."""
    scale, unit = time_unit(float(spans["stop_seconds"].max()))
    stages = sorted(set(spans["stage"]))
    figure = make_subplots(
        rows=len(sides),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.3 / (1 + len(stages)),
        subplot_titles=[_heading(side, spans, bubbles) for side in sides],
    )
    seen: set[str] = set()
    for row, side in enumerate(sides, start=1):
        for kind in SPAN_KINDS:
            group = spans[(spans["side"] == side) & (spans["kind"] == kind)]
            if len(group):
                figure.add_trace(_bars(group, kind, scale, unit, kind not in seen), row=row, col=1)
                seen.add(kind)
    # The headings of the two halves start where the bars do.
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    figure.update_layout(base_layout(title, 190 + len(sides) * (46 + 44 * len(stages))), barmode="overlay", bargap=0)
    figure.update_layout(margin={"t": 92}, legend={"y": 1 + 0.3 / (1 + len(stages))})
    stop = float(spans["stop_seconds"].max()) / scale
    figure.update_xaxes(axis("", range=[min(0.0, float(spans["start_seconds"].min()) / scale), 1.01 * stop]))
    figure.update_xaxes(title_text=f"time since the step began ({unit})", row=len(sides), col=1)
    ticks = {"tickvals": stages, "ticktext": [f"{row_name} {stage} " for stage in stages]}
    figure.update_yaxes(axis("", range=[stages[-1] + 0.6, stages[0] - 0.6], showgrid=False, **ticks))
    return figure


def _heading(side: str, spans: pandas.DataFrame, bubbles: dict[str, float | None]) -> str:
    if not (spans["side"] == side).any():
        return f"{side}: no timeline recorded"
    bubble = bubbles.get(side)
    return side if bubble is None else f"{side}, bubble {format_percent(bubble)}"


def _bars(group: pandas.DataFrame, kind: str, scale: float, unit: str, show_legend: bool) -> go.Bar:
    is_aside = kind in SIDE_LANE
    start = group["start_seconds"] / scale
    length = (group["stop_seconds"] - group["start_seconds"]) / scale
    count = int(group["microbatch"].max()) + 1
    shades = [_shade(kind, microbatch, count) for microbatch in group["microbatch"]]
    is_labelled = not is_aside and len(group) <= MAX_LABELLED_SPANS
    return go.Bar(
        base=start.tolist(),
        x=length.tolist(),
        y=(group["stage"] + (0.38 if is_aside else -0.06)).tolist(),
        width=0.16 if is_aside else 0.62,
        orientation="h",
        name=kind,
        legendgroup=kind,
        showlegend=show_legend,
        marker={"color": shades, "line": {"width": 0.5, "color": "rgba(255,255,255,0.6)"}},
        text=[str(microbatch) if microbatch >= 0 else "" for microbatch in group["microbatch"]]
        if is_labelled
        else None,
        textposition="inside" if is_labelled else "none",
        insidetextanchor="middle",
        textangle=0,
        hovertext=[
            f"{html.escape(action)}{f' of micro-batch {microbatch}' if microbatch >= 0 else ''}, stage {stage}<br>"
            f"{begin:.4g} to {begin + duration:.4g} {unit} ({duration:.4g} {unit})"
            for action, microbatch, stage, begin, duration in zip(
                group["action"], group["microbatch"], group["stage"], start, length, strict=True
            )
        ],
        hoverinfo="text",
    )


def _shade(kind: str, microbatch: int, count: int) -> str:
    """The hue of a kind, lighter for later micro-batches."""
    lightness = 0.5 * max(0, microbatch) / max(1, count - 1)
    red, green, blue = (round(channel + (255 - channel) * lightness) for channel in HUES[kind])
    return f"rgb({red},{green},{blue})"
