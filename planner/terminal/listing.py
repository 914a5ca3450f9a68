"""What `plan --list` shows: the names that its options take, each with what it stands for. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from profiles.errors import UnknownNameError
from profiles.terminal.completion import completing

if TYPE_CHECKING:
    from rich.console import Console


def explain(kind: str | None, out: Console, json_output: bool) -> None:
    """Print the list of a kind, or where none is named the legend of a plan's words; as JSON alone where asked for.

    Raises: UnknownNameError with the nearest kind.
    """
    from planner.terminal.legend import legend
    from profiles.terminal.console import print_json

    if kind is not None:
        names, rows = ("name", "title"), list(listed(kind).items())
    else:
        names, rows = ("word", "meaning"), [(word.form, word.meaning) for word in legend()]
    if json_output:
        print_json(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
        return
    from profiles.terminal.tables import plain_table, print_table

    table = plain_table()
    table.add_column(names[0], no_wrap=True)
    table.add_column(names[1])
    for row in rows:
        table.add_row(*row)
    print_table(table, out)


def listed(kind: str) -> dict[str, str]:
    """Titles by name of everything of a kind: devices, clusters, models, stacks, schedules or codecs.

    Raises: UnknownNameError with the nearest kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("list", kind, KINDS)
    return KINDS[kind]()


def _devices() -> dict[str, str]:
    from profiles.machines.devices import catalogue_names, load_device

    return {name: load_device(name).title for name in catalogue_names()}


def _clusters() -> dict[str, str]:
    from profiles.machines.clusters import cluster_names, load_cluster

    return {name: load_cluster(name).title for name in cluster_names()}


def _models() -> dict[str, str]:
    from profiles.library import config_names, load_sizes, model_names
    from profiles.units import format_count

    return {
        name: f"{format_count(sizes.transformer.num_parameters[0])} parameters, {sizes.config['model_type']}"
        for name in sorted((*model_names(), *config_names()))
        if (sizes := load_sizes(name)) is not None
    }


def _stacks() -> dict[str, str]:
    from profiles.machines.stacks import load_stack, stack_names

    return {name: load_stack(name).title for name in stack_names()}


def _schedules() -> dict[str, str]:
    from planner.schedules.registry import SCHEDULES

    return {name: rules.title for name, rules in SCHEDULES.items()}


def _codecs() -> dict[str, str]:
    from profiles.codecs.codec import KNOWN, codec

    return {name: codec(name).title for name in KNOWN}


KINDS: Mapping[str, Callable[[], dict[str, str]]] = MappingProxyType(
    {
        "devices": _devices,
        "clusters": _clusters,
        "models": _models,
        "stacks": _stacks,
        "schedules": _schedules,
        "codecs": _codecs,
    }
)


def _recipe_names() -> tuple[str, ...]:
    from planner.compression.recipes import KNOWN

    return ("auto", *KNOWN)


def _precision_names() -> tuple[str, ...]:
    from planner.terminal.legend import PRECISIONS

    return tuple(PRECISIONS)


complete_kinds = completing(lambda: KINDS)
complete_recipes = completing(_recipe_names, several=True)
complete_precisions = completing(_precision_names, several=True)
