"""A share of the layers, or of a layer, recomputed: between none and all, in time and in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Jobs
from planner.cost.memory.footprint import footprint
from planner.published.learn import predict, total_seconds
from planner.published.reading import read_jobs
from profiles.models.transformer import Array

SHARES = np.array([0.0, 0.2, 0.5, 0.8, 1.0])
ROWS = st.fixed_dictionaries(
    {
        "num_layers": st.sampled_from(["8", "32", "80"]),
        "hidden_size": st.sampled_from(["2048", "8192"]),
        "num_experts": st.sampled_from(["", "8"]),
        "tp": st.sampled_from(["1", "4"]),
        "pp": st.sampled_from(["1", "4"]),
        "cp": st.sampled_from(["1", "2"]),
        "stack": st.sampled_from(["megatron-core", "fsdp2", "deepspeed", "trainwright"]),
        "attention_kernel": st.sampled_from(["unfused", "flash2"]),
    }
)
LEAST = {"gpu_type": "H100", "num_gpus": "64", "micro_batch_size": "2", "global_batch_size": "1024"}


def shares_of(row: dict[str, str], method: str, name: str) -> tuple[Array, Array]:
    """Step seconds and allocated bytes as one share goes from nothing to all; partial frees what it repeats.

    Behind them, those of no recomputation and of `method` as a run states it, without a share.
    """
    count = len(SHARES)
    stated = [*[method] * count, "none", method]
    jobs: Jobs = read_jobs([LEAST | row | {"recompute_class": one} for one in stated]).jobs

    def shared(field: str, values: Array) -> Array:
        return np.concatenate([values, getattr(jobs, field)[count:]])

    fields = {name: shared(name, SHARES)}
    if name == "recompute_products":
        fields |= {"recompute_freed": shared("recompute_freed", SHARES)}
        fields |= {"recompute": shared("recompute", np.full(count, "partial"))}
    jobs = replace(jobs, **fields)
    seconds = total_seconds(predict(ingredients_of(jobs), load_learned()))
    return seconds, footprint(jobs).allocated_bytes


@pytest.mark.parametrize(
    ("method", "name"),
    [("full", "recompute_share"), ("selective", "recompute_share"), ("full", "recompute_products")],
)
@settings(max_examples=40)
@given(row=ROWS)
def test_nothing_is_none_all_is_full_and_more_is_slower_and_smaller(
    method: str, name: str, row: dict[str, str]
) -> None:
    seconds, held = shares_of(row, method, name)
    shares = slice(len(SHARES))
    for place, stated in ((0, -2), (len(SHARES) - 1, -1)):
        assert (seconds[place], held[place]) == pytest.approx((seconds[stated], held[stated]), rel=1e-9)
    seconds, held = seconds[shares], held[shares]
    assert np.all(np.diff(seconds) >= -1e-9 * seconds[1:])
    assert np.all(np.diff(held) <= 1e-9 * held[1:])
