"""Messages beside products, and what software does around its messages: counted, over random layouts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.axes.groups import pipeline_stride, seconds
from planner.cost.axes.pipeline import message_seconds
from planner.cost.axes.tensor import gather_seconds, half_layer_seconds
from planner.cost.factors import expected
from planner.cost.hardware import memory_rate
from planner.cost.ingredients import Ingredients, ingredients_of
from planner.cost.job import Jobs
from planner.cost.layers import exposed, layer_pass, layer_work, shard_copies
from planner.cost.links import links_of
from planner.cost.software_time import rules_of
from planner.space.question import jobs_of
from profiles.models.operators import PHASES
from tests.test_space import make

FACTORS = expected().factors
# Milliseconds on a node of A100: products alone, an all-gather over 2, 4 or 8 of its GPUs alone, both at once.
# Source: Dazz993/Mist, mist/tools.
PAIRS = (
    (26.36, 13.21, 33.40), (34.81, 13.21, 42.05), (17.59, 10.17, 23.12), (8.95, 10.17, 14.41), (34.81, 6.91, 38.56),
    (8.95, 3.63, 10.83), (26.36, 15.68, 33.94), (17.59, 11.92, 23.42), (8.95, 11.92, 14.77), (26.36, 8.06, 30.10),
    (8.95, 4.13, 10.90), (34.81, 16.75, 42.75), (17.59, 12.71, 23.56), (8.95, 12.71, 14.88), (26.36, 8.57, 30.22),
)  # fmt: skip
DEGREES = st.sampled_from((1, 2, 4, 8))


def jobs(stack: str, **columns: object) -> Jobs:
    """One job of a small dense model."""
    values = {
        name: np.array([value if isinstance(value, str | bool) else float(value)]) for name, value in columns.items()
    }
    return jobs_of(make("dense", num_devices=64, stack=stack), **values)


def with_rules(made: Ingredients, **numbers: float) -> Ingredients:
    return replace(made, rules=replace(made.rules, **{name: np.array([value]) for name, value in numbers.items()}))


def test_what_is_expected_of_messages_beside_products_is_what_was_measured():
    products, messages, both = np.array(PAIRS).T
    assert products + exposed(messages, products, FACTORS) == pytest.approx(both, rel=0.05)


@settings(max_examples=30)
@given(tensor=DEGREES, micro_batch=st.integers(1, 64), network=st.floats(1e9, 1e11))
def test_a_message_that_is_cut_up_is_sent_once_and_gathered(tensor, micro_batch, network):
    """Narayanan et al. 2021, section 4.1, counted: each rank sends 1 / t of it to another node, then t are gathered."""
    one = jobs("megatron-lm", tensor=tensor, data=16 / tensor, pipeline=4, micro_batch=micro_batch)
    one = replace(one, network_bytes_per_second=np.array([network]))
    rules, links = rules_of(one, expected()), links_of(one)
    whole = one.tokens * one.model.hidden_size * 2
    share = seconds(one, links, "send_receive", whole / tensor, np.full(1, 2.0), pipeline_stride(one))
    gathered = seconds(one, links, "all_gather", whole, one.tensor, np.ones(1))
    cut = message_seconds(one, rules, links)
    assert cut == pytest.approx(share + gathered)
    split = replace(one, sequence_parallel=np.array([tensor > 1]))
    assert message_seconds(split, rules, links) == pytest.approx(share)
    uncut = message_seconds(one, replace(rules, scatters_pipeline=np.zeros(1)), links)
    if tensor > 1 and network < one.fast_bytes_per_second / 10 and whole > 1e8:
        assert cut < uncut


@settings(max_examples=30)
@given(tensor=DEGREES, micro_batch=st.integers(1, 16), split=st.booleans(), recompute=st.sampled_from(("none", "full")))
def test_sums_hide_behind_weight_gradients_and_nothing_else(tensor, micro_batch, split, recompute):
    one = jobs(
        "megatron-core", tensor=tensor, micro_batch=micro_batch, sequence_parallel=split and tensor > 1,
        recompute=recompute,
    )  # fmt: skip
    made = ingredients_of(one)
    hides, waits = (with_rules(made, hides_input_gradients=flag) for flag in (1.0, 0.0))
    for phase in PHASES:
        beside, alone = (layer_work(which, FACTORS, phase, "dense") for which in (hides, waits))
        saved = float((alone.tensor_comm - beside.tensor_comm)[0])
        assert beside.compute == alone.compute
        if phase == "forward" or tensor == 1:
            assert saved == 0
            continue
        # Of two sums each way: what is scattered, or summed; the gathering halves and the forward pass wait.
        sums = 2 * float((made.half_layer - made.gather_again)[0]) * FACTORS.tensor_comm
        weights = float(made.kernels.weights(made.rules, FACTORS, "dense")[0])
        assert 0 < saved <= min(sums, FACTORS.tensor_comm * weights / 2) * (1 + 1e-9)


@settings(max_examples=30)
@given(
    tensor=st.sampled_from((2, 4, 8)), split=st.booleans(), precision=st.sampled_from(("bf16", "fp8")),
    stack=st.sampled_from(("megatron-core", "fsdp2")),
)  # fmt: skip
def test_what_is_converted_first_is_gathered_in_8_bits(tensor, split, precision, stack):
    columns = {"tensor": tensor, "sequence_parallel": split, "micro_batch": 4}
    wide, own = jobs(stack, **columns, precision="bf16"), jobs(stack, **columns, precision=precision)
    narrow = replace(wide, sequence=wide.sequence / 2)
    links = links_of(own)
    lowers = precision == "fp8" and stack == "megatron-core"
    assert gather_seconds(own, links) == gather_seconds(narrow if lowers else wide, links)
    # What is scattered or summed has 16 bits.
    rest = half_layer_seconds(own, links) - gather_seconds(own, links)
    assert rest == pytest.approx(half_layer_seconds(wide, links) - gather_seconds(wide, links))


@settings(max_examples=30)
@given(stack=st.sampled_from(("fsdp", "fsdp2", "deepspeed")), shard=st.sampled_from((1, 2, 8, 64)), zero=DEGREES)
def test_shards_are_copied_once_for_each_message(stack, shard, zero):
    """Bytes counted by hand; they depend on what is gathered, not on how many ranks have a part of it."""
    one = jobs(stack, data=64, shard=shard, zero_stage=min(zero, 3), reshard_after_forward=True)
    made = ingredients_of(one)
    held = made.sharded.layer_trained["dense"]
    rate = memory_rate(one) * FACTORS.traffic_fraction
    gather, scatter = made.rules.gather_copy_bytes, made.rules.scatter_copy_bytes
    for phase in PHASES:
        copied = {"forward": gather, "backward": gather + scatter}[phase] * held / rate
        without = with_rules(made, gather_copy_bytes=0.0, scatter_copy_bytes=0.0)
        more = layer_pass(made, FACTORS, phase, "dense").compute - layer_pass(without, FACTORS, phase, "dense").compute
        assert more == pytest.approx(copied if shard > 1 and zero > 2 else 0.0)
        assert shard_copies(without, FACTORS) == {}
