"""Handing a model over to an inference runtime: its ONNX file, and a session of ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from executor.compress.tensorrt import INPUT
from profiles.errors import EnvironmentFailure

PACKAGES = ("onnx", "onnxscript")
OUTPUT = "logits"


def check_can_export() -> None:
    """Check that what writes ONNX files is installed.

    Raises: EnvironmentFailure.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise EnvironmentFailure(f"--export needs {', '.join(missing)}: pip install 'trainwright[export]'")


def export_onnx(model: nn.Module, tokens: Tensor, path: Path) -> None:
    """Write the model as ONNX, for batches of any size, and of tokens for sequences too.

    Shapes: tokens (batch, sequence), or patches (batch, patch, pixel).
    """
    dynamic = {0: torch.export.Dim.DYNAMIC}
    if not tokens.is_floating_point():
        dynamic[1] = torch.export.Dim.DYNAMIC
    # Exported with two samples: a size of one would be taken for a constant.
    example = tokens.expand(2, *tokens.shape[1:]).contiguous() if len(tokens) == 1 else tokens
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.eval(),
        (example,),
        str(part),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=(dynamic,),
    )
    part.replace(path)


def onnxruntime_session(path: Path) -> Any:
    """A session of ONNX Runtime on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Without it products of 8 bits overflow on processors without VNNI: logits of tiny models were 30 % off, not 2 %.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
