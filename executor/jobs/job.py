"""What a job file says, whoever reads it. Torch-free."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

from planner.prediction import Candidate, PlanFile
from profiles.errors import InputError

GIT_WITH_COMMIT = re.compile(r"git\+.+@[0-9a-f]{7,64}(#.*)?")
USES_INSTALLED = "Runs the Trainwright that is installed on the nodes."


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a job file says: `arguments` are those of `execute` beside the plan file.

    `install` is what pip installs the program from, `image` a container; "" where the user names none. `sbatch` are the
    user's own settings of a Slurm job, as NAME=VALUE.
    """

    name: str
    file: PlanFile
    candidate: Candidate
    plan_path: str
    num_nodes: int
    ranks_per_node: int
    arguments: tuple[str, ...]
    image: str = ""
    install: str = ""
    max_restarts: int = 0
    sbatch: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What every rank runs, but for how it is started."""
        return shlex.join(["-m", "executor", self.plan_path, *self.arguments])

    @property
    def pip(self) -> str:
        """What installs the program on a node."""
        return shlex.join(["python", "-m", "pip", "install", self.install]) + "\n" if self.install else ""

    @property
    def torchrun(self) -> str:
        """The launcher, which starts ranks again where that was asked for."""
        return f"torchrun --max-restarts {self.max_restarts}" if self.max_restarts else "torchrun"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What a user may ask of a job file, as the options of `execute` are called; `arguments` are all others."""

    arguments: tuple[str, ...] = ()
    gpus_per_node: int | None = None
    image: str | None = None
    install: str | None = None
    max_restarts: int = 0
    sbatch: tuple[str, ...] = ()


def source_of(text: str | None) -> str:
    """What pip is to install from: a path, a git URL with its commit, or a requirement with its version.

    Raises: InputError for a source whose content somebody else can choose.
    """
    if text is None:
        return ""
    if not text.isprintable() or not text or text.startswith("-"):
        raise InputError(f"--install {text!r}: give a path, git+URL@COMMIT or NAME==VERSION")
    if text.startswith("git+"):
        if not GIT_WITH_COMMIT.fullmatch(text):
            raise InputError(f"--install {text}: a branch changes over time: add a commit, git+URL@COMMIT")
        return text
    if "/" in text or text.endswith(".whl"):
        return text
    if os.path.exists(text):
        # Without a slash pip takes it for a name on an index.
        return f"./{text}"
    if "==" not in text:
        raise InputError(
            f"--install {text}: no such file, and anybody may own that name on an index: give a path with a "
            "slash, git+URL@COMMIT, or NAME==VERSION of an index that you trust"
        )
    return text


def about(job: Job) -> str:
    """What the job runs and on how many nodes, in a line."""
    text = f"{job.candidate.plan.id}: {job.file.num_devices} ranks on {job.num_nodes} x {job.ranks_per_node}"
    return on_one_line(text)


def on_one_line(text: str) -> str:
    """The text without what could end a comment, or hide in one."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def words_of_options(**chosen: object) -> tuple[str, ...]:
    """Options as they would be given on a command line, those left out that say nothing."""
    words: list[str] = []
    for name, given in chosen.items():
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and value is not False:
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return tuple(words)
