"""An example from end to end: planned, executed on two ranks, and what was trained judged on what was held out."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from executor.axes.optimizer import LEARNING_RATE, WEIGHT_DECAY
from executor.examples.quality import Quality
from executor.run.checkpoint import latest, load_whole
from executor.run.measurement import RunFile
from profiles import artifacts
from profiles.errors import EnvironmentFailure, ToleranceError
from profiles.terminal.console import Console

NAMES = (
    "translation", "text_generation", "question_answering", "dialogue", "image_classification", "object_detection",
    "segmentation",
)  # fmt: skip
RANKS, WARMUP = 2, 3
# What losses of one plan may differ by in the two loops, relatively.
SAME = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an example, and the seconds that it took."""

    name: str
    quality: Quality
    seconds: float

    def __str__(self) -> str:
        return f"{self.name} ({self.seconds:.0f} s): {self.quality}"


def example(name: str) -> ModuleType:
    """The module of an example: its task, steps and samples, and what judges it."""
    return importlib.import_module(f"executor.examples.{name}")


def run_example(name: str, folder: Path, out: Console, *, machine: Path | None = None, steps: int = 0) -> Outcome:
    """Plan and execute an example as a user does, by commands that are shown, and judge what was saved of it.

    Raises: EnvironmentFailure where a command fails.
    """
    start, module, place = time.monotonic(), example(name), folder / name
    steps, plan, saved, factory = steps or module.STEPS, place / "plan.json", place / "checkpoints", module.__name__
    # A run that begins wants a folder without checkpoints; what else lies there is not ours.
    shutil.rmtree(saved, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    on = [] if machine is None else ["--machine", str(machine)]
    commands = {
        "planner": ["--model", f"{factory}:task", "--gpus", str(RANKS), "--global-batch", str(module.SAMPLES), *on],
        "executor": [str(plan), "--steps", str(steps), "--warmup", str(WARMUP), "--trust-module", factory],
    }
    commands["planner"] += ["-o", str(plan)]
    # The last step of all is saved.
    commands["executor"] += ["--checkpoint", str(saved), "--checkpoint-every", str(steps + WARMUP)]
    commands["executor"] += ["-o", str(place / "run.json")]
    for package, options in commands.items():
        out.print(f"$ {'plan' if package == 'planner' else 'execute'} {shlex.join(options)}")
        if subprocess.run([sys.executable, "-m", package, *options], check=False).returncode:
            raise EnvironmentFailure(f"the example {name} failed: see above")
    return Outcome(name=name, quality=judged(module, saved), seconds=time.monotonic() - start)


def compare_own_loop(name: str, folder: Path, out: Console) -> float:
    """Train an example once more in a loop around `executor.apply`; how far its losses are from `execute`'s.

    Raises: EnvironmentFailure where it fails; ToleranceError where a loss is another.
    """
    place = folder / name
    run = artifacts.read(place / "run.json", "run", RunFile).runs[0]
    wanted, losses = run.measurement.losses, place / "own-loop.json"
    loop = ["executor.examples.own_loop", name, str(place / "plan.json"), "--steps", str(len(wanted))]
    options = ["--standalone", "--nproc-per-node", str(RANKS), "-m", *loop, "-o", str(losses)]
    out.print(f"$ torchrun {shlex.join(options)}")
    if subprocess.run([sys.executable, "-m", "torch.distributed.run", *options], check=False).returncode:
        raise EnvironmentFailure(f"the example {name} failed in a loop of its own: see above")
    return _off(name, "executor.apply", json.loads(losses.read_text(encoding="utf-8")), wanted)


def compare_training(name: str, folder: Path, out: Console) -> float:
    """Train an example once more by `execute --train`; how far its losses are from `execute`'s.

    Raises: EnvironmentFailure where it fails; ToleranceError where a loss is another.
    """
    place = folder / name
    run = artifacts.read(place / "run.json", "run", RunFile).runs[0]
    wanted, settings, result = run.measurement.losses, place / "train.toml", place / "trained.json"
    # The optimizer of `execute`: AdamW as torch has it.
    rates = f"lr = {LEARNING_RATE}\nweight_decay = {WEIGHT_DECAY}\n"
    settings.write_text(f"max_steps = {len(wanted)}\ncheck = false\n[optimizer]\n{rates}", encoding="utf-8")
    options = [str(place / "plan.json"), "--train", str(settings), "--trust-module", example(name).__name__]
    options += ["-o", str(result)]
    out.print(f"$ execute {shlex.join(options)}")
    if subprocess.run([sys.executable, "-m", "executor", *options], check=False).returncode:
        raise EnvironmentFailure(f"the example {name} failed in a training: see above")
    return _off(name, "--train", artifacts.read(result, "run", RunFile).runs[0].measurement.losses, wanted)


def _off(name: str, way: str, found: Sequence[float], wanted: Sequence[float]) -> float:
    off: float = max(abs(own - loss) / abs(loss) for own, loss in zip(found, wanted, strict=True))
    if not off <= SAME:
        raise ToleranceError(f"the example {name}: losses of {way} and of execute differ by {off:.1e}")
    return off


def judged(module: ModuleType, saved: Path) -> Quality:
    """What an example's newest checkpoint is worth."""
    newest = latest(saved)
    if newest is None:
        raise EnvironmentFailure(f"{saved} has no checkpoint")
    trained = module.task().build()
    with warnings.catch_warnings():
        # That there are no other ranks.
        warnings.simplefilter("ignore", UserWarning)
        load_whole(newest, trained)
    quality: Quality = module.quality(trained)
    return quality
