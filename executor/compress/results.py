"""What compressing a model taught: types of the compression file. Torch-free, so that reports can read it."""

from __future__ import annotations

from dataclasses import dataclass

from executor.run.measurement import Environment
from planner.compression.recipes import CompressionChoice, Recipe
from profiles.artifacts import STRICT
from profiles.errors import ArtifactError
from profiles.inputs.ranges import Count, Finite, Fraction, Samples, Seconds, Share, Timed, Tokens, Whole
from profiles.machines.load import MachineLoad
from profiles.models.profile import WorkloadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionResult:
    """One recipe as it came out.

    `loss_before` is the held-out loss right after the model was compressed, `loss` after `step_seconds` more steps of
    training; `equal_time_loss` is that of the uncompressed model after as many seconds. `right_fraction` is the share
    of held-out answers whose likeliest is right. `num_zeros` counts weights of matrices. Latency is one forward pass of
    one sample, with the interquartile range of its repeats over their median; under torch.compile and in ONNX Runtime,
    the latter on one thread of the CPU, where that was asked for.
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
            raise ArtifactError(f"{self.model_name}: results should be as many as choices that are not refused")
