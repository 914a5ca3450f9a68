"""Modules of a user's own, written into a folder that is the current one while a test lasts."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.plans import Plan
from profiles.models.profile import WorkloadSpec
from tests.plan_builders import write_plan_file

HEAD = "import torch\nfrom torch import nn\n"
LAYERS = "nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256))"
GOOD = f"{HEAD}def f():\n    return {LAYERS}\n"


@contextlib.contextmanager
def user_folder(path: Path) -> Iterator[Path]:
    """Stand in a folder, whose modules are forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(sys, "path", [name for name in sys.path if name])
        yield path
    for name in set(sys.modules) - before:
        if str(path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write_module_plan(folder: Path, factory: str = "mine:f") -> Path:
    """A plan file whose model a module builds."""
    spec = WorkloadSpec(kind="module", name="own", factory=factory)
    return write_plan_file(folder / "plan.json", Plan(data_parallel=2, micro_batch_size=2), spec=spec, num_layers=3)
