"""A measured CUDA machine, built of round numbers: what its laws do that those of CPU ranks do not, by hand."""

from dataclasses import fields

import numpy as np
import pytest

from planner.measured.collectives import Group, collective_seconds
from planner.measured.gradients import gradient_seconds
from planner.measured.stages import StageCosts
from planner.measured.table import PlanTable
from profiles.models.operators import PHASES
from tests.machine_builders import machine
from tests.test_search import MODEL, run

PARAMETERS, BANDWIDTH = 64 * 2.0**20, 1e9
# Gradients in 32 bits, in buckets of 25 MiB.
GRADIENT_BYTES, NUM_BUCKETS = 4 * PARAMETERS, 11


def added_seconds(zero_stage: int, num_microbatches: int, busy: float) -> float:
    """What two GPUs that share no latency add to a step for their gradients, `busy` seconds in each direction."""
    here = machine(device_kind="cuda", bandwidth=BANDWIDTH, latency=0.0)
    numbers = dict.fromkeys((field.name for field in fields(StageCosts)), 0.0) | {
        "num_parameters": PARAMETERS, "forward_busy": busy, "backward_busy": busy,
    }  # fmt: skip
    ones = ("tensor_parallel", "pipeline_parallel")
    columns = dict.fromkeys((field.name for field in fields(PlanTable)), np.zeros(1, dtype=np.int64))
    columns |= {name: np.ones(1, dtype=np.int64) for name in ones}
    columns |= {
        name: np.full(1, value)
        for name, value in (("data_parallel", 2), ("zero_stage", zero_stage), ("num_microbatches", num_microbatches))
    }
    table = PlanTable(**{**columns, "codec_names": ("none",), "precision": "fp32"})
    stages = StageCosts(**{name: np.full((1, 1), value) for name, value in numbers.items()})
    found = gradient_seconds(here, table, stages)
    return float(found.exposed[0] + found.codec[0])


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_sharded_weights_are_gathered_twice_for_every_micro_batch(num_microbatches):
    once = GRADIENT_BYTES / BANDWIDTH
    # Nothing computes, so nothing is hidden: gradients once, weights twice a micro-batch and one bucket before.
    expected = once + 2 * num_microbatches * once + once / NUM_BUCKETS
    assert added_seconds(3, num_microbatches, 0.0) == pytest.approx(expected)


def test_behind_long_passes_the_ends_of_both_are_left():
    once = GRADIENT_BYTES / BANDWIDTH
    # The last bucket of gradients waits for the end of backward, the first weights for nothing.
    assert added_seconds(3, 4, 100.0) == pytest.approx(2 * once / NUM_BUCKETS)
    assert added_seconds(0, 4, 100.0) == pytest.approx(once / NUM_BUCKETS)


def test_a_host_that_is_slower_than_its_device_sets_the_pace():
    launch = 1.0
    found = run(machine(device_kind="cuda", launch_seconds=launch, latency=0.0), num_devices=1, recompute=(0,))
    layers = MODEL.precision_layers("fp32")
    launches = sum(len(layers[kind].of_phase(phase)) for kind in MODEL.structure for phase in PHASES)
    seconds, table = found.priced[0].estimate.seconds, found.priced[0].table
    assert seconds["compute"] + seconds["host"] == pytest.approx(launches * launch * table.num_microbatches)


def test_the_allocator_and_the_context_take_memory():
    free, cuda = (run(machine(device_kind=kind), num_devices=1) for kind in ("cpu", "cuda"))
    held = sum(values for name, values in free.priced[0].estimate.bytes_per_rank.items() if name != "slack")
    slack = cuda.priced[0].estimate.bytes_per_rank["slack"]
    assert (free.priced[0].estimate.bytes_per_rank["slack"] == 0).all()
    assert slack == pytest.approx(0.06 * held + 1.5 * 2**30)


@pytest.mark.parametrize(("size", "published_us"), [(2, 45.0), (4, 53.0), (8, 77.0)])
def test_latencies_of_larger_groups_are_those_published(size, published_us):
    """Small all-reduces of A100 over NVLink (vTrain's tables), carried over from the pair that was measured."""
    here = machine(device_kind="cuda", latency=45e-6, bandwidth=1e12)
    seconds, _ = collective_seconds(here, "all_reduce", 1.0, Group(size, size))
    assert float(seconds) == pytest.approx(published_us * 1e-6, rel=0.1)
