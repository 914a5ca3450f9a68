"""TensorRT's engine of an ONNX file: the command that makes and times it, run where `trtexec` is. Torch-free.

TensorRT takes its precision from the file since version 11, before that from flags. Source: NVIDIA's migration guide.
It has been run here with a stand-in for `trtexec` alone.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from executor.compress.runtime_latency import RuntimeLatency
from executor.compress.trt_times import read_times, slowest_layers
from profiles.errors import ArtifactError, EnvironmentFailure

INPUT = "samples"
STRONGLY_TYPED_FROM = 11
PROGRAM = "trtexec"
TIMES, LAYERS = ".times.json", ".layers.json"
# Building an engine tries many kernels for each layer.
LONGEST_SECONDS = 1800.0
# The first line that it prints, from TensorRT 10 on as major * 10,000, before that as major * 1,000.
BANNER = re.compile(r"\[TensorRT v(\d+)\]")


def trtexec_command(
    path: Path, sample: tuple[int, ...], tensorrt: str | None, *, is_sparse: bool = False, is_rounded: bool = False
) -> str:
    """The command that builds TensorRT's engine of the file, for the version that is installed, or that will be.

    In half precision where flags say so; version 11 takes what the file says, and so do earlier ones of files that are
    rounded to 8 bits. Two zeros of every four are used where they are. Shapes: `sample` is one sample's.
    """
    sizes = "x".join(map(str, sample))
    shapes = " ".join(
        f"--{which}Shapes={INPUT}:{batch}x{sizes}" for which, batch in (("min", 1), ("opt", 1), ("max", 8))
    )
    words = f"{PROGRAM} {_file('--onnx', path)} {_file('--saveEngine', path.with_suffix('.plan'))} {shapes}"
    if is_sparse:
        words += " --sparsity=enable"
    if is_typed(tensorrt):
        return words
    return f"{words} --stronglyTyped" if is_rounded else f"{words} --fp16"


def is_typed(tensorrt: str | None) -> bool:
    """Whether a version takes its precision from the file alone."""
    return tensorrt is None or int(tensorrt.split(".")[0]) >= STRONGLY_TYPED_FROM


def timing_words(path: Path, tensorrt: str | None) -> str:
    """What is added to the command for its times: of each call, and in a run of its own of each layer."""
    layers = _file("--exportProfile", path.with_suffix(LAYERS))
    words = f"{_file('--exportTimes', times_file(path))} {layers} --dumpProfile"
    return words if is_typed(tensorrt) else f"{words} --separateProfileRun"


def _file(option: str, path: Path) -> str:
    return shlex.quote(f"{option}={path}")


def onnx_path(folder: Path, recipe: str) -> Path:
    """Where the ONNX file of a recipe is written."""
    return folder / f"{recipe.replace(':', '-')}.onnx"


def times_file(path: Path) -> Path:
    """Where the times of an ONNX file's engine are written."""
    return path.with_suffix(TIMES)


def installed_tensorrt() -> str | None:
    """The version of TensorRT that is installed, None where there is none."""
    try:
        return version("tensorrt")
    except PackageNotFoundError:
        return None


def has_trtexec() -> bool:
    """Whether `trtexec` is on the path."""
    return shutil.which(PROGRAM) is not None


def run_trtexec(path: Path, command: str, tensorrt: str | None) -> RuntimeLatency:
    """Build the engine of a file and time it, by the command.

    Raises: EnvironmentFailure where it fails, takes too long, or writes no times.
    """
    words = shlex.split(f"{command} {timing_words(path, tensorrt)}")
    times_file(path).unlink(missing_ok=True)
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=LONGEST_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailure(f"{PROGRAM} could not be run on {path}: {error}"[:400]) from None
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise EnvironmentFailure(f"{PROGRAM} failed on {path} with exit code {done.returncode}: {last[0][:200]}")
    found = BANNER.search(done.stdout + done.stderr)
    precision = "fp16 allowed" if "--fp16" in words else "as the file says"
    try:
        result = read_times(times_file(path), _version(found[1]) if found else tensorrt or "", precision)
    except ArtifactError as error:
        raise EnvironmentFailure(f"{PROGRAM} ran, but {error}") from None
    try:
        return replace(result, slowest=slowest_layers(path.with_suffix(LAYERS)))
    except ArtifactError:
        # Layers are a help, not the result; names in them may break the file.
        return result


def _version(number: str) -> str:
    """`10.13.0` of `101300`, `8.6.1` of `8601`."""
    whole = int(number)
    step = 10_000 if whole >= 10 * 10_000 else 1_000
    return f"{whole // step}.{whole % step // 100}.{whole % 100}"
