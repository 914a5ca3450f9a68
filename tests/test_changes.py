"""What changed between two runs: files made by hand that differ in known fields, numbers by arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from executor.run.measurement import RunFile
from planner.plans import Plan
from profiles import artifacts
from reports.changes import Changes, Side, changes_of
from reports.changes_words import findings
from reports.comparison import Source
from tests.report_builders import beside, load, measurement, prediction, run_file, simple_run
from tests.test_reports_command import compare

DATA, SHARDED = Plan(data_parallel=2, micro_batch_size=8), Plan(data_parallel=2, micro_batch_size=8, zero_stage=1)


def between(before: RunFile, after: RunFile) -> Changes:
    sides = [
        Side(name=name, sources=(Source(name=f"{name}.json", file=file),))
        for name, file in zip("ab", (before, after), strict=True)
    ]
    return changes_of(*sides)


def told(changes: Changes) -> str:
    return " ".join(finding.text for finding in findings(changes))


def with_environment(file: RunFile, **fields) -> RunFile:
    return replace(file, environment=replace(file.environment, **fields))


def facts(changes: Changes) -> dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    return {(change.group, change.name): (change.before, change.after) for change in changes.facts}


@pytest.fixture
def before() -> RunFile:
    return run_file([simple_run(1.0, [1.0, 1.1, 1.2], plan=DATA)])


def test_nothing_changed_is_said_as_such(before):
    changes = between(before, with_environment(before, started="2026-11-24T18:00:00+00:00", command="execute it again"))
    assert changes.is_nothing
    assert changes.facts == ()
    assert findings(changes)[0].text.startswith("Nothing changed but the time of the run")
    assert "predicted as before" not in told(changes)
    slower = replace(before, runs=(simple_run(1.0, [2.0, 2.1, 2.2], plan=DATA),))
    assert "The files do not say why step times differ" in told(between(before, slower))
    assert "The same plan is predicted as before" in told(between(before, replace(before, seed=1)))


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("torch", "2.14.0+cpu", ("versions", "torch")),
        ("python", "3.13.1", ("versions", "Python")),
        ("commit", "abcdef0", ("versions", "commit")),
        ("fingerprint", "ffffffffffff", ("machine", "fingerprint")),
        ("num_cores", 8, ("machine", "cores")),
        ("device", "Xeon", ("machine", "device")),
        ("backend", "nccl", ("machine", "backend")),
        ("data", "other.txt, 1 MB", ("job", "data")),
    ],
)
def test_each_field_of_the_environment_is_told_by_itself(before, field, value, name):
    changes = between(before, with_environment(before, **{field: value}))
    old = str(getattr(before.environment, field))
    assert facts(changes) == {name: ((old,), (str(value),))}
    assert not changes.is_nothing
    assert findings(changes)[0].text == f"Changed: {name[0]} ({name[1]})."


def test_seed_model_and_batch_are_told_and_other_jobs_are_not_held_together(before):
    config = replace(before.workload, config={"n_layer": 8, "n_head": 4})
    changes = between(before, replace(before, seed=7, global_batch_size=32, workload=config, model_name="gpt-33m"))
    assert facts(changes) == {
        ("job", "model"): (("gpt-25m",), ("gpt-33m",)),
        ("job", "configuration n_layer"): (("6",), ("8",)),
        ("job", "configuration n_head"): (("none",), ("4",)),
        ("job", "global batch"): (("16",), ("32",)),
        ("job", "seed"): (("0",), ("7",)),
    }
    assert changes.outcomes == ()
    assert "No plan ran the same job in both" in told(changes)
    # The same job under another seed is.
    assert len(between(before, replace(before, seed=7)).outcomes) == 1


def test_load_is_told_and_its_times_are_not_judged(before):
    busy = replace(before, runs=tuple(beside(run, 0.6) for run in before.runs))
    quiet = replace(before, runs=tuple(beside(run, 0.0) for run in before.runs))
    changes = between(with_environment(quiet, load_before=load(0.0)), with_environment(busy, load_before=load(0.0)))
    assert facts(changes) == {
        ("machine", "load during timed steps"): (("quiet",), ("0.6 of 2 cores taken by other processes",))
    }
    assert not changes.outcomes[0].is_judged
    assert "These times are not judged." in told(changes)


def test_what_an_older_file_does_not_tell_counts_as_unknown_and_not_as_changed(before):
    changes = between(before, with_environment(before, trainwright="0.2.0"))
    assert changes.facts == ()
    assert [name.name for name in changes.unrecorded] == ["Trainwright"]
    assert "as far as is known (Trainwright)" in findings(changes)[0].text
    both = between(with_environment(before, trainwright="0.1.0"), with_environment(before, trainwright="0.2.0"))
    assert facts(both) == {("versions", "Trainwright"): (("0.1.0",), ("0.2.0",))}


def test_step_memory_and_error_are_those_of_a_pocket_calculator(before):
    first, second = (
        replace(
            simple_run(predicted, steps, plan=DATA),
            measurement=measurement(steps, peak_bytes=(peak, peak / 2)),
        )
        for predicted, steps, peak in ((1.0, [1.2, 1.25, 1.3], 4e8), (1.1, [1.0, 1.0, 1.0], 5e8))
    )
    outcome = between(replace(before, runs=(first,)), replace(before, runs=(second,))).outcomes[0]
    assert outcome.step_change_fraction == pytest.approx(1.0 / 1.25 - 1)
    assert outcome.is_beyond_spread
    assert outcome.before.error_fraction == pytest.approx(1.0 / 1.25 - 1)
    assert outcome.after.error_fraction == pytest.approx(0.1)
    assert outcome.predicted_change_fraction == pytest.approx(0.1)
    assert outcome.memory_change_fraction == pytest.approx(0.25)
    # Steps that overlap are within their spread, however their medians lie.
    near = replace(second, measurement=measurement([1.0, 1.24, 1.3]))
    assert not between(replace(before, runs=(first,)), replace(before, runs=(near,))).outcomes[0].is_beyond_spread


def test_another_prediction_of_the_same_plan_names_the_part_that_moved(before):
    run = before.runs[0]
    old = replace(run, prediction=prediction({"compute": 1.0, "data_comm": 0.2}, {"parameters": 100.0}))
    new = replace(run, prediction=prediction({"compute": 1.0, "data_comm": 0.3}, {"parameters": 100.0}))
    changes = between(replace(before, runs=(old,)), replace(before, runs=(new,)))
    (outcome,) = changes.outcomes
    assert outcome.most_changed_part == "data_comm"
    assert outcome.predicted_change_fraction == pytest.approx(1.3 / 1.2 - 1)
    assert not outcome.is_time_predicted_alike
    assert outcome.is_memory_predicted_alike
    assert not changes.is_nothing
    text = told(changes)
    assert "predicted differently: +8.3 %" in text
    assert "exposed gradient exchange, 200 ms -> 300 ms" in text
    assert "Both ran with the same version, so look at the machine first" in text
    learned = between(replace(before, runs=(old,)), replace(before, runs=(new,), learned={"data_comm": 1.5}))
    assert facts(learned) == {("prediction", "learned multiple of data_comm"): (("none",), ("1.500",))}
    assert "What was learned from earlier runs changed" in told(learned)
    # Parts may move against each other under the same total.
    swapped = replace(run, prediction=prediction({"compute": 0.9, "data_comm": 0.3}, {"parameters": 100.0}))
    assert (
        not between(replace(before, runs=(old,)), replace(before, runs=(swapped,))).outcomes[0].is_time_predicted_alike
    )


def test_one_plan_each_is_held_together_and_its_words_are_told(before):
    after = run_file([simple_run(0.9, [0.9, 0.9], plan=SHARDED)])
    changes = between(before, after)
    (outcome,) = changes.outcomes
    assert not outcome.is_same_plan
    assert outcome.words == ((), ("zero1",))
    assert "The plan changed: +zero1." in told(changes)
    # Cuts are no word of a plan's name, yet a choice.
    cut = [Plan(pipeline_parallel=2, num_microbatches=4, schedule="1f1b", stage_bounds=(0, bound)) for bound in (4, 5)]
    moved = between(*(run_file([simple_run(1.0, [1.0], plan=plan)]) for plan in cut))
    assert moved.outcomes[0].words == (("stage_bounds=0,4",), ("stage_bounds=0,5",))


def test_plans_of_one_side_alone_and_another_first_choice(before):
    plans = [DATA, SHARDED, Plan(tensor_parallel=2, micro_batch_size=16)]
    runs = [simple_run(1.0 + number, [1.0 + number], rank=number, plan=plan) for number, plan in enumerate(plans, 1)]
    swapped = [replace(runs[0], rank=2), replace(runs[1], rank=1)]
    changes = between(run_file(runs), run_file(swapped))
    assert [outcome.before.ran.plan_id for outcome in changes.outcomes] == [DATA.id, SHARDED.id]
    assert [standing.ran.plan_id for standing in changes.only_before] == [plans[2].id]
    assert changes.only_after == ()
    (choice,) = changes.first_choices
    assert (choice.before, choice.after) == (DATA.id, SHARDED.id)


def test_an_engine_of_another_version_is_another_version_and_the_same_plan(before):
    old, new = (
        replace(before, stack="deepspeed", runs=(replace(before.runs[0], engine="deepspeed", engine_version=version),))
        for version in ("0.19.8", "0.19.9")
    )
    changes = between(old, new)
    assert facts(changes) == {("versions", "engine deepspeed"): (("0.19.8",), ("0.19.9",))}
    assert changes.outcomes[0].words == ((), ())
    # By another engine the plan was carried out otherwise: each alone, so they are held together.
    other = between(before, new)
    assert facts(other)["versions", "engine deepspeed"] == (("none",), ("0.19.9",))
    assert len(other.outcomes) == 1


def test_several_runs_of_a_side_are_pooled(before):
    def side(name: str, *steps: list[float]) -> Side:
        files = [run_file([simple_run(1.0, one, plan=DATA)]) for one in steps]
        return Side(name=name, sources=tuple(Source(name=f"{name}{i}", file=file) for i, file in enumerate(files)))

    changes = changes_of(side("a", [1.0, 2.0], [3.0]), side("b", [4.0]))
    assert changes.outcomes[0].step_change_fraction == pytest.approx(4.0 / 2.0 - 1)
    assert len(changes.outcomes[0].before.rows) == 2


def test_the_command_tells_changes_of_two_and_leaves_them_out_when_told(before, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    paths = [tmp_path / name for name in ("before.json", "after.json")]
    for path, file in zip(paths, (before, with_environment(before, torch="2.14.0+cpu")), strict=True):
        artifacts.write(path, "run", file)
    assert compare(monkeypatch, *paths) == 0
    out = capsys.readouterr().out
    assert "What changed from before.json to after.json" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert any(line.split()[:3] == ["torch", "2.13.0+cpu", "2.14.0+cpu"] for line in out.splitlines())
    assert compare(monkeypatch, *paths, "--json") == 0
    result = json.loads(capsys.readouterr().out)["changes"]
    assert result["facts"] == [
        {"group": "versions", "name": "torch", "before": ["2.13.0+cpu"], "after": ["2.14.0+cpu"]}
    ]
    assert compare(monkeypatch, *paths, "--no-changes") == 0
    assert "What changed" not in capsys.readouterr().out
    assert compare(monkeypatch, paths[0], "--changes") == 2
    assert "compare BEFORE AFTER --changes" in capsys.readouterr().err


def test_folders_are_sides_and_other_models_only_when_asked(before, tmp_path, monkeypatch, capsys):
    for name, file in (("old", before), ("new", replace(before, model_name="other"))):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            artifacts.write(tmp_path / name / f"{number}.run.json", "run", file)
    assert compare(monkeypatch, tmp_path / "old", tmp_path / "new") == 0
    assert "What changed" not in capsys.readouterr().out
    assert compare(monkeypatch, tmp_path / "old", tmp_path / "new", "--changes") == 0
    out = capsys.readouterr().out
    assert "What changed from old to new" in out
    assert "model" in out
