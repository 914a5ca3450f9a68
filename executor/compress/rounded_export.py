"""Models with Q/DQ nodes, rounded to 8 bits by NVIDIA's modelopt where it is: what TensorRT and ONNX Runtime take.

Scales are those of a few samples, one for each row of a weight and one for each activation (fp8: one for each tensor).
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed
from torch import Tensor, nn

from executor.compress.export_onnx import OUTPUT
from executor.compress.tensorrt import INPUT

SCHEMES = ("int8", "fp8")
# The first opsets with one scale for each row, and with 8-bit floats.
OPSETS = {"int8": 17, "fp8": 19}
# modelopt's own operators for 8-bit floats, and ONNX's.
OWN_OPERATORS = {"TRT_FP8QuantizeLinear": "QuantizeLinear", "TRT_FP8DequantizeLinear": "DequantizeLinear"}
ABSENT = "modelopt is not installed, so no 8-bit ONNX files were written: pip install nvidia-modelopt"


def can_round() -> bool:
    """Whether modelopt is installed."""
    return find_spec("modelopt") is not None


def modelopt_version() -> str:
    """Which modelopt it is."""
    try:
        return version("nvidia-modelopt")
    except PackageNotFoundError:
        return ""


def failures() -> tuple[type[Exception], ...]:
    """What modelopt, torch's exporter and ONNX Runtime raise for a model that they cannot round, write or run.

    Files that cannot be written, and memory that runs out, are none of these.
    """
    found: tuple[type[Exception], ...] = ()
    if find_spec("onnxruntime") is not None:
        from onnxruntime.capi import onnxruntime_pybind11_state as runtime

        found = (
            runtime.Fail,
            runtime.InvalidArgument,
            runtime.InvalidGraph,
            runtime.InvalidProtobuf,
            runtime.NotImplemented,
            runtime.RuntimeException,
        )
    # Torch's own are of the first kind; the others are what a version that is not known here ends in.
    return RuntimeError, ImportError, AttributeError, AssertionError, LookupError, TypeError, ValueError, *found


def export_rounded(model: nn.Module, samples: Tensor, scheme: str, path: Path) -> None:
    """Write a copy of the model with Q/DQ nodes at every linear, for batches and sequences of any size."""
    import modelopt.torch.quantization as quantisation

    own = {"int8": quantisation.INT8_DEFAULT_CFG, "fp8": quantisation.FP8_DEFAULT_CFG}[scheme]
    samples = samples.cpu()
    dynamic = {0: "batch"} if samples.is_floating_point() else {0: "batch", 1: "sequence"}
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad(), _heads_written_out():
        warnings.simplefilter("ignore")
        with _alone():
            rounded = quantisation.quantize(copy.deepcopy(model).cpu().eval(), own, lambda whole: whole(samples))
        torch.onnx.export(
            rounded,
            (samples[:2],),
            str(part),
            dynamo=False,
            opset_version=OPSETS[scheme],
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: dynamic},
        )
    if scheme == "fp8":
        _in_words_of_onnx(part)
    part.replace(path)


def _alone() -> contextlib.AbstractContextManager[object]:
    """Let modelopt see this process alone: it would wait for the scales of ranks that do not round."""
    return mock.patch.object(torch.distributed, "is_initialized", return_value=False)


def _heads_written_out() -> contextlib.AbstractContextManager[object]:
    """Attention whose groups of heads share keys written out: the exporter that modelopt needs does not know it."""
    real = nn.functional.scaled_dot_product_attention

    def plain(
        query: Tensor, key: Tensor, value: Tensor, *more: Any, enable_gqa: bool = False, **options: Any
    ) -> Tensor:
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
        return real(query, key, value, *more, **options)

    return mock.patch.object(nn.functional, "scaled_dot_product_attention", plain)


def _in_words_of_onnx(path: Path) -> None:
    """Put ONNX's operators in the places of modelopt's own, which TensorRT alone knows."""
    import onnx

    model = onnx.load(str(path))
    zero = "fp8_zero"
    for node in model.graph.node:
        if node.op_type in OWN_OPERATORS:
            node.op_type, node.domain = OWN_OPERATORS[node.op_type], ""
            # The type of what is rounded to is that of its zero.
            del node.input[2:]
            node.input.append(zero)
    # They say that eight bits are whole numbers.
    del model.graph.value_info[:]
    model.graph.initializer.append(onnx.helper.make_tensor(zero, onnx.TensorProto.FLOAT8E4M3FN, [], [0.0]))
    onnx.save(model, str(path))
