"""The partition of layers, against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.partition import partition
from profiles.errors import PlanError


@settings(max_examples=200)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9), st.integers(1, 5))
def test_partition_is_as_good_as_brute_force(layers, num_stages):
    if num_stages > len(layers):
        with pytest.raises(PlanError, match="at least as many layers"):
            partition(np.array(layers), num_stages)
        return

    def slowest(bounds):
        return max(sum(layers[a:b]) for a, b in zip(bounds, (*bounds[1:], len(layers)), strict=True))

    ours = partition(np.array(layers), num_stages)
    assert ours[0] == 0
    assert len(ours) == num_stages
    best = min(slowest((0, *cut)) for cut in itertools.combinations(range(1, len(layers)), num_stages - 1))
    assert slowest(ours) == pytest.approx(best, rel=1e-6)
