"""Where else the numbers of a training go: Weights & Biases, MLflow, each where it is installed. Torch-free."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from profiles.errors import EnvironmentFailure
from profiles.ranks.environment import is_main_process

# Given the numbers of a step, by name; and called at the end, with whether the training came to it.
Add = Callable[[Mapping[str, float], int], None]
End = Callable[[bool], None]


def check_sinks(names: Sequence[str]) -> None:
    """Check that what numbers shall go to is installed.

    Raises: EnvironmentFailure.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise EnvironmentFailure(f"[log] sinks names {name}, which is not installed: pip install {name}")


class Sinks:
    """Some sinks as one. One that fails is told no more, and `failure` is what it said first: a training goes on."""

    def __init__(self) -> None:
        self._adds: dict[str, Add] = {}
        self._ends: dict[str, End] = {}
        self.failure: EnvironmentFailure | None = None

    def connect(self, name: str, model: str, settings: Mapping[str, Any]) -> None:
        """Open a sink with the settings of the training.

        Raises: EnvironmentFailure where it cannot be used.
        """
        with _told(name):
            self._adds[name], self._ends[name] = _OPENED[name](importlib.import_module(name), model, settings)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Give all of them the numbers of a step."""
        for name, add in [*self._adds.items()]:
            try:
                with _told(name):
                    add(values, step)
            except EnvironmentFailure as error:
                self.failure = self.failure or error
                del self._adds[name]

    def close(self, is_whole: bool) -> None:
        """Let all of them know that the training came to its end, or did not."""
        for name, end in self._ends.items():
            try:
                with _told(name):
                    end(is_whole)
            except EnvironmentFailure as error:
                self.failure = self.failure or error


@contextlib.contextmanager
def opened(names: Sequence[str], model: str, settings: Mapping[str, Any]) -> Iterator[Sinks]:
    """Sinks by their names until the block ends; rank 0 alone has any.

    Raises: EnvironmentFailure where one of them cannot be used.
    """
    sinks, is_whole = Sinks(), False
    try:
        for name in names if is_main_process() else ():
            sinks.connect(name, model, settings)
        yield sinks
        is_whole = True
    finally:
        sinks.close(is_whole)


def _wandb(library: Any, model: str, settings: Mapping[str, Any]) -> tuple[Add, End]:
    run = library.init(project="trainwright", name=model, config=dict(settings))
    return lambda values, step: run.log(dict(values), step=step), lambda is_whole: run.finish(int(not is_whole))


def _mlflow(library: Any, model: str, settings: Mapping[str, Any]) -> tuple[Add, End]:
    library.start_run(run_name=model)
    library.log_params(dict(settings))
    return (
        lambda values, step: library.log_metrics(dict(values), step=step),
        lambda is_whole: library.end_run("FINISHED" if is_whole else "FAILED"),
    )


_OPENED: dict[str, Callable[[Any, str, Mapping[str, Any]], tuple[Add, End]]] = {"wandb": _wandb, "mlflow": _mlflow}


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn what a library raises into a sentence."""
    try:
        yield
    except Exception as error:  # whatever a foreign library raises where it is not set up, or its server is away
        words = str(error).strip().splitlines()
        raise EnvironmentFailure(
            f"{name} does not accept the training's numbers: {words[0] if words else error!r}"
        ) from error
