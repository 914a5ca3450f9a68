"""Finds what a command line names: a model by alias, file or factory; a machine by file, device or what is stored here.

Aliases are traced profiles that ship with the program, so that planning a known model needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from profiles.artifacts import artifact_kind, read
from profiles.catalog import CATALOG
from profiles.errors import InputError, UnknownNameError
from profiles.inputs.foreign import shown
from profiles.machines.profile import MachineProfile
from profiles.models.families import VISION_FAMILIES, is_own_module
from profiles.models.hf_config import FAMILIES as SIZED_FAMILIES
from profiles.models.profile import PRECISIONS, USUAL_PRECISIONS, ModelProfile, WorkloadSpec
from profiles.models.sizes import ModelSizes, config_name, read_config, sizes_of
from profiles.onnx_files.show import is_onnx
from profiles.stored_traces import keep_trace, kept_trace
from profiles.workloads.trust import is_factory, named_modules

MODELS = CATALOG / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a command asks a model for: a task by name, and a local folder that its weights are read from.

    `device_kind` is the kind of device whose dropout it is traced with.
    """

    task: str = ""
    weights: str = ""
    device_kind: str = "cuda"

    def of(self, spec: WorkloadSpec) -> WorkloadSpec:
        """The workload for it."""
        return replace(spec, task=self.task or spec.task, weights=self.weights or spec.weights)

    def is_of(self, spec: WorkloadSpec) -> bool:
        """Whether a workload is for it already."""
        return self.task in ("", spec.task) and self.weights in ("", spec.weights)


NOTHING = Asked()
EMPTY = "the model's name is empty: give an alias, a config.json or its folder, or package.module:factory"
# Models that ship as their configuration alone: too large, or of too new a kind, to be traced ahead.
CONFIGS = CATALOG / "configs"


def model_names() -> list[str]:
    """The aliases of all shipped models."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


def config_names() -> list[str]:
    """The aliases of models that ship by their sizes."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def load_sizes(model: str, task: str = "") -> ModelSizes | None:
    """The sizes of `model`, without tracing it: an alias, a profile, a config.json or its folder.

    None for a factory, for a model that reads images, and for what is built as its author wrote it, of other families
    or for a `task`: those have to be traced.

    Raises: UnknownNameError for an unknown alias or family; InputError where a file cannot be used.
    """
    path = Path(model)
    _check_name(model)
    if model in config_names() and not task:
        return sizes_of(model, read_config(CONFIGS / f"{model}.json"))
    if model in model_names() or (os.path.isfile(path) and artifact_kind(path) is not None):
        workload = _load_model(model).workload
        return sizes_of(workload.name, workload.config) if workload.reads_text and not task else None
    if os.path.exists(path) or path.suffix == ".json":
        config = read_config(path)
        family = str(config["model_type"])
        is_sized = family in SIZED_FAMILIES and family not in VISION_FAMILIES
        return sizes_of(config_name(path), config) if is_sized and not (task or is_own_module(config)) else None
    if ":" in model:
        return None
    raise UnknownNameError("model", model, [*model_names(), *config_names()])


def load_model(
    model: str, precisions: Sequence[str] = (), trusted: Sequence[str] = (), asked: Asked = NOTHING
) -> ModelProfile:
    """The profile of `model`: an alias, a profile file, a Hugging Face config.json or its folder, or module:factory.

    Of `precisions` those that it lacks are traced, which a file whose model is built by a module of the user's allows
    where that is among the `trusted` ones. A task that is `asked` for is traced, unless the file is of it.
    Raises: UnknownNameError with the nearest alias or precision; InputError where the file or the factory cannot be
    used; EnvironmentFailure where a precision needs a library that is not installed.
    """
    _check_precisions(precisions)
    if (asked.task or asked.weights) and not (_is_profile(model) and asked.is_of(_load_model(model).workload)):
        return _traced(model, asked.of(_spec_of(model)), trusted, precisions or USUAL_PRECISIONS, asked.device_kind)
    profile = _load_model(model, asked, precisions)
    if profile.traced_for not in ("", asked.device_kind):
        return _traced(model, profile.workload, trusted, precisions or tuple(profile.layers), asked.device_kind)
    missing = [precision for precision in precisions if precision not in profile.layers]
    if not missing:
        return profile
    added = _traced(model, profile.workload, trusted, missing, asked.device_kind)
    if added.structure != profile.structure:
        # Layers that are alike at some precisions are not at others: all are told apart at once.
        return _traced(model, profile.workload, trusted, (*profile.layers, *missing), asked.device_kind)
    return replace(profile, layers=profile.layers | added.layers, sharing=profile.sharing.joined(added.sharing))


def trace_sizes(sizes: ModelSizes, precisions: Sequence[str], trusted: Sequence[str] = ()) -> ModelProfile:
    """The trace of a model that is at hand, which no name or file has to be known for.

    Raises: as `trace_model`.
    """
    _check_precisions(precisions)
    profile = sizes.profile
    if profile is not None and all(precision in profile.layers for precision in precisions):
        return profile
    return _traced(sizes.name, sizes.workload, trusted, precisions)


def _check_precisions(precisions: Sequence[str]) -> None:
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UnknownNameError("precision", precision, PRECISIONS)


def _load_model(model: str, asked: Asked = NOTHING, needed: Sequence[str] = ()) -> ModelProfile:
    if model in model_names():
        return read(MODELS / f"{model}.json", "model-profile", ModelProfile)
    if _is_profile(model):
        profile = read(Path(model), "model-profile", ModelProfile)
        profile.check()
        return profile
    return _traced(model, asked.of(_spec_of(model)), (), device_kind=asked.device_kind, needed=needed)


def _is_profile(model: str) -> bool:
    return os.path.isfile(model) and artifact_kind(Path(model)) is not None


def trace_model(model: str, trusted: Sequence[str] = (), asked: Asked = NOTHING) -> ModelProfile:
    """Trace `model`: all that `load_model` takes, an alias or a profile through what it was made from.

    The same configuration, traced before, is not traced again.

    Raises: as `load_model`, and InputError where it cannot be built or traced.
    """
    return _traced(model, asked.of(_spec_of(model)), trusted, device_kind=asked.device_kind)


def _spec_of(model: str) -> WorkloadSpec:
    _check_name(model)
    if model in model_names() or _is_profile(model):
        return _load_model(model).workload
    if not is_factory(model) and not os.path.lexists(model) and model not in config_names():
        if model.endswith(".json") or os.sep in model:
            raise InputError(f"model {shown(model)}: no such file")
        raise UnknownNameError("model", model, [*model_names(), *config_names()])
    return load_spec(str(CONFIGS / f"{model}.json") if model in config_names() else model)


def _check_name(model: str) -> None:
    """Refuse no name, and files that hold no model to train.

    Raises: InputError.
    """
    if not model:
        raise InputError(EMPTY)
    if is_onnx(model):
        raise InputError(f"{shown(model)} is for inference: plan training from its config.json or module")


def load_spec(model: str) -> WorkloadSpec:
    """The workload that `model` names: a config.json, its folder, or `package.module:factory`.

    Raises: InputError where the file or the factory cannot be used.
    """
    if is_factory(model):
        return WorkloadSpec(kind="module", name=model.rpartition(":")[2], factory=model)
    path = Path(model)
    return WorkloadSpec(kind="transformers", name=config_name(path), config=read_config(path))


def _traced(
    model: str,
    spec: WorkloadSpec,
    trusted: Sequence[str],
    precisions: Sequence[str] = USUAL_PRECISIONS,
    device_kind: str = "cuda",
    needed: Sequence[str] = (),
) -> ModelProfile:
    """A trace; of a task at those precisions alone that are `needed`, where any are. One that was made before is kept.

    Raises: as `trace_model`.
    """
    for wanted in dict.fromkeys((tuple(precisions), tuple(needed or precisions))):
        kept = kept_trace(_home(), spec, device_kind, wanted)
        if kept is not None:
            return kept
    profile = _trace(model, spec, trusted, precisions, device_kind, needed)
    keep_trace(_home(), spec, device_kind, profile)
    return profile


def _trace(
    model: str,
    spec: WorkloadSpec,
    trusted: Sequence[str],
    precisions: Sequence[str],
    device_kind: str,
    needed: Sequence[str],
) -> ModelProfile:
    from profiles.tracing.task_trace import trace_task
    from profiles.tracing.trace import trace
    from profiles.workloads.loading import load_workload
    from profiles.workloads.task_loading import load_task, wants_task

    allowed = (*trusted, *named_modules(model))
    if wants_task(spec, allowed, model):
        return trace_task(spec, load_task(spec, allowed, model), needed or precisions, device_kind)
    return trace(load_workload(spec, allowed, model), precisions)


def stored_machine_path() -> Path:
    """Where the profile of this machine is kept: under TRAINWRIGHT_HOME, else the user's cache folder."""
    return _home() / "machine.json"


def _home() -> Path:
    """The folder of what is kept from one command to the next."""
    home = os.environ.get("TRAINWRIGHT_HOME")
    cache = os.environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home)
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "trainwright"
    except RuntimeError:  # whoever runs this has no home
        return Path(".trainwright")


def read_machine(path: Path) -> MachineProfile:
    """The machine profile in a file.

    Raises: ArtifactError where it is none.
    """
    profile = read(path, "machine-profile", MachineProfile)
    profile.check()
    return profile


def load_machine(machine: str | None, num_devices: int) -> tuple[MachineProfile, str]:
    """The measured machine to plan for, and a sentence that says which it is.

    Raises: InputError where none is named and none is stored; ArtifactError where the file is none.
    """
    if machine is not None:
        profile = read_machine(Path(machine))
        return profile, f"machine {profile.name} ({profile.origin}), from {machine}"
    stored = stored_machine_path()
    if not os.path.exists(stored):
        raise InputError(
            f"no machine is known here: run `profile machine --gpus {num_devices}`, give --machine FILE, "
            "or plan for a shipped device with --device NAME (`plan --list devices` shows them)"
        )
    profile = read_machine(stored)
    return profile, f"this machine, {profile.name}, as measured {profile.created or 'before'}"
