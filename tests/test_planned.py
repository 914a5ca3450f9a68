"""`planner.plan` from Python: the same answer as the command's, as an object."""

import html.parser
from dataclasses import replace

import pytest

import planner
from planner.ask import Request, ask
from planner.prediction import PlanFile
from planner.purchase.terms import usual_terms
from planner.space.beside import Questions
from profiles import artifacts
from profiles.errors import ArtifactError, InputError
from profiles.library import load_sizes
from tests.machine_builders import machine


@pytest.fixture(scope="module")
def found():
    return planner.plan("llama-3.1-8b", 16, device="h100-sxm", global_batch=64, top=3)


def test_it_is_what_the_command_finds(found):
    asked = ask(
        Request(model=load_sizes("llama-3.1-8b"), num_devices=16, device="h100-sxm", global_batches=(64,), top=3),
        Questions(why_not="tp=2", tokens=1e12, terms=usual_terms(2.0), sensitivity=True),
    )
    assert found.best == asked.candidates[0]
    assert found.notes == asked.notes
    assert found.file.answers.links == asked.answers.links
    assert found.file.answers.pareto == asked.answers.pareto
    assert found.why_not("tp=2") == asked.answers.why_not
    assert found.cost(1e12, 2.0) == asked.answers.cost
    assert tuple(found.sensitivity()) == asked.answers.sensitivity


def test_a_measured_machine_is_planned_for_and_answers_too(tmp_path):
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine())
    own = planner.plan("llama-26m", 2, machine=tmp_path / "machine.json", global_batch=8, sequence_length=64)
    assert (own.file.machine_origin, own.file.machine_device_kind) == ("measured", "cpu")
    assert any(note.startswith("planned for machine round (measured)") for note in own.notes)
    assert own.why_not("dp=2").step_seconds is not None
    assert own.sensitivity()[0].what == "messages that take twice as long"
    assert own.cost(1e9).days > 0
    assert len(own.to_frame()) == len(own.file.candidates)


def test_sizes_of_a_name_that_nobody_knows_are_traced_for_a_measured_machine(tmp_path):
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine())
    known = load_sizes("llama-26m")
    asked = [
        ask(
            Request(model=model, num_devices=2, machine=tmp_path / "machine.json", global_batches=(8,), top=1),
            Questions(),
        )
        for model in (known, replace(known, name="mine"))
    ]
    assert asked[0].candidates[0].prediction == asked[1].candidates[0].prediction


def test_files_may_be_named_by_strings(tmp_path):
    path = str(tmp_path / "machine.json")
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine())
    with pytest.raises(ArtifactError, match=r"missing\.json"):
        planner.plan("llama-26m", 2, machine=path, learned=str(tmp_path / "missing.json"))
    planner.plan("llama-26m", 2, machine=path, global_batch=8, top=1, all_file=str(tmp_path / "all.csv"))
    assert (tmp_path / "all.csv").stat().st_size > 0


def test_the_frame_has_a_row_per_plan_and_its_parts_add_up(found):
    frame = found.to_frame()
    assert list(frame["plan"]) == [candidate.plan.id for candidate in found.file.candidates]
    parts = frame[[f"{part}_seconds" for part in found.best.prediction.seconds]].sum(axis=1)
    assert list(parts) == pytest.approx(list(frame.step_seconds))
    kinds = frame[[f"{kind}_bytes" for kind in found.best.prediction.bytes_per_rank]].sum(axis=1)
    assert list(kinds) == pytest.approx(list(frame.peak_bytes))


def test_the_html_is_well_formed_and_names_every_plan_that_is_shown(found):
    class Reader(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    text = found._repr_html_()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    for candidate in found.file.candidates:
        assert (f"<td>{candidate.plan.id}</td>" in text) != bool(candidate.folded_into)


def test_as_text_it_is_a_line(found):
    text = repr(found)
    assert found.best.plan.id in text
    assert "\n" not in text
    assert len(text) < 200
    page = found.page()
    assert len(page.html) > 100_000
    assert len(repr(page)) < 100


def test_it_answers_and_saves(found, tmp_path):
    found.save(tmp_path / "plan.json")
    assert artifacts.read(tmp_path / "plan.json", "plan", PlanFile) == found.file
    assert found.why_not("tp=2").is_legal
    changed = {change.what: change for change in found.sensitivity()}
    assert {"half the network bandwidth", "four times the network's latency"} < set(changed)
    # A winner under other links is no slower there than today's, and is today's where nothing is gained.
    assert all(
        change.gain >= 0 and change.is_same == (change.winner == found.best.plan.id) for change in changed.values()
    )
    assert found.cost(1e12, 2.0).dollars[0] == pytest.approx(found.cost(1e12, 1.0).dollars[0] * 2)


def test_what_is_missing_or_unknown_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINWRIGHT_HOME", str(tmp_path))
    with pytest.raises(InputError, match="no machine is known here"):
        planner.plan("llama-3.1-8b", 16)
    with pytest.raises(InputError, match="--learned FILE belongs to a measured machine"):
        planner.plan("llama-3.1-8b", 16, device="h100-sxm", learned=tmp_path / "learned.json")
    with pytest.raises(TypeError, match="'gpu'"):
        planner.plan("llama-3.1-8b", 16, device="h100-sxm", gpu=1)
    with pytest.raises(InputError, match=r"cannot import package\.module:factory"):
        planner.plan("package.module:factory", 16, device="h100-sxm")
