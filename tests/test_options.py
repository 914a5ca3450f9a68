"""Options that would be ignored are refused, by a table; each sentence names both options."""

import itertools
import sys

import pytest
import typer

from executor.command import app, main
from executor.options import NEEDS, TAKES
from executor.rehearse.result import RehearsalFile
from planner.plans import Plan
from profiles import artifacts
from reports.command import IGNORED
from tests.plan_builders import write_plan_file
from tests.report_builders import demo_run_file
from tests.test_reports_command import compare


def execute(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["execute", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def plan(tmp_path):
    # Its plan cannot run: what is not refused by the options is refused for that, in other words.
    return write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, offload="optimizer"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--export x", "--export has no effect without --compress"),
        ("--compiled", "--compiled has no effect without --compress"),
        ("--more-steps 3", "--more-steps has no effect without --compress"),
        ("--rank 1", "--rank has no effect without --rehearse"),
        ("--all-stages", "--all-stages has no effect without --rehearse"),
        ("--checkpoint-every 5", "--checkpoint-every has no effect without --checkpoint"),
        ("--checkpoint-every 10", "--checkpoint-every has no effect without --checkpoint"),
        ("--resume", "--resume has no effect without --checkpoint"),
        ("--gpus-per-node 4", "--gpus-per-node has no effect without --emit"),
        ("--image x", "--image has no effect without --emit"),
        ("--steps 3 --sbatch time=1", "--sbatch has no effect without --emit"),
        ("--emit slurm --json", "--json cannot be combined with --emit"),
        ("--emit slurm --compress", "--emit cannot be combined with --compress"),
        ("--emit slurm --rehearse", "cannot be combined with"),
        ("--rehearse --rank 1 --all-stages", "--all-stages cannot be combined with --rank"),
        ("--rehearse --steps 20", "--steps cannot be combined with --rehearse"),
        ("--rehearse -v", "--verbose cannot be combined with --rehearse"),
        ("--rehearse --runs x", "--runs cannot be combined with --rehearse"),
        ("--check --steps 3", "--steps cannot be combined with --check"),
        ("--check --compress", "cannot be combined with"),
        ("--check -o x", "--output cannot be combined with --check"),
        ("--compress --checkpoint x", "--checkpoint cannot be combined with --compress"),
        ("--compress --warmup 3", "--warmup cannot be combined with --compress"),
        ("--compress --trace x", "--trace cannot be combined with --compress"),
        ("--steps 3 --no-with-baseline --no-rehearse", "no plan of this file can be run"),
    ],
)
def test_ignored_options_are_refused(options, sentence, plan, monkeypatch, capsys):
    assert execute(monkeypatch, plan, *options.split()) == 2
    assert sentence in capsys.readouterr().err


def test_the_table_knows_the_options_and_every_option_is_in_it():
    known = {param.name for param in typer.main.get_command(app).params}
    named = {*NEEDS, *(needed for needed, _ in NEEDS.values()), *TAKES, *itertools.chain(*TAKES.values())}
    assert named ^ known == {"plan", "install_completion", "show_completion", "version"}


def write_rehearsal(path):
    file = demo_run_file()
    artifacts.write(
        path,
        "rehearsal",
        RehearsalFile(
            model_name="m", workload=file.workload, num_parameters=1, machine_name="m", num_devices=1,
            global_batch_size=1, sequence_length=1, plans=(), torch="2", started="",
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("run.json", "--device h100-sxm", "--device does not apply to runs: leave it out"),
        ("run.json", "--cluster dgx-h100", "--cluster does not apply to runs: leave it out"),
        ("rehearsal.json", "--tolerance 0", "--tolerance does not apply to rehearsals: leave it out"),
        ("rehearsal.json", "--device h100-sxm", "--device does not apply to rehearsals: leave it out"),
        ("runs.csv", "--machine m.json", "--machine does not apply to tables: leave it out"),
    ],
)
def test_compare_refuses_what_it_does_not_read(name, options, sentence, tmp_path, monkeypatch, capsys):
    artifacts.write(tmp_path / "run.json", "run", demo_run_file())
    write_rehearsal(tmp_path / "rehearsal.json")
    (tmp_path / "runs.csv").write_text("num_layers\n1\n")
    assert compare(monkeypatch, tmp_path / name, *options.split()) == 2
    assert sentence in capsys.readouterr().err


def test_compare_takes_files_of_one_kind(tmp_path, monkeypatch, capsys):
    artifacts.write(tmp_path / "run.json", "run", demo_run_file())
    write_rehearsal(tmp_path / "rehearsal.json")
    (tmp_path / "runs.csv").write_text("num_layers\n1\n")
    for first, second in (("run.json", "runs.csv"), ("run.json", "rehearsal.json"), ("runs.csv", "rehearsal.json")):
        assert compare(monkeypatch, tmp_path / first, tmp_path / second) == 2
        assert "cannot be compared in one call" in capsys.readouterr().err
    assert set(IGNORED) == {"run", "table", "rehearsal", "compression"}
