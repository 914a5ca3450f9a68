"""A measured CUDA machine, built of round numbers: what its laws do that those of CPU ranks do not, by hand."""

import numpy as np
import pytest

from planner.cost.ingredients import ingredients_of
from planner.cost.layers import SHARDED, layer_pass, often_sharded, sharded_message
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.question import jobs_of
from profiles.laws.collectives import measured_seconds
from profiles.machines.stacks import load_stack
from profiles.models.operators import PHASES
from tests.exchange_builders import MODEL, added_seconds, replicas, setting_on
from tests.machine_builders import machine
from tests.plan_finder import predict
from tests.test_measured_space import plan

PARAMETERS, BANDWIDTH = 64 * 2.0**20, 1e9
# Gradients in 32 bits, in buckets of 25 MiB.
GRADIENT_BYTES, NUM_BUCKETS = 4 * PARAMETERS, 11


def cuda(**changes: object):
    return machine(device_kind="cuda", **{"bandwidth": BANDWIDTH, "latency": 0.0, **changes})


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_sharded_weights_are_gathered_twice_for_every_micro_batch(num_microbatches):
    at = setting_on(cuda())
    made = ingredients_of(replicas(at, SHARDED, num_microbatches))
    (gather,), (scatter,) = made.sharded.layer_gather.values(), made.sharded.layer_scatter.values()
    one, yes = np.ones(1), np.ones(1, dtype=bool)
    often = often_sharded(one, num_microbatches * one, yes, made.rules.reduces_every_microbatch > 0, yes)
    sent = [sharded_message(phase, gather, scatter, often) for phase in PHASES]
    assert float(sum(sent)[0]) == pytest.approx(float((2 * gather + scatter)[0]))


def test_behind_long_passes_the_last_bucket_is_left():
    once = GRADIENT_BYTES / BANDWIDTH
    from planner.cost.measured.machine import learned_of

    factor = learned_of(cuda()).factors.data_comm
    assert added_seconds(cuda(), "none", 0, PARAMETERS, 100.0) == pytest.approx(factor * once / NUM_BUCKETS, rel=1e-3)


def test_behind_long_passes_sharded_weights_are_hidden_on_gpus_alone():
    for kind, hides in (("cuda", True), ("cpu", False)):
        at = setting_on(machine(device_kind=kind, bandwidth=1e8, flops=1e8))
        made = ingredients_of(replicas(at, SHARDED))
        assert at.learned is not None
        added = layer_pass(made, at.learned.factors, "forward", "dense").data_comm[0]
        assert (added < 0.1 * made.sharded.layer_gather["dense"][0]) == hides


def test_a_host_that_is_slower_than_its_device_sets_the_pace():
    launch = 1.0
    at = measured_setting(cuda(launch_seconds=launch), MODEL, 1, 8, 128, "fp32")
    space = explore(at, Options(recompute=("none",), offload=("none",)))
    layers = MODEL.precision_layers("fp32")
    launches = sum(len(layers[kind].of_phase(phase)) for kind in MODEL.structure for phase in PHASES)
    for size in (1, 4):
        own = predict(space, plan(data_parallel=1, micro_batch_size=size, num_microbatches=8 // size)).seconds
        outside = load_stack("trainwright").time.host_step_ms * 1e-3
        taken = own["compute"] + own["host"] - outside
        assert taken == pytest.approx(launches * launch * (8 // size), rel=1e-3)


def test_the_allocator_and_the_context_take_memory():
    held = {
        kind: predict(
            explore(measured_setting(machine(device_kind=kind), MODEL, 1, 8, 128, "fp32"), Options(offload=("none",))),
            plan(data_parallel=1, num_microbatches=4),
        ).bytes_per_rank
        for kind in ("cpu", "cuda")
    }
    assert held["cpu"]["slack"] == pytest.approx(0.0, abs=1.0)
    assert held["cpu"]["outside"] == 0.0
    assert held["cuda"]["slack"] > 0
    assert held["cuda"]["outside"] == pytest.approx(load_stack("trainwright").memory.context_gib * 2**30)


def test_latencies_of_larger_groups_are_those_published():
    """Small all-reduces of eight A100 over NVLink, carried over from a pair as quick as published ones are."""
    name, num_bytes = "A100-SXM4 8-GPU node", 32768.0
    here = cuda(latency=42.5e-6, bandwidth=1e12, device_name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * 2.0**30)
    at = measured_setting(here, MODEL, 8, 8, 128, "fp32")
    assert at.source is not None
    links, ranks = at.source.links(jobs_of(at, tensor=np.ones(1))), np.array([8.0])
    seconds = links.seconds("all_reduce", np.array([num_bytes]), ranks, ranks)
    assert float(seconds[0]) == pytest.approx(float(measured_seconds(name, "all_reduce", 8, 1, num_bytes)), rel=0.1)
