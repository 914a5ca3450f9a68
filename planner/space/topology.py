"""Which links a plan's axes cross: those of a fast domain, or the network between several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.answers import AxisLinks
from planner.plans import Plan

if TYPE_CHECKING:
    from planner.space.question import Setting


def first_group(plan: Plan, axis: str) -> range:
    """The ranks of the mesh axis's group that rank 0 is in: neighbours on inner axes lie between them."""
    return _ranks_on(plan, axis, plan.degree(axis))


def joined_group(plan: Plan, axis: str, at: Setting) -> range:
    """The ranks of the group that rank 0 is in, of an axis of the mesh or of those that share experts.

    Ranks that share experts are neighbours on the data axis where the software `at` the setting has them there, and
    they are no more than it has; else neighbours.
    """
    if axis != "expert":
        return first_group(plan, axis)
    degree = plan.degree(axis)
    is_on_data = at.stack.habits.experts_on_data and plan.data_parallel % degree == 0
    return _ranks_on(plan, "data" if is_on_data else plan.axis_order[0], degree)


def _ranks_on(plan: Plan, axis: str, degree: int) -> range:
    if degree == 1:
        return range(1)
    stride = 1
    for inner in plan.axis_order[: plan.axis_order.index(axis)]:
        stride *= plan.degree(inner)
    return range(0, stride * degree, stride)


def axis_links(plan: Plan, at: Setting) -> list[AxisLinks]:
    """What joins the ranks of every axis that has several, innermost axis first; those that share experts before data.

    Model: devices of one fast domain reach each other at its rate. All others go through the network, which blocks
    nothing: each at its share of the node's network cards.
    """
    result = []
    axes = [each for axis in plan.axis_order for each in (("expert", axis) if axis == "data" else (axis,))]
    for axis in axes:
        if plan.degree(axis) == 1:
            continue
        ranks = joined_group(plan, axis, at)
        domains = len({rank // max(at.fast_domain, 1) for rank in ranks})
        slowest = at.fast_bytes_per_second if domains == 1 else at.network_bytes_per_second
        result.append(AxisLinks(axis=axis, degree=len(ranks), num_domains=domains, bytes_per_second=slowest))
    return result
