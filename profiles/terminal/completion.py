"""Names of the catalogue as the shell completes them: quick, and without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Completer = Callable[[str], list[str]]


def completing(names: Callable[[], Iterable[str]], several: bool = False) -> Completer:
    """What completes one of `names`, or with `several` the last of a list with commas."""

    def complete(incomplete: str) -> list[str]:
        before = incomplete[: incomplete.rfind(",") + 1] if several else ""
        return [before + name for name in names() if (before + name).startswith(incomplete)]

    return complete


def _devices() -> list[str]:
    from profiles.machines.devices import catalogue_names

    return catalogue_names()


def _clusters() -> list[str]:
    from profiles.machines.clusters import cluster_names

    return cluster_names()


def _stacks() -> list[str]:
    from profiles.machines.stacks import stack_names

    return stack_names()


def _models() -> list[str]:
    from profiles.library import config_names, model_names

    return [*model_names(), *config_names()]


def _precisions() -> tuple[str, ...]:
    from profiles.models.profile import PRECISIONS

    return PRECISIONS


def _codecs() -> tuple[str, ...]:
    from profiles.codecs.codec import KNOWN

    return KNOWN


complete_device = completing(_devices)
complete_devices = completing(_devices, several=True)
complete_cluster = completing(_clusters, several=True)
complete_stack = completing(_stacks)
complete_model = completing(_models)
complete_precisions = completing(_precisions, several=True)
complete_codecs = completing(_codecs, several=True)
