"""The command that makes TensorRT's engine of an ONNX file. Torch-free; TensorRT itself has not been run here.

TensorRT takes its precision from the file since version 11, before that from flags. Source: NVIDIA's migration guide.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INPUT = "samples"
STRONGLY_TYPED_FROM = 11


def trtexec_command(path: Path, sample: tuple[int, ...], tensorrt: str | None) -> str:
    """The command that builds TensorRT's engine of the file, for the version that is installed, or that will be.

    In half precision where flags say so; version 11 takes what the file says. Shapes: `sample` is one sample's.
    """
    sizes = "x".join(map(str, sample))
    shapes = " ".join(
        f"--{which}Shapes={INPUT}:{batch}x{sizes}" for which, batch in (("min", 1), ("opt", 1), ("max", 8))
    )
    words = f"trtexec --onnx={path} --saveEngine={path.with_suffix('.plan')} {shapes}"
    is_typed = tensorrt is None or int(tensorrt.split(".")[0]) >= STRONGLY_TYPED_FROM
    return words if is_typed else f"{words} --fp16"


def installed_tensorrt() -> str | None:
    """The version of TensorRT that is installed, None where there is none."""
    try:
        return version("tensorrt")
    except PackageNotFoundError:
        return None
