"""The reference of the Python packages as pages, from their docstrings: `python -m tests.reference FOLDER` (pdoc)."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

# What users import, with what it gives them; what these packages have besides is not promised.
PUBLIC = (
    "planner", "planner.notebook", "planner.purchase.answer", "planner.pages.inline", "planner.answers",
    "planner.plans", "planner.prediction", "executor", "executor.applied", "executor.measured_steps",
    "executor.run.measurement", "executor.train.settings", "profiles.workloads.task", "profiles.machines.clusters",
    "profiles.errors",
)  # fmt: skip


def load_lazy_names() -> None:
    """Put what a package loads when it is asked for among its names, where pdoc looks for them."""
    for module in map(importlib.import_module, PUBLIC):
        for name in getattr(module, "__all__", ()):
            vars(module)[name] = getattr(module, name)


def write(folder: Path) -> None:
    """Write the pages into a folder."""
    # Not at the top: it is no part of what tests need.
    import pdoc

    load_lazy_names()
    pdoc.render.configure(docformat="google", footer_text="Trainwright", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*PUBLIC, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    print(f"written to {sys.argv[1]}/index.html")
