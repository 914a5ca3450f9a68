"""The launcher against processes that really run, die, leave and get interrupted."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from profiles.errors import EnvironmentFailure, PlanError, RankFailure
from profiles.ranks.environment import in_job, is_main_process
from profiles.ranks.launcher import launch
from profiles.ranks.slurm_address import first_host

SOURCE = Path(__file__).parent.parent


def ranks_alive() -> list[psutil.Process]:
    # The servers of other tests live on.
    servers = [child for child in psutil.Process().children() if "tests.warm_ranks" in child.cmdline()]
    children = [child for child in psutil.Process().children(recursive=True) if child not in servers]
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.gloo
def test_ranks_compute_together_and_report() -> None:
    reports = []
    result = launch("tests.launch_entries:add_up", {"a": [1]}, 2, "cpu", on_report=reports.append)
    cores = sorted(os.sched_getaffinity(0))
    assert result["total"] == 3.0
    assert result["payload"] == {"a": [1]}
    assert result["threads"] == 1
    assert result["cores"] == [[cores[rank % len(cores)]] for rank in range(2)]
    assert [(report.fraction, report.line) for report in reports] == [(0.5, "a line")]
    assert not ranks_alive()
    assert "MALLOC_MMAP_MAX_" not in os.environ


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("killed", RankFailure, r"rank 1 of 2 was killed by SIGKILL"),
        ("left", RankFailure, r"rank 1 of 2 exited early with code 0"),
        ("ours", PlanError, r"^plan colour=blue: not a field$"),
        ("unforeseen", RankFailure, r"rank 1 of 2 failed: ZeroDivisionError: first line \(its log is"),
    ],
)
def test_first_cause_is_named(how: str, error: type[Exception], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(error, match=words) as caught:
        launch("tests.launch_entries:fail", how, 2, "cpu")
    assert "\n" not in str(caught.value)
    assert not ranks_alive()
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""
    log = re.search(r"its log is (\S+)\)", str(caught.value))
    if log:
        assert "ZeroDivisionError" in Path(log[1]).read_text()
        Path(log[1]).unlink()


@pytest.mark.gloo
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_its_launcher(number: signal.Signals) -> None:
    code = (
        "import sys; sys.path.insert(0, '')\n"
        "from profiles.ranks.launcher import launch\n"
        "try:\n"
        "    launch('tests.launch_entries:sleep', None, 2, 'cpu', on_report=lambda r: print(r.text, flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=SOURCE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "asleep\n"
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.send_signal(number)
    begun = time.monotonic()
    assert process.wait(timeout=60) == (-number if number == signal.SIGKILL else 128 + number)
    # The launcher would wait for half a minute for ranks that do not end.
    assert time.monotonic() - begun < 15
    gone, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive
    assert len(gone) == len(ranks)
    assert process.stderr.read() == ""


@pytest.mark.gloo
def test_nothing_is_left_of_a_job_whose_launcher_is_killed_while_it_starts(tmp_path: Path) -> None:
    code = "from profiles.ranks.launcher import launch; launch('tests.launch_entries:sleep', None, 2, 'cpu')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=SOURCE, env={**os.environ, "TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 120
    # Its rank has just started, and loads torch for seconds.
    while not (started := [*tmp_path.glob("trainwright-*/process-0-0")]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    rank = int(started[0].read_text().split()[0])
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(rank) or [*tmp_path.iterdir()]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.gloo
def test_joins_the_ranks_that_are_there() -> None:
    code = (
        "import sys; sys.path.insert(0, '')\n"
        "from profiles.ranks.launcher import launch\n"
        "result = launch('tests.launch_entries:add_up', 7, 2, 'cpu')\n"
        "print(None if result is None else result['total'])\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=SOURCE,
            env={**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["3.0", "None"]


def test_a_batch_script_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not in_job()
    assert is_main_process()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert in_job()
    assert not is_main_process()


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu[003-007,9],login1", "gpu003"), ("n1,n2", "n1"), ("alone", "alone"), ("", "")]
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_wrong_number_of_joined_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    with pytest.raises(EnvironmentFailure, match="has 3 processes, but 2"):
        launch("tests.launch_entries:add_up", {}, 2, "cpu")
    assert time.monotonic() - begun < 60


@pytest.mark.gloo
def test_ranks_are_started_again() -> None:
    assert launch("tests.launch_entries:die_once", {}, 2, "cpu", max_restarts=1) == 2


def test_a_rank_whose_launcher_is_gone_already_does_not_start(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    started = subprocess.run(
        [sys.executable, "-m", "profiles.ranks.start", "tests.launch_entries:add_up", "payload.json", str(tmp_path)],
        cwd=SOURCE,
        env={**os.environ, "RANK": "0", "TRAINWRIGHT_LAUNCHER": gone.stdout.decode().strip()},
        check=False,
    )
    assert started.returncode == 1
    assert not list(tmp_path.iterdir())
