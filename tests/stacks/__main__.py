"""What other software says of plans for it: `python -m tests.stacks [COUNT]`, COUNT plans of each stack.

A table of stacks: the version that is installed, plans tried and accepted by its own checks, and its engine beside one
device. What is not installed is said by name and skipped; 1 where anything was refused.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field

from tests.stacks import ray_runs
from tests.stacks.clusters import missing

COUNT = "200"
HEADER = ("stack", "version", "tried", "accepted", "engine", "seconds", "")
# What each says in its last lines.
ACCEPTED = re.compile(r"(\d+) of (\d+) accepted(.*)")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table: `module` is what is run, `needs` what must be importable, `variables` what must be set.

    `versions`: names of the packages that the line is about. `is_engine`: whether its outcome is of an engine.
    """

    stack: str
    module: str
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    is_engine: bool = False

    @property
    def lacks(self) -> str:
        """What is missing, in words; "" where nothing is."""
        lacks = [f"{name} is not installed" for name in self.needs if importlib.util.find_spec(name) is None]
        lacks += [f"{name} is not set" for name in self.variables if name not in os.environ]
        if self.module.endswith("clusters"):
            lacks += [why] if (why := missing(self.stack)) else []
        if self.module.endswith("ray_runs"):
            lacks += [why] if (why := ray_runs.missing()) else []
        if importlib.util.find_spec(self.module) is None:
            lacks.append(f"{self.module} is not there")
        return ", ".join(lacks)

    @property
    def version(self) -> str:
        for name in self.versions:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return "-"


@dataclass(kw_only=True)
class Line:
    """What came of a check."""

    check: Check
    tried: int = 0
    accepted: int = 0
    words: str = ""
    seconds: float = 0.0
    is_skipped: bool = False
    said: list[str] = field(default_factory=list)

    @property
    def is_failed(self) -> bool:
        return not self.is_skipped and (self.accepted < self.tried or not self.tried)

    @property
    def cells(self) -> tuple[str, ...]:
        found = f"{self.accepted} of {self.tried}"
        own = ("-", "-", found) if self.check.is_engine else (str(self.tried), str(self.accepted), "-")
        if self.is_skipped:
            own = ("-", "-", "-")
        name = f"{self.check.stack} engine" if self.check.is_engine else self.check.stack
        return (name, self.check.version, *own, f"{self.seconds:.0f}", self.words)


def checks(count: str) -> list[Check]:
    found = [
        Check(stack=name, module="tests.stacks.validate", words=(name, "--count", count), needs=needs, versions=needs)
        for name, needs in (
            ("deepspeed", ("deepspeed",)), ("accelerate", ("accelerate",)), ("torchtitan", ("torchtitan",)),
            ("horovod", ()), ("tensorflow", ()),
        )
    ]  # fmt: skip
    of_megatron = ("MEGATRON_FOLDER", "MEGATRON_PYTHON")
    found += [
        Check(stack=name, module="tests.stacks.megatron", words=(count, name), variables=of_megatron)
        for name in ("megatron-lm", "megatron-core")
    ]
    found += [Check(stack=name, module="tests.stacks.clusters", words=(name,)) for name in ("kubeflow", "skypilot")]
    found.append(Check(stack="ray", module="tests.stacks.ray_runs", versions=("ray",)))
    return found + [
        Check(stack=name, module="tests.stacks.engines", words=(name,), needs=(name,), versions=(name,), is_engine=True)
        for name in ("deepspeed", "horovod")
    ]


def tried(check: Check) -> Line:
    """Run a check in a process of its own, so that no stack's imports meet another's."""
    if check.lacks:
        return Line(check=check, words=check.lacks, is_skipped=True)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", check.module, *check.words], capture_output=True, text=True, check=False
    )
    line = Line(check=check, seconds=time.monotonic() - start)
    for text in done.stdout.splitlines():
        if match := ACCEPTED.search(text):
            line.accepted, line.tried, line.words = int(match[1]), int(match[2]), match[3].strip(" ,")
    if line.is_failed:
        line.said = (done.stdout + done.stderr).splitlines()[-12:]
    return line


def main() -> int:
    lines = []
    for check in checks(*(sys.argv[1:] or [COUNT])):
        print(f"{check.stack} ...", file=sys.stderr, flush=True)
        lines.append(tried(check))
    rows = [HEADER, *(line.cells for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER) - 1)]
    for row in rows:
        print(*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])
    for line in lines:
        for text in line.said:
            print(f"{line.check.stack}: {text}")
    return int(any(line.is_failed for line in lines))


if __name__ == "__main__":
    sys.exit(main())
