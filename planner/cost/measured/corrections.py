"""What runs on a measured machine taught of it beside its profile: a multiple of each part of the step, in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from planner.cost.factors import Factors, Learned
from planner.parts import Multiples
from profiles import artifacts
from profiles.artifacts import STRICT
from profiles.errors import InputError
from profiles.inputs.ranges import Count, Fraction
from profiles.machines.profile import MachineProfile
from profiles.machines.stacks import THIS_PROGRAM

# What the software's entry has of the host's time, apart from that of a layer.
HOST_NUMBERS = ("host_step_ms", "pipeline_action_us")
# The factors that are rates, not seconds.
RATES = {"optimizer": "optimizer_fraction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """What `compare --learn` writes: seconds of parts in runs over those predicted without corrections.

    They hold for every model on the machine with this fingerprint. The errors are medians of |predicted / measured - 1|
    over runs whose plans were left out of the learning, as predicted and with what the others taught.
    """

    __pydantic_config__ = STRICT

    machine_name: str
    machine_fingerprint: str
    multiples: Multiples
    num_runs: Count
    num_plans: Count
    error_fraction_before: Fraction
    error_fraction_after: Fraction
    created: str

    def check(self, machine: MachineProfile, origin: str = "what runs taught") -> None:
        """Check that `machine` is the one that they were learned on; `origin` is their name in the error.

        Raises: InputError.
        """
        digest = machine.fingerprint.digest if machine.fingerprint else "no fingerprint"
        if digest != self.machine_fingerprint:
            raise InputError(
                f"{origin} is of the machine {self.machine_name} ({self.machine_fingerprint}), not of {machine.name} "
                f"({digest}): learn from runs on that one with `{artifacts.ARTIFACTS['corrections']}`"
            )

    def on(self, learned: Learned) -> Learned:
        """What is known of a machine, with these corrections.

        Model: each part is multiplied, with what follows from it by the laws (bubbles, what hides behind compute).
        """
        host = self.multiples.get("host", 1.0)
        stacks = {THIS_PROGRAM: dict.fromkeys(HOST_NUMBERS, host)} if host != 1.0 else {}
        return replace(learned, factors=self._factors(learned.factors), stacks=learned.stacks | stacks)

    def _factors(self, factors: Factors) -> Factors:
        changed = {}
        for part, multiple in self.multiples.items():
            name = RATES.get(part, "matmul" if part == "compute" else part)
            value = getattr(factors, name)
            changed[name] = value / multiple if part in RATES else value * multiple
        return replace(factors, **changed)


def read_corrections(path: Path, machine: MachineProfile) -> Corrections:
    """What `compare --learn` wrote for `machine`.

    Raises: ArtifactError where the file is missing or damaged; InputError where it is of another machine.
    """
    found = artifacts.read(path, "corrections", Corrections)
    found.check(machine, str(path))
    return found
