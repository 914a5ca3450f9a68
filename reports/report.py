"""The report as a value: everything that the terminal, the page and the machine-readable output are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from executor.run.measurement import busy_words
from profiles.machines.profile import MachineProfile
from reports.calibration import Calibration, calibrate
from reports.cases import Case, cases_of
from reports.changes import Changes, Side, changes_of
from reports.changes_words import findings
from reports.comparison import Row, Source
from reports.history import History, history_of
from reports.summary import Summary, case_to_json, summarise


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Run files, compared. `limit_bytes` is what one rank may use, None where no machine profile was given.

    `changes` lie between two sides, None where there are none; `history` is None of runs at one time.
    """

    sources: tuple[Source, ...]
    cases: tuple[Case, ...]
    summary: Summary
    calibrations: tuple[Calibration, ...]
    limit_bytes: float | None
    warnings: tuple[str, ...]
    changes: Changes | None = None
    history: History | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, case by case in the order of rank."""
        return tuple(
            sorted_row for case in self.cases for sorted_row in sorted(case.rows, key=lambda row: row.run.rank)
        )

    def to_json(self) -> dict[str, Any]:
        """Rows, summary and calibration in JSON types; what could not be observed is null."""
        cases = [case_to_json(case) for case in self.cases]
        machines = [{**asdict(learnt), "is_helpful": learnt.is_helpful} for learnt in self.calibrations]
        return {
            "rows": [row.to_json() for row in self.rows],
            "summary": {**asdict(self.summary), "cases": cases, "warnings": list(self.warnings)},
            "calibration": {"machines": machines},
            **self._over_time(),
        }

    def _over_time(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self.changes is not None:
            sentences = [asdict(finding) for finding in findings(self.changes)]
            told["changes"] = {**self.changes.to_json(), "findings": sentences}
        if self.history is not None:
            told["history"] = self.history.to_json()
        return told


def build(
    sources: Sequence[Source], machine: MachineProfile | None = None, sides: tuple[Side, Side] | None = None
) -> Report:
    """Compare run files, with the memory limit of `machine` and what changed between `sides` where they are given.

    Raises: ArtifactError where a file holds no runs or a plan no usable steps.
    """
    cases = cases_of(sources)
    return Report(
        sources=tuple(sources),
        cases=cases,
        summary=summarise(cases),
        calibrations=_calibrations(sources, cases),
        limit_bytes=machine.memory_bytes if machine else None,
        warnings=tuple(_warnings(sources, machine)),
        changes=None if sides is None else changes_of(*sides),
        history=history_of(sources),
    )


def _calibrations(sources: Sequence[Source], cases: Sequence[Case]) -> tuple[Calibration, ...]:
    files = {source.name: source.file for source in sources}
    machines: dict[tuple[str, str], list[Row]] = {}
    for case in cases:
        for row in case.rows:
            file = files[row.source]
            machines.setdefault((file.environment.fingerprint, file.machine_name), []).append(row)
    learnt = (calibrate(name, rows) for (_, name), rows in machines.items())
    return tuple(calibration for calibration in learnt if calibration is not None)


def _warnings(sources: Sequence[Source], machine: MachineProfile | None) -> list[str]:
    warnings = []
    for source in sources:
        file = source.file
        if file.environment.oversubscribed:
            ranks, cores = file.environment.num_devices, file.environment.num_cores
            warnings.append(f"{source.name}: {ranks} ranks shared {cores} cores; its timings are shown but not judged.")
        if words := busy_words(file.runs):
            warnings.append(f"{source.name}: {words}; their timings are shown but not judged.")
        if file.machine_fingerprint != file.environment.fingerprint:
            planned = file.machine_fingerprint or "no fingerprint"
            warnings.append(
                f"{source.name}: planned for the machine {file.machine_name} ({planned}) but run on another one "
                f"({file.environment.fingerprint})."
            )
        if machine and machine.fingerprint and machine.fingerprint.digest != file.environment.fingerprint:
            warnings.append(f"{source.name} did not run on machine {machine.name}, whose memory limit is drawn.")
    return warnings
