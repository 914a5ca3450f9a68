"""Models handed over: ONNX Runtime answers what torch does, for any size; the command that TensorRT is given."""

import os
import sys
from pathlib import Path

import pytest
import torch

from executor.compress.export_onnx import export_onnx
from executor.compress.runtimes import RUNTIMES, chosen_runtimes, openvino_call, runtime_latencies
from executor.compress.tensorrt import PROGRAM, run_trtexec, timing_words, trtexec_command
from executor.compress.trt_times import read_times
from profiles.errors import ArtifactError, EnvironmentFailure, UnknownNameError
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
    tokens, names = workload.example_input(1, 16), [name for name, own in RUNTIMES.items() if own.needs != PROGRAM]
    here = [name for name in names if RUNTIMES[name].is_here]
    taken = {own.runtime: own for own in runtime_latencies(path, model, tokens, here)}
    assert set(taken) == {"PyTorch", *(RUNTIMES[name].title for name in here)}
    assert all(0 < own.latency_seconds < 1 and own.version for own in taken.values())
    if "openvino" in here:
        with torch.no_grad():
            answers = torch.from_numpy(openvino_call(path, tokens)())
            torch.testing.assert_close(answers, model(tokens), rtol=1e-3, atol=1e-4)


def test_tensorrt_is_told_its_precision_in_the_words_of_its_version() -> None:
    shapes = "--minShapes=samples:1x128 --optShapes=samples:1x128 --maxShapes=samples:8x128"
    for version, flags in (("10.3.0", " --fp16"), ("11.0.1", ""), (None, "")):
        command = trtexec_command(Path("m.onnx"), (128,), version)
        assert command == f"trtexec --onnx=m.onnx --saveEngine=m.plan {shapes}{flags}"
    sparse = trtexec_command(Path("m.onnx"), (128,), "11.0", is_sparse=True)
    assert sparse.endswith(" --sparsity=enable")
    assert trtexec_command(Path("m.onnx"), (128,), "10.3", is_rounded=True).endswith(f"{shapes} --stronglyTyped")
    times = "--exportTimes=m.times.json --exportProfile=m.layers.json --dumpProfile"
    assert timing_words(Path("m.onnx"), "11.1") == times
    assert timing_words(Path("m.onnx"), "10.3") == f"{times} --separateProfileRun"


def test_runtimes_that_are_missing_are_named_and_refused_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.compress.runtimes.find_spec", lambda name: name == "onnxruntime" or None)
    monkeypatch.setattr("executor.compress.runtimes.has_trtexec", lambda: False)
    names, notes = chosen_runtimes(None)
    assert names == ("onnxruntime",)
    assert [note.partition(" is not installed")[0] for note in notes] == ["OpenVINO", "TensorRT"]
    with pytest.raises(EnvironmentFailure, match="OpenVINO is not installed: pip install"):
        chosen_runtimes("onnxruntime,openvino")
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        chosen_runtimes("openvin")


# What stands in for trtexec writes the files that NVIDIA's samples/common/sampleReporting.cpp does.
STAND_IN = """#!{python}
import json, sys
given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
open(given["saveEngine"], "w").close()
open(given["onnx"] + ".words", "w").write(" ".join(sys.argv[1:]))
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] [b26] # trtexec")
if {code}:
    print("[E] Error[4]: no device", file=sys.stderr)
    sys.exit({code})
with open(given["exportTimes"], "w") as stream:
    stream.write("[\\n  ")
    stream.write("\\n, ".join('{{ "startEnqMs" : %g, "endEnqMs" : 0, "startH2dMs" : 0, "endH2dMs" : 0, '
        '"startComputeMs" : 0, "endComputeMs" : 0, "startD2hMs" : 0, "endD2hMs" : 0, "h2dMs" : 0.5, '
        '"computeMs" : %g, "d2hMs" : 0.5, "latencyMs" : %g }}' % (x, x, x + 1) for x in (4, 2, 3, 2, 9)))
    stream.write("\\n]\\n")
with open(given["exportProfile"], "w") as stream:
    stream.write('[\\n  {{ "count" : 5 }}\\n, {{ "name" : "a", "timeMs" : 5, "averageMs" : 1, "medianMs" : 1, '
        '"percentage" : 25 }}\\n, {{ "name" : "b", "timeMs" : 15, "averageMs" : 3, "medianMs" : 3, '
        '"percentage" : 75 }}\\n]')
"""


def stand_in(folder: Path, version: int, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    program = folder / "bin" / PROGRAM
    program.parent.mkdir(exist_ok=True)
    program.write_text(STAND_IN.format(python=sys.executable, version=version, code=code), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("number", "version", "precision"), [(110100, "11.1.0", "as the file says"), (101300, "10.13.0", "fp16 allowed")]
)
def test_trtexec_is_run_and_its_times_are_read(
    number: int, version: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, number, monkeypatch)
    assert "tensorrt" in chosen_runtimes(None)[0]
    path = tmp_path / "a folder" / "m.onnx"
    path.parent.mkdir()
    found = run_trtexec(path, trtexec_command(path, (16,), version), version)
    assert (found.runtime, found.version, found.precision) == ("TensorRT", version, precision)
    assert (found.latency_seconds, found.with_copies_seconds, found.num_timed) == (0.003, 0.004, 5)
    assert found.spread_fraction == pytest.approx((6.5 - 2) / 3)
    assert found.slowest == (("b", 0.003), ("a", 0.001))
    words = Path(f"{path}.words").read_text(encoding="utf-8")
    assert ("--fp16" in words) == ("--separateProfileRun" in words) == (number < 110000)
    stand_in(tmp_path, number, monkeypatch, code=1)
    with pytest.raises(EnvironmentFailure, match=r"failed on .* with exit code 1: \[E\] Error\[4\]: no device"):
        run_trtexec(path, trtexec_command(path, (16,), version), version)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "at least two calls"),
        ('{"a": 1}', "at least two calls"),
        ('[{"computeMs": 1, "latencyMs": 2}, {"computeMs": 1}]', "call 1 has latencyMs null"),
        ('[{"computeMs": -1, "latencyMs": 2}, {"computeMs": 1}]', "call 0 has computeMs -1"),
        ('[{"computeMs": nan}]', "is not JSON"),
    ],
)
def test_files_of_no_times_end_in_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=words):
        read_times(tmp_path / "t.json")
