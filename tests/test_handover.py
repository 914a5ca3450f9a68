"""Models handed over: ONNX Runtime answers what torch does, for any size; the command that TensorRT is given."""

from pathlib import Path

import pytest
import torch

from executor.compress.export_onnx import export_onnx, onnxruntime_seconds
from executor.compress.tensorrt import trtexec_command
from profiles.models.profile import WorkloadSpec
from profiles.workloads.loading import load_workload
from tests.plan_builders import GPT2, LLAMA
from tests.workload_builders import onnxruntime_logits


@pytest.mark.filterwarnings("ignore")  # of the exporter and what it loads
@pytest.mark.parametrize("spec", [LLAMA, pytest.param(GPT2, marks=pytest.mark.slow)], ids=lambda spec: spec.name)
def test_the_file_answers_as_the_model_does(spec: WorkloadSpec, tmp_path: Path) -> None:
    workload, path = load_workload(spec), tmp_path / "models" / "whole.onnx"
    model = workload.build(0, len(workload.layers), seed=1)
    export_onnx(model, workload.example_input(1, 16), path)
    assert [file.name for file in path.parent.iterdir()] == ["whole.onnx"]
    for batch, sequence in ((1, 16), (3, 24)):
        tokens = workload.example_input(batch, sequence)
        with torch.no_grad():
            torch.testing.assert_close(onnxruntime_logits(path, tokens), model(tokens), rtol=1e-3, atol=1e-4)
    assert 0 < onnxruntime_seconds(path, workload.example_input(1, 16)) < 1


def test_tensorrt_is_told_its_precision_in_the_words_of_its_version() -> None:
    shapes = "--minShapes=samples:1x128 --optShapes=samples:1x128 --maxShapes=samples:8x128"
    for version, flags in (("10.3.0", " --fp16"), ("11.0.1", ""), (None, "")):
        command = trtexec_command(Path("m.onnx"), (128,), version)
        assert command == f"trtexec --onnx=m.onnx --saveEngine=m.plan {shapes}{flags}"
