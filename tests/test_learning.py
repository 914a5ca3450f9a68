"""What runs teach the next prediction on their machine: found back where it is there, and nothing where it is not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from executor.run.measurement import PlanRun, RunFile
from planner.cost.factors import load_learned
from planner.cost.measured.corrections import Corrections, read_corrections
from planner.cost.measured.machine import learned_of
from planner.parts import PART_NAMES
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.measured_setting import measured_setting
from planner.space.predictions import predictions
from planner.space.to_plans import best_places, plan_of
from profiles import artifacts
from profiles.errors import ArtifactError, InputError
from profiles.library import load_model
from profiles.machines.profile import MachineProfile
from reports.comparison import Source
from reports.learning import (
    FEWEST_LAYOUTS,
    FOLLOWERS,
    PARTS,
    Steps,
    errors_as_predicted,
    fit,
    learn,
    learnable,
    left_out_errors,
    steps_of,
)
from tests.machine_builders import machine
from tests.plan_builders import make_plan_file
from tests.report_builders import beside, measurement, prediction, run_file, simple_run
from tests.test_reports_command import compare

GOLDEN = Path(__file__).parent / "golden"
TRUE = {"compute": 1.15, "data_comm": 1.6, "codec": 0.75, "tensor_comm": 1.3}
MULTIPLES = {"compute": 1.2, "optimizer": 1.25, "codec": 0.8, "host": 1.5, "data_comm": 1.4, "pipeline_comm": 0.5}


def plans() -> list[tuple[Plan, dict[str, float]]]:
    """Twelve layouts with predicted seconds by part, of four kinds."""
    data, tensor = Plan(data_parallel=2, micro_batch_size=8), Plan(tensor_parallel=2, micro_batch_size=16)
    pipeline = Plan(pipeline_parallel=2, num_microbatches=4, stage_bounds=(0, 4), schedule="1f1b")
    result = []
    for number, precision in enumerate(("fp32", "bf16", "fp16")):
        compute = 2.0 - 0.5 * number
        result += [
            (replace(data, precision=precision), {"compute": compute, "data_comm": 0.5 + 0.2 * number}),
            (
                replace(data, precision=precision, codec="powersgd"),
                {"compute": compute, "data_comm": 0.05, "codec": 0.6 - 0.1 * number},
            ),
            (
                replace(tensor, precision=precision),
                {"compute": compute, "recompute": 0.2, "tensor_comm": 0.5 + 0.1 * number},
            ),
            (
                replace(pipeline, precision=precision),
                {"compute": compute, "bubble": 0.4, "pipeline_comm": 0.01, "optimizer": 0.03},
            ),
        ]
    return result


def true_seconds(seconds: dict[str, float], multiples: dict[str, float]) -> float:
    """What a step takes whose parts are off by these multiples."""
    leader = {name: part for part, names in FOLLOWERS.items() for name in names}
    return sum(value * multiples.get(leader.get(part, part), 1.0) for part, value in seconds.items())


def runs_with(multiples: dict[str, float], noise: float = 0.0, seed: int = 0, *, common: float = 1.0) -> list[PlanRun]:
    """Runs whose parts really took so many times as long, each step off by noise, all by something in common."""
    draw = random.Random(seed)
    return [
        replace(
            simple_run(1.0, [1.0], rank, plan),
            prediction=prediction(seconds, {}),
            measurement=measurement([true_seconds(seconds, multiples) * common * draw.lognormvariate(0, noise)] * 3),
        )
        for rank, (plan, seconds) in enumerate(plans(), start=1)
    ]


def source(runs: list[PlanRun], name: str = "run.json", **changes: object) -> Source:
    return Source(name=name, file=replace(run_file(runs), **changes))


def failed(run: PlanRun) -> PlanRun:
    check = replace(run.measurement.loss_check, status="failed")
    return replace(run, measurement=replace(run.measurement, loss_check=check))


def corrected(run: PlanRun, multiples: dict[str, float]) -> PlanRun:
    """The run as it would have been predicted with these multiples."""
    leader = {name: part for part, names in FOLLOWERS.items() for name in names}
    seconds = {part: run.prediction.seconds[part] * multiples.get(leader.get(part, part), 1.0) for part in PART_NAMES}
    return replace(run, prediction=prediction(seconds, {}))


def test_known_multiples_are_found_back():
    found = learn([source(runs_with(TRUE))]).corrections
    assert found is not None
    # The prior holds them a little nearer to 1.
    assert found.multiples == pytest.approx(TRUE, rel=0.04)
    assert (found.num_runs, found.num_plans) == (12, 12)
    assert found.error_fraction_before > 0.1
    assert found.error_fraction_after < 0.02


def test_an_outlier_does_not_set_the_multiples():
    runs = runs_with({"compute": 1.2}, noise=0.01)
    slow = replace(runs[3], measurement=measurement([5 * runs[3].measurement.step_seconds[0]] * 3))
    found = learn([source([*runs[:3], slow, *runs[4:]])]).corrections
    assert found is not None
    assert found.multiples["compute"] == pytest.approx(1.2, rel=0.05)


def test_right_predictions_teach_nothing():
    lesson = learn([source(runs_with({}))])
    assert lesson.corrections is None
    assert "corrections do not help, median error 0" in lesson.sentence
    assert lesson.sentence.endswith("so nothing was written")


def test_noise_teaches_nothing():
    lessons = [learn([source(runs_with({}, noise=0.05, seed=seed))]) for seed in range(20)]
    assert sum(lesson.corrections is not None for lesson in lessons) <= 1
    # The median alone would have been taken in.
    assert any("may be chance" in lesson.why_not for lesson in lessons)


def test_the_left_out_error_is_that_of_a_loop_by_hand():
    runs = runs_with(TRUE, noise=0.02)
    # Another micro-batch is a variant: left out with the plan that it is one of.
    variant = replace(runs[0], plan=replace(runs[0].plan, micro_batch_size=4, num_microbatches=2), rank=13)
    found = learn([source([*runs, variant])]).corrections
    assert found is not None
    assert (found.num_runs, found.num_plans) == (13, 12)
    errors, before = [], []
    for index, run in enumerate(runs):
        out = [run, variant] if index == 0 else [run]
        rest = [one for one in [*runs, variant] if one not in out]
        steps, own = steps_of([source(rest)], {}), steps_of([source(out)], {})
        chosen = learnable(steps_of([source([*runs, variant])], {}))
        multiples = dict(zip(PARTS, fit(steps, chosen, {}), strict=True))
        for one in out:
            predicted = true_seconds(one.prediction.seconds, multiples)
            errors.append(abs(predicted / one.measurement.step_seconds[0] - 1))
            before.append(abs(one.prediction.step_seconds / one.measurement.step_seconds[0] - 1))
        assert own.errors(np.array(list(multiples.values()))) == pytest.approx(
            [true_seconds(one.prediction.seconds, multiples) / one.measurement.step_seconds[0] - 1 for one in out]
        )
    assert found.error_fraction_after == pytest.approx(np.median(errors))
    assert found.error_fraction_before == pytest.approx(np.median(before))


def test_only_parts_that_enough_layouts_show_are_learned():
    found = learn([source(runs_with({**TRUE, "pipeline_comm": 2.0, "optimizer": 2.0}))]).corrections
    assert found is not None
    assert set(found.multiples) == set(TRUE)
    few = [run for run in runs_with(TRUE) if run.plan.tensor_parallel == 1 or run.plan.precision != "fp16"]
    assert "tensor_comm" not in learn([source(few)]).corrections.multiples


def test_multiples_are_bounded():
    found = learn([source(runs_with(dict.fromkeys(TRUE, 3.0)))]).corrections
    assert found is not None
    assert max(found.multiples.values()) <= 2.0


@pytest.mark.parametrize(
    "spoilt", [lambda run: beside(run, 0.6), failed], ids=["on a busy machine", "with losses that differ"]
)
def test_runs_that_are_not_judged_do_not_teach(spoilt):
    good, wrong = runs_with({"compute": 1.2}), runs_with({"compute": 0.6})
    both = learn([source([*good, *map(spoilt, wrong)])]).corrections
    assert both == replace(learn([source(good)]).corrections, created=both.created)
    lesson = learn([source([spoilt(run) for run in good])])
    assert lesson.why_not == f"fewer than {FEWEST_LAYOUTS} layouts have times that are judged"


def test_oversubscribed_runs_do_not_teach():
    file = run_file(runs_with({"compute": 1.2}), oversubscribed=True)
    assert learn([Source(name="r", file=file)]).corrections is None


def test_several_files_teach_together_what_holds_in_all():
    first, second = (source(runs_with(TRUE, 0.01, seed), f"{seed}.json") for seed in (1, 2))
    found = learn([first, second]).corrections
    assert found is not None
    assert (found.num_runs, found.num_plans) == (24, 12)
    assert found.multiples == pytest.approx(TRUE, rel=0.05)
    # A machine that was slow in one session and fast in the next is not off by a multiple.
    slow, fast = (source(runs_with({}, 0.01, 3, common=common), f"{common}.json") for common in (1.12, 0.95))
    assert learn([slow]).corrections is not None
    assert learn([slow, fast]).corrections is None


def test_runs_of_another_machine_are_refused():
    runs = runs_with(TRUE)
    here = source(runs)
    elsewhere = replace(here.file.environment, fingerprint="ba9876543210")
    other = source(runs, "other.json", machine_fingerprint="ba9876543210", environment=elsewhere)
    with pytest.raises(InputError, match="--learn takes runs of one machine, but these are of 2: 0123456789ab, ba98"):
        learn([here, other])
    with pytest.raises(InputError, match=r"run\.json was planned for another machine \(0123456789ab\) and ran on ba98"):
        learn([source(runs, environment=elsewhere)])
    with pytest.raises(InputError, match="was planned for no machine that was measured"):
        learn([source(runs, machine_fingerprint="")])


def test_a_second_loop_multiplies_what_the_first_learned():
    first = {"compute": 1.1, "host": 1.3}
    runs = [corrected(run, first) for run in runs_with(TRUE)]
    found = learn([source(runs, learned=first)]).corrections
    assert found is not None
    # What was learned before of a part that these runs do not show is kept.
    assert found.multiples == pytest.approx({**TRUE, "host": 1.3}, rel=0.04)
    # Right with corrections: they stay as they are.
    again = [corrected(run, TRUE) for run in runs_with(TRUE)]
    assert learn([source(again, learned=TRUE)]).corrections is None


def test_runs_from_before_and_after_corrections_teach_alike():
    early = source(runs_with(TRUE), "early.json")
    first = {"compute": 1.1}
    later = replace(early.file.environment, started="2026-11-24T18:00:00+00:00")
    late = source([corrected(run, first) for run in runs_with(TRUE)], "late.json", learned=first, environment=later)
    found = learn([late, early]).corrections
    assert found is not None
    assert found.multiples == pytest.approx(TRUE, rel=0.04)
    assert found.error_fraction_before == pytest.approx(learn([late]).corrections.error_fraction_before)


def measured_here() -> MachineProfile:
    return artifacts.read(GOLDEN / "llama-26m_xeon_2_2026-11-28.machine.json", "machine-profile", MachineProfile)


def corrections(of: MachineProfile, multiples: dict[str, float]) -> Corrections:
    return Corrections(
        machine_name=of.name,
        machine_fingerprint=of.fingerprint.digest if of.fingerprint else "",
        multiples=multiples,
        num_runs=12,
        num_plans=12,
        error_fraction_before=0.1,
        error_fraction_after=0.05,
        created="2026-11-29T12:00:00+00:00",
    )


def test_the_file_is_strict_and_of_one_machine(tmp_path):
    path, here = tmp_path / "learned.json", measured_here()
    own = corrections(here, MULTIPLES)
    artifacts.write(path, "corrections", own)
    assert read_corrections(path, here) == own
    other = replace(here, name="other", fingerprint=replace(here.fingerprint, num_cores=99))
    with pytest.raises(InputError, match=r"learned\.json is of the machine .*, not of other \([0-9a-f]{12}\): learn "):
        read_corrections(path, other)
    with pytest.raises(InputError, match=r"not of round \(no fingerprint\)"):
        read_corrections(path, machine())
    with pytest.raises(InputError, match="what runs taught is of the machine"):
        measured_setting(other, load_model("llama-26m"), 2, 8, 64, "fp32", corrections=own)
    for wrong in ({"bubble": 1.1}, {"compute": 3.0}, {"compute": "1"}):
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "multiples": wrong}))
        with pytest.raises(ArtifactError, match=r"learned\.json: at multiples\."):
            read_corrections(path, here)
        path.write_text(json.dumps(data))


def test_corrections_multiply_factors():
    here = measured_here()
    before, after = learned_of(here), corrections(here, MULTIPLES).on(learned_of(here))
    assert after.factors.matmul == pytest.approx(1.2)
    assert after.factors.optimizer_fraction == pytest.approx(1 / 1.25)
    assert (after.factors.codec, after.factors.host) == pytest.approx((0.8, 1.5))
    assert (after.factors.data_comm, after.factors.pipeline_comm) == pytest.approx((1.4, 0.5))
    assert after.factors.tensor_comm == before.factors.tensor_comm
    assert corrections(here, {}).on(before) == before
    assert load_learned().factors.codec == 1.0


@pytest.mark.parametrize("codec", ["none", "powersgd-1"])
def test_prices_with_corrections_are_the_multiplied_parts(codec):
    here, model = measured_here(), load_model("llama-26m")

    def priced(own: Corrections | None) -> dict[str, dict[str, float]]:
        at = measured_setting(here, model, 2, 8, 64, "fp32", codec=codec, corrections=own)
        space = explore(at, Options())
        places = best_places(space, 12)
        found = predictions(space, places)
        return {plan_of(space, place).id: one.seconds for place, one in zip(places, found, strict=True)}

    plain = priced(None)
    assert priced(corrections(here, {})) == plain
    for part, multiple in MULTIPLES.items():
        changed = priced(corrections(here, {part: multiple}))
        assert len(set(plain) & set(changed)) >= 4
        for plan in set(plain) & set(changed):
            # What the laws hide behind compute does not go along.
            expected = true_seconds(plain[plan], {part: multiple})
            assert sum(changed[plan].values()) == pytest.approx(expected, rel=0.01), (plan, part)


def test_plan_and_run_files_carry_what_predictions_were_made_with(tmp_path):
    plan = make_plan_file(Plan(), learned={"compute": 1.1})
    artifacts.write(tmp_path / "plan.json", "plan", plan)
    assert artifacts.read(tmp_path / "plan.json", "plan", PlanFile).learned == {"compute": 1.1}
    run = replace(run_file(runs_with({})), learned={"codec": 0.9})
    artifacts.write(tmp_path / "run.json", "run", run)
    assert artifacts.read(tmp_path / "run.json", "run", RunFile).learned == {"codec": 0.9}
    assert "learned" not in json.loads(artifacts.dump("run", run_file([])))


def test_the_command_writes_what_helps_and_says_so(tmp_path, monkeypatch, capsys):
    run, learned = tmp_path / "run.json", tmp_path / "learned.json"
    artifacts.write(run, "run", run_file(runs_with(TRUE)))
    assert compare(monkeypatch, run, "--learn", learned) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "learned from 12 layouts in 12 runs: compute x 1.1" in said
    assert "median error of plans left out" in said
    assert artifacts.read(learned, "corrections", Corrections).machine_fingerprint == "0123456789ab"
    assert compare(monkeypatch, run, "--learn", learned, "--json") == 0
    assert json.loads(capsys.readouterr().out)["lesson"]["corrections"]["num_runs"] == 12


def test_the_command_writes_nothing_that_does_not_help(tmp_path, monkeypatch, capsys):
    run, learned = tmp_path / "run.json", tmp_path / "learned.json"
    artifacts.write(run, "run", run_file(runs_with({})))
    assert compare(monkeypatch, run, "--learn", learned) == 0
    assert "nothing learned: corrections do not help" in capsys.readouterr().out
    assert not learned.exists()
    learned.write_text("of other runs", encoding="utf-8")
    assert compare(monkeypatch, run, "--learn", learned) == 0
    assert "keeps what was learned before" in " ".join(capsys.readouterr().out.split())
    assert learned.read_text(encoding="utf-8") == "of other runs"


def test_the_command_overwrites_no_input(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run.json"
    artifacts.write(run, "run", run_file(runs_with(TRUE)))
    before = run.read_text()
    assert compare(monkeypatch, run, "--learn", run) == 2
    assert compare(monkeypatch, run, "--learn", tmp_path / "x", "-o", tmp_path / "x") == 2
    assert compare(monkeypatch, run, "--learn", tmp_path) == 2
    assert "is a folder; give --learn the name of the file to write" in " ".join(capsys.readouterr().err.split())
    assert run.read_text() == before


def golden(pattern: str) -> list[Source]:
    paths = sorted(GOLDEN.glob(f"{pattern}.run.json"))
    return [Source(name=path.name, file=artifacts.read(path, "run", RunFile)) for path in paths]


@pytest.mark.parametrize(
    "pattern", ["*epyc_2_2026-11-2[36]*", "*xeon*", "*-23", "*-23b", "*-26", "*-27", "*-28", "*-29"]
)
def test_golden_runs_teach_nothing_that_would_last(pattern):
    assert learn(golden(pattern)).corrections is None


def test_what_a_session_teaches_does_not_hold_in_the_next():
    sources = golden("*xeon*")
    steps: Steps = steps_of(sources, {})
    plain = errors_as_predicted(steps)
    others = left_out_errors(steps, steps.file, learnable(steps), {})
    assert np.median(abs(others)) > np.median(abs(plain))
