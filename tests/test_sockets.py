"""What listens while a job runs: every socket of every process is looked at, from the start to the end of a command."""

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from planner.plans import Plan
from profiles.errors import EnvironmentFailure
from profiles.ranks import stores
from tests.emulated_hosts import CARD, can_emulate, two_hosts
from tests.plan_builders import write_plan_file

SOURCE = Path(__file__).parent.parent
DATA = Plan(data_parallel=2, micro_batch_size=4)
TWO_AXES = Plan(
    data_parallel=2, pipeline_parallel=2, schedule="1f1b", micro_batch_size=1, num_microbatches=4, stage_bounds=(0, 3)
)


def listening(process: psutil.Process) -> set[str]:
    """Addresses at which the process, or one that it started, takes what comes: TCP that listens, UDP that is bound."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                for link in one.net_connections(kind="inet"):
                    if link.status == psutil.CONN_LISTEN or (link.type == socket.SOCK_DGRAM and link.laddr):
                        found.add(link.laddr.ip)
    return found


def listening_on(host: str) -> set[str]:
    """Addresses at which anything on an emulated host takes what comes."""
    command = ["ip", "netns", "exec", host, "ss", "--listening", "--tcp", "--udp", "--numeric", "--no-header"]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {row.split()[4].rpartition(":")[0] for row in rows}


def watch(
    *commands: list[str],
    environments: list[dict[str, str]] | None = None,
    look: Callable[[psutil.Process], set[str]] = listening,
    folder: Path = SOURCE,
) -> set[str]:
    """All that listens while the commands run side by side; they must end well."""
    started = [
        subprocess.Popen(
            command, cwd=folder, env={**os.environ, **extra}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for command, extra in zip(commands, environments or [{}] * len(commands), strict=True)
    ]
    found: set[str] = set()
    try:
        while any(process.poll() is None for process in started):
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found |= look(psutil.Process(process.pid))
            time.sleep(0.2)
    finally:
        for process in started:
            process.kill()
    for process in started:
        assert process.wait() == 0, process.stderr.read() if process.stderr else ""
    return found


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_the_watch_sees_what_listens() -> None:
    code = "import socket, time; s = socket.socket(); s.bind(('', 0)); s.listen(); time.sleep(0.7)"
    assert watch([sys.executable, "-c", code]) == {"0.0.0.0"}


@pytest.mark.gloo
def test_a_run_listens_on_loopback_alone(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "plan.json", TWO_AXES)
    command = [sys.executable, "-m", "executor", str(plan), "--steps", "3", "--oversubscribe"]
    found = watch(command)
    # gloo's connections between ranks: without them the watch has seen nothing.
    assert found
    assert all(is_loopback(address) for address in found), found


@pytest.mark.gloo
@pytest.mark.slow
def test_profiling_and_rehearsing_listen_on_loopback_alone(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "plan.json", DATA)
    home = {"TRAINWRIGHT_HOME": str(tmp_path)}
    found = watch(
        [sys.executable, "-m", "profiles", "machine", "--gpus", "2", "--precision", "fp32"], environments=[home]
    )
    assert found
    found |= watch([sys.executable, "-m", "executor", str(plan), "--rehearse"])
    assert all(is_loopback(address) for address in found), found


@pytest.mark.gloo
@pytest.mark.slow
def test_an_emitted_job_of_one_host_listens_on_loopback_alone(tmp_path: Path) -> None:
    plan, job = write_plan_file(tmp_path / "plan.json", DATA), tmp_path / "job.sh"
    command = [sys.executable, "-m", "executor", str(plan), "--emit", "torchrun", "--steps", "3", "-o", str(job)]
    subprocess.run(command, cwd=SOURCE, check=True, capture_output=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    found = watch(["bash", str(job)], environments=[environment], folder=tmp_path)
    assert found
    assert all(is_loopback(address) for address in found), found


@pytest.mark.gloo
def test_ranks_that_slurm_started_on_one_host_listen_on_loopback_alone(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "plan.json", DATA)
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "a-node",
        "MASTER_PORT": free_port(),
    }  # fmt: skip
    command = [sys.executable, "-m", "executor", str(plan), "--steps", "3"]
    found = watch(
        command,
        command,
        environments=[{**slurm, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")],
    )
    assert found
    assert all(is_loopback(address) for address in found), found


@pytest.mark.gloo
@pytest.mark.slow
@pytest.mark.skipif(not can_emulate(), reason="network namespaces cannot be made here")
def test_ranks_of_two_hosts_listen_at_the_address_asked_for(tmp_path: Path) -> None:
    plan = write_plan_file(tmp_path / "plan.json", DATA)
    with two_hosts() as hosts:
        job = {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": f"{hosts.subnet}.1",
            "MASTER_PORT": "29512", "GLOO_SOCKET_IFNAME": CARD,
        }  # fmt: skip
        command = [sys.executable, "-m", "executor", str(plan), "--steps", "3"]
        found = watch(
            *(["ip", "netns", "exec", name, *command] for name in hosts.names),
            environments=[{**job, "RANK": rank} for rank in ("0", "1")],
            look=lambda _: {address for name in hosts.names for address in listening_on(name)},
        )
    assert found == {f"{hosts.subnet}.1", f"{hosts.subnet}.2"}


def test_a_job_across_hosts_says_what_is_open_and_to_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stores.STORE_VARIABLE, raising=False)
    assert stores.open_to() == ""
    job = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert "meet at node7:29500, without a password" in stores.open_to()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert "node7:29500, on every address of that host, without a password" in stores.open_to()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "every address" in stores.open_to()
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    assert stores.open_to() == ""


@pytest.mark.parametrize(
    ("address", "port", "words"),
    [
        ("127.0.0.1", "taken", "cannot listen at 127.0.0.1:.*Address already in use; give an address"),
        ("192.0.2.1", "29500", "cannot listen at 192.0.2.1:29500.*of the host that rank 0 is on"),
        ("127.0.0.1", "http", "MASTER_PORT=http is not a port"),
        ("127.0.0.1", "70000", "MASTER_PORT=70000 is not a port"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, address: str, port: str, words: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1]) if port == "taken" else port
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": number}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(EnvironmentFailure, match=words):
            stores.join_store(1.0)
