"""Megatron's YAML files: MODEL_ARGS of its tests and of Megatron-Bridge, and those of --yaml-cfg."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from planner.stacks.handover import Given, StackJob
from planner.stacks.megatron.read_job import read_job
from planner.stacks.megatron.told import Said
from planner.stacks.megatron.words import ATTRIBUTES, SAME, WORDS
from profiles.errors import ArtifactError, InputError

ARGUMENTS = "MODEL_ARGS"
# Megatron's tests say in their folders' names what they run on: 1 node with 8 GPUs.
NODES = re.compile(r"_(\d{1,5})N(\d{1,3})G\b")


def is_yaml(path: Path, text: str) -> bool:
    """Whether a file may be one of these."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return False
    return bool(re.search(rf"^{ARGUMENTS}:", text, re.MULTILINE)) or bool(
        re.search(r"^[ \t]*(tensor_model_parallel_size|num_attention_heads):", text, re.MULTILINE)
        and re.search(r"^[ \t]*micro_batch_size:", text, re.MULTILINE)
    )


def read_yaml(path: Path, text: str, given: Given) -> StackJob:
    """The job of a YAML file.

    Raises: InputError; ArtifactError where it is no YAML.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ArtifactError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ArtifactError(f"{path}: it should be a mapping of settings")
    said = list(_settings(path, root))
    nodes = NODES.search(path.parent.name)
    devices = int(nodes.group(1)) * int(nodes.group(2)) if nodes else 0
    whence = f"from the folder's name, {nodes.group(0).strip('_')}" if nodes else ""
    return read_job(str(path), said, given, devices=devices, whence=whence)


def _settings(path: Path, root: yaml.MappingNode) -> Iterator[Said]:
    own = _entries(root)
    arguments = own.get(ARGUMENTS)
    if arguments is None:
        yield from _attributes(root, set())
        return
    if not isinstance(arguments, yaml.MappingNode):
        raise InputError(f"{path}: {ARGUMENTS} should be a mapping of arguments")
    for key, value in arguments.value:
        one = _said(str(getattr(key, "value", "")).lstrip("-"), value, key)
        if one is not None:
            yield one


def _entries(node: yaml.MappingNode) -> Mapping[str, yaml.Node]:
    return {str(key.value): value for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def _attributes(node: yaml.MappingNode, seen: set[int]) -> Iterator[Said]:
    """Settings by the names of Megatron's attributes, in groups, each of which counts once."""
    seen.add(id(node))
    for key, value in node.value:
        name = str(getattr(key, "value", ""))
        if isinstance(value, yaml.MappingNode):
            if id(value) not in seen:
                yield from _attributes(value, seen)
            continue
        yield from of_attribute(name, _texts(value), f"line {key.start_mark.line + 1}")


def of_attribute(name: str, values: tuple[str, ...], place: str) -> Iterator[Said]:
    """A setting by the name of Megatron's attribute, as logs show it; nothing where it says that it is not there."""
    flag = name.replace("_", "-")
    word = ATTRIBUTES.get(name) or WORDS.get(SAME.get(flag, flag))
    text = " ".join(values).lower()
    if name == "activation_func" and text == "swiglu":
        yield Said(name="swiglu", values=(), place=place)
    elif word is not None and word.kind == "switch":
        is_true = text == "true"
        if is_true != word.off:
            yield Said(name=word.name, values=(), place=place)
    elif text not in ("none", "null", "", "false", "[]"):
        yield Said(name=word.name if word else flag, values=values, place=place)


def _texts(node: Any) -> tuple[str, ...]:
    if isinstance(node, yaml.SequenceNode):
        return tuple(str(getattr(one, "value", "")) for one in node.value)
    return tuple(str(getattr(node, "value", "")).split())


def _said(name: str, value: yaml.Node, key: yaml.Node) -> Said | None:
    """An argument; None where it is switched off."""
    texts, place = _texts(value), f"line {key.start_mark.line + 1}"
    word = WORDS.get(SAME.get(name, name))
    text = " ".join(texts).lower()
    if isinstance(value, yaml.MappingNode):
        return Said(name=name, values=("{...}",), place=place)
    if (word is None or word.kind == "switch") and text in ("true", "false"):
        return Said(name=name, values=(), place=place) if text == "true" else None
    return Said(name=name, values=texts, place=place, is_open=word is not None and "${" in text)
