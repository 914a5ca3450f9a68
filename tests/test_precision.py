"""Products with fewer bits: what is converted, how far they may be off, what traces and refusals say of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from executor.run.prepare import RunOptions, prepare
from planner.plans import Plan
from profiles.errors import EnvironmentFailure
from profiles.library import load_model
from profiles.models.operators import evaluate
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload
from profiles.workloads.precision import computing, lower, set_products, unavailable
from tests.parity_entries import SPECS
from tests.plan_builders import write_plan_file

SIZE = (2, 32, 1)
# Largest relative error of rounding to a float of so many bits behind the point, where it is not too small a number.
E4M3, BF16 = 2**-4, 2**-8
# What fp8 may be off by where it has its smallest steps, beside the largest of a tensor (448, in steps of 2^-9).
TINY = 2**-9 / 448


def rounded_product(value: Tensor, linear: nn.Linear) -> Tensor:
    with computing("fp8", "cpu"):
        return lower(nn.Sequential(linear), "fp8", is_last=False)(value).float()


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31), st.floats(1e-4, 1e4))
def test_products_in_fp8_are_off_by_no_more_than_their_rounding(rows, inputs, outputs, seed, scale) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(16 * inputs, 16 * outputs, bias=False)
    value = scale * torch.randn(16 * rows, 16 * inputs)
    sizes, weights = value.abs(), linear.weight.abs()
    each = (E4M3 + BF16) * sizes + TINY * sizes.max(), E4M3 * weights + TINY * weights.max()
    bound = each[0] @ weights.T + sizes @ each[1].T + each[0] @ each[1].T
    exact = value @ linear.weight.T
    off = (rounded_product(value, linear) - exact).abs()
    assert (off <= bound + BF16 * (exact.abs() + bound)).all()
    assert off.max() > 0


def test_linears_between_the_first_layer_and_the_last_are_in_fp8_where_their_sides_allow() -> None:
    def layer() -> nn.Module:
        return nn.ModuleDict({"even": nn.Linear(32, 16), "odd": nn.Linear(32, 17), "norm": nn.LayerNorm(32)})

    kinds = {name: type(module).__name__ for name, module in lower(layer(), "fp8", is_last=False).named_children()}
    assert kinds == {"even": "Float8Linear", "odd": "Linear", "norm": "LayerNorm"}
    for precision, is_last in (("fp8", True), ("bf16", False), ("tf32", False)):
        assert type(lower(layer(), precision, is_last).get_submodule("even")) is nn.Linear


def test_traces_in_fp8_multiply_as_often_and_keep_no_copies_of_weights() -> None:
    model = trace(load_workload(SPECS["llama"]), ("bf16", "fp8"))
    low, lowest = (layers[1] for layers in (model.layers["bf16"], model.layers["fp8"]))
    for phase in ("forward", "backward"):
        assert evaluate(lowest.flops(phase), *SIZE) == evaluate(low.flops(phase), *SIZE)
    products = [op for op in lowest.operators if op.kind == "matmul"]
    assert {(op.name, op.dtype, op.layout) for op in products} == {("_scaled_mm", "fp8", "nt")}
    attention = {op.dtype for op in lowest.operators if op.kind == "attention"}
    assert attention == {"bf16"}
    copies = 2 * (evaluate(low.num_parameters, *SIZE) - evaluate(low.num_vector_parameters, *SIZE))
    assert evaluate(lowest.saved_bytes, *SIZE) == evaluate(low.saved_bytes, *SIZE) - copies
    # Each operand is read, scaled, cut off and written anew: the cast overhead.
    casts = sum(evaluate(op.moved_bytes, *SIZE) for op in lowest.operators if op.kind == "memory")
    assert casts > 1.5 * sum(evaluate(op.moved_bytes, *SIZE) for op in low.operators if op.kind == "memory")


def test_tf32_is_fp32_but_for_its_products() -> None:
    model = trace(load_workload(SPECS["llama"]), ("fp32", "tf32"))
    for full, fast in zip(model.layers["fp32"], model.layers["tf32"], strict=True):
        assert full.saved_bytes == fast.saved_bytes
        for ours, theirs in zip(full.operators, fast.operators, strict=True):
            assert (ours.name, ours.dims, ours.read_bytes) == (theirs.name, theirs.dims, theirs.read_bytes)
            assert theirs.dtype == ("tf32" if ours.kind == "matmul" else ours.dtype)


def test_fp32_products_use_tensor_cores_while_a_plan_says_so() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with computing("tf32", "cpu"):
        pass
    assert torch.get_float32_matmul_precision() == "high", "backward passes come after"
    set_products("bf16")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_convolutions_on_gpus_are_computed_as_products_are(monkeypatch: pytest.MonkeyPatch, precision) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    set_products(precision)
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    set_products("fp32")


def test_a_model_is_traced_at_the_precisions_that_its_profile_lacks() -> None:
    model = load_model("llama-26m", ("tf32", "fp32"))
    assert set(model.layers) == {"fp32", "bf16", "tf32"}
    assert model.layers["fp32"] == load_model("llama-26m").layers["fp32"]


@pytest.mark.parametrize(
    ("precision", "capability", "words"),
    [("tf32", (7, 5), "needs compute capability 8.0, not 7.5"), ("fp8", (8, 0), "8.9, not 8.0"), ("fp8", (9, 0), "")],
)
def test_gpus_that_are_too_old(monkeypatch: pytest.MonkeyPatch, precision, capability, words) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reason = unavailable(precision, "cuda")
    assert words in reason
    assert bool(reason) == bool(words)


def test_plans_in_a_precision_that_this_machine_lacks_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, precision="tf32"))
    with pytest.raises(
        EnvironmentFailure, match="precision tf32 is a mode of GPUs, but there is no GPU here: use fp32"
    ):
        prepare(path, RunOptions())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, precision="fp8"))
    with pytest.raises(EnvironmentFailure, match=r"fp8 needs torchao: pip install 'trainwright\[compress\]'"):
        prepare(path, RunOptions())
