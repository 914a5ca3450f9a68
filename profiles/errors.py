"""The error tree. Every error says what is wrong, where, and what to do, and knows its exit code.

TrainwrightError          1   (a bug, or something unforeseen)
  InputError              2   also a ValueError
    ArtifactError             a file that cannot be read: damaged, foreign, unknown key, old schema
    PlanError                 a plan that breaks a rule
    UnknownNameError          a name that is not in the catalogue; suggests the nearest
  NoFeasiblePlanError     3   counts by reason and the nearest miss
  ToleranceError          4   measured outside the tolerance asked for, or losses that differ
  EnvironmentFailure      5   hardware or optional dependency missing, disk full, port taken
    RankFailure               a rank that died or hung
      LostPeer                another rank is gone, which may say itself why
  Interrupted             130 (128 + SIGINT) ended by the user's Ctrl-C
  Stopped                 143 (128 + SIGTERM) stopped from outside; says what was saved
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What is longer is not shown whole: no name that is known is half as long.
LONGEST_NAME = 80


class TrainwrightError(Exception):
    """Base of all errors meant for the user; `details` are what stands below the sentence where it is asked for."""

    exit_code = 1
    details = ""


class InputError(TrainwrightError, ValueError):
    """The user's input cannot be used as it is."""

    exit_code = 2


class ArtifactError(InputError):
    """A file is not what it should be."""


class PlanError(InputError):
    """A plan breaks a rule of its model or machine."""


class UnknownNameError(InputError):
    """A name is not among the known ones."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        name = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
        hint = f"did you mean '{close[0]}'? " if close else ""
        super().__init__(f"unknown {what} '{name}': {hint}known are {', '.join(names)}")


class NoFeasiblePlanError(TrainwrightError):
    """No plan is legal and fits."""

    exit_code = 3


class ToleranceError(TrainwrightError):
    """A measurement lies outside the tolerance asked for."""

    exit_code = 4


class EnvironmentFailure(TrainwrightError):
    """The machine lacks something the command needs."""

    exit_code = 5


class RankFailure(EnvironmentFailure):
    """A process of the job died or hung."""


class LostPeer(RankFailure):
    """Another process of the job is gone; where it says why itself, that is the better account."""


class Interrupted(TrainwrightError):
    """The user ended the run."""

    exit_code = 130


class Stopped(TrainwrightError):
    """The run was asked to end from outside; says what was saved."""

    exit_code = 143
