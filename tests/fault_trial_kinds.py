"""What is done to the trainings of the fault trials, and how each must end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from executor.run.checkpoint import latest
from executor.run.checkpoint_sums import SUMS, damage
from planner.plans import Plan
from profiles.errors import TrainwrightError
from profiles.ranks.launcher import launch
from tests.emulated_hosts import CARD, can_emulate, two_hosts
from tests.parity_cases import two_ranks

ENTRY = "tests.fault_trial_entries:train"
SOURCE = Path(__file__).parent.parent
STEPS, EVERY, PAUSE_SECONDS, TIMEOUT_SECONDS = 12, 3, 0.05, 6.0
PLANS = {
    "dp2": Plan(data_parallel=2, micro_batch_size=4),
    "zero1": Plan(data_parallel=2, zero_stage=1, micro_batch_size=4),
    "zero3": Plan(data_parallel=2, zero_stage=3, micro_batch_size=4),
    "tp2": Plan(tensor_parallel=2, micro_batch_size=8),
    "pp2": Plan(
        pipeline_parallel=2, schedule="1f1b", micro_batch_size=2, num_microbatches=4, stage_bounds=(0, 3)
    ),
}  # fmt: skip
DATA = PLANS["dp2"]
NUM_SOAKED = 60
# Whether a host's cable is cut, rather than its processes killed, and whether in the middle of a save.
LOSSES = ((True, True), (False, False), (False, True), (True, False))
# What gloo, the launcher and the kernel take on a busy machine.
START_SECONDS = 120.0


class LeftOut(Exception):
    """Something that this machine or user cannot do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended: it came to its end, if started again, with the same losses; what it said, and if truly.

    `identical` is None where there is nothing to compare with.
    """

    survived: bool = False
    identical: bool | None = False
    said: bool = False
    sentence: str = ""
    wrong: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it ended as it should."""
        return not self.wrong and (self.identical is not False if self.survived else self.said)


@dataclass
class Setting:
    """Where trials take place, and what undisturbed runs gave."""

    place: Path
    random: random.Random
    number: int = 0
    num_lost: int = 0
    num_forked: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)

    def payload(self, plan: Plan, **fields: Any) -> dict[str, Any]:
        """What a new trial's ranks are given; its folders are new."""
        self.number += 1
        place = self.place / str(self.number)
        place.mkdir()
        made: dict[str, Any] = {
            "plan": asdict(plan), "ranks": plan.num_devices, "steps": STEPS - 3, "pause": PAUSE_SECONDS,
            "timeout": TIMEOUT_SECONDS, "place": str(place),
            "checkpoints": {"folder": str(place / "saved"), "every": EVERY},
        }  # fmt: skip
        return {**made, **fields}

    def any_plan(self) -> Plan:
        """One of the plans."""
        return self.random.choice(list(PLANS.values()))

    def undisturbed(self, plan: Plan) -> list[float]:
        """Losses of a run that nothing disturbs."""
        if plan.id not in self.losses:
            self.losses[plan.id] = run(self.payload(plan, pause=0.0))["losses"]
            assert len(self.losses[plan.id]) == STEPS
        return self.losses[plan.id]

    def judged(self, plan: Plan, result: dict[str, Any], sentence: str = "", said: bool = False) -> Outcome:
        """What is to be said of a run that came to its end."""
        identical = result["losses"] == self.undisturbed(plan)
        wrong = "" if said or not sentence else "a sentence that is not true"
        return Outcome(survived=True, identical=identical, said=said, sentence=sentence, wrong=wrong)


def run(payload: dict[str, Any], max_restarts: int = 0) -> dict[str, Any]:
    """Train to the end."""
    found: dict[str, Any] = launch(ENTRY, payload, payload["ranks"], "cpu", max_restarts=max_restarts)
    return found


def ended(payload: dict[str, Any]) -> str:
    """The sentence of a run that cannot come to its end."""
    try:
        run(payload)
    except TrainwrightError as error:
        return str(error)
    raise AssertionError("it came to its end")


def again(payload: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The same run, started again, which goes on."""
    calm = {**payload, "fault": "", "pause": 0.0, "timeout": 60.0, **fields}
    return run({**calm, "checkpoints": {**payload["checkpoints"], "resume": True}})


@contextlib.contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """While entered, do something on a thread."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    yield
    thread.join(START_SECONDS)


def rank_of(payload: dict[str, Any], rank: int, attempt: int = 0) -> int:
    """The process of a rank, once it runs."""
    path, deadline = Path(payload["place"], f"rank-{attempt}-{rank}"), time.monotonic() + START_SECONDS
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
    return int(path.read_text())


def hit(setting: Setting, payload: dict[str, Any], number: signal.Signals, rank: int) -> Callable[[], None]:
    """What sends a signal to a rank at a random moment of its life."""
    delay = setting.random.uniform(0.0, STEPS * PAUSE_SECONDS + 1.0)

    def act() -> None:
        process = rank_of(payload, rank)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    return act


def killed(setting: Setting) -> Outcome:
    """A rank is killed at a random moment, and all are started again."""
    plan = setting.any_plan()
    payload = setting.payload(plan)
    with meanwhile(hit(setting, payload, signal.SIGKILL, setting.random.randrange(plan.num_devices))):
        return setting.judged(plan, run(payload, max_restarts=1))


def killed_in_a_save(setting: Setting) -> Outcome:
    """A rank is killed in the middle of a save."""
    plan, rank, spared = setting.any_plan(), setting.random.randrange(2), setting.random.randrange(3)
    payload = setting.payload(plan, fault="killed in a save", rank=rank, spared=spared)
    sentence = ended(payload)
    saved = latest(Path(payload["checkpoints"]["folder"]))
    assert (saved is None) == (spared == 0), saved
    words = rf"^rank {rank} of 2 was killed by SIGKILL, last seen in step \d+, from outside"
    is_true = re.search(words, sentence) is not None
    return setting.judged(plan, again(payload), sentence, is_true)


def stopped(setting: Setting) -> Outcome:
    """A rank is stopped at a random moment, and named within the time-out; then all are started again."""
    plan, rank = setting.any_plan(), setting.random.randrange(2)
    payload = setting.payload(plan, pause=0.2)
    process: list[int] = []

    def act() -> None:
        process.append(rank_of(payload, rank))
        time.sleep(setting.random.uniform(0.5, 2.5))
        os.kill(process[0], signal.SIGSTOP)

    started = time.monotonic()
    with meanwhile(act):
        sentence = ended(payload)
    assert time.monotonic() - started < TIMEOUT_SECONDS + 40
    assert not psutil.pid_exists(process[0])
    is_true = re.search(rf"^rank {rank} of 2 hangs: it gave no sign of life for \d+ s in step \d+", sentence)
    return setting.judged(plan, again(payload), sentence, is_true is not None)


def full_disk(setting: Setting) -> Outcome:
    """The disk is full at some save: before, or in the middle of it, with something else growing there too."""
    plan = setting.any_plan()
    setting.undisturbed(plan)
    payload = setting.payload(plan)
    disk = Path(payload["place"], "disk")
    sizes = [sum(path.stat().st_size for path in saved.iterdir()) for saved in setting.place.glob("*/saved/step-*12")]
    # Two are kept while a third is saved.
    with _small_disk(disk, int(min(sizes) * setting.random.uniform(0.3, 2.9))):
        small = {**payload, "checkpoints": {"folder": str(disk / "saved"), "every": EVERY}}
        sentence = ended(small)
        words = re.search(r"^no space left on \S+: need ([\d.]+) MiB, ([\d.]+) [MK]iB free; (.*)$", sentence)
        kept = latest(disk / "saved")
        assert not [*(disk / "saved").glob(".step*")]
        assert kept is None or not damage(kept)
        is_true = words is not None and (kept.name if kept else "no checkpoint was saved") in words[3]
        if (disk / "saved").exists():
            shutil.copytree(disk / "saved", payload["checkpoints"]["folder"])
    return setting.judged(plan, again(payload), sentence, is_true)


@contextlib.contextmanager
def _small_disk(place: Path, num_bytes: int) -> Iterator[None]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise LeftOut("no file system can be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def damaged(setting: Setting) -> Outcome:
    """Bytes of the newest checkpoint are changed, cut off or removed; sometimes of both."""
    plan, both = setting.any_plan(), setting.random.random() < 0.25
    payload = setting.payload(plan, pause=0.0)
    run({**payload, "steps": 7 - 3})
    saved = sorted(Path(payload["checkpoints"]["folder"]).glob("step-*"))
    assert len(saved) == 2
    for folder in saved if both else saved[1:]:
        _spoil(setting, folder)
    if both:
        sentence = ended({**payload, "checkpoints": {**payload["checkpoints"], "resume": True}})
        is_true = sentence.startswith(f"no checkpoint in {payload['checkpoints']['folder']} is complete")
        return Outcome(said=is_true, sentence=sentence)
    notices: list[str] = []
    asked = {**payload, "checkpoints": {**payload["checkpoints"], "resume": True}}
    result = launch(ENTRY, asked, 2, "cpu", on_report=lambda report: notices.append(report.notice))
    sentence = next(filter(None, notices), "")
    is_true = sentence.startswith(f"{saved[1]} is damaged (") and f"resuming from {saved[0].name}" in sentence
    assert result["first_step"] == 3
    return setting.judged(plan, result, sentence, is_true)


def _spoil(setting: Setting, folder: Path) -> None:
    """Change something of what is read; DCP's own index is not."""
    files = sorted(path for path in folder.iterdir() if path.name != ".metadata" and path.name != SUMS)
    path = setting.random.choice(files)
    data, how = bytearray(path.read_bytes()), setting.random.randrange(3)
    place = setting.random.randrange(len(data))
    if how == 0:
        data[place] ^= 1 << setting.random.randrange(8)
        path.write_bytes(data)
    elif how == 1:
        path.write_bytes(data[:place])
    else:
        path.unlink()


def two_runs(setting: Setting) -> Outcome:
    """A second run in the folder of the first is refused, and the first one is not disturbed."""
    payload = setting.payload(DATA, pause=0.4)
    first = setting.place / "first.json"
    first.write_text(json.dumps(payload))
    process = _command(first)
    try:
        rank_of(payload, 1)
        _wait_for(lambda: latest(Path(payload["checkpoints"]["folder"])) is not None)
        elsewhere = setting.payload(DATA)["place"]
        sentence = ended({**payload, "place": elsewhere, "checkpoints": {**payload["checkpoints"], "resume": True}})
        assert process.poll() is None, "the first run was too quick"
        _, errors = process.communicate(timeout=START_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    result = json.loads(first.with_suffix(".result").read_text())
    owner = re.search(r"belongs to another run that is still going \(process (\d+) on \S+, since \S+\)", sentence)
    return setting.judged(DATA, result, sentence, owner is not None and int(owner[1]) == rank_of(payload, 0))


def launcher_killed(setting: Setting) -> Outcome:
    """The launcher is killed at a random moment: no process and no folder of it is left, and the run goes on later."""
    plan = setting.any_plan()
    payload = setting.payload(plan)
    path, temporary = Path(payload["place"], "payload.json"), Path(payload["place"], "tmp")
    path.write_text(json.dumps(payload))
    temporary.mkdir()
    process = _command(path, TMPDIR=str(temporary))
    _wait_for(lambda: any(temporary.glob("trainwright-*/process-0-0")))
    time.sleep(setting.random.uniform(0.0, 8.0))
    process.kill()
    process.communicate()
    _wait_for(lambda: not _processes_of(temporary), 10)
    _wait_for(lambda: not any(temporary.glob("trainwright-*")), 10)
    return setting.judged(plan, again(payload))


def out_of_memory(setting: Setting) -> Outcome:
    """A cgroup's memory runs out, and the kernel kills a rank."""
    plan, rank = DATA, setting.random.randrange(2)
    payload = setting.payload(plan, fault="exhausts memory", rank=rank)
    path = Path(payload["place"], "payload.json")
    path.write_text(json.dumps(payload))
    with _small_cgroup(2**31) as enter:
        process = _command(path, enter)
        _, errors = process.communicate(timeout=START_SECONDS)
    sentence = errors.strip().removeprefix("error: ")
    is_true = re.search(
        rf"^rank {rank} of 2 was killed by SIGKILL by the kernel, as memory ran out of the 2 GiB", sentence
    )
    assert process.returncode == 5, errors
    return setting.judged(plan, again(payload), sentence, is_true is not None)


@contextlib.contextmanager
def _small_cgroup(num_bytes: int) -> Iterator[Callable[[], None]]:
    """A cgroup of this user's own; what a process calls to enter it."""
    root = next((place for place in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if place.exists()), None)
    if root is None:
        raise LeftOut("there are no cgroups")
    folder, limit = (
        root / f"fault-trials-{os.getpid()}",
        "memory.limit_in_bytes" if root.name == "memory" else "memory.max",
    )
    try:
        folder.mkdir()
        (folder / limit).write_text(str(num_bytes))
    except OSError as error:
        raise LeftOut(f"no cgroup can be made: {error}") from error
    try:
        yield lambda: (folder / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        _wait_for(lambda: not (folder / "cgroup.procs").read_text().strip(), 20)
        folder.rmdir()


def diverges(setting: Setting) -> Outcome:
    """The loss becomes no number: it is said, and what was saved before is whole."""
    plan, step = setting.any_plan(), setting.random.randrange(2, 6)
    payload = setting.payload(plan, fault="diverges", spared=step)
    sentence = ended(payload)
    saved = latest(Path(payload["checkpoints"]["folder"]))
    assert saved is not None
    found = re.search(r"the loss of step (\d+) is (nan|inf|not finite): training diverged; (\S+) was saved", sentence)
    # Three steps of warm-up before the first.
    is_true = found is not None and (int(found[1]), found[3]) == (3 + step + 1, str(saved))
    return setting.judged(plan, again(payload), sentence, is_true)


def lost_node(setting: Setting) -> Outcome:
    """Of two hosts one is killed, or its cable is cut, in a step or in a save; later both are there again."""
    if not can_emulate():
        raise LeftOut("no network namespaces")
    setting.num_lost += 1
    is_cut, in_save = LOSSES[setting.num_lost % len(LOSSES)]
    payload = setting.payload(DATA, fault="slow saves" if in_save else "", pause=0.3)
    payload["checkpoints"]["folder"] = str(Path(payload["place"], "saved"))
    with two_hosts() as hosts:
        sentence, code = _losing(setting, hosts, payload, is_cut, in_save)
    assert code != 0
    found = re.search(r"rank (\d) of 2 (hangs|is gone)\b", sentence)
    is_true = found is not None and found[1] == "1" and "in step" in sentence
    return setting.judged(DATA, again(payload), sentence, is_true)


def _losing(setting: Setting, hosts: Any, payload: dict[str, Any], is_cut: bool, in_save: bool) -> tuple[str, int]:
    """What rank 0 says when the other host is gone, and its exit code."""
    path = Path(payload["place"], "payload.json")
    path.write_text(json.dumps(payload))
    with hosts.started("tests.fault_trial_entries", str(path)) as processes:
        rank_of(payload, 1)
        folder = Path(payload["checkpoints"]["folder"])
        _wait_for(lambda: latest(folder) is not None)
        if in_save:
            _wait_for(lambda: any(folder.glob(".step-*.part")))
        time.sleep(setting.random.uniform(0.2, 1.0))
        if is_cut:
            subprocess.run(["ip", "netns", "exec", hosts.names[1], "ip", "link", "set", CARD, "down"], check=True)
        else:
            for process in (
                psutil.Process(processes[1].pid),
                *psutil.Process(processes[1].pid).children(recursive=True),
            ):
                process.kill()
        _, errors = processes[0].communicate(timeout=START_SECONDS)
    said = re.findall(r"^error: (.*)$", errors, re.MULTILINE)
    assert len(set(said)) == 1, errors
    return said[0], processes[0].returncode


def soak(setting: Setting) -> Outcome:
    """Sixty plans in one process, one after the other: what a crash in a library would end."""
    plans = [plan for name, plan in two_ranks(complete=True) if name == "llama" and plan.precision == "fp32"]
    payload = {"plans": [asdict(plans[number % len(plans)]) for number in range(NUM_SOAKED)]}
    done = launch("tests.fault_trial_entries:run_plans", payload, 2, "cpu")
    return Outcome(survived=done == NUM_SOAKED, identical=None)


def _command(path: Path, enter: Callable[[], None] | None = None, **environment: str) -> subprocess.Popen[str]:
    """A run whose launcher is a process of its own, and whose ranks load torch themselves."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fault_trial_entries", str(path)],
        cwd=SOURCE, env={**os.environ, "PYTHONPATH": str(SOURCE), **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=enter,
    )  # fmt: skip


def _processes_of(temporary: Path) -> list[psutil.Process]:
    """The processes that were started with this folder for temporary files."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(temporary) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _wait_for(is_so: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


KINDS: dict[str, tuple[int, Callable[[Setting], Outcome]]] = {
    "a rank is killed, started again at once": (16, killed),
    "a rank is killed in a save": (6, killed_in_a_save),
    "a rank is stopped": (8, stopped),
    "the disk is full": (6, full_disk),
    "checkpoints are damaged": (8, damaged),
    "a second run in the folder": (2, two_runs),
    "the launcher is killed": (4, launcher_killed),
    "memory runs out in a cgroup": (2, out_of_memory),
    "the loss is no number": (3, diverges),
    "one of two hosts is lost": (4, lost_node),
    f"{NUM_SOAKED} plans in one process": (1, soak),
}
