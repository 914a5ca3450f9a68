"""Whether our import packages are still ours: their names are common, and what is installed later may overwrite them.

Reads nothing but the standard library: whatever another distribution has put in our place is not run to find that out.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "trainwright"
# From left to right: each imports from those before it alone.
PACKAGES = ("profiles", "planner", "executor", "reports")
# What a package of the same name has as well, and what is called first.
HELD = ("__init__.py", "command.py")


def foreign_package(package: str, root: Path | None = None) -> str:
    """What is wrong with `package`, or one that it imports from, in a sentence; "" where all are ours.

    Ours are the packages of one folder, and of an installed one those files that were installed.
    """
    root = root or Path(__file__).parents[2]
    needed = PACKAGES[: PACKAGES.index(package) + 1]
    for name in needed:
        if not _is_beside(name, root):
            return _sentence(name, "is hidden by another package of that name", _place_of(name))
    sizes = _installed_sizes(root)
    for name in needed:
        for file in HELD:
            path = root / name / file
            if _size_of(path) != sizes.get(f"{name}/{file}", _size_of(path)):
                return _sentence(name, "was overwritten", str(path))
    return ""


def _is_beside(name: str, root: Path) -> bool:
    """Whether what `import name` would find lies in `root`."""
    try:
        found = find_spec(name)
    except ValueError:  # a module without a spec, which something has put there
        return False
    return found is not None and found.origin is not None and Path(found.origin).parent == root / name


def _place_of(name: str) -> str:
    try:
        found = find_spec(name)
    except ValueError:
        found = None
    where = [found.origin] if found and found.origin else list((found and found.submodule_search_locations) or ())
    return str(where[0] if where else "nowhere")


def _installed_sizes(root: Path) -> dict[str, int]:
    """Bytes of each file that the installer of this distribution noted; of sources none.

    importlib.metadata tells the same, and takes as long to load as all that is checked here.
    """
    for record in root.glob(f"{DISTRIBUTION}-*.dist-info/RECORD"):
        rows = [line.rsplit(",", 2) for line in record.read_text(encoding="utf-8").splitlines()]
        return {row[0]: int(row[2]) for row in rows if len(row) == 3 and row[2].isdigit()}
    return {}


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _sentence(name: str, what: str, place: str) -> str:
    from importlib.metadata import packages_distributions

    others = [one for one in packages_distributions().get(name, []) if one != DISTRIBUTION]
    by = f" by the distribution {' or '.join(sorted(set(others)))}" if others else ""
    return (
        f"the package `{name}` of Trainwright {what}{by} ({place}): install Trainwright in an environment of its own, "
        f"as `pipx install {DISTRIBUTION}` does, or take the other out of PYTHONPATH, and install Trainwright again"
    )


def check_packages(package: str) -> None:
    """End the command with a sentence where `package`, or one that it imports from, is no longer ours.

    Raises: SystemExit with code 5.
    """
    sentence = foreign_package(package)
    if sentence:
        # Nothing that prints for us can be trusted to be ours.
        sys.stderr.write(f"error: {sentence}\n")
        raise SystemExit(5)
