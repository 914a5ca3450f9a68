"""A drawn part of the machine: fast domains with some of their devices, and the groups of rank 0 along every axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go

from planner.pages.styles import PART_STYLES
from planner.plans import Plan
from planner.space.question import Setting
from planner.space.topology import axis_links, joined_group
from profiles.pages.figures import axis, base_layout
from profiles.units import GB, three_digits

MOST_DOMAINS, MOST_PER_DOMAIN = 6, 16
# Devices of a row where there are no fast domains.
PLAIN_ROW: Final = 8
# Beside a device's mark, so that lines of several axes can be told apart.
OFFSETS: Final = (0.0, 0.12, -0.12, 0.24, -0.24)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAxis:
    """The drawn ranks of rank 0's group along an axis of `degree` ranks, and what joins them."""

    axis: str
    degree: int
    ranks: tuple[int, ...]
    num_domains: int
    bytes_per_second: float

    @property
    def words(self) -> str:
        """Where the group lies, and at which rate."""
        where = "inside one fast domain" if self.num_domains == 1 else f"across {self.num_domains} fast domains"
        return f"{self.axis} {self.degree}, {where}, {three_digits(self.bytes_per_second / GB)} GB/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """`rows` of drawn ranks by the number of their domain, of `num_domains`; `name` is what a row is.

    `joined` are pairs of drawn ranks that reach each other without the network.
    """

    rows: dict[int, tuple[int, ...]]
    num_domains: int
    name: str
    axes: tuple[DrawnAxis, ...]
    joined: frozenset[tuple[int, int]]
    fast_bytes_per_second: float
    network_bytes_per_second: float


def drawing_of(plan: Plan, at: Setting) -> Drawing | None:
    """The part of the machine that shows what the plan's axes cross; None where one device does all."""
    links = axis_links(plan, at)
    if not links:
        return None
    size = at.fast_domain if at.fast_domain > 1 else PLAIN_ROW
    groups = {own.axis: joined_group(plan, own.axis, at) for own in links}
    chosen = sorted(_domains(list(groups.values()), size, -(-at.num_devices // size)))
    rows = {number: _devices(number, size, at.num_devices, list(groups.values())) for number in chosen}
    drawn = {rank for ranks in rows.values() for rank in ranks}
    return Drawing(
        rows=rows,
        num_domains=-(-at.num_devices // size),
        name=_name_of_row(at),
        axes=tuple(
            DrawnAxis(
                axis=own.axis,
                degree=own.degree,
                ranks=tuple(rank for rank in groups[own.axis] if rank in drawn),
                num_domains=own.num_domains,
                bytes_per_second=own.bytes_per_second,
            )
            for own in links
        ),
        joined=_joined(at, drawn),
        fast_bytes_per_second=at.fast_bytes_per_second,
        network_bytes_per_second=at.network_bytes_per_second,
    )


def _name_of_row(at: Setting) -> str:
    if at.fast_domain <= 1:
        return "devices"
    return "node" if at.fast_domain == at.devices_per_node else "domain"


def _domains(groups: Sequence[range], size: int, count: int) -> set[int]:
    """The first domains of every group, in turns, and what is free then."""
    visits = [list(dict.fromkeys(rank // size for rank in group)) for group in groups]
    turns = [own[turn] for turn in range(MOST_DOMAINS) for own in visits if turn < len(own)]
    return set(list(dict.fromkeys([0, *turns, *range(min(count, MOST_DOMAINS))]))[: min(MOST_DOMAINS, count)])


def _devices(domain: int, size: int, count: int, groups: Sequence[range]) -> tuple[int, ...]:
    """The ranks that are drawn of a domain: all, or of many those of the groups first."""
    every = range(domain * size, min((domain + 1) * size, count))
    if len(every) <= MOST_PER_DOMAIN:
        return tuple(every)
    members = [rank for group in groups for rank in group if rank in every][:MOST_PER_DOMAIN]
    return tuple(sorted(list(dict.fromkeys([*members, *every]))[:MOST_PER_DOMAIN]))


def _joined(at: Setting, drawn: set[int]) -> frozenset[tuple[int, int]]:
    """Devices of one fast domain; all others reach each other through the network."""
    size = max(at.fast_domain, 1)
    return frozenset((one, other) for one in drawn for other in drawn if one // size == other // size)


def drawing_figure(drawing: Drawing) -> go.Figure:
    """The devices as squares, a row per domain, and a line through the group of every axis."""
    rows = list(drawing.rows)
    places = {
        rank: (float(column), -float(rows.index(domain)))
        for domain, ranks in drawing.rows.items()
        for column, rank in enumerate(ranks)
    }
    widest = max(map(len, drawing.rows.values()))
    figure = go.Figure()
    for number, own in enumerate(drawing.axes):
        for trace in _lines(own, places, drawing, OFFSETS[number % len(OFFSETS)]):
            figure.add_trace(trace)
    figure.add_trace(_squares(places, small=widest > PLAIN_ROW))
    layout = base_layout("Which links the axes of the best plan cross", 140 + 24 * len(drawing.axes) + 58 * len(rows))
    figure.update_layout(layout)
    figure.update_xaxes(axis("", visible=False, range=[-0.6, widest - 0.4], fixedrange=True))
    ticks = {"tickvals": [-index for index in range(len(rows))], "ticktext": [f"{drawing.name} {n} " for n in rows]}
    if drawing.name == "devices":
        ticks["ticktext"] = [f"from {drawing.rows[number][0]} " for number in rows]
    figure.update_yaxes(axis("", range=[0.55 - len(rows), 0.6], showgrid=False, fixedrange=True, **ticks))
    return figure


def _squares(places: dict[int, tuple[float, float]], small: bool) -> go.Scatter:
    return go.Scatter(
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        mode="markers+text",
        marker={"symbol": "square", "size": 17 if small else 25, "color": "#6F7A87", "line": {"width": 0}},
        text=[str(rank) for rank in places],
        textfont={"size": 8 if small else 11, "color": "#ffffff"},
        hovertext=[f"rank {rank}" for rank in places],
        hoverinfo="text",
        showlegend=False,
        name="devices",
    )


def _lines(
    own: DrawnAxis, places: dict[int, tuple[float, float]], drawing: Drawing, offset: float
) -> Iterator[go.Scatter]:
    """The line of an axis: whole within a fast domain, dashed over the network."""
    style = PART_STYLES[f"{own.axis}_comm"]
    pieces: dict[bool, list[tuple[float | None, float | None]]] = {True: [], False: []}
    for one, other in _hops(own.ranks, drawing.joined):
        (x, y), (to_x, to_y) = places[one], places[other]
        beside = offset if x == to_x else 0.0
        above = 0.3 + offset if y == to_y else 0.0
        ends = [(x + beside, y), (x + beside, y + above), (to_x + beside, to_y + above), (to_x + beside, to_y)]
        pieces[(one, other) in drawing.joined] += [*ends, (None, None)]
    is_named = False
    for is_inside, line in pieces.items():
        if line:
            yield go.Scatter(
                x=[x for x, _ in line],
                y=[y for _, y in line],
                mode="lines",
                line={"color": style.colour, "width": 4, "dash": "solid" if is_inside else "dot"},
                name=own.words,
                legendgroup=own.axis,
                showlegend=not is_named,
                hoverinfo="skip",
            )
            is_named = True
    if not is_named:
        yield go.Scatter(x=[None], y=[None], mode="lines", line={"color": style.colour, "width": 4, "dash": "dot"},
                         name=own.words, legendgroup=own.axis)  # fmt: skip


def _hops(ranks: Sequence[int], joined: frozenset[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """From each rank to the next in its domain, and from the first of a domain to the first of the next."""
    first = ranks[0]
    for one, other in itertools.pairwise(ranks):
        if (one, other) in joined:
            yield one, other
        else:
            yield first, other
            first = other
