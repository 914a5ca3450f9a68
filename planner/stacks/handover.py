"""A plan as other software is given it, and a job as other software's words tell of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.plans import Plan
from profiles.models.profile import WorkloadSpec

# First steps of a log warm up; what is left of a short one counts all the same.
WARM_UP_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What carries a plan out in another software: files, and how it is started beside them.

    `version` is of the software whose own checks accept such files. `files`: texts by name, each of which says what
    wrote it. `command`: the launch line of one node; `environment`: variables that it needs, by name. `notes`: what the
    user has to add (data, a tokenizer), and where the software will not do just what the plan says.
    """

    stack: str
    version: str
    files: Mapping[str, str]
    command: str
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the user says beside a file that does not: devices, and the model. 0 and None are unknown."""

    num_devices: int = 0
    sequence_length: int = 0
    global_batch_size: int = 0
    workload: WorkloadSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a log says of one step: its number, seconds, loss; None where it does not."""

    number: int
    seconds: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StackJob:
    """A job as a file of another software tells of it: a plan of a model, with what a plan has no field for.

    `version` is "" where the file does not say. `device`: as it is called there, "" where it does not say.
    `attention_kernel` and `overlaps_tensor` are None where the stack decides. `cells` are columns of a table of runs
    (planner/published/columns.py) that neither model nor plan say: gradient_dtype, fp8_recipe, moe_dispatcher, ...
    `unread`: settings that were not understood, each with its place, as `line 12: --new-flag 3`; `unpriced`: those that
    are known and change no price here (file names, logging) are in neither. `assumed`: what was filled in, and why.
    `steps` and `peak_bytes` are what a log measured. `words`: settings of layout and software that are not as usual, by
    name, in the words that plans are written down with; empty where the reader does not tell.
    """

    stack: str
    version: str = ""
    workload: WorkloadSpec
    plan: Plan
    num_devices: int
    global_batch_size: int
    sequence_length: int
    device: str = ""
    attention_kernel: str | None = None
    overlaps_tensor: bool | None = None
    cells: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    unpriced: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    peak_bytes: float | None = None

    @property
    def median_seconds(self) -> float | None:
        """The median step of a log once it is warm; None where nothing was timed."""
        timed = [step.seconds for step in self.steps if step.seconds is not None]
        warm = timed[WARM_UP_STEPS:] or timed
        return statistics.median(warm) if warm else None
