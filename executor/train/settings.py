"""What a training is asked to do: the tables of `execute --train FILE.toml`. Torch-free."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from planner.prediction import PlanFile
from profiles.artifacts import STRICT, validate
from profiles.errors import InputError
from profiles.inputs.foreign import read_toml
from profiles.inputs.ranges import Amount, Count, Positive, Share, Whole
from profiles.workloads.trust import is_factory

OptimizerName = Literal["adamw", "sgd", "adafactor", "adamw8bit"]
ScheduleName = Literal["constant", "linear", "cosine", "wsd"]
Sink = Literal["wandb", "mlflow"]
TokenType = Literal["uint8", "uint16", "uint32", "int32", "int64"]
WANTED = "give --train a file of settings in TOML"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Options of the parameters whose name `match`, a regular expression, is found in; null leaves what all have.

    `dims` are of those with as many dimensions at most: 1 for biases and norms.
    """

    __pydantic_config__ = STRICT

    match: str = ""
    dims: Whole | None = None
    lr: Amount | None = None
    weight_decay: Amount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """The optimizer; `options` are others of its class, as PyTorch calls them.

    `clip_norm` is the largest 2-norm of all gradients, 0 for any.
    """

    __pydantic_config__ = STRICT

    name: OptimizerName = "adamw"
    lr: Positive = 3e-4
    weight_decay: Amount = 0.0
    clip_norm: Amount = 0.0
    options: dict[str, bool | int | float | str | tuple[float, ...]] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """How the rate goes: up over `warmup_steps`, then as `name` says to `final_fraction` of it.

    `decay_steps` are the last ones of warm-up, stable, decay ("wsd").
    """

    __pydantic_config__ = STRICT

    name: ScheduleName = "constant"
    warmup_steps: Whole = 0
    decay_steps: Whole = 0
    final_fraction: Share = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What is trained on: `train` and `evaluation` are each a file, a folder, or package.module:batches.

    Tokens come as .bin (of `token_type`) or .npy, or from a folder that Hugging Face's `save_to_disk` wrote, whose
    `column` of every row is laid end to end, `end_of_text` between; images and arrays as .npz; "" is what `execute`
    runs on. `held_out` is the share that is evaluated on where there is no file for it. `workers` are processes that
    read ahead.
    """

    __pydantic_config__ = STRICT

    train: str = ""
    evaluation: str = ""
    held_out: Share = 0.0
    token_type: TokenType = "uint16"
    column: str = "input_ids"
    end_of_text: Whole | None = None
    shuffle: bool = True
    workers: Whole = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings:
    """What losses in fp16 are scaled by at first, and after how many steps without an overflow it is doubled."""

    __pydantic_config__ = STRICT

    first: Positive = 2.0**16
    growth_interval: Count = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """Every how many steps the loss on unseen samples is taken, over how many global batches; 0 is never."""

    __pydantic_config__ = STRICT

    every: Whole = 0
    batches: Count = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Every how many steps a line is logged, and where else than in --runs."""

    __pydantic_config__ = STRICT

    every: Count = 10
    sinks: tuple[Sink, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """The steps that are timed and held against the prediction: `steps` of them, after the first `start`."""

    __pydantic_config__ = STRICT

    start: Whole = 5
    steps: Count = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """A whole training: up to `max_steps` steps in all, or `max_tokens` tokens; one of the two.

    `weights` is a folder of safetensors that it begins with, `export` one that its own are written to. Without `check`
    nothing is checked before.
    """

    __pydantic_config__ = STRICT

    max_steps: Whole = 0
    max_tokens: Whole = 0
    weights: str = ""
    export: str = ""
    check: bool = True
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    loss_scale: ScaleSettings = ScaleSettings()
    data: DataSettings = DataSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    log: LogSettings = LogSettings()
    measure: MeasureSettings = MeasureSettings()

    def num_steps(self, file: PlanFile) -> int:
        """Steps of the whole training."""
        per_step = file.global_batch_size * file.sequence_length
        return self.max_steps or -(-self.max_tokens // per_step)


def read_settings(path: Path) -> TrainSettings:
    """The settings of a file, its paths made absolute: they are relative to its folder.

    Raises: ArtifactError where it cannot be read or has unknown keys; InputError where settings do not go together.
    """
    settings = validate(read_toml(path, WANTED), TrainSettings, str(path))
    _check(path, settings)
    folder = path.absolute().parent
    data = settings.data
    return replace(
        settings,
        weights=_absolute(folder, settings.weights),
        export=_absolute(folder, settings.export),
        data=replace(data, train=_absolute(folder, data.train), evaluation=_absolute(folder, data.evaluation)),
    )


def flat(settings: TrainSettings) -> dict[str, Any]:
    """Settings by their path, as in "optimizer.lr"."""
    found: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        found |= {f"{name}.{key}": own for key, own in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _absolute(folder: Path, name: str) -> str:
    return name if not name or is_factory(name) else str(folder / name)


def _check(path: Path, settings: TrainSettings) -> None:
    if bool(settings.max_steps) == bool(settings.max_tokens):
        raise InputError(f"{path}: give either max_steps or max_tokens")
    schedule, data = settings.schedule, settings.data
    if schedule.decay_steps and schedule.name != "wsd":
        raise InputError(f'{path}: [schedule] decay_steps belongs to name = "wsd", not to "{schedule.name}"')
    if settings.export and settings.export == settings.weights:
        raise InputError(f"{path}: export is also the folder of weights, which it would overwrite: give another")
    if data.evaluation and data.held_out:
        raise InputError(f"{path}: [data] has both evaluation and held_out: give one of them")
    if data.held_out == 1:
        raise InputError(f"{path}: [data] held_out = 1 leaves nothing to train on")
    if twice := sorted({"lr", "weight_decay"} & settings.optimizer.options.keys()):
        raise InputError(f"{path}: [optimizer] options has {twice[0]}, which has a key of its own: give it there")
    for group in settings.optimizer.groups:
        if not group.match and group.dims is None:
            raise InputError(f"{path}: a group of [optimizer] says neither match nor dims")
        try:
            re.compile(group.match)
        except re.error as error:
            raise InputError(f"{path}: match = {group.match!r} is not a regular expression: {error}") from None
