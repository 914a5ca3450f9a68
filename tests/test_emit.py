"""Job files: what a strict reader finds in them, and that what they start really runs."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from executor.command import app
from executor.run.checks import facts_of_workload
from executor.run.measurement import RunFile
from planner.model_facts import facts_of_sizes
from planner.plans import Plan
from planner.prediction import PlanFile
from profiles import artifacts
from profiles.errors import InputError, PlanError, UnknownNameError
from profiles.machines.fingerprint import current_fingerprint
from profiles.models.profile import WorkloadSpec
from profiles.models.sizes import sizes_of
from profiles.ranks.cuda_setup import ALLOCATOR, EXPANDABLE
from profiles.ranks.environment import allocator_environment
from profiles.workloads.loading import load_workload
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, QWEN3, VIT, write_plan_file

SOURCE = Path(__file__).parent.parent
RUNNER = CliRunner()
KINDS = ("torchrun", "slurm", "slurm-profile", "slurm-all", "kubeflow", "skypilot")
# What a TrainJob of trainer.kubeflow.org/v1alpha1 may have here, from its custom resource definition.
TRAINER_FIELDS = {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"}


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    plan = Plan(data_parallel=16, tensor_parallel=2, micro_batch_size=1, vocab_parallel=True)
    return write_plan_file(
        tmp_path / "plan.json", plan, machine_name="h100-sxm", machine_device_kind="cuda", machine_origin="datasheet"
    )


def emitted(path: Path, *arguments: str) -> str:
    done = RUNNER.invoke(app, [str(path), "--emit", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.mark.parametrize("kind", ["torchrun", "slurm"])
def test_scripts_are_shell_and_name_every_rank(plan_file: Path, kind: str) -> None:
    text = emitted(plan_file, kind, "--steps", "7", "--with-baseline")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert f"-m executor {plan_file} --steps 7" in text
    assert "--with-baseline" in text
    assert "32 ranks on 4 x 8" in text


def test_no_option_is_lost(plan_file: Path) -> None:
    text = emitted(plan_file, "torchrun", "--checkpoint", "saved", "--resume", "--runs", "kept", "--max-restarts", "2")
    for words in (
        "--checkpoint saved",
        "--checkpoint-every 10",
        "--resume",
        "--runs kept",
        "torchrun --max-restarts 2",
    ):
        assert words in text
    assert "--checkpoint" not in emitted(plan_file, "torchrun")


def test_slurm_asks_for_a_task_per_rank(plan_file: Path) -> None:
    lines = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in emitted(plan_file, "slurm", "--gpus-per-node", "4").splitlines()
        if line.startswith("#SBATCH") and "=" in line
    )
    assert (lines["nodes"], lines["ntasks-per-node"], lines["gpus-per-node"]) == ("8", "4", "4")


def directives(text: str) -> dict[str, str]:
    """Settings of a batch script by name."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.partition("=")[::2] for line in lines)


def test_a_job_with_checkpoints_is_queued_again_and_goes_on(plan_file: Path) -> None:
    text = emitted(plan_file, "slurm", "--checkpoint", "saved", "--sbatch", "account=ours", "--sbatch", "time=04:00:00")
    found = directives(text)
    assert (found["account"], found["time"], found["requeue"], found["open-mode"]) == ("ours", "04:00:00", "", "append")
    assert re.fullmatch(r"TERM@\d+", found["signal"])
    assert "Left to the cluster's defaults: partition" in text
    assert "--checkpoint saved" in text
    assert "--resume" in text
    without = emitted(plan_file, "slurm")
    assert "signal" not in directives(without)
    assert "no-requeue" in directives(without)
    assert "--resume" not in without


@pytest.mark.parametrize(
    ("code", "restarts", "options", "is_queued"),
    [
        (0, 0, [], False),
        (143, 9, [], True),
        (1, 0, ["--max-restarts", "2"], False),
        (2, 0, ["--max-restarts", "2"], False),
        (137, 0, [], False),
        (137, 1, ["--max-restarts", "2"], True),
        (5, 1, ["--max-restarts", "2"], True),
        (5, 2, ["--max-restarts", "2"], False),
    ],
)
def test_what_ends_a_job_decides_whether_it_is_queued_again(
    plan_file: Path, tmp_path: Path, code: int, restarts: int, options: list[str], is_queued: bool
) -> None:
    """The script runs with stand-ins for Slurm's tools: the preflight succeeds, the ranks end with a code."""
    text = emitted(plan_file, "slurm", "--checkpoint", "saved", *options)
    (tmp_path / "srun").write_text(f'#!/bin/sh\ncase "$*" in *preflight*) exit 0;; esac\nexit {code}\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > called\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == code
    assert (tmp_path / "called").exists() == is_queued
    if is_queued:
        assert (tmp_path / "called").read_text() == "requeue 7\n"


def test_a_preflight_that_fails_ends_the_job(plan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@" >> called\nexit 5\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    text = emitted(plan_file, "slurm")
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 5
    (called,) = (tmp_path / "called").read_text().splitlines()
    assert (
        f"--ntasks=4 --ntasks-per-node=1 --kill-on-bad-exit=1 --label python -m profiles.ranks.preflight {plan_file}"
        in called
    )


def test_ranks_of_slurm_start_as_the_launchers_do(plan_file: Path, tmp_path: Path) -> None:
    text = emitted(plan_file, "slurm")
    script = text.split("# Addresses")[0] + "env"
    environment = {"PATH": os.environ["PATH"], "SLURM_CPUS_ON_NODE": "96"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert found[ALLOCATOR] == EXPANDABLE
    assert '--cpus-per-task="$CPUS" --cpu-bind=cores' in text
    assert "CPUS=$((${SLURM_CPUS_ON_NODE:-1} / 8))" in text
    on_cpu = write_plan_file(tmp_path / "cpu.json", Plan(data_parallel=2, micro_batch_size=4))
    script = emitted(on_cpu, "slurm").split("# Addresses")[0] + "env"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert {name: found[name] for name in allocator_environment("cpu")} == allocator_environment("cpu")


def test_a_container_is_said_to_every_task(plan_file: Path) -> None:
    text = emitted(plan_file, "slurm", "--image", "registry/ours:1")
    sruns = [line for line in text.splitlines() if line.startswith("srun")]
    assert len(sruns) == 2
    assert all('--container-image=registry/ours:1 --container-mounts="$PWD"' in line for line in sruns)
    body = yaml.safe_load(emitted(plan_file, "skypilot", "--image", "registry/ours:1"))
    assert body["resources"]["image_id"] == "docker:registry/ours:1"


def test_a_machine_is_measured_planned_for_and_used_in_one_job(plan_file: Path) -> None:
    text = emitted(plan_file, "slurm-all", "--steps", "7")
    order = [
        "profiles.ranks.preflight",
        "-m profiles machine",
        "-m planner --model",
        "-m executor planned.json --steps 7",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "--gpus 32 --global-batch 16" in text
    config = text.split("<<'END_OF_CONFIGURATION'\n")[1].split("\nEND_OF_CONFIGURATION")[0]
    assert json.loads(config) == LLAMA.config
    measured = emitted(plan_file, "slurm-profile")
    assert "-m profiles machine" in measured
    assert "-m executor" not in measured
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_trainjob_has_the_fields_of_its_schema(plan_file: Path) -> None:
    body = yaml.safe_load(emitted(plan_file, "kubeflow", "--image", "registry/ours:1"))
    assert set(body) == {"apiVersion", "kind", "metadata", "spec"}
    assert (body["apiVersion"], body["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert set(body["spec"]) == {"runtimeRef", "trainer"}
    assert set(body["spec"]["runtimeRef"]) <= {"apiGroup", "kind", "name"}
    trainer = body["spec"]["trainer"]
    assert set(trainer) <= TRAINER_FIELDS
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (4, 8, "registry/ours:1")
    assert trainer["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": 8}}
    assert all(isinstance(word, str) for word in trainer["command"])


def test_a_skypilot_task_asks_for_the_cards(plan_file: Path) -> None:
    body = yaml.safe_load(emitted(plan_file, "skypilot"))
    assert set(body) == {"name", "num_nodes", "workdir", "resources", "setup", "run"}
    assert body["resources"] == {"accelerators": "H100:8"}
    assert body["num_nodes"] == 4
    assert "--node-rank $SKYPILOT_NODE_RANK" in body["run"]
    assert subprocess.run(["bash", "-n"], input=body["run"], text=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_installed_that_was_not_asked_for(plan_file: Path, kind: str) -> None:
    image = ["--image", "ours:1"] if kind == "kubeflow" else []
    assert "pip install" not in emitted(plan_file, kind, *image)
    if kind in ("kubeflow", "skypilot"):
        text = emitted(plan_file, kind, *image, "--install", "git+https://host/ours.git@0123abc")
        assert re.findall(r"pip install (\S+)", text) == ["git+https://host/ours.git@0123abc"]


def test_a_skypilot_setup_that_is_not_completed_fails_in_a_sentence(plan_file: Path, tmp_path: Path) -> None:
    setup = yaml.safe_load(emitted(plan_file, "skypilot"))["setup"]
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", setup], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Trainwright is not installed: complete the setup of this job\n"


@pytest.mark.parametrize("source", ["/shared/a folder; reboot", "git+ssh://git@host/ours.git@0123abc", "ours==1.0"])
def test_the_program_comes_from_where_the_user_says(plan_file: Path, source: str) -> None:
    setup = yaml.safe_load(emitted(plan_file, "skypilot", "--install", source))["setup"]
    assert shlex.split(setup) == ["python", "-m", "pip", "install", source]


def test_a_file_here_is_no_name_on_an_index(plan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plan_file.parent)
    (plan_file.parent / "trainwright").mkdir()
    setup = yaml.safe_load(emitted(plan_file, "skypilot", "--install", "trainwright"))["setup"]
    assert shlex.split(setup)[-1] == "./trainwright"


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_breaks_out_of_a_job_file(tmp_path: Path, kind: str) -> None:
    """Names with line breaks and shell's words run nothing: what a job starts is the same as with plain names."""
    evil = "x; touch broken-out; $(touch broken-out)"
    spec = replace(LLAMA, name=evil)
    options = ["--image", "ours:1"] if kind == "kubeflow" else []
    folder = tmp_path / "a\ntouch broken-out; $(touch broken-out)"
    folder.mkdir()
    path = write_plan_file(folder / "plan.json", Plan(data_parallel=2, micro_batch_size=4), spec=spec)
    text = emitted(path, kind, *options)
    if kind in ("kubeflow", "skypilot"):
        body = yaml.safe_load(text)
        text = body["run"] if kind == "skypilot" else body["spec"]["trainer"]["command"][2]
    for name in ("torchrun", "srun", "execute", "python"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "SKYPILOT_NODE_IPS": "a"}
    environment["SLURM_JOB_ID"] = "7"
    subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "broken-out").exists()


@pytest.mark.parametrize("spec", [LLAMA, GPT2, QWEN3, MIXTRAL], ids=lambda spec: spec.name)
def test_a_model_known_by_its_sizes_is_the_model_that_is_built(spec: WorkloadSpec) -> None:
    assert facts_of_sizes(sizes_of(spec.name, spec.config)) == facts_of_workload(load_workload(spec))


def test_a_slurm_job_finds_its_plan_from_any_folder(plan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan_file.parent / "elsewhere").mkdir()
    monkeypatch.chdir(plan_file.parent / "elsewhere")
    text = emitted(Path("../plan.json"), "slurm", "--steps", "7")
    assert f"-m executor {plan_file.resolve()} --steps 7" in text
    assert "../" not in text
    assert "# It measures 7 steps and ends. To train, write --train FILE.toml" in text


def test_what_is_not_checked_is_said(tmp_path: Path) -> None:
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2), spec=VIT, sequence=17)
    done = RUNNER.invoke(app, [str(path), "--emit", "slurm"])
    assert done.exit_code == 0
    said = "are not known, so what depends on its layers is checked where the job starts"
    assert said in " ".join(done.stderr.split())


def test_a_job_file_is_written_without_torch(plan_file: Path) -> None:
    code = f"""
import sys
sys.argv = ["execute", {str(plan_file)!r}, "--emit", "slurm"]
from executor.command import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE)
    assert done.stdout.split()[-1] == "False"


def free_port() -> str:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return str(own.getsockname()[1])


def run_script(script: str, folder: Path, **variables: str) -> RunFile:
    """Run a job file's script with this interpreter's torchrun; the run file that it leaves."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TMPDIR": str(folder), **variables}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return artifacts.read(folder / "run.json", "run", RunFile)


@pytest.mark.gloo
def test_what_is_emitted_runs(tmp_path: Path) -> None:
    plan = Plan(data_parallel=2, micro_batch_size=4)
    path = write_plan_file(tmp_path / "plan.json", plan)
    job = tmp_path / "job.sh"
    RUNNER.invoke(app, [str(path), "--emit", "torchrun", "--steps", "2", "--warmup", "0", "-o", str(job)])
    run = run_script(job.read_text(), tmp_path)
    assert [item.plan for item in run.runs] == [plan]
    # The machine is told as it was before rank 0, which this was one process with, kept to one core.
    assert run.environment.fingerprint == current_fingerprint("cpu").digest == run.machine_fingerprint
    # The plan that a TrainJob carries is the whole plan: the file beside it is not read.
    body = yaml.safe_load(emitted(path, "kubeflow", "--image", "ours:1", "--steps", "2", "--warmup", "0"))
    path.unlink()
    (tmp_path / "run.json").unlink()
    script = body["spec"]["trainer"]["command"][2]
    again = run_script(script, tmp_path, PET_NNODES="1", PET_NPROC_PER_NODE="2", PET_MASTER_PORT=free_port())
    assert [item.measurement.losses for item in again.runs] == [item.measurement.losses for item in run.runs]
    assert artifacts.read(path, "plan", PlanFile).candidates[0].plan == plan  # written by the script


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["pbs"], UnknownNameError, "slurm"),
        (["slurm", "--gpus-per-node", "5"], InputError, "give a divisor"),
        (["slurm", "--max-restarts", "1"], InputError, "without --checkpoint it would start from step 0"),
        (["kubeflow"], InputError, "needs --image"),
        (["torchrun", "--image", "ours:1"], InputError, "torchrun starts no container"),
        (["slurm", "--image", "ours:1 --evil"], InputError, "without spaces"),
        (["kubeflow", "--image", "ours:1", "--sbatch", "time=1"], InputError, "give it with --emit slurm"),
        (["slurm-all", "--checkpoint", "saved"], InputError, "cannot resume from a checkpoint"),
        (["slurm-profile", "--steps", "3"], InputError, "--steps does not apply to a job that measures a machine"),
        (["slurm", "--sbatch", "time"], InputError, "give NAME=VALUE with an option of sbatch"),
        (["slurm", "--sbatch", "comment=a\n#SBATCH --wrap=evil"], InputError, "give NAME=VALUE"),
        (["slurm", "--sbatch", "nodes=3"], InputError, "the plan and --gpus-per-node decide that"),
        (["slurm", "--sbatch", "time=1", "--sbatch", "time=2"], InputError, "given as 1 and as 2: give one"),
        (["torchrun", "--install", "./here"], InputError, "runs what is installed on its nodes"),
        (["skypilot", "--install", "trainwright"], InputError, "anybody may own that name on an index"),
        (["skypilot", "--install", "git+https://host/ours@main"], InputError, "add a commit"),
        (["skypilot", "--install", "--index-url=https://host"], InputError, "give a path"),
    ],
)
def test_what_cannot_be_is_refused(plan_file: Path, arguments: list[str], error: type, words: str) -> None:
    done = RUNNER.invoke(app, [str(plan_file), "--emit", *arguments])
    assert isinstance(done.exception, error)
    assert words in str(done.exception)


@pytest.mark.parametrize("option", [("--install", "./here"), ("--image", "ours:1"), ("--gpus-per-node", "4")])
def test_what_is_said_of_a_job_file_needs_one(plan_file: Path, option: tuple[str, str]) -> None:
    done = RUNNER.invoke(app, [str(plan_file), *option])
    assert isinstance(done.exception, InputError)
    assert f"{option[0]} has no effect without --emit" in str(done.exception)


def test_a_plan_that_cannot_run_is_not_emitted(tmp_path: Path) -> None:
    path = write_plan_file(tmp_path / "plan.json", Plan(tensor_parallel=8, micro_batch_size=8))
    done = RUNNER.invoke(app, [str(path), "--emit", "slurm"])
    assert isinstance(done.exception, PlanError)
    assert json.loads(path.read_text())["artifact"] == "plan"
