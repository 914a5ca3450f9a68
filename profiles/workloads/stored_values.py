"""Tensors of a module in a folder of safetensors, read one by one, or in part, under the names that transformers gives.

Nothing is downloaded, and nothing is unpickled.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from profiles.errors import ArtifactError, InputError
from profiles.inputs.foreign import shown

# How transformers calls a file of weights, and the list of those that are in pieces.
WHOLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# What is read of a tensor: all of it, or a part.
Part = tuple[slice, ...]
WHOLE: Part = ()


@dataclass(slots=True)
class _Source:
    """Tensors of the files that one of a module is made of, by the patterns of their names, and how."""

    keys: list[tuple[str, str]] = field(default_factory=list)
    converter: Any = None


class StoredValues:
    """What a folder has of a module's tensors."""

    def __init__(self, folder: Path, module: nn.Module) -> None:
        """Look into a folder; a tensor of the module that has several names goes by the first.

        Raises: InputError where it has no safetensors, or none of this module; ArtifactError where they are damaged.
        """
        self.folder, self._module = folder, module
        self._files = _files(folder)
        known = module.state_dict(keep_vars=True)
        sources = _sources(module, self._files, known)
        first: dict[int, str] = {}
        self._sources: dict[str, _Source] = {}
        for name, own in known.items():
            own_name = first.setdefault(id(own), name)
            if name in sources:
                self._sources.setdefault(own_name, sources[name])
        if not self._sources:
            raise InputError(f"the weights in {folder} are of another model than {type(module).__name__}: none fits")
        self._open: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        """Whether the folder has a tensor."""
        return name in self._sources

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of the module's tensors."""
        owner, _, attribute = name.rpartition(".")
        return tuple(getattr(self._module.get_submodule(owner), attribute).shape)

    def read(self, name: str, part: Part) -> Tensor:
        """A tensor, or a part of it; of the file no more than that is read, unless it is made of several.

        Raises: InputError where it has another shape, or transformers cannot make it; ArtifactError where it cannot be
        read.
        """
        source, wanted = self._sources[name], self.shape(name)
        try:
            if source.converter is not None:
                return self._checked(name, self._converted(name, source), wanted)[part]
            stored = self._file(source.keys[0][0]).get_slice(source.keys[0][0])
            if tuple(stored.get_shape()) != wanted:
                self._refuse(name, stored.get_shape(), wanted)
            found: Tensor = stored[part] if part else stored[:] if wanted else self._tensor(source.keys[0][0])
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.folder}: {name} cannot be read: {error}") from error
        return found

    def _converted(self, name: str, source: _Source) -> Tensor:
        """What transformers makes of several tensors, such as those of the experts of a mixture."""
        parts = [(key, pattern, self._tensor(key)) for key, pattern in source.keys]
        try:
            converter = copy.deepcopy(source.converter)
            for key, pattern, part in parts:
                converter.add_tensor(name, key, pattern, part)
            found = converter.convert(name, model=self._module, config=getattr(self._module, "config", None))
            value: Any = found[name]
            tensor: Tensor = value[0] if isinstance(value, list) else value
            return tensor
        except Exception as error:
            # Of a library's code on a foreign file, which fails in any way where pieces are missing or of other shapes.
            raise InputError(
                f"{self.folder}: {name} cannot be made from {shown(source.keys[0][0])} and its parts "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]:.100}): give weights of the same "
                "configuration"
            ) from error

    def _checked(self, name: str, value: Tensor, wanted: tuple[int, ...]) -> Tensor:
        if tuple(value.shape) != wanted:
            self._refuse(name, value.shape, wanted)
        return value

    def _refuse(self, name: str, shape: Sequence[int], wanted: Sequence[int]) -> None:
        raise InputError(
            f"{self.folder}: {name} has the shape {tuple(shape)}, {type(self._module).__name__} has {tuple(wanted)}: "
            "give weights of the same configuration"
        )

    def _tensor(self, key: str) -> Tensor:
        found: Tensor = self._file(key).get_tensor(key)
        return found

    def _file(self, key: str) -> Any:
        path = str(self._files[key])
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        return self._open[path]


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a folder."""
    index, whole = folder / INDEX_FILE, folder / WHOLE_FILE
    try:
        if index.is_file():
            told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {str(key): _beside(folder, str(name)) for key, name in told.items()}
        if whole.is_file():
            with safe_open(str(whole), "pt") as file:
                return dict.fromkeys(file.keys(), whole)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{folder}: the weights cannot be read: {type(error).__name__}: {error}") from error
    raise InputError(f"{folder} has no {WHOLE_FILE} to read weights from: give a folder of safetensors")


def _beside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise ArtifactError(f"{folder / INDEX_FILE}: {name[:60]!r} is not the name of a file beside it")
    return folder / name


def _sources(module: nn.Module, keys: Iterable[str], known: Mapping[str, Any]) -> dict[str, _Source]:
    """What each tensor of a module is read from, by the module's own name."""
    if not hasattr(module, "base_model_prefix"):
        return {key: _Source([(key, key)]) for key in keys if key in known}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(module)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    found: dict[str, _Source] = {}
    # Experts are put together in the order in which they come: the tenth behind the second.
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, module.base_model_prefix, known)
        if name not in known and key in known:
            name, pattern = key, None
        if name not in known:
            continue
        source = found.setdefault(name, _Source())
        source.keys.append((key, pattern or key))
        if pattern is not None:
            source.converter = by_pattern[pattern]
            if len(source.converter.target_patterns) > 1:
                kind = type(module).__name__
                raise InputError(
                    f"{shown(key)} is split into several when {kind} is loaded: build it with from_pretrained"
                )
    return found
