"""8-bit training: what shares a scale decides rate and conversions; power and clock hold a card's products down."""

from dataclasses import replace

import numpy as np
import pytest

from planner.cost.factors import load_learned
from planner.cost.hardware import attention_kernels, silicon_at
from planner.cost.ingredients import ingredients_of
from planner.cost.kernel_work import work_of
from planner.cost.layers import layer_work
from planner.cost.low_precision import CONVERTED_BYTES, converted_bytes, recipes_of, weight_conversions
from planner.published.reading import read_jobs
from profiles.laws.kernels import Columns, sustained_share
from profiles.laws.power import CLOCK_SHARE
from profiles.machines.devices import catalogue_names, load_device
from tests.run_rows import SMALL_LLAMA

ROW = SMALL_LLAMA | {"precision_class": "fp8", "compiled": "yes"}
EXPERTS = {"arch": "moe", "num_experts": 8, "moe_topk": 2, "moe_ffn_size": 1024, "ep": 8}


def jobs_of(**fields):
    return read_jobs([ROW | {name: str(value) for name, value in fields.items()}]).jobs


def total(name, **fields):
    loads = next(iter(work_of(jobs_of(**fields)).layers.values()))
    return sum(float(getattr(load, name)[0]) for load in loads.values())


@pytest.mark.parametrize(("fields", "recipe"), [
    ({}, "tensorwise"), ({"fp8_recipe": "rowwise"}, "rowwise"), ({"stack": "megatron-core"}, "delayed"),
    ({"precision_class": "mxfp8", "gpu_type": "B200-SXM-180GB"}, "mxfp8-block32"),
])  # fmt: skip
def test_the_recipe_is_the_job_s_else_the_precision_s_or_the_stack_s(fields, recipe):
    jobs = jobs_of(**fields)
    assert recipes_of(jobs)[0] == recipe
    assert converted_bytes(jobs)[0] == CONVERTED_BYTES[recipe]


def test_conversions_spelled_out_cost_most_and_wide_precisions_convert_nothing():
    costs = [total("converted_bytes", fp8_recipe=name) for name in CONVERTED_BYTES]
    assert min(costs) > 0
    assert total("converted_bytes", compiled="no") > 2 * max(costs)
    assert total("converted_bytes", precision_class="bf16") == 0


def test_every_product_s_operands_are_converted_once_and_weights_once_a_step_where_they_are_kept():
    # By hand: inputs of q, k and v; of the output; of gate and up; of down; their gradients; weights of each.
    tokens, width, heads, ffn = 4096, 4096, 4096 + 2 * 1024, 14336
    inputs = tokens * (width + width + width + ffn)
    gradients = tokens * (heads + width + 2 * ffn + width)
    weights = width * heads + width * width + 3 * width * ffn
    assert total("converted_bytes") / CONVERTED_BYTES["tensorwise"] == inputs + gradients + weights
    kept = {"stack": "megatron-core", "global_batch_size": 64}
    share = weight_conversions(jobs_of(**kept))[0]
    assert share == 1 / 8
    assert total("converted_bytes", **kept) / CONVERTED_BYTES["delayed"] == inputs + gradients + weights * share


def test_experts_convert_and_pad_where_the_software_computes_them_in_8_bits():
    for stack, lowers in (("megatron-core", True), ("fsdp2", False)):
        routed = [total("routed_bytes", stack=stack, precision_class=name, **EXPERTS) for name in ("bf16", "fp8")]
        assert (routed[1] > routed[0]) == lowers
        seconds = [total("matmul_seconds", stack=stack, precision_class=name, **EXPERTS) for name in ("bf16", "fp8")]
        assert seconds[1] < seconds[0]
    told = {"stack": "fsdp2", "low_precision_parts": "linear;grouped", **EXPERTS}
    assert total("routed_bytes", **told) > total("routed_bytes", stack="fsdp2", **EXPERTS)


def test_unnamed_attention_is_cudnn_s_from_hopper_on_where_the_software_asks_for_it():
    row = {"attention_kernel": "flash"}
    assert attention_kernels(jobs_of(stack="megatron-core", **row))[0] == "cudnn"
    assert attention_kernels(jobs_of(stack="fsdp2", **row))[0] == "flash"
    older = {"gpu_type": "A100-SXM4-80GB", "precision_class": "bf16"}
    assert attention_kernels(jobs_of(stack="megatron-core", **row, **older))[0] == "flash"


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_less_power_and_a_lower_clock_make_products_slower(precision):
    fields = {"precision_class": precision}
    seconds = [total("matmul_seconds", **fields, board_power_watts=watts) for watts in (300, 400, 500, 700)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1] * 1.2
    assert total("matmul_seconds", **fields) == seconds[-1]
    clocks = [total("matmul_seconds", **fields, gpu_clock_mhz=mhz) for mhz in (1200, 1500, 1830, 0)]
    assert clocks == sorted(clocks, reverse=True)
    assert clocks[-2] == clocks[-1]


def test_no_card_sustains_more_than_its_best_product_and_half_the_watts_of_one_silicon_less():
    for name in catalogue_names():
        for precision in load_device(name).peak_tflops:
            silicon = silicon_at(load_device(name), precision)
            column = Columns(silicon, None)
            sustained = sustained_share(silicon, column, column["rate_fraction"])[0]
            assert 0 < sustained <= silicon.achievable_fraction[0] <= 1
            wide = silicon_at(load_device(name), "bf16")
            most = min(silicon.achievable_fraction[0], CLOCK_SHARE)
            if silicon.element_bytes[0] < wide.element_bytes[0] and sustained < most:
                # Power holds more of 8 bits down than of 16.
                assert sustained < sustained_share(wide, column, column["rate_fraction"])[0]
    # Whatever the record of the card assumes.
    full, half = (silicon_at(load_device(name), "bf16") for name in ("h100-sxm", "h100-pcie"))
    shares = [float(sustained_share(one, Columns(one, None))[0]) for one in (full, half)]
    assert shares[1] < 0.9 * shares[0]


def test_the_same_silicon_with_other_watts_is_the_card_that_is_sold_with_them():
    row = {"precision_class": "bf16"}
    limited = total("matmul_seconds", **row, board_power_watts=500)
    sold = total("matmul_seconds", **row, gpu_type="H100-SXM-96GB")
    assert limited == pytest.approx(sold, rel=0.02)


def test_a_host_that_waits_for_every_kernel_is_paid_in_full():
    learned = load_learned()
    waits, runs = (jobs_of(synchronous_launches=word) for word in ("yes", "no"))
    for phase in ("forward", "backward"):
        first, second = (layer_work(ingredients_of(jobs), learned.factors, phase, "dense") for jobs in (waits, runs))
        np.testing.assert_allclose(first.dispatch + first.launch, second.dispatch + second.launch)
        np.testing.assert_allclose(first.device - second.device, second.launch - first.launch)
        assert first.device[0] > second.device[0]


@pytest.mark.parametrize("stack", ["torch", "fsdp2", "megatron-core"])
def test_an_update_in_16_bits_moves_half_and_a_first_micro_batch_adds_nothing_up(stack):
    one = {"stack": stack, "precision_class": "bf16", "global_batch_size": 8}
    wide, narrow = (ingredients_of(jobs_of(master_weights=word, **one)) for word in ("yes", "no"))
    factors, count = load_learned().factors, np.full(1, 1e9)
    seconds = [made.kernels.optimizer(made.rules, factors, count)[0] for made in (wide, narrow)]
    assert seconds[1] == pytest.approx(seconds[0] / 2)
    later = ingredients_of(jobs_of(master_weights="no", **one | {"global_batch_size": 64}))
    alone, often = (made.kernels.layer(made.rules, factors, "backward", "dense").compute[0] for made in (narrow, later))
    assert often >= alone
    assert (often > alone) == (stack == "torch")


def test_products_add_gradients_up_in_as_many_bytes_as_these_have():
    row = {"stack": "megatron-core", "precision_class": "bf16", "seq_len": 512}
    seconds = [total("matmul_seconds", gradient_dtype=name, **row) for name in ("bf16", "fp32")]
    assert seconds[0] < seconds[1]


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_the_stack_and_the_precision_of_linears_leave_attention_to_its_kernel(phase):
    made, factors = ingredients_of(jobs_of()), load_learned().factors
    slower = replace(made.rules, product_slowdown=made.rules.product_slowdown * 1.3)
    first, second = (made.kernels.layer(rules, factors, phase, "dense") for rules in (made.rules, slower))
    assert second.attention[0] == first.attention[0]
    assert second.compute[0] > first.compute[0]
