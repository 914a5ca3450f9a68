"""What other software makes of an ONNX file here: ONNX Runtime and OpenVINO, on one thread, in turns with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from executor.compress.evaluation import NUM_CALLS, in_turns
from executor.compress.export_onnx import onnxruntime_session
from executor.compress.runtime_latency import RuntimeLatency
from executor.compress.tensorrt import PROGRAM, has_trtexec
from profiles.errors import EnvironmentFailure, UnknownNameError

TORCH = "PyTorch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A runtime by the name that options take: what it is called, and what has to be installed for it."""

    title: str
    needs: str
    advice: str

    @property
    def is_here(self) -> bool:
        """Whether it can be used here."""
        return has_trtexec() if self.needs == PROGRAM else find_spec(self.needs) is not None


RUNTIMES = {
    "onnxruntime": Runtime(
        title="ONNX Runtime", needs="onnxruntime", advice="pip install 'trainwright[export]'"
    ),
    "openvino": Runtime(title="OpenVINO", needs="openvino", advice="pip install 'trainwright[openvino]'"),
    "tensorrt": Runtime(title="TensorRT", needs=PROGRAM, advice=f"put {PROGRAM} on the path"),
}  # fmt: skip


def chosen_runtimes(names: str | None) -> tuple[tuple[str, ...], list[str]]:
    """The runtimes to time in: those named, which have to be here, else all that are; and notes of the others.

    Raises: UnknownNameError; EnvironmentFailure where one that is named is missing.
    """
    if names is None:
        missing = [own for own in RUNTIMES.values() if not own.is_here]
        notes = [f"{own.title} is not installed, so nothing was timed in it: {own.advice}" for own in missing]
        return tuple(name for name, own in RUNTIMES.items() if own.is_here), notes
    chosen = tuple(dict.fromkeys(word.strip() for word in names.split(",")))
    for name in chosen:
        if name not in RUNTIMES:
            raise UnknownNameError("runtime", name, RUNTIMES)
        if not RUNTIMES[name].is_here:
            own = RUNTIMES[name]
            raise EnvironmentFailure(f"--runtimes {name}: {own.title} is not installed: {own.advice}, or leave it out")
    return chosen, []


def runtime_latencies(path: Path, model: nn.Module, tokens: Tensor, names: Sequence[str]) -> list[RuntimeLatency]:
    """Latencies of the file in each runtime of the CPU that is named, in turns with the model in torch.

    torch takes its device and threads, the others one thread of the CPU.
    """
    calls: dict[str, Callable[[], Any]] = {TORCH: lambda: model(tokens)}
    if "onnxruntime" in names:
        calls["onnxruntime"] = onnxruntime_call(path, tokens)
    if "openvino" in names:
        calls["openvino"] = openvino_call(path, tokens)
    if len(calls) == 1:
        return []
    with torch.inference_mode():
        taken = in_turns(calls, tokens)
    return [
        RuntimeLatency(
            runtime=RUNTIMES[name].title if name in RUNTIMES else TORCH,
            version=torch.__version__ if name == TORCH else _version(name),
            latency_seconds=seconds,
            spread_fraction=spread,
            num_timed=NUM_CALLS,
        )
        for name, (seconds, spread) in taken.items()
    ]


def onnxruntime_call(path: Path, tokens: Tensor) -> Callable[[], Any]:
    """One forward pass in ONNX Runtime."""
    session = onnxruntime_session(path)
    feed = {session.get_inputs()[0].name: tokens.cpu().numpy()}
    return lambda: session.run(None, feed)[0]


def onnxruntime_model(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The model as ONNX Runtime computes it, on the CPU: tensors in and out stand on `device`."""
    session = onnxruntime_session(path)
    name = session.get_inputs()[0].name
    return lambda given: torch.from_numpy(session.run(None, {name: given.cpu().numpy()})[0]).to(device)


def openvino_call(path: Path, tokens: Tensor) -> Callable[[], Any]:
    """One forward pass in OpenVINO, in fp32: left alone, it computes in bf16 where the CPU can."""
    import openvino

    own = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": "1",
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
    }
    # A batch that is known is compiled for, as torch and ONNX Runtime know it when they are called.
    model = openvino.Core().read_model(str(path))
    model.reshape(list(tokens.shape))
    compiled = openvino.Core().compile_model(model, "CPU", own)
    data = tokens.cpu().numpy()
    return lambda: compiled(data)[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
