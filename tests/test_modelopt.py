"""Models rounded by modelopt: ONNX Runtime answers nearly as the float model does; its zeros are ours."""

from pathlib import Path

import pytest
import torch

from executor.compress.masks import semi_structured
from executor.compress.sparsify import two_of_four
from profiles.workloads.loading import load_workload
from tests.plan_builders import GPT2, LLAMA
from tests.workload_builders import onnxruntime_logits

pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("spec", [LLAMA, GPT2], ids=lambda spec: spec.name)
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_onnx_runtime_answers_nearly_as_the_float_model(spec, scheme, tmp_path: Path) -> None:
    import onnx

    from executor.compress.rounded_export import export_rounded

    workload, path = load_workload(spec), tmp_path / "m.onnx"
    model = workload.build(0, len(workload.layers), seed=1).eval()
    samples = workload.example_input(4, 32)
    export_rounded(model, samples, scheme, path)
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert not any(kind.startswith("TRT_") for kind in kinds)
    for batch, sequence in ((4, 32), (1, 16)):
        given = samples[:batch, :sequence]
        with torch.no_grad():
            expected = model(given)
        error = (onnxruntime_logits(path, given) - expected).abs().max() / expected.abs().max()
        # Rounded, and not by much.
        assert 1e-4 < float(error) < 0.15


def test_two_of_four_are_those_that_modelopt_keeps() -> None:
    import modelopt.torch.sparsity as sparsity

    workload = load_workload(LLAMA)
    model = workload.build(0, len(workload.layers), seed=1)
    linears = {name: one.weight.detach().clone() for name, one in model.named_modules() if type(one) is torch.nn.Linear}
    found = sparsity.export(sparsity.sparsify(model, "sparse_magnitude", {"data_loader": [], "collect_func": None}))
    same = [
        torch.equal(found.get_submodule(name).weight != 0, two_of_four(weight))
        for name, weight in linears.items()
        if (found.get_submodule(name).weight == 0).any()
    ]
    assert same
    assert all(same)
    assert semi_structured(model) is None
