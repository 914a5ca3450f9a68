"""One plan has one price: table, JSON, file, HTML, --why-not, --sensitivity, --all and Python say the same of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas
import pytest
from typer.testing import CliRunner

import planner
from planner.command import app
from planner.plans import Plan
from planner.prediction import PlanFile
from profiles import artifacts
from profiles.units import format_seconds
from tests.machine_builders import machine
from tests.test_learning import corrections, measured_here

EXACT = 1e-9
TOP = 8
BATCH, SEQUENCE = 8, 64
# What --why-not asks of a plan.
DEGREES = {
    "tp": "tensor_parallel", "cp": "context_parallel", "pp": "pipeline_parallel", "dp": "data_parallel",
    "zero": "zero_stage", "sp": "sequence_parallel",
}  # fmt: skip


def run(*arguments: object) -> tuple[str, str]:
    """What `plan` prints on standard output and on standard error."""
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.exception
    return done.stdout, done.stderr


@pytest.fixture(
    params=["2 measured", "4 measured", "4 measured and corrected", "16 measured in a cluster", "4 shipped"]
)
def asked(request, tmp_path) -> dict[str, object]:
    """What is asked, as `planner.plan` takes it."""
    count, where = request.param.split(" ", 1)
    base = {"model": "llama-26m", "gpus": int(count)}
    if where == "shipped":
        return base | {"device": "h100-sxm"}
    path, learned = tmp_path / "machine.json", tmp_path / "learned.json"
    own = measured_here() if "corrected" in where else machine()
    artifacts.write(path, "machine-profile", own)
    if "corrected" in where:
        artifacts.write(learned, "corrections", corrections(own, {"compute": 1.3, "data_comm": 1.2, "host": 1.1}))
        return base | {"machine": path, "learned": learned}
    return base | {"machine": path} | ({"cluster": "dgx-h100"} if "cluster" in where else {})


def options(asked: dict[str, object]) -> list[object]:
    """The same question as options of the command."""
    names = {"model": "--model", "gpus": "--gpus"}
    words = [word for name, value in asked.items() for word in (names.get(name, f"--{name}"), value)]
    return [*words, "--global-batch", BATCH, "--sequence-length", SEQUENCE, "--codecs", "none", "--top", TOP]


def degrees(plan: Plan) -> str:
    """The degrees of a plan as --why-not takes them."""
    return ",".join(f"{name}={int(getattr(plan, field))}" for name, field in DEGREES.items())


def test_every_answer_has_the_same_price_of_a_plan(asked, tmp_path) -> None:
    found = planner.plan(**asked, global_batch=BATCH, sequence_length=SEQUENCE, top=TOP)
    best, steps = found.best, {one.plan.id: one.prediction.step_seconds for one in found.file.candidates}
    output, every = tmp_path / "plan.json", tmp_path / "all.csv"
    all_of_it = ("--why-not", degrees(best.plan), "--sensitivity", "--tokens", "1B", "--all", every)
    printed, _ = run(*options(asked), *all_of_it, "-o", output)
    file = artifacts.read(output, "plan", PlanFile)

    assert {one.plan.id: one.prediction.step_seconds for one in file.candidates} == pytest.approx(steps, rel=EXACT)
    assert file.answers.why_not is not None
    assert file.answers.why_not.plan == best.plan.id
    assert file.answers.why_not.step_seconds == pytest.approx(best.prediction.step_seconds, rel=EXACT)
    todays = [change.step_seconds / (1 + change.change_fraction) for change in file.answers.sensitivity]
    assert todays == pytest.approx([best.prediction.step_seconds] * len(todays), rel=EXACT)
    for plan in file.answers.pareto:
        assert plan.step_seconds == pytest.approx(steps.get(plan.plan, plan.step_seconds), rel=EXACT)
    tokens_per_second = BATCH * SEQUENCE / best.prediction.step_seconds
    cost = file.answers.cost
    assert cost is not None
    assert 1e9 / (cost.days * 86400 * cost.goodput_fraction) == pytest.approx(tokens_per_second, rel=EXACT)

    _is_said(printed, file)
    text = found._repr_html_()
    for candidate in found.file.candidates:
        assert bool(candidate.folded_into) != (f"<td>{candidate.plan.id}</td>" in text)
        assert f"<td>{format_seconds(candidate.prediction.step_seconds)}</td>" in text or candidate.folded_into
    standard, table = run(*options(asked), "--json")
    assert json.loads(standard)["candidates"] == json.loads(output.read_text())["candidates"]
    _is_said(table, file)
    _is_in_the_table_of_all(every, file)


def _is_said(text: str, file: PlanFile) -> None:
    """Check that the printed table has each plan that is shown, with its step."""
    for candidate in file.candidates:
        step = re.escape(format_seconds(candidate.prediction.step_seconds))
        line = re.search(rf"^\s*{candidate.rank}\s+{re.escape(candidate.plan.id)}\s+{step}\b", text, re.MULTILINE)
        assert bool(line) != bool(candidate.folded_into), candidate.plan.id


def _is_in_the_table_of_all(path: Path, file: PlanFile) -> None:
    """Check the closed form that --all writes: without a pipeline it is the price, with one replay comes on top."""
    table, num_closed = pandas.read_csv(path), 0
    for candidate in file.candidates:
        plan = candidate.plan
        if candidate.prediction.method != "closed form" or plan.recompute_layers:
            continue
        columns = {
            "tensor": plan.tensor_parallel, "sequence_parallel": plan.sequence_parallel, "data": plan.data_parallel,
            "vocab_parallel": plan.vocab_parallel, "context": plan.context_parallel,
            "pipeline": plan.pipeline_parallel, "zero_stage": plan.zero_stage,
            "micro_batch_size": plan.micro_batch_size, "recompute": plan.recompute,
        }  # fmt: skip
        rows = table
        for name, value in columns.items():
            rows = rows[rows[name] == value]
        if plan.zero_stage == 3:
            rows = rows[rows["shard"] == (plan.shard_degree or plan.data_parallel * plan.context_parallel)]
        assert len(rows) == 1, plan.id
        assert float(rows["step_seconds"].iloc[0]) == pytest.approx(candidate.prediction.step_seconds, rel=EXACT)
        num_closed += 1
    assert num_closed > 0
