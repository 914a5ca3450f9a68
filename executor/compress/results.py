"""What compressing a model taught: types of the compression file. Torch-free, so that reports can read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from executor.compress.runtime_latency import RuntimeLatency
from executor.compress.trt_times import read_times
from executor.run.measurement import Environment
from planner.compression.recipes import CompressionChoice, Recipe
from profiles.artifacts import STRICT
from profiles.errors import ArtifactError, InputError
from profiles.inputs.ranges import Count, Finite, Fraction, Samples, Seconds, Share, Timed, Tokens, Whole
from profiles.machines.load import MachineLoad
from profiles.models.profile import WorkloadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionResult:
    """One recipe as it came out.

    `loss_before` is the held-out loss right after the model was compressed, `loss` after `step_seconds` more steps of
    training; `equal_time_loss` is that of the uncompressed model after as many seconds. `right_fraction` is the share
    of held-out answers whose likeliest is right. `num_zeros` counts weights of matrices. Latency is one forward pass of
    one sample, with the interquartile range of its repeats over their median; under torch.compile, and of its ONNX file
    in other `runtimes`, where that was asked for. `onnxruntime_seconds` stands in older files.
    """

    __pydantic_config__ = STRICT

    recipe: Recipe
    num_parameters: Whole
    num_zeros: Whole
    stored_bytes: Count
    loss_before: Finite
    loss: Finite
    right_fraction: Share
    equal_time_loss: Finite
    step_seconds: tuple[Timed, ...]
    latency_seconds: Timed
    latency_spread_fraction: Fraction
    compiled_seconds: Seconds | None = None
    onnx_file: str = ""
    onnxruntime_seconds: Seconds | None = None
    runtimes: tuple[RuntimeLatency, ...] = ()

    @property
    def train_seconds(self) -> float:
        """Seconds of training after the model was compressed."""
        return sum(self.step_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionFile:
    """What `execute --compress -o` writes and `compare` reads; the first result is the uncompressed model.

    `sample_shape` is that of one sample; `first_steps` were taken by the uncompressed model before it was compressed;
    `load` is what else the machine did during the timed steps and latencies, None where nobody looked.
    """

    __pydantic_config__ = STRICT

    model_name: str
    workload: WorkloadSpec
    plan: str
    global_batch_size: Samples
    sequence_length: Tokens
    sample_shape: tuple[Count, ...]
    first_steps: Whole
    seed: Whole
    choices: tuple[CompressionChoice, ...]
    results: tuple[CompressionResult, ...]
    environment: Environment
    load: MachineLoad | None = None
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Check what its parts say of each other, and its workload.

        Raises: ArtifactError.
        """
        self.workload.check()
        if len(self.results) != sum(not choice.refusal for choice in self.choices) or not self.results:
            raise ArtifactError(f"{self.model_name}: results should have one entry for each choice that is not refused")


def with_times(files: Sequence[CompressionFile], words: Sequence[str]) -> list[CompressionFile]:
    """The files with TensorRT's times that were taken elsewhere, `[RECIPE=]FILE` each, in the places of any before.

    A file without a recipe belongs to the one it is named after, as the command that is printed names it.
    Raises: ArtifactError where a file holds no times; InputError where no recipe, or more than one, is meant.
    """
    found = list(files)
    for word in words:
        name, _, rest = word.rpartition("=")
        path = Path(rest if name else word)
        names = {own.recipe.name for file in found for own in file.results}
        title = name or path.name.removesuffix(".json").removesuffix(".times")
        meant = [own for own in names if title in (own, own.replace(":", "-"))]
        places = [place for place, file in enumerate(found) if any(own.recipe.name in meant for own in file.results)]
        if len(places) != 1:
            raise InputError(
                f"--trt-times {word}: {len(places)} of the files have a recipe {title}: "
                f"name the recipe as RECIPE=FILE (known are {', '.join(sorted(names))}), one compression at a time"
            )
        times = read_times(path)
        found[places[0]] = _with_runtime(found[places[0]], meant[0], times)
    return found


def _kind(own: RuntimeLatency) -> tuple[str, str]:
    return own.runtime, own.precision


def _with_runtime(file: CompressionFile, recipe: str, times: RuntimeLatency) -> CompressionFile:
    results = [
        replace(own, runtimes=(*(other for other in own.runtimes if _kind(other) != _kind(times)), times))
        if own.recipe.name == recipe
        else own
        for own in file.results
    ]
    return replace(file, results=tuple(results))
