"""Where else the numbers of a training go: Weights & Biases, MLflow, each where it is installed. Torch-free."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from profiles.errors import EnvironmentFailure
from profiles.ranks.environment import is_main_process

# Given the numbers of a step, by name.
Sink = Callable[[Mapping[str, float], int], None]


def check_sinks(names: Sequence[str]) -> None:
    """Check that what numbers shall go to is installed.

    Raises: EnvironmentFailure.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise EnvironmentFailure(f"[log] sinks names {name}, which is not installed: pip install {name}")


@contextlib.contextmanager
def opened(names: Sequence[str], model: str, settings: Mapping[str, Any]) -> Iterator[list[Sink]]:
    """Sinks by their names, each with the settings of the training, until the block ends; rank 0 alone has any.

    Raises: EnvironmentFailure where one of them cannot be used.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_OPENED[name](model, settings)) for name in names if is_main_process()]


@contextlib.contextmanager
def _wandb(model: str, settings: Mapping[str, Any]) -> Iterator[Sink]:
    library: Any = importlib.import_module("wandb")
    with _told("wandb"):
        run = library.init(project="trainwright", name=model, config=dict(settings))

    def add(values: Mapping[str, float], step: int) -> None:
        with _told("wandb"):
            run.log(dict(values), step=step)

    try:
        yield add
    finally:
        run.finish()


@contextlib.contextmanager
def _mlflow(model: str, settings: Mapping[str, Any]) -> Iterator[Sink]:
    library: Any = importlib.import_module("mlflow")
    with _told("mlflow"):
        library.start_run(run_name=model)
        library.log_params(dict(settings))

    def add(values: Mapping[str, float], step: int) -> None:
        with _told("mlflow"):
            library.log_metrics(dict(values), step=step)

    try:
        yield add
    finally:
        library.end_run()


_OPENED: dict[str, Callable[[str, Mapping[str, Any]], contextlib.AbstractContextManager[Sink]]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
}


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what a library raises into a sentence."""
    try:
        yield
    except Exception as error:  # whatever a foreign library raises where it is not set up, or its server is away
        words = str(error).strip().splitlines()
        raise EnvironmentFailure(
            f"{name} does not take the training's numbers: {words[0] if words else error!r}"
        ) from error
