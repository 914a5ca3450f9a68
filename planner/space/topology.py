"""Which links a plan's axes cross: those of a fast domain, or the network between several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.answers import AxisLinks
from planner.plans import Plan

if TYPE_CHECKING:
    from planner.space.question import Setting


def first_group(plan: Plan, axis: str) -> range:
    """The ranks of the axis's group that rank 0 is in: neighbours on inner axes lie between them."""
    if plan.degree(axis) == 1:
        return range(1)
    stride = 1
    for inner in plan.axis_order[: plan.axis_order.index(axis)]:
        stride *= plan.degree(inner)
    return range(0, stride * plan.degree(axis), stride)


def axis_links(plan: Plan, at: Setting) -> list[AxisLinks]:
    """What joins the ranks of every axis that has several, innermost axis first.

    Model: devices of one fast domain reach each other at its rate. All others go through the network, which blocks
    nothing: each at its share of the node's network cards.
    """
    result = []
    for axis in plan.axis_order:
        if plan.degree(axis) == 1:
            continue
        ranks = first_group(plan, axis)
        domains = len({rank // max(at.fast_domain, 1) for rank in ranks})
        slowest = at.fast_bytes_per_second if domains == 1 else at.network_bytes_per_second
        result.append(AxisLinks(axis=axis, degree=len(ranks), num_domains=domains, bytes_per_second=slowest))
    return result
