"""Batch scripts for Slurm: a plan that is run, a machine that is measured, or both and the planning between.

A script fails in seconds where nodes do not suit each other, before its ranks wait for one another. With checkpoints it
is sent SIGTERM before its time is up, upon which the ranks save; it queues itself again then, and goes on. So it does,
as often as --max-restarts says, where a rank is lost.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

from executor.jobs.job import USES_INSTALLED, Job, about
from profiles.errors import EnvironmentFailure, InputError
from profiles.ranks.cuda_setup import ALLOCATOR, EXPANDABLE
from profiles.ranks.environment import ALLOCATOR_ENVIRONMENT, HUGE_PAGES, THREAD_ENVIRONMENT

# From the warning to the end: what saving a checkpoint may take.
GRACE_SECONDS = 120
# 128 + SIGTERM: the ranks were stopped and have saved.
STOPPED = 143
# What a user may say of a job; other characters could end the line.
SETTING = re.compile(r"([a-z][a-z-]*)=([A-Za-z0-9_.,:@/%+=-]+)")
# What the plan decides.
OURS = ("nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gpus-per-task", "distribution")
END_OF_CONFIGURATION = "END_OF_CONFIGURATION"


def slurm(job: Job) -> str:
    """The script that runs a plan."""
    words = list(job.arguments)
    keeps = "--checkpoint" in words
    if keeps and "--resume" not in words:
        words.append("--resume")
    command = shlex.join(["-m", "executor", job.plan_path, *words])
    return "".join(
        (
            _header(job, keeps),
            _ranks(job),
            _preflight(job, [job.plan_path]),
            "# One task is one rank; the program reads its place from Slurm's variables.\n",
            _what_it_does(job),
            _queued_again(job, _srun(job, command)) if keeps else f"{_srun(job, command)}\n",
        )
    )


def _what_it_does(job: Job) -> str:
    """Whether the job trains: it measures a few steps unless the user writes otherwise."""
    words = dict(zip(job.arguments, job.arguments[1:], strict=False))
    return (
        f"# It measures {words.get('--steps', 'some')} steps and ends. To train, write --train FILE.toml in place of "
        "--steps, --warmup and --top.\n"
    )


def slurm_profile(job: Job) -> str:
    """The script that measures the machine that a plan is for, as the plan uses it."""
    return "".join((_header(job, keeps=False), _ranks(job), _configuration(job), _preflight(job, []), _profile(job)))


def slurm_all(job: Job) -> str:
    """The script that measures the machine, plans for it and runs the best plan, in one allocation."""
    if "--checkpoint" in job.arguments:
        raise InputError(
            "--checkpoint: a job that plans anew cannot resume from a checkpoint: run its plan with --emit slurm"
        )
    command = shlex.join(["-m", "executor", "planned.json", *job.arguments])
    file = job.file
    question = shlex.join(
        [
            "--gpus", str(file.num_devices), "--global-batch", str(file.global_batch_size), "--sequence-length",
            str(file.sequence_length), "--precision", ",".join(_precisions(job)), "--machine", "machine.json", "-o",
            "planned.json",
        ]
    )  # fmt: skip
    return "".join(
        (
            _header(job, keeps=False),
            _ranks(job),
            _configuration(job),
            _preflight(job, []),
            _profile(job),
            "# Add here what else you ask of `plan`.\n",
            f'python -m planner --model "$MODEL" {question}\n',
            f"{_srun(job, command)}\n",
        )
    )


def _header(job: Job, keeps: bool) -> str:
    if job.max_restarts and not keeps:
        raise InputError(
            "--max-restarts: a Slurm job is requeued, and without --checkpoint it would start from step 0: give both"
        )
    given = _settings(job)
    lines = [
        f"--job-name={job.name}",
        f"--nodes={job.num_nodes}",
        f"--ntasks-per-node={job.ranks_per_node}",
        *([f"--gpus-per-node={job.ranks_per_node}"] if job.file.machine_device_kind == "cuda" else []),
        "--exclusive",
        "--distribution=block",
        "--output=%x-%j.log",
        "--open-mode=append",
        *(["--requeue", f"--signal=TERM@{GRACE_SECONDS}"] if keeps else ["--no-requeue"]),
    ]
    named = dict(line.removeprefix("--").partition("=")[::2] for line in lines)
    wanted = [f"--{name}={value}" if value else f"--{name}" for name, value in (named | given).items()]
    missing = [name for name in ("time", "account", "partition") if name not in given]
    usual = f"# Left to the cluster's defaults: {', '.join(missing)} (--sbatch NAME=VALUE).\n" if missing else ""
    directives = "".join(f"#SBATCH {line}\n" for line in wanted)
    return f"#!/usr/bin/env bash\n# {about(job)}\n# {USES_INSTALLED}\n{usual}{directives}set -euo pipefail\n"


def _settings(job: Job) -> dict[str, str]:
    """What the user says of the job.

    Raises: InputError for what is no setting, or is the plan's.
    """
    found: dict[str, str] = {}
    for text in job.sbatch:
        match = SETTING.fullmatch(text)
        if match is None:
            raise InputError(f"--sbatch {text!r}: give NAME=VALUE with an option of sbatch, such as time=04:00:00")
        name, value = match.groups()
        if name in OURS:
            raise InputError(f"--sbatch {name}: the plan and --gpus-per-node decide that: leave it out")
        if found.get(name, value) != value:
            raise InputError(f"--sbatch {name}: given as {found[name]} and as {value}: give one")
        found[name] = value
    return found


def _ranks(job: Job) -> str:
    """What every rank is started with: threads and memory as this program's own launcher has them, and its cores."""
    if job.file.machine_device_kind == "cuda":
        is_amd = job.file.machine_name.startswith("mi")
        variables = THREAD_ENVIRONMENT | ({} if is_amd else {ALLOCATOR: EXPANDABLE})
    else:
        variables = {**THREAD_ENVIRONMENT, **ALLOCATOR_ENVIRONMENT, "GLIBC_TUNABLES": HUGE_PAGES}
    exports = "".join(f'export {name}="${{{name}:-{value}}}"\n' for name, value in variables.items())
    own = "cpus-per-task" in _settings(job)
    cores = (
        'CPUS="${SLURM_CPUS_PER_TASK:-1}"\n'
        if own
        else f"CPUS=$((${{SLURM_CPUS_ON_NODE:-1}} / {job.ranks_per_node}))\n((CPUS > 0)) || CPUS=1\n"
    )
    return f"# As the program's own launcher starts its ranks.\n{exports}{cores}"


def _preflight(job: Job, paths: Sequence[str]) -> str:
    command = shlex.join(["-m", "profiles.ranks.preflight", *paths])
    return (
        "# Addresses, versions and links, in seconds.\n"
        f"srun --ntasks={job.num_nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 --label {_container(job)}python "
        f"{command}\n"
    )


def _srun(job: Job, command: str) -> str:
    return (
        f'srun --kill-on-bad-exit=1 --label --cpus-per-task="$CPUS" --cpu-bind=cores {_container(job)}python {command}'
    )


def _container(job: Job) -> str:
    """What starts a task in a container, by Slurm's plugin pyxis, with the folder that the job stands in."""
    if not job.image:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9_.,:@/%+#-]+", job.image):
        raise InputError(f"--image {job.image!r}: give a container's name or path, without spaces")
    return f'--container-image={job.image} --container-mounts="$PWD" --container-workdir="$PWD" '


def _queued_again(job: Job, command: str) -> str:
    """The command, and what becomes of its end.

    Where a node is lost, a rank on another one says so and ends the job before Slurm knows of it: the script queues it.
    """
    lost = f"((code == {EnvironmentFailure.exit_code} || code > 128))"
    again = f"""elif {lost} && ((${{SLURM_RESTART_COUNT:-0}} < {job.max_restarts})); then
    echo "a rank or its node is lost: requeued, to resume from the newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
"""
    return f"""code=0
{command} || code=$?
if ((code == {STOPPED})); then
    echo "stopped and saved: requeued, to resume from the checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
{again if job.max_restarts else ""}fi
exit "$code"
"""


def _configuration(job: Job) -> str:
    """The model's configuration in the script, so that it needs no other file."""
    spec = job.file.workload
    if spec.kind != "transformers" or spec.adapters.freezes or spec.task:
        raise InputError(
            f"{spec.title}: what measures or plans for it anew is called with --model and your module; write that job "
            "by hand from --emit slurm"
        )
    text = json.dumps(spec.config, indent=1)
    return (
        f'MODEL="$PWD/model-$SLURM_JOB_ID.json"\ncat > "$MODEL" <<\'{END_OF_CONFIGURATION}\'\n{text}\n'
        f"{END_OF_CONFIGURATION}\n"
    )


def _profile(job: Job) -> str:
    words = shlex.join(
        [
            "--gpus", str(job.file.num_devices), "--sequence-length", str(job.file.sequence_length), "--precision",
            ",".join(_precisions(job)), "-o", "machine.json",
        ]
    )  # fmt: skip
    return f'{_srun(job, "-m profiles machine")} --model "$MODEL" {words}\n'


def _precisions(job: Job) -> list[str]:
    """The precisions of the file's plans, each once."""
    return sorted({own.plan.precision for own in job.file.candidates})
