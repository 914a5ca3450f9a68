"""`plan` as its user meets it: the table, the file, JSON alone on standard output, and one sentence for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from planner.ask import ask
from planner.command import CODECS
from planner.prediction import PlanFile
from planner.request import USUAL_CODECS, Request
from planner.space.beside import Questions
from profiles import artifacts
from profiles.library import load_spec
from tests.machine_builders import machine
from tests.report_builders import load as taken
from tests.workload_builders import LLAMA


def plan(*arguments: str, home: Path, columns: int = 200) -> subprocess.CompletedProcess[str]:
    """Run `plan` in a process of its own."""
    environment = {**os.environ, "TRAINWRIGHT_HOME": str(home), "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "planner", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


H100 = ("--model", "llama-3.1-8b", "--gpus", "64", "--device", "h100-sxm")


def test_table_and_file_agree(tmp_path):
    output = tmp_path / "plan.json"
    done = plan(*H100, "--top", "4", "-o", str(output), home=tmp_path)
    assert done.returncode == 0, done.stderr
    written = artifacts.read(output, "plan", PlanFile)
    assert written.candidates[written.baseline].plan.data_parallel == 64
    assert [c.rank for c in written.candidates] == list(range(1, len(written.candidates) + 1))
    assert sum(not c.folded_into for c in written.candidates) >= 4
    for candidate in written.candidates:
        assert candidate.folded_into or candidate.plan.id.split()[0] in done.stdout
        assert candidate.plan.num_devices == 64
        assert candidate.plan.global_batch_size == written.global_batch_size
    assert "not measured" in done.stdout
    assert "sequence length assumed: 4096" in done.stdout
    assert "TFLOP/s bf16 per device" in done.stdout


def test_the_codecs_that_help_names_are_those_that_are_tried():
    assert tuple(CODECS.split(",")) == USUAL_CODECS


def test_json_stands_alone_on_standard_output(tmp_path):
    done = plan(*H100, "--json", home=tmp_path)
    data = json.loads(done.stdout)
    assert data["artifact"] == "plan"
    assert "fastest" in done.stderr
    assert data == json.loads(plan(*H100, "--json", home=tmp_path).stdout) | {"created": data["created"]}


def test_eighty_columns_keep_every_column(tmp_path):
    done = plan(*H100, home=tmp_path, columns=80)
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("step", "tok/s", "MFU", "GiB", "why"):
        assert word in done.stdout


def test_a_plan_of_the_users_is_explained(tmp_path):
    legal = plan(*H100, "--why-not", "tp=2,pp=2", "--tokens", "1T", "--price", "2", home=tmp_path)
    assert "tp=2,pp=2: legal" in legal.stdout
    assert "1 T tokens:" in legal.stdout
    assert "can be run" in legal.stdout or "simulate only" in legal.stdout
    broken = plan(*H100, "--why-not", "tp=64", home=tmp_path)
    assert "tp=64: not legal; heads not divisible by tensor parallel" in broken.stdout
    assert plan(*H100, "--why-not", "tp", home=tmp_path).returncode == 2
    assert plan(*H100, "--tokens", "many", home=tmp_path).returncode == 2


def test_sensitivity_names_what_it_changed(tmp_path):
    done = plan(*H100, "--sensitivity", home=tmp_path)
    assert "the price of a device-hour: the same plan" in done.stdout
    assert done.returncode == 0, done.stderr
    for what in ("half the network bandwidth", "products 15 % slower", "twice the slowdown of overlapping"):
        assert what in done.stdout


def test_every_plan_can_be_written(tmp_path):
    import pandas

    path = tmp_path / "all.csv"
    small = ("--model", "llama-3.2-1b", "--gpus", "4", "--device", "h100-sxm", "--global-batch", "8")
    done = plan(*small, "--all", str(path), "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    written, table = json.loads(done.stdout), pandas.read_csv(path)
    assert len(table) == written["num_legal"]
    assert written["candidates"][0]["prediction"]["step_seconds"] >= table.step_seconds[table.fits].min() * (1 - 1e-12)
    assert plan(*small, "--all", str(tmp_path / "all.txt"), home=tmp_path).returncode == 2


def test_mixtures_of_experts_are_offered_in_layouts_that_run(tmp_path):
    mixture = ("--model", "mixtral-8x7b", "--gpus", "64", "--device", "h100-sxm")
    done = plan(*mixture, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    candidates = json.loads(done.stdout)["candidates"]
    plans = [candidate["plan"] for candidate in candidates if candidate["executable"]]
    assert any(one.get("expert_parallel", 1) > 1 for one in plans)
    assert all(one.get("tensor_parallel", 1) == one.get("context_parallel", 1) == 1 for one in plans)
    # Tensor parallel with experts is planned only.
    done = plan(*mixture, "--simulate", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "simulate only" in done.stdout


def test_the_stored_machine_is_used_and_another_fingerprint_is_flagged(tmp_path):
    from profiles.machines.fingerprint import current_fingerprint

    elsewhere = dict(zip(("torch", "python"), ("1.0", "3.0"), strict=True))
    here = current_fingerprint("cpu")
    changed = type(here)(**{f: getattr(here, f) for f in type(here).__slots__} | elsewhere)
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine(fingerprint=here))
    done = plan("--model", "llama-26m", "--gpus", "2", home=tmp_path)
    assert "planned for this machine" in done.stdout
    assert "no GPU: 2 devices mean 2 CPU ranks" in done.stdout
    assert "profiled elsewhere" not in done.stdout
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine(fingerprint=changed))
    done = plan("--model", "llama-26m", "--gpus", "2", home=tmp_path)
    assert "profiled elsewhere or with other versions (torch 1.0 there" in " ".join(done.stdout.split())


def test_a_profile_of_a_busy_machine_is_flagged_and_priced_as_it_is(tmp_path):
    prices = []
    for name, load in (("quiet", taken(0.05)), ("busy", taken(0.97))):
        path = tmp_path / f"{name}.json"
        artifacts.write(path, "machine-profile", machine(load=load, load_before=taken(0.0)))
        request = Request(
            model="llama-26m", num_devices=2, global_batches=(8,), sequence_length=64, machine=path, top=5
        )
        file = ask(request, Questions())
        said = [note for note in file.notes if "was busy" in note]
        assert bool(said) == (name == "busy")
        prices.append([candidate.prediction for candidate in file.candidates])
    assert prices[0] == prices[1]
    assert "was busy while it was profiled (0.97 of 2 cores taken by other processes)" in said[0]
    assert "run `profile machine` again" in said[0]


def test_a_hugging_face_config_and_its_folder_are_models(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA.config))
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine())
    done = plan("--model", str(folder), "--gpus", "2", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_name"] == "my-model"
    assert load_spec(str(folder)) == load_spec(str(folder / "config.json"))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--model", "llama-3.1-8", "--gpus", "2", "--device", "h100-sxm"), 2, "did you mean 'llama-3.1-8b'"),
        (("--model", "llama-26m", "--gpus", "2", "--device", "h100-smx"), 2, "did you mean 'h100-sxm'"),
        (("--model", "llama-26m", "--gpus", "2"), 2, "run `profile machine --gpus 2`"),
        (("--model", "llama-26m", "--gpus", "0", "--device", "l40s"), 2, "--gpus 0: must be at least 1"),
        ((*H100, "--machine", "x.json"), 2, "either --machine FILE or --device NAME"),
        ((*H100, "--codecs", "zip"), 2, "unknown codec 'zip'"),
        ((*H100, "--precision", "fp4"), 2, "unknown precision 'fp4'"),
        (("--model", "llama-3.1-70b", "--gpus", "1", "--device", "l40s"), 3, "fit in memory.*nearest:"),
        (("--model", "gpt2-small", "--gpus", "7", "--global-batch", "8", "--device", "l40s"), 3, "not divisible by"),
        ((*H100, "-o", "/proc/x/plan.json"), 5, "nothing was started"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_the_right_exit_code(arguments, code, sentence, tmp_path):
    import re

    done = plan(*arguments, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
