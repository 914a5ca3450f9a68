"""Experts that are worked on once for all give the profile that each of them would."""

from unittest import mock

import pytest

from profiles.tracing.task_trace import trace_task
from profiles.tracing.trace import trace
from profiles.workloads import experts
from profiles.workloads.loading import load_workload
from profiles.workloads.repeats import once_for_all
from profiles.workloads.task_loading import load_task
from tests.marks import slow
from tests.matrix.architectures import ARCHITECTURES
from tests.plan_builders import MIXTRAL


def _both(make):
    counts = []

    def counting(count, *given):
        counts.append(count)
        return once_for_all(count, *given)

    # No mock of it, which would keep what it is given.
    with mock.patch.object(experts, "once_for_all", counting):
        once = make()
    assert counts
    with mock.patch.object(experts, "is_watched", return_value=False):
        return once, make()


def test_a_known_mixture_has_the_same_profile():
    once, each = _both(lambda: trace(load_workload(MIXTRAL), ("fp32",)))
    assert once == each


@pytest.mark.parametrize("name", [slow("gpt_oss"), slow("deepseek_v2")])
def test_so_has_one_that_is_traced_whole(name):
    (model,) = (model for model in ARCHITECTURES if model.name == name)
    task = load_task(model.spec, size=model.size)
    once, each = _both(lambda: trace_task(model.spec, task, ("bf16",)))
    assert once == each
