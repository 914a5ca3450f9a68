"""A folder of runs: one file per run for `compare`, and beside it the log of its steps, a JSON object a line."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

from profiles.errors import EnvironmentFailure
from profiles.files import write_text

RUN, LOG = ".run.json", ".log.jsonl"
# What TensorBoard shows over the steps of each plan.
SCALARS = (
    "loss", "evaluation_loss", "lr", "gradient_norm", "epoch", "memory_gib", "predicted_memory_gib", "seconds",
    "predicted_seconds", "tps", "tflops", "mfu",
)  # fmt: skip
# Drawn together on its page of custom scalars: what was measured and what was predicted.
TOGETHER = {"seconds a step": ("seconds", "predicted_seconds"), "GiB": ("memory_gib", "predicted_memory_gib")}


class KeptRun:
    """One run's place in a folder; nothing is made before there is something to say."""

    def __init__(self, folder: Path, started: str, model: str, num_ranks: int) -> None:
        self._is_claimed = False
        self._board: Any = None
        self._charts: dict[str, dict[str, list[Any]]] = {}
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{started.split('+')[0]}-{model}-{num_ranks}ranks")
        self._folder, self._name = folder, name

    @property
    def path(self) -> Path:
        """Where the run file is, or will be: under a name that no other run has."""
        return self._folder / f"{self._name}{RUN}"

    @property
    def log(self) -> Path | None:
        """Where the log is, once there is one."""
        return self._folder / f"{self._name}{LOG}" if self._is_claimed else None

    def append(self, values: dict[str, Any]) -> None:
        """Add a line to the log at once, so that a run that is killed leaves what it had said.

        Raises: EnvironmentFailure where the folder cannot be written to.
        """
        self._claim()
        try:
            with (self._folder / f"{self._name}{LOG}").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(values) + "\n")
        except OSError as error:
            raise EnvironmentFailure(f"cannot write the log in {self._folder}: {error.strerror}") from error
        if self._board is not None:
            for name in SCALARS:
                if values.get(name) is not None:
                    self._board.add_scalar(f"{values['plan']}/{name}", values[name], values["step"])
                    self._charts.setdefault(values["plan"], _charts(values["plan"]))

    def write(self, text: str) -> Path:
        """Write the run file whole."""
        self._claim()
        write_text(self.path, text)
        if self._board is not None:
            # Once, for a second layout would be ignored: of all plans that ran.
            self._board.add_custom_scalars(self._charts)
            self._board.close()
        return self.path

    def _claim(self) -> None:
        """Take a name that no run has; a log file of ours is the sign that it is taken."""
        if self._is_claimed:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                name = self._name if number == 1 else f"{self._name}-{number}"
                try:
                    (self._folder / f"{name}{LOG}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                self._name, self._is_claimed = name, True
                self._board = _board(self._folder / f"{name}.board")
                return
        except OSError as error:
            raise EnvironmentFailure(f"cannot write to {self._folder}: {error.strerror}") from error


def _charts(plan: str) -> dict[str, list[Any]]:
    """What is drawn together of a plan, by title, as TensorBoard's custom scalars want it."""
    return {title: ["Multiline", [re.escape(f"{plan}/{name}") for name in names]] for title, names in TOGETHER.items()}


def _board(folder: Path) -> Any:
    """A writer of TensorBoard's files, where it is installed, else None."""
    with contextlib.suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder))
    return None
