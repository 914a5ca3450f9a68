"""Laws that any prediction of peak memory must obey."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.ingredients import ingredients_of
from planner.cost.job import Each, Jobs
from planner.cost.memory.footprint import footprint
from planner.cost.memory.peak import MOMENTS, NUM_FULL, PARTS
from planner.published.reading import read_jobs
from profiles.machines.stacks import COMMUNICATOR_MIB, load_stack, stack_names
from profiles.models.adapters import adapters as adapters_of

DENSE = {
    "arch": "llama", "num_layers": "32", "hidden_size": "4096", "ffn_size": "14336", "num_heads": "32",
    "num_kv_heads": "8", "vocab_size": "32000", "seq_len": "4096", "gpu_type": "H100-SXM5-80GB", "num_gpus": "64",
    "zero_stage": "1", "global_batch_size": "1024", "micro_batch_size": "1", "stack": "megatron-core",
    "attention_kernel": "flash2", "sequence_parallel": "yes", "recompute_class": "none",
}  # fmt: skip
ROUTED = DENSE | {
    "arch": "moe", "num_experts": "64", "moe_topk": "4", "moe_ffn_size": "1024", "shared_expert_ffn_size": "2048",
    "num_dense_layers": "1", "dense_ffn_size": "14336", "ep": "4",
}  # fmt: skip
STACKS = sorted(stack_names())


def job(**changes: object) -> Jobs:
    base = ROUTED if changes.pop("routed", False) else DENSE
    reading = read_jobs([base | {name: str(value) for name, value in changes.items()}])
    assert not reading.refused, reading.refused
    return reading.jobs


def allocated(**changes: object) -> float:
    return float(footprint(job(**changes)).allocated_bytes[0])


def falls(values: list[float]) -> bool:
    return all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("routed", [False, True])
def test_parts_sum_to_the_whole_and_counters_are_ordered(stack, routed):
    result = footprint(job(stack=stack, routed=routed, pp=4, tp=2))
    assert tuple(result.parts) == PARTS
    assert sum(part[0] for part in result.parts.values()) == pytest.approx(result.allocated_bytes[0])
    assert all(part[0] >= 0 for part in result.parts.values())
    assert result.allocated_bytes[0] <= result.reserved_bytes[0] < result.device_bytes[0]
    assert np.nanmax(result.stage_allocated_bytes[0]) == result.allocated_bytes[0]
    assert result.stage_allocated_bytes[0, int(result.stage[0])] == result.allocated_bytes[0]


@settings(max_examples=40)
@given(
    stack=st.sampled_from(STACKS),
    routed=st.booleans(),
    micro_batch=st.sampled_from([1, 2, 4]),
    recompute=st.sampled_from(["none", "selective", "full"]),
    pipeline=st.sampled_from([1, 2, 4]),
)
def test_splitting_saves_memory(stack, routed, micro_batch, recompute, pipeline):
    same = {"stack": stack, "routed": routed, "micro_batch_size": micro_batch, "recompute_class": recompute}
    plain, states, gradients, weights = (allocated(**same, pp=pipeline, zero_stage=stage) for stage in (0, 1, 2, 3))
    assert falls([plain, gradients, weights])
    assert falls([plain, states])
    # Stage 2 of this program is FSDP2, which gathers whole layers: in a short pipeline that can be more than it saves.
    assert stack == "trainwright" or gradients <= states
    assert falls([allocated(**same, pp=pipeline, tp=tensor) for tensor in (1, 2, 4, 8)])
    # Stages cut by parameters give the first one more than its share of layers, times as many micro-batches as stages.
    if not load_stack(stack).memory.cuts_by_parameters:
        assert falls([allocated(**same, pp=degree) for degree in (1, 2, 4, 8)])
    assert falls([allocated(**same, cp=degree, pp=pipeline) for degree in (1, 2, 4)])


@settings(max_examples=40)
@given(
    stack=st.sampled_from(STACKS),
    routed=st.booleans(),
    kernel=st.sampled_from(["unfused", "flash2"]),
    tensor=st.sampled_from([1, 4]),
    pipeline=st.sampled_from([1, 4]),
)
def test_more_work_takes_more_memory_and_recomputation_less(stack, routed, kernel, tensor, pipeline):
    same = {"stack": stack, "routed": routed, "attention_kernel": kernel, "tp": tensor, "pp": pipeline}
    assert falls([allocated(**same, micro_batch_size=size) for size in (8, 4, 2, 1)])
    assert falls([allocated(**same, seq_len=length) for length in (8192, 4096, 2048)])
    assert falls([allocated(**same, recompute_class=kind) for kind in ("none", "selective", "full")])
    assert allocated(**same, optimizer_offload="yes") <= allocated(**same)
    assert allocated(**same, activation_offload="yes") <= allocated(**same)


@settings(max_examples=60)
@given(
    stack=st.sampled_from(STACKS),
    routed=st.booleans(),
    precision=st.sampled_from(["bf16", "fp16"]),
    zero=st.sampled_from([0, 1, 2, 3]),
    pipeline=st.sampled_from([1, 4]),
    micro_batch=st.sampled_from([1, 8]),
)
def test_what_a_run_says_of_its_software_saves_what_it_should(stack, routed, precision, zero, pipeline, micro_batch):
    same = {
        "stack": stack, "routed": routed, "precision_class": precision, "zero_stage": zero, "pp": pipeline,
        "micro_batch_size": micro_batch,
    }  # fmt: skip
    assert falls([allocated(**same, gradient_dtype=dtype) for dtype in ("fp32", "bf16")])
    assert falls([allocated(**same, fused_loss=word) for word in ("no", "yes", "chunked")])
    assert falls([allocated(**same, master_weights=word) for word in ("yes", "no")])
    assert falls([allocated(**same, optimizer=name) for name in ("adamw", "muon", "adam8bit", "sgd")])
    assert falls([allocated(**same, optimizer=name) for name in ("adamw", "adamw_in_backward", "adam8bit_in_backward")])
    assert falls([allocated(**same, fused_norms=word) for word in ("no", "yes")])


@settings(max_examples=30)
@given(stack=st.sampled_from(STACKS), routed=st.booleans(), pipeline=st.sampled_from([1, 2]))
def test_more_shards_never_hold_more(stack, routed, pipeline):
    same = {"stack": stack, "routed": routed, "pp": pipeline, "zero_stage": 3}
    assert falls([allocated(**same, dp_shard=shards) for shards in (4, 8, 16, 32)])
    assert falls([allocated(**same, cp=4, dp_shard=shards) for shards in (4, 8, 16, 32)])


@settings(max_examples=30)
@given(stack=st.sampled_from(STACKS), zero=st.sampled_from([0, 1, 3]), recompute=st.sampled_from(["none", "full"]))
def test_every_offload_frees_what_it_says(stack, zero, recompute):
    same = {"stack": stack, "zero_stage": zero, "recompute_class": recompute, "micro_batch_size": 2}
    plain = footprint(job(**same))
    without = footprint(job(**same, optimizer_offload="yes"))
    assert without.parts["optimizer"][0] == 0
    if plain.moment[0] == without.moment[0] != "update":
        freed = plain.allocated_bytes[0] - without.allocated_bytes[0]
        assert freed == pytest.approx(plain.parts["optimizer"][0])
    spared = footprint(job(**same, activation_offload="yes"))
    assert plain.offloaded_bytes[0] == 0 <= spared.offloaded_bytes[0]
    if plain.moment[0] == spared.moment[0] in MOMENTS[:NUM_FULL]:
        freed = plain.allocated_bytes[0] - spared.allocated_bytes[0]
        assert freed == pytest.approx(spared.offloaded_bytes[0], abs=1.0)


@pytest.mark.parametrize("stack", STACKS)
def test_a_device_holds_what_its_allocator_has_its_context_and_a_communicator_per_axis(stack):
    context = load_stack(stack).memory.context_gib * 2**30

    def beyond(**changes: object) -> float:
        held = footprint(job(stack=stack, **changes))
        return float(held.device_bytes[0] - held.reserved_bytes[0] - context) / (COMMUNICATOR_MIB * 2**20)

    assert beyond(num_gpus=1, zero_stage=0, global_batch_size=16) == pytest.approx(0, abs=1e-6)
    assert beyond() == pytest.approx(1)
    # Beside their axes all ranks have one, and where a pipeline's stages are split, the model.
    assert beyond(tp=8) == pytest.approx(2 + 1)
    assert beyond(pp=2) == pytest.approx(3 + 1)
    assert beyond(tp=8, pp=2) == pytest.approx(4 + 2)
    assert beyond(tp=8, pp=2, cp=2) == pytest.approx(5 + 2)
    assert beyond(routed=True) == pytest.approx(2)


def test_16_bit_gradients_beside_wide_ones_are_held_widened_one_by_one_and_leave_holes():
    def held(**changes: object) -> tuple[float, float]:
        own = footprint(job(stack="megatron-deepspeed", pp=2, num_gpus=16, global_batch_size=64, **changes))
        return float(own.parts["gradients"][0]), float(own.reserved_bytes[0])

    narrow, wide = held(gradient_dtype="bf16"), held(gradient_dtype="fp32")
    num_parameters = narrow[0] / 2
    assert wide[0] == pytest.approx(num_parameters * (4 + 2))
    # Half of the 16-bit ones' place is lost, beside what is held.
    assert wide[1] - narrow[1] >= num_parameters * (4 + 1)


def test_wide_copies_of_gradients_have_a_pool_as_large_as_those_of_the_largest_unit():
    def idle(vocabulary: int, **changes: object) -> float:
        own = footprint(job(stack="fsdp2", zero_stage=3, vocab_size=vocabulary, recompute_class="full", **changes))
        return float(own.reserved_bytes[0] - own.allocated_bytes[0])

    # The vocabulary of a layer's size counts as the layer does; more than that has copies of its own, of 4 bytes.
    layer = float(job().model.dense_layer_parameters[0])
    small, large = (int(layer / 4096 * times) for times in (1, 3))
    per_token = 4096 * 4096 * 2 * 0.5 / 4096
    grown = idle(large) - idle(small) - (large - small) * (4096 * 2 * 2 * 1.0 + per_token)
    assert grown == pytest.approx((large - small) * 4096 * 4, rel=0.01)


@settings(max_examples=30)
@given(stack=st.sampled_from(STACKS), micro_batch=st.sampled_from([1, 4, 16]), zero=st.sampled_from([0, 3]))
def test_an_allocator_gives_back_before_it_fails(stack, micro_batch, zero):
    held, asked = {}, job(stack=stack, micro_batch_size=micro_batch, zero_stage=zero)
    for gib in (40.0, 80.0, 1000.0):
        held[gib] = footprint(replace(asked, device_memory_bytes=np.array([gib * 2**30])))
    roomy = held[1000.0]
    for gib, own in held.items():
        assert own.allocated_bytes == roomy.allocated_bytes <= own.reserved_bytes <= roomy.reserved_bytes
        if own.device_bytes[0] > gib * 2**30:
            # It has given back all that it could.
            assert own.reserved_bytes[0] <= roomy.reserved_bytes[0]
            assert own.reserved_bytes[0] <= held[40.0].reserved_bytes[0] or gib == 40.0


def test_a_loss_whose_logits_exceed_the_device_is_taken_for_one_in_chunks():
    row = DENSE | {"stack": "torch", "zero_stage": "0", "vocab_size": "256000", "micro_batch_size": "16"}
    plain, told = read_jobs([row]), read_jobs([row | {"fused_loss": "no"}])
    assert plain.jobs.fused_loss[0] == "chunked"
    assert any("fused_loss" in note for note in plain.assumptions[0])
    assert told.jobs.fused_loss[0] == "no"
    assert footprint(plain.jobs).parts["logits"][0] < 0.1 * footprint(told.jobs).parts["logits"][0]
    small = read_jobs([row | {"micro_batch_size": "1"}])
    assert small.jobs.fused_loss[0] == ""


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_gradients_in_16_bits_are_half_as_long_on_the_wire(stack, zero):
    narrow, wide = (ingredients_of(job(stack=stack, zero_stage=zero, gradient_dtype=name)) for name in ("bf16", "fp32"))
    assert narrow.exchange.gradients[0] <= wide.exchange.gradients[0]
    assert (zero < 3) == (narrow.exchange.gradients[0] < wide.exchange.gradients[0])
    for kind, seconds in narrow.sharded.layer_scatter.items():
        assert seconds[0] <= wide.sharded.layer_scatter[kind][0]
        assert (zero == 3) == (seconds[0] < wide.sharded.layer_scatter[kind][0])


def test_adapters_alone_have_gradients_and_states():
    trained, frozen = job(stack="torch", zero_stage=0), job(stack="torch", zero_stage=0)
    frozen = replace(frozen, adapters=Each.same(adapters_of(16), 1))
    quantised = replace(frozen, adapters=Each.same(adapters_of(16, base="nf4"), 1))
    all_of_it, adapters, small = (footprint(each).parts for each in (trained, frozen, quantised))
    assert adapters["optimizer"][0] < 0.01 * all_of_it["optimizer"][0]
    assert adapters["gradients"][0] < 0.01 * all_of_it["gradients"][0]
    # Weights of all layers are in 4 bits and a scale, those of both ends and the adapters are not.
    model = frozen.model
    inside = float(model.num_layers[0] * model.dense_layer_parameters[0])
    assert adapters["parameters"][0] - small["parameters"][0] == pytest.approx(inside * (2 - 0.5625))


def test_micro_batches_in_flight_by_schedule():
    def held(schedule: str, count: int) -> float:
        return allocated(pp=4, schedule=schedule, global_batch_size=16 * count)

    assert held("gpipe", 4) < held("gpipe", 8) < held("gpipe", 16)
    assert held("1f1b", 2) < held("1f1b", 4)
    assert held("1f1b", 4) == held("1f1b", 8) == held("1f1b", 64)
    assert held("1f1b", 64) <= held("zb-2p", 64)
    assert allocated(pp=4, vp=4) > allocated(pp=4)


def test_interleaving_holds_the_published_number_of_micro_batches():
    plain, chunked = (footprint(job(pp=4, vp=chunks)).parts["activations"][0] for chunks in (1, 4))
    assert chunked / plain == pytest.approx((4 + 3 / 4) / 4, rel=0.05)


def test_shorter_first_stage_holds_less():
    even = footprint(job(pp=4)).stage_allocated_bytes[0]
    shorter = footprint(job(pp=4, first_stage_fewer_layers=4)).stage_allocated_bytes[0]
    assert shorter[0] < even[0]
    assert shorter[1] > even[1]


def test_columns_give_what_single_jobs_give():
    rows = [DENSE, ROUTED, DENSE | {"pp": "8", "stack": "nanotron"}, ROUTED | {"pp": "2", "tp": "4", "stack": "fsdp2"}]
    together = footprint(read_jobs(rows).jobs)
    for index, row in enumerate(rows):
        alone = footprint(read_jobs([row]).jobs)
        assert together.allocated_bytes[index] == pytest.approx(alone.allocated_bytes[0])
        assert together.moment[index] == alone.moment[0]


def test_no_jobs_have_no_memory():
    none = job().take(np.zeros(1, dtype=bool))
    assert len(footprint(none).allocated_bytes) == 0


def test_tied_vocabulary_stands_on_both_ends_of_a_pipeline():
    tied, untied = job(pp=2, stack="torch"), job(pp=2, stack="torch")
    tied = replace(tied, model=replace(tied.model, tied=np.array([True])))
    assert footprint(tied).stage_allocated_bytes == pytest.approx(footprint(untied).stage_allocated_bytes)


def test_every_number_of_a_stacks_memory_has_a_source():
    for name in STACKS:
        sources = load_stack(name).sources
        assert {"memory_states", "memory_logits", "memory_layers", "memory_slack", "memory_context"} <= set(sources)
