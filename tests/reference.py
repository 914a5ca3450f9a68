"""The reference of the Python packages as pages, from their docstrings: `python -m tests.reference FOLDER` (pdoc)."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import typing
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


def resolve_inherited_fields() -> None:
    """Give constructors of dataclasses the types that their fields have where these were written.

    pdoc looks in the module of the class, which need not know names that only a base's module imports.
    """
    for module in map(importlib.import_module, PUBLIC):
        for own in vars(module).values():
            bases = own.__mro__[1:-1] if isinstance(own, type) and dataclasses.is_dataclass(own) else ()
            if any(base.__module__ != own.__module__ for base in bases):
                own.__init__.__annotations__ |= typing.get_type_hints(own)


def write(folder: Path) -> None:
    """Write the pages into a folder."""
    # Not at the top: it is no part of what tests need.
    import pdoc

    load_lazy_names()
    resolve_inherited_fields()
    pdoc.render.configure(docformat="google", footer_text="Trainwright", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*PUBLIC, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    print(f"written to {sys.argv[1]}/index.html")
