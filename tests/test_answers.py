"""All that `plan` says stands in its JSON: the text is made from the file alone, and each of its numbers is there."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from planner.answers import Answers
from planner.command import app
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.terminal.show import show
from planner.terminal.show_answers import lines, notes
from planner.verdict import verdict
from profiles import artifacts
from profiles.machines.devices import load_device
from profiles.machines.stacks import THIS_PROGRAM, load_stack
from tests.plan_builders import make_plan_file, make_prediction

DENSE = ("--model", "llama-3.1-8b", "--gpus", "16", "--device", "h100-sxm", "--global-batch", "64", "--top", "3")
MIXTURE = (
    "--model", "mixtral-8x7b", "--gpus", "32", "--device", "h100-sxm", "--global-batch", "32", "--sequence-length",
    "2048", "--codecs", "none", "--top", "1",
)  # fmt: skip
NUMBER = re.compile(
    r"(?P<number>[+-]?\$?\d[\d,]*(?:\.\d+)?)(?: ?(?P<unit>ms|us|ns|s|min|h|[kMG]Wh|[KMGT]iB|GB/s|[kMBT]|%))?(?![\w.])"
)
SCALES = {
    "s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "GB/s": 1e9,
    "min": 60, "h": 3600, "kWh": 1, "MWh": 1e3, "GWh": 1e6, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "%": 0.01, None: 1,
}  # fmt: skip


def plan(*arguments, columns=400):
    done = CliRunner().invoke(app, [*arguments, "--json"], prog_name="plan", env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def read_back(data, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    return artifacts.read(path, "plan", PlanFile)


def values_of(data):
    """All numbers and all strings of parsed JSON, its keys among them."""
    if isinstance(data, dict):
        data = [*data, *data.values()]
    return [value for part in data for value in values_of(part)] if isinstance(data, list) else [data]


def missing_numbers(line, data):
    """Numbers of a line that are none of the data's; names and sentences that the data has are taken out first."""
    values = values_of(data)
    for text in sorted((value for value in values if isinstance(value, str) and value), key=len, reverse=True):
        line = line.replace(text, "")
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    for match in NUMBER.finditer(line):
        text = match["number"].replace("$", "").replace(",", "")
        scale, last = SCALES[match["unit"]], 10.0 ** -len(text.partition(".")[2])
        # Three digits are shown, so of large numbers the last ones may be zeros.
        tolerance = max(last, abs(float(text)) * 0.005) * scale
        if not any(abs(value - float(text) * scale) <= tolerance for value in numbers):
            yield match.group()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    timeline = tmp_path_factory.mktemp("answers") / "timeline.json"
    words = ("--why-not", "tp=2,pp=2", "--tokens", "1T", "--price", "2.5", "--sensitivity", "--trace", str(timeline))
    return plan(*DENSE, *words)


def test_the_text_is_made_from_the_file_alone(asked, tmp_path):
    data, text = asked
    out = io.StringIO()
    show(read_back(data, tmp_path), Console(file=out, width=400, highlight=False, emoji=False), None)
    assert out.getvalue() == text


def test_every_number_of_the_answers_stands_in_the_json(asked, tmp_path):
    data, _ = asked
    file = read_back(data, tmp_path)
    said = [*notes(file.answers), *lines(file)]
    numbers = data["answers"] | {"num_devices": data["num_devices"]}
    for line in said:
        assert not list(missing_numbers(line, numbers)), line
    assert sum(len(NUMBER.findall(line)) for line in said) > 60
    # The check itself finds what is not there.
    assert list(missing_numbers("12.34 s a step, +77.7 %", numbers)) == ["12.34 s", "+77.7 %"]


def test_each_answer_is_whole(asked):
    data, text = asked
    answers, best = data["answers"], data["candidates"][0]["prediction"]
    cost = answers["cost"]
    assert cost["dollars"] == [cost["device_hours"] * 2.5] * 2
    assert cost["device_hours"] == pytest.approx(cost["days"] * 24 * 16)
    # Failures that are expected: the hours of all devices, over those between two failures of one.
    assert cost["num_failures"] == pytest.approx(cost["device_hours"] / 50677, rel=1e-3)
    why_not = answers["why_not"]
    assert why_not["behind_fraction"] == pytest.approx(why_not["step_seconds"] / best["step_seconds"] - 1)
    assert sum(why_not["difference_seconds"].values()) == pytest.approx(why_not["step_seconds"] - best["step_seconds"])
    steps, held = ([one[name] for one in answers["pareto"]] for name in ("step_seconds", "device_bytes"))
    assert len(steps) > 1
    assert (steps, held) == (sorted(steps), sorted(held, reverse=True))
    assert [one["plan"] for one in answers["simulated"]] == [
        line.split("%: ")[1] for line in text.partition("by event simulation")[2].splitlines() if "%: " in line
    ][: len(data["candidates"])]
    for axis in answers["links"]:
        assert axis["degree"] > 1
    assert answers["nearest_miss"]["over_bytes"] > 0


def test_sensitivity_says_what_a_change_costs(asked):
    data, text = asked
    changes = {change["what"]: change for change in data["answers"]["sensitivity"]}
    today = data["candidates"][0]["prediction"]["step_seconds"]
    for change in changes.values():
        assert change["change_fraction"] == pytest.approx(change["step_seconds"] / today - 1)
        assert change["gain"] == pytest.approx(1 - change["winner_seconds"] / change["step_seconds"])
    assert changes["products 15 % slower"]["change_fraction"] > 0.01
    assert changes["products 15 % faster"]["change_fraction"] < -0.01
    assert changes["half the network bandwidth"]["step_seconds"] > today
    assert re.search(r"half the network bandwidth: .* s a step, \+\d+\.\d %", text)


def test_what_breaks_a_rule_or_does_not_fit_is_answered_in_values():
    small = ("--model", "llama-3.1-8b", "--gpus", "8", "--device", "h100-sxm", "--global-batch", "16")
    broken = plan(*small, "--why-not", "tp=3")[0]["answers"]["why_not"]
    assert not broken["is_legal"]
    assert "divisible" in broken["rule"]
    data, text = plan(*small, "--why-not", "dp=8,zero=0")
    held = data["answers"]["why_not"]
    assert held["over_bytes"] == pytest.approx(held["peak_bytes"] - held["memory_bytes"])
    assert held["over_bytes"] > 0
    assert not held.get("fits")
    assert "states alone do not fit" in text or "does not fit: even" in text


def test_a_faster_plan_that_cannot_be_run_is_said_to_be_faster():
    """Pipelines with experts that the executor does not run beat those that it does."""
    data, text = plan(*MIXTURE, "--why-not", "ep=8,pp=4,zero=2")
    found = data["answers"]["why_not"]
    assert found["refusal"]
    assert found["behind_fraction"] < -0.01
    assert "faster than the best plan, but simulate only" in text
    assert "as fast within" not in found["verdict"]
    assert "faster than the best" in found["verdict"]


def test_degrees_are_answered_with_a_plan_that_can_be_run():
    """Of those degrees a plan that is simulate only is faster than all that can be run."""
    data, _ = plan(*MIXTURE, "--why-not", "ep=8,pp=4")
    found, simulated = data["answers"]["why_not"], plan(*MIXTURE, "--why-not", "ep=8,pp=4", "--simulate")[0]
    assert "refusal" not in found
    assert simulated["answers"]["why_not"]["refusal"]
    assert simulated["answers"]["why_not"]["step_seconds"] < found["step_seconds"]


def test_a_plan_that_nearly_fills_its_device_is_called_tight():
    small = ("--model", "llama-3.1-8b", "--gpus", "8", "--device", "h100-sxm", "--top", "1", "--global-batch")
    seen = set()
    stack = load_stack(THIS_PROGRAM)
    for batch, more in (("16", ()), ("64", ()), ("64", ("--headroom", f"{stack.memory.band:.0%}"))):
        data, text = plan(*small, batch, *more)
        left = 1 - data["candidates"][0]["prediction"]["peak_bytes"] / (load_device("h100-sxm").memory_gib * 2**30)
        said = re.search(r"tight: the best plan leaves (\d\.\d) % of memory free", text)
        assert bool(said) == (left < 0.03), batch
        assert said is None or float(said[1]) == pytest.approx(100 * left, abs=0.051)
        band = re.search(r"its peak may be off by (\d\.\d) % \((.*?)\): --headroom (\d+)% leaves as much free", text)
        assert (said is None) == (band is None)
        if band is not None:
            asked = [float(band[1]), float(band[3])]
            assert [*asked, band[2]] == [100 * stack.memory.band] * 2 + [stack.sources["memory_band"]]
        seen.add(bool(said))
    assert seen == {True, False}


def test_no_winner_changes_for_nothing(asked):
    data, _ = asked
    best = data["candidates"][0]["plan"]
    for change in data["answers"]["sensitivity"]:
        assert change["is_same"] or change["gain"] >= 0.0005, best


def test_ranges_are_those_of_the_steps_band(asked):
    data, text = asked
    own, cost = data["candidates"][0]["prediction"], data["answers"]["cost"]
    ends = [cost["days"] * own[name] / own["step_seconds"] for name in ("low_seconds", "high_seconds")]
    assert [cost["low_days"], cost["high_days"]] == pytest.approx(ends)
    assert cost["dollars_by_band"] == pytest.approx([days * 24 * 16 * 2.5 for days in ends])
    assert "by the step's band), $" in text


def test_a_verdict_never_contradicts_its_numbers():
    def taking(seconds):
        return replace(make_prediction(), step_seconds=seconds, seconds={"compute": seconds})

    best = taking(1.0)
    for seconds, words in (
        (0.9, "10.0 % faster than the best"),
        (0.995, "as fast within 1%"),
        (1.005, "as fast within"),
    ):
        said = verdict(1e12, best, taking(seconds), Plan(), is_best=False)
        assert said.startswith(words), (seconds, said)
    assert "faster" not in verdict(1e12, best, taking(1.2), Plan(), is_best=False)


def test_files_from_before_have_no_answers(asked, tmp_path):
    data, _ = asked
    old = {key: value for key, value in data.items() if key != "answers"}
    file = read_back(old, tmp_path)
    assert file.answers == Answers()
    assert "answers" not in json.loads(artifacts.dump("plan", file))


def test_pools_answer_in_values():
    data, text = plan(
        "--model", "llama-3.2-1b", "--gpus", "16", "--cluster", "dgx-h100:8,dgx-a100:8", "--global-batch", "32"
    )
    first, second = data["answers"]["pools"]
    best = data["candidates"][0]["prediction"]["tokens_per_second"]
    for pool in (first, second):
        assert pool["share_fraction"] == pytest.approx(pool["tokens_per_second"] / best)
        assert f"the 8 x {pool['device']} alone would" in text


@pytest.mark.parametrize(
    ("offloads", "words"),
    [
        (("none", "optimizer"), "run it with: execute plan.json"),
        (("optimizer", "none"), "run plan 2, the best that can be run, with: execute plan.json"),
        (("optimizer", "optimizer"), "no plan in it can be run (simulate only)"),
    ],
)
def test_the_last_line_names_the_command_only_for_what_it_runs(offloads, words):
    file, out = make_plan_file(*(Plan(offload=offload) for offload in offloads)), io.StringIO()
    show(file, Console(file=out, width=400), Path("plan.json"))
    last = out.getvalue().splitlines()[-1]
    assert words in last
    assert ("execute" in last) == ("none" in offloads)
