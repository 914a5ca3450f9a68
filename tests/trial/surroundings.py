"""What surrounds a command: variables, encodings, limits of memory, and signals. Most run in processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

from tests.trial.case import BAD_INPUT, ENVIRONMENT, GOOD, INTERRUPTED, TERMINATED, Case, Content
from tests.trial.material import own

BASE = ("--model", "llama-26m", "--gpus", "1", "--global-batch", "1", "--sequence-length", "64")
SHIPPED = (*BASE, "--device", "h100-sxm", "--json")
PLAN: dict[str, Content] = {"plan.json": own("plan")}
SHORT = ("plan.json", "--steps", "1", "--json")
GIB = 2**30
EITHER = (BAD_INPUT, ENVIRONMENT)
# Where ranks would be started or joined: half of what a launcher sets, or nonsense.
JOBS: tuple[tuple[str, Mapping[str, str], str], ...] = (
    ("WORLD_SIZE alone", {"WORLD_SIZE": "2"}, "WORLD_SIZE"),
    ("RANK alone", {"RANK": "0"}, "RANK"),
    ("no MASTER_ADDR", {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ("no WORLD_SIZE", {"RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "WORLD_SIZE"),
    ("RANK empty", {"RANK": "", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "RANK"),
    ("RANK a word", {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}, "RANK"),
    ("RANK too large", {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}, "RANK"),
    ("WORLD_SIZE a word", {"RANK": "0", "WORLD_SIZE": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513"},
        "WORLD_SIZE"),
    ("WORLD_SIZE too small", {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29514"},
        "1 processes|WORLD_SIZE"),
    ("WORLD_SIZE negative", {"RANK": "0", "WORLD_SIZE": "-1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29515"},
        "WORLD_SIZE|processes"),
    ("LOCAL_WORLD_SIZE a word", {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "x", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29516"}, "LOCAL_WORLD_SIZE"),
    ("SLURM with words", {"SLURM_PROCID": "0", "SLURM_NTASKS": "x", "SLURM_STEP_ID": "0"}, "SLURM"),
    ("SLURM with a job that is a word", {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "x"}, "SLURM"),
    ("MASTER_PORT a word", {"MASTER_PORT": "x"}, "MASTER_PORT"),
    ("MASTER_PORT too large", {"MASTER_PORT": "99999"}, "MASTER_PORT"),
    ("MASTER_PORT negative", {"MASTER_PORT": "-1"}, "MASTER_PORT"),
    ("MASTER_PORT a superscript", {"MASTER_PORT": "\u00b2"}, "MASTER_PORT"),
    ("MASTER_PORT of 5,000 digits", {"MASTER_PORT": "1" * 5000}, "MASTER_PORT"),
)  # fmt: skip


def _jobs() -> Iterator[Case]:
    for what, environment, words in JOBS:
        yield Case(
            name=f"variables: {what}", command="execute", arguments=SHORT, files=PLAN, environment=environment,
            words=words,
            code=EITHER, alone=True, slow=True, seconds=120,
        )  # fmt: skip
    for what, environment in (
        ("SLURM's of a batch script", {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}),
        ("OMP_NUM_THREADS nonsense", {"OMP_NUM_THREADS": "x"}),
        ("TMPDIR that is not there", {"TMPDIR": "/nowhere"}),
    ):
        yield Case(
            name=f"variables: {what}", command="execute", arguments=SHORT, files=PLAN, environment=environment,
            code=GOOD,
            alone=True, slow=True, seconds=180,
        )  # fmt: skip


def _variables() -> Iterator[Case]:
    for what, value, words in (
        ("that is not there", "nowhere", "profile machine"), ("empty", "", ""),
        ("a file", "file", "profile machine|file"), ("a device", "/dev/null", "profile machine|null"),
        ("of 100,000 characters", "x" * 100_000, "profile machine|long"),
        ("with a broken machine", "broken", "machine.json"),
    ):  # fmt: skip
        yield Case(
            name=f"variables: TRAINWRIGHT_HOME {what}", command="plan", arguments=(*BASE, "--json"), words=words,
            environment={"TRAINWRIGHT_HOME": value, "XDG_CACHE_HOME": "/nowhere"},
            files={"file": "x", "broken/machine.json": "{"}, code=EITHER,
        )  # fmt: skip
    for what, value in (("a file", "file"), ("a device", "/dev/null"), ("where nothing can be made", "/proc/none")):
        yield Case(
            name=f"variables: TRAINWRIGHT_HOME {what}, to be written", command="profile", arguments=("machine",
                "--json"), words="write",
            environment={"TRAINWRIGHT_HOME": value}, files={"file": "x"}, code=EITHER,
        )  # fmt: skip
    for name, value in (
        ("COLUMNS", "0"), ("COLUMNS", "-1"), ("COLUMNS", "x"), ("COLUMNS", "1"), ("COLUMNS", "10"),
        ("COLUMNS", "1000000000"), ("COLUMNS", ""),
        ("LINES", "x"), ("NO_COLOR", "1"), ("TERM", "nonsense"), ("TERM", "dumb"), ("TZ", "nonsense"),
        ("HOME", "/nowhere"), ("LANG", "nonsense"),
    ):  # fmt: skip
        yield Case(
            name=f"variables: {name}={value!r}",
            command="plan",
            arguments=SHIPPED[:-1],
            environment={name: value},
            code=GOOD,
        )
        if name == "COLUMNS":
            yield Case(
                name=f"variables: {name}={value!r}, a sentence",
                command="plan",
                arguments=(*SHIPPED, "--gpus", "0"),
                environment={name: value},
                words="--gpus",
            )


def _encodings() -> Iterator[Case]:
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told: dict[str, tuple[Any, Any, dict[str, Content], Any]] = {
        "plan": ("plan", SHIPPED[:-1], {}, GOOD),
        "plan -o": ("plan", (*SHIPPED[:-1], "-o", "plan.json"), {}, GOOD),
        "compare -o": (
            "compare",
            ("run.json", "-o", "page.html"),
            {"run.json": own("run", "model_name", "\u6a21\u578b \u00e9")},
            GOOD,
        ),
        "a name that is not ASCII": ("plan", (*SHIPPED, "--model", "mod\u00e8le"), {}, BAD_INPUT),
    }
    for what, (command, arguments, files, code) in told.items():
        for how, environment in (
            ("LC_ALL=POSIX", plain), ("PYTHONIOENCODING=ascii", {"PYTHONIOENCODING": "ascii"}),
            ("LC_ALL=C", {"LC_ALL": "C"}),
            ("PYTHONIOENCODING=latin-1", {"PYTHONIOENCODING": "latin-1"}),
        ):  # fmt: skip
            yield Case(
                name=f"encoding: {what} under {how}", command=command, arguments=arguments, files=files, code=code,
                environment=environment,
                alone=True, slow=how not in ("LC_ALL=POSIX", "PYTHONIOENCODING=ascii") or what == "plan",
            )  # fmt: skip


def _memory() -> Iterator[Case]:
    for what, command, arguments, words in (
        ("a billion devices", "plan", (*SHIPPED, "--gpus", "1000000000"), "--gpus"),
        ("10^23 devices", "plan", (*SHIPPED, "--gpus", "9" * 23), "--gpus"),
        ("a billion layers", "plan", ("--model", "config.json", *SHIPPED[2:]), "num_hidden_layers"),
    ):
        from tests.trial.material import CONFIGS, written

        yield Case(
            name=f"memory: {what}", command=command, arguments=arguments, words=words, alone=True, memory=8 * GIB,
            seconds=20,  # type: ignore[arg-type]
            files={"config.json": written({**CONFIGS["llama"], "num_hidden_layers": 10**9})},
        )  # fmt: skip
    openblas = "OpenBLAS ends the process by itself"
    for what, limit, beyond_us in (
        ("a hundred megabytes", GIB // 10, openblas), ("two hundred megabytes", GIB // 5, ""),
        ("half a gigabyte", GIB // 2, ""),
    ):  # fmt: skip
        yield Case(
            name=f"memory: {what} for all",
            command="plan",
            arguments=SHIPPED,
            code=(GOOD, ENVIRONMENT),
            alone=True,
            memory=limit,
            slow=True,
            beyond_us=beyond_us,
        )


def _signals() -> Iterator[Case]:
    large = ("--model", "deepseek-v3", "--gpus", "2048", "--device", "h800-sxm", "--stack", "megatron-core", "--json")
    commands: dict[str, tuple[Any, Any, dict[str, Content], tuple[float, ...]]] = {
        "plan": ("plan", large, {}, (0.2, 1.0, 3.0)),
        "plan --all": ("plan", (*large, "--all", "all.csv"), {}, (3.0,)),
        "profile model": ("profile", ("model", "llama-3.1-8b", "--json"), {}, (0.2, 1.0, 4.0)),
        "execute": ("execute", ("plan.json", "--steps", "100000", "--json"), PLAN, (0.2, 2.0, 6.0, 15.0)),
        "execute --rehearse": ("execute", ("plan.json", "--rehearse", "--json"), PLAN, (1.0, 5.0, 8.0)),
        "profile machine": ("profile", ("machine", "--gpus", "2", "--json"), {}, (2.0, 8.0)),
        "compare": ("compare", ("run.json", "--json"), {"run.json": own("run")}, (0.1,)),
    }
    for who, (command, arguments, files, moments) in commands.items():
        for moment in moments:
            # Before Python has begun, or after the end, there is nobody to say a word.
            codes = (INTERRUPTED, GOOD, -signal.SIGINT) if moment < 1 else (INTERRUPTED, GOOD)
            yield Case(
                name=f"signal: ctrl-C of {who} after {moment:g} s", command=command, arguments=arguments, files=files,
                alone=True, slow=True,
                signal=signal.SIGINT, signal_after=moment, code=codes, words="", seconds=60,
            )  # fmt: skip
    yield Case(
        name="signal: SIGTERM of execute", command="execute", arguments=("plan.json", "--steps", "100000", "-v",
            "--json"), files=PLAN, alone=True, slow=True,
        signal=signal.SIGTERM, signal_at="tps:", code=TERMINATED, words="SIGTERM|stopped", seconds=90,
    )  # fmt: skip
    yield Case(
        name="signal: ctrl-C of execute at work", command="execute", arguments=("plan.json", "--steps", "100000", "-v",
            "--json"), files=PLAN, alone=True, slow=True,
        signal=signal.SIGINT, signal_at="tps:", code=INTERRUPTED, words="interrupted", seconds=90,
    )  # fmt: skip
    for who in ("plan", "execute --rehearse", "profile machine"):
        command, arguments, files, moments = commands[who]
        yield Case(
            name=f"signal: SIGTERM of {who}", command=command, arguments=arguments, files=files, alone=True, slow=True,
            signal=signal.SIGTERM, signal_after=moments[-1], code=(TERMINATED, GOOD), words="", seconds=60,
        )  # fmt: skip


CASES = (*_jobs(), *_variables(), *_encodings(), *_memory(), *_signals())
