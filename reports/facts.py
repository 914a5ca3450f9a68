"""What a run was, fact by fact, and which facts of two runs, or of two groups of runs, differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from executor.run.measurement import RunFile
from profiles.machines.load import MachineLoad, busiest, causes
from profiles.units import format_count
from reports.comparison import Source

NONE = "none"
# Facts that some runs have and others rightly lack; of all others, one that is missing was not written down.
MAY_LACK = ("learned", "configuration", "engine")


# Facts by name: one text, or one of each run.
Facts: TypeAlias = dict[str, str | Sequence[str]]


class FactName(NamedTuple):
    """A fact's group (versions, machine, job, prediction) and its name in it."""

    group: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """A fact that differs: its distinct values before and after, in the order of the runs."""

    group: str
    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def fact_changes(
    before: Sequence[Source], after: Sequence[Source]
) -> tuple[tuple[FactChange, ...], tuple[FactName, ...]]:
    """The facts that differ, and the names of those that one of the two has not written down."""
    first, second = _values(before), _values(after)
    changes, unrecorded = [], []
    for name in dict.fromkeys((*first, *second)):
        may_lack = name.name.split()[0] in MAY_LACK
        usual = (NONE,) if may_lack else ()
        ours, theirs = first.get(name, usual), second.get(name, usual)
        if not ours or not theirs:
            unrecorded.append(name)
        elif set(ours) != set(theirs):
            changes.append(FactChange(group=name.group, name=name.name, before=ours, after=theirs))
    return tuple(changes), tuple(unrecorded)


def value_words(values: Sequence[str]) -> str:
    """Distinct values as text: all of a few, else how many and which come first and last."""
    if len(values) <= 3:
        return ", ".join(values)
    return f"{len(values)}, from {values[0]} to {values[-1]}"


def facts_of(source: Source) -> dict[FactName, tuple[str, ...]]:
    """What the file says of its runs, sorted where these differ; what it does not say is left out."""
    file = source.file
    groups = {
        "versions": _versions(file),
        "machine": _machine(file),
        "job": _job(file),
        "prediction": _prediction(file),
    }
    found = {}
    for group, facts in groups.items():
        for name, value in facts.items():
            values = {value} if isinstance(value, str) else set(value)
            if texts := tuple(sorted(filter(None, values))):
                found[FactName(group, name)] = texts
    return found


def versions_of(source: Source) -> dict[str, str]:
    """The versions that a run took place with, by name."""
    return {name: ", ".join(values) for (group, name), values in facts_of(source).items() if group == "versions"}


def _values(sources: Iterable[Source]) -> dict[FactName, tuple[str, ...]]:
    found: dict[FactName, dict[str, None]] = {}
    for source in sources:
        for name, values in facts_of(source).items():
            found.setdefault(name, {}).update(dict.fromkeys(values))
    return {name: tuple(values) for name, values in found.items()}


def _versions(file: RunFile) -> Facts:
    environment = file.environment
    engines: Facts = {f"engine {run.engine}": run.engine_version for run in file.runs if not run.is_own}
    return {
        "Trainwright": environment.trainwright,
        "commit": environment.commit,
        "torch": environment.torch,
        "Python": environment.python,
        **engines,
    }


def _machine(file: RunFile) -> Facts:
    environment = file.environment
    settings = {name: value for run in file.runs for name, value in run.measurement.settings.items()}
    return {
        "profile": file.machine_name,
        "fingerprint of the profile": file.machine_fingerprint,
        "device": environment.device,
        "cores": str(environment.num_cores),
        "more ranks than cores": "yes" if environment.oversubscribed else "no",
        "fingerprint": environment.fingerprint,
        "backend": environment.backend,
        "load before the run": load_words([environment.load_before]),
        "load during timed steps": load_words([run.measurement.load for run in file.runs]),
        "attention kernels": [kernel for run in file.runs for kernel in run.measurement.attention],
        **settings,
    }


def _job(file: RunFile) -> Facts:
    workload = file.workload
    return {
        "model": file.model_name,
        "parameters": format_count(file.num_parameters),
        **_configuration(workload.config),
        "task": workload.task or NONE,
        "weights": workload.weights or NONE,
        "adapters": workload.adapters.words or NONE,
        "ranks": str(file.environment.num_devices),
        "global batch": str(file.global_batch_size),
        f"size of a sample in {file.size_unit}" if file.size_unit else "size of a sample": str(file.sequence_length),
        "seed": str(file.seed),
        "data": file.environment.data,
        "warm-up steps": [str(run.measurement.num_warmup_steps) for run in file.runs],
        "timed steps": [str(len(run.measurement.step_seconds)) for run in file.runs],
    }


def _configuration(config: Mapping[str, object]) -> Facts:
    return {f"configuration {name}": str(value) for name, value in config.items()}


def _prediction(file: RunFile) -> Facts:
    learned = {f"learned multiple of {part}": f"{multiple:.3f}" for part, multiple in file.learned.items()}
    return {
        "software planned for": file.stack,
        "method": [run.prediction.method for run in file.runs],
        **learned,
    }


def load_words(loads: Sequence[MachineLoad | None]) -> str:
    """What else the machine did, at its busiest; "" where nobody looked."""
    worst = busiest(loads)
    return "" if worst is None else causes(worst) or "quiet"
