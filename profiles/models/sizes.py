"""A Hugging Face configuration read as sizes of a transformer, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from profiles.errors import ArtifactError, InputError
from profiles.inputs.foreign import read_json, real_path
from profiles.models.adapters import EVERYTHING, Adapters
from profiles.models.hf_config import checked
from profiles.models.hf_records import VitConfig
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.models.traced_sizes import traced_sizes
from profiles.models.transformer import Transformer

Config = Mapping[str, Any]
WANTED = "give a Hugging Face config.json"
FLAGS = ("gated", "tied", "biases")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """One model by its sizes; `longest_sequence` is what its positions allow, 0 where they set no limit.

    `profile` is its trace, where it has one; `adapters` say what of it is trained. Shapes: `transformer` has one entry.
    """

    name: str
    config: dict[str, Any]
    transformer: Transformer
    longest_sequence: int
    profile: ModelProfile | None = None
    adapters: Adapters = EVERYTHING

    @property
    def size_unit(self) -> str:
        """What the size of a sample counts; "" where samples have one size alone."""
        return self.profile.unit if self.profile is not None and self.profile.workload.task else "tokens"

    @property
    def workload(self) -> WorkloadSpec:
        """What is trained, enough to build it."""
        if self.profile is not None:
            return self.profile.workload
        return WorkloadSpec(kind="transformers", name=self.name, config=self.config, adapters=self.adapters)

    @property
    def num_layers(self) -> int:
        """Layers that stages are made of: of a transformer without embedding and head."""
        return int(self.transformer.num_layers[0])


def sizes_of(name: str, config: Config) -> ModelSizes:
    """The sizes that a configuration states.

    Raises: ArtifactError where a size is missing or cannot be; UnknownNameError for a family that is not known.
    """
    record = checked(name, config)
    if isinstance(record, VitConfig):
        raise InputError(f"model {name}: a vision model is not known by its sizes; it has to be traced")
    sizes = record.sizes
    columns = {field.name: sizes.get(field.name, 0.0) for field in fields(Transformer)}
    return ModelSizes(
        name=name,
        config=dict(config),
        transformer=Transformer(
            **{key: np.array([value], dtype=bool if key in FLAGS else float) for key, value in columns.items()}
        ),
        longest_sequence=record.longest_sequence,
    )


def sizes_of_trace(profile: ModelProfile, precision: str, sequence_length: int) -> ModelSizes:
    """A traced model by its sizes: those of a transformer of text where it is one, else its layers as they are."""
    if profile.workload.reads_text:
        sizes = sizes_of(profile.name, profile.workload.config)
        return replace(sizes, profile=profile, adapters=profile.workload.adapters)
    return ModelSizes(
        name=profile.name,
        config=profile.workload.config,
        transformer=traced_sizes(profile, precision, sequence_length),
        longest_sequence=profile.max_sequence_length,
        profile=profile,
    )


def read_config(path: Path) -> dict[str, Any]:
    """A config.json, or the one in a folder.

    Raises: ArtifactError where it is none.
    """
    if path.suffix == ".py":
        raise InputError(f"{path} is code: give its module and the model's factory, as {path.stem}:factory")
    path = _config_file(path)
    config = read_json(path, WANTED)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ArtifactError(f"{path} has no model_type; {WANTED}")
    return config


def config_name(path: Path) -> str:
    """What a model is called whose configuration stands in `path`: a config.json is called like its folder."""
    path = _config_file(path)
    return real_path(path.parent).name if path.name == "config.json" else path.stem


def _config_file(path: Path) -> Path:
    return path / "config.json" if os.path.isdir(path) else path
