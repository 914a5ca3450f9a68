"""Samples of a step, of a micro-batch, and how many there are: what a file leaves out of the three, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.stacks.handover import Given
from planner.stacks.job_files import asked_of
from planner.stacks.said import Settings
from profiles.errors import InputError

MISSING = "give --global-batch, or the size of a micro-batch in the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A step's batch on so many replicas: `micro` samples at once, `count` times on each."""

    micro: int
    count: int
    replicas: int

    @property
    def samples(self) -> int:
        """Samples of a step."""
        return self.micro * self.count * self.replicas


def replicas_from(facts: Mapping[str, Any]) -> int:
    """Replicas that samples and micro-batches of a file amount to; 0 where it does not state all three."""
    samples, micro, count = (facts.get(name) for name in ("samples", "micro_batch_size", "num_microbatches"))
    if not (samples and micro and count) or samples % (micro * count):
        return 0
    return int(samples // (micro * count))


def batch_of(
    facts: Mapping[str, Any], settings: Settings, keys: tuple[str, str, str], replicas: int, given: Given,
    assumed: list[str],
) -> Batch:  # fmt: skip
    """The batch that a file states, on so many replicas.

    `keys` are those of samples, micro-batch and their number. One micro-batch is assumed where no number is stated.
    Raises: InputError where they contradict each other or what is given, or where too little is said.
    """
    samples, micro, count = (facts.get(name) for name in ("samples", "micro_batch_size", "num_microbatches"))
    asked = given.global_batch_size
    if samples and asked and samples != asked:
        raise settings.contradiction(keys[:1], f"--global-batch {asked} contradicts it: leave one of the two out")
    samples = samples or asked
    if not samples and not micro:
        raise InputError(f"{settings.path}: it does not say how many samples a step takes: {MISSING}")
    if not count:
        count = _whole(samples, (micro or 0) * replicas) if samples and micro else 1
        if not (samples and micro):
            assumed.append("one micro-batch a step, as the file does not say how many")
    if not micro:
        micro = _whole(samples, count * replicas)
    if not samples:
        samples = micro * count * replicas
    if not micro or not count or samples != micro * count * replicas:
        text = f"{samples} samples a step are not {micro or '?'} x {count or '?'} on {replicas} replicas"
        raise settings.contradiction(keys, f"{text}: correct one of them, or --gpus")
    return Batch(micro=int(micro), count=int(count), replicas=replicas)


def _whole(samples: int, of_one: int) -> int:
    return samples // of_one if of_one and samples % of_one == 0 else 0


def devices_of(path: Path, given: Given, stated: int, of_replica: int, replicas: int, assumed: list[str]) -> int:
    """Devices of a job: as asked for, as stated, as files beside say, or as its batch amounts to.

    Raises: InputError where nobody says, or the first two differ.
    """
    asked = asked_of(given).num_devices
    if asked and stated and asked != stated:
        raise InputError(f"{path}: it is for {stated} devices, not for --gpus {asked}: leave one of the two out")
    if stated or given.num_devices:
        return stated or given.num_devices
    if replicas:
        assumed.append(f"{replicas * of_replica} devices, as its batch sizes imply")
        return replicas * of_replica
    raise InputError(f"{path}: it does not say how many devices it is for: give --gpus")
