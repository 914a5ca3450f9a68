"""Figures of the best plans: where a step goes, what memory holds, what would change it, what was turned down."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go

from planner.answers import Change
from planner.pages.styles import PART_STYLES
from planner.prediction import Candidate
from planner.space.memory_by_layer import HeldBytes, total_bytes
from planner.stacks.abilities import lacked
from profiles.pages.figures import TEXT, axis, base_layout, stacked_bar, time_unit
from profiles.units import format_bytes, format_percent, format_seconds

KIND_COLOURS: Final = {
    "weights": "#0072B2",
    "gradients": "#E69F00",
    "optimizer state": "#009E73",
    "activations": "#D55E00",
    "buffers": "#CC79A7",
    "allocator's holes": "#9E9E9E",
    "outside torch": "#6F7A87",
}
FASTER, SLOWER = "#0072B2", "#D55E00"
FRAME: Final = "rgba(128,128,128,0.08)"
# On these white is too faint.
DARK_TEXT_ON: Final = {"#E69F00", "#CC79A7", "#9E9E9E"}
# Less than this is drawn as nothing, so that no bar is thinner than its outline.
LEAST_CHANGE: Final = 0.0005
OPPOSITES: Final = (
    ("half the ", "twice the "), ("products 15 % slower", "products 15 % faster"),
    ("messages that take twice as long", "messages that take half as long"),
)  # fmt: skip


def parts_bars(plans: Sequence[Candidate]) -> go.Figure:
    """Seconds of a step by part, a bar per plan with its name above it."""
    largest = max(own.prediction.step_seconds for own in plans)
    scale, unit = time_unit(largest)
    figure = go.Figure()
    for name, style in PART_STYLES.items():
        values = [own.prediction.seconds.get(name, 0.0) / scale for own in plans]
        # A part may be slightly below nothing where it is what is left.
        if max(values) * scale <= 1e-4 * largest:
            continue
        hovers = [
            f"{html.escape(own.plan.id)}<br>{style.name}: {format_seconds(value * scale)}"
            for own, value in zip(plans, values, strict=True)
        ]
        figure.add_trace(stacked_bar(style, values, [2 * index + 1 for index in range(len(plans))], hovers))
    for index, own in enumerate(plans):
        text = html.escape(f"{own.rank}. {own.plan.id}")
        figure.add_annotation(text=text, x=0, y=2 * index + 0.25, xanchor="left", showarrow=False, font={"size": 12})
        figure.add_annotation(text=f" {format_seconds(own.prediction.step_seconds)}", y=2 * index + 1, xanchor="left",
                              x=own.prediction.step_seconds / scale, showarrow=False)  # fmt: skip
    figure.update_layout(base_layout("Where the step goes", 130 + 46 * len(plans)), barmode="stack")
    figure.update_xaxes(axis(f"step time ({unit})", range=[0, 1.18 * largest / scale]))
    figure.update_yaxes(axis("", range=[2 * len(plans) - 0.2, -0.3], visible=False))
    return figure


def treemap(held: Sequence[HeldBytes], memory_bytes: float | None) -> go.Figure:
    """Bytes of the fullest rank by kind, and within a kind by layer; areas add up to the peak."""
    whole = total_bytes(held)
    kinds = list(dict.fromkeys(one.kind for one in held))
    sums = {kind: total_bytes([one for one in held if one.kind == kind]) for kind in kinds}
    ids, labels, parents, values, colours = ["peak"], ["peak"], [""], [whole], [FRAME]
    for kind in kinds:
        ids.append(html.escape(kind))
        labels.append(html.escape(kind))
        parents.append("peak")
        values.append(sums[kind])
        colours.append(KIND_COLOURS.get(kind, "#9E9E9E"))
    for one in held:
        if one.layers:
            ids.append(html.escape(f"{one.kind}/{one.layers}"))
            labels.append(html.escape(one.layers))
            parents.append(html.escape(one.kind))
            values.append(one.num_bytes)
            colours.append(KIND_COLOURS.get(one.kind, "#9E9E9E"))
    figure = go.Figure(
        go.Treemap(
            ids=ids,
            labels=labels,
            parents=parents,
            values=values,
            branchvalues="total",
            sort=True,
            marker={
                "colors": colours,
                "line": {"width": 1.5, "color": "rgba(255,255,255,0.75)"},
                "pad": {"t": 20, "l": 2, "r": 2, "b": 2},
            },
            text=[f"{format_bytes(value)}, {format_percent(value / whole)}" for value in values],
            textinfo="label+text",
            textfont={"color": [_text_on(one) for one in colours], "size": 12},
            hovertext=[
                f"<b>{label}</b><br>{format_bytes(value)}, {format_percent(value / whole)} of the peak"
                for label, value in zip(labels, values, strict=True)
            ],
            hoverinfo="text",
            pathbar={"visible": False},
            tiling={"pad": 1},
        )
    )
    room = "" if memory_bytes is None else f" of {format_bytes(memory_bytes)}"
    layout = base_layout(f"Memory of the fullest rank: {format_bytes(whole)}{room}", 400)
    # Names that do not fit are left to the table.
    figure.update_layout(layout, margin={"l": 0, "r": 0, "t": 28, "b": 0}, uniformtext={"minsize": 10, "mode": "hide"})
    return figure


def _text_on(colour: str) -> str:
    return TEXT if colour == FRAME else "#111111" if colour in DARK_TEXT_ON else "#ffffff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swing:
    """An unknown with the changes that are priced of it, at most one way and the other."""

    name: str
    changes: tuple[Change, ...]

    @property
    def words(self) -> str:
        """What is changed: `half / twice the bandwidth`."""
        first, *others = (change.what for change in self.changes)
        for other in others:
            mine, its = first.split(), other.split()
            same = next((n for n, pair in enumerate(zip(mine, its, strict=False)) if pair[0] != pair[1]), len(mine) - 1)
            first = " ".join([*mine[:same], mine[same], "/", its[same], *mine[same + 1 :]])
        return first

    @property
    def reach(self) -> float:
        """How far the step moves at the most."""
        return max(abs(change.change_fraction) for change in self.changes)


def swings(changes: Sequence[Change]) -> list[Swing]:
    """Changes by what they are of, those that move the step most first."""
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(_unknown(change.what), []).append(change)
    made = [Swing(name=name, changes=tuple(own)) for name, own in found.items()]
    return sorted(made, key=lambda swing: -swing.reach)


def _unknown(what: str) -> str:
    """What a change is of: twice and half of one thing are together where both are priced."""
    for pair in OPPOSITES:
        for words in pair:
            if what.startswith(words):
                return what.removeprefix(words) or pair[0]
    return what


def tornado(changes: Sequence[Change]) -> go.Figure:
    """How much longer or shorter a step would be in percent, unknown by unknown."""
    rows = swings(changes)
    figure = go.Figure()
    for is_slower, name, colour in ((False, "faster", FASTER), (True, "slower", SLOWER)):
        bars = [
            (place, change)
            for place, swing in enumerate(rows)
            for change in swing.changes
            if (change.change_fraction > 0) == is_slower and abs(change.change_fraction) >= LEAST_CHANGE
        ]
        shapes = ["" if change.is_same else "/" for _, change in bars]
        pattern = {"shape": shapes, "fillmode": "overlay", "fgopacity": 0.6, "fgcolor": "#ffffff"}
        # A mark of the legend is never hatched.
        figure.add_trace(go.Bar(x=[None], y=[None], name=f"{name} than predicted", marker={"color": colour}))
        figure.add_trace(
            go.Bar(
                x=[100 * change.change_fraction for _, change in bars],
                y=[2 * place + 1 for place, _ in bars],
                orientation="h",
                width=0.95,
                name=name,
                showlegend=False,
                marker={"color": colour, "pattern": pattern},
                text=[_said(change) for _, change in bars],
                textposition="outside",
                cliponaxis=False,
                hovertext=[_change_hover(change) for _, change in bars],
                hoverinfo="text",
            )
        )
    for place, swing in enumerate(rows):
        text = html.escape(swing.words)
        figure.add_annotation(x=0, xref="paper", y=2 * place + 0.2, text=text, xanchor="left", showarrow=False)
        if swing.reach < LEAST_CHANGE:
            figure.add_annotation(x=0, y=2 * place + 1, text=" no change", xanchor="left", showarrow=False)
    most = max(100 * max((swing.reach for swing in rows), default=0.0), 1.0)
    figure.update_layout(
        base_layout("The best plan's step time if an unknown is off", 120 + 46 * len(rows)),
        barmode="overlay",
    )
    figure.update_xaxes(axis("change of the step time (%)", range=[-1.35 * most, 1.35 * most], ticksuffix=" %"))
    figure.update_xaxes(zeroline=True, zerolinecolor=TEXT, zerolinewidth=1)
    figure.update_yaxes(axis("", range=[2 * len(rows) - 0.2, -0.4], visible=False))
    return figure


def _said(change: Change) -> str:
    return format_percent(change.change_fraction, signed=True) + ("" if change.is_same else " *")


def _change_hover(change: Change) -> str:
    words = f"{html.escape(change.what)}<br>{format_seconds(change.step_seconds)} a step, {_said(change)}"
    if change.is_same:
        return f"{words}; the same plan is best"
    return f"{words}<br>then {html.escape(change.winner)}<br>in {format_seconds(change.winner_seconds)} is best"


def refusals(counts: Mapping[str, int], stack: str) -> go.Figure:
    """How many plans were turned down by reason, on a logarithmic axis; `stack` may lack what they need."""
    rows = sorted(counts.items(), key=lambda pair: -pair[1])
    figure = go.Figure(
        go.Bar(
            x=[count for _, count in rows],
            y=[2 * index + 1 for index in range(len(rows))],
            orientation="h",
            width=0.95,
            marker={"color": "#6F7A87"},
            text=[f" {count:,}" for _, count in rows],
            textposition="outside",
            cliponaxis=False,
            hovertext=[f"{html.escape(reason)}: {count:,}" for reason, count in rows],
            hoverinfo="text",
            showlegend=False,
        )
    )
    for index, (reason, _) in enumerate(rows):
        need = lacked(reason, stack)
        short = f"need {need}" if need else reason
        figure.add_annotation(x=0, xref="paper", y=2 * index + 0.2, text=html.escape(short), xanchor="left",
                              showarrow=False)  # fmt: skip
    figure.update_layout(base_layout("Rejected plans, by reason", 76 + 44 * len(rows)), margin_t=34)
    figure.update_xaxes(axis("plans", type="log", range=[-0.3, _log(rows[0][1]) * 1.2 + 0.5], dtick=1))
    figure.update_yaxes(axis("", range=[2 * len(rows) - 0.2, -0.4], visible=False))
    return figure


def _log(count: int) -> float:
    return len(str(count)) - 1.0
