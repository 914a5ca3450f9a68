"""A Slurm of two nodes on this host, for as long as a block lasts: munged, slurmctld and a slurmd for each node."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd")
TOOLS = ("sbatch", "srun", "scontrol", "squeue")
NODES = ("n0", "n1")
# How long a node may be silent before it counts as gone, and a queued-again job waits for its old credentials.
SILENT_SECONDS, CREDENTIAL_SECONDS = 10, 5


def missing() -> str:
    """What this host lacks for the trial, in a sentence; "" where it lacks nothing."""
    lacks = [name for name in (*DAEMONS, *TOOLS) if _path(name) is None]
    if lacks:
        return f"{', '.join(lacks)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "the daemons of Slurm want root here"


def _path(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


@dataclass(slots=True, kw_only=True)
class Cluster:
    """The daemons by name, and how its tools are called."""

    folder: Path
    cores_per_node: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        self._configure()
        munge = [_path("munged"), "--foreground", "--force", "--num-threads=1", *self._munge_files()]
        self._run("munged", munge)
        self.wait(lambda: (self.folder / "munge.socket").exists(), 20, "munged")
        self._run("slurmctld", [_path("slurmctld"), "-D", "-c", "-f", str(self.folder / "slurm.conf")])
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: self.called("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], 60, "idle nodes")

    def start_node(self, node: str) -> None:
        self._run(node, [_path("slurmd"), "-D", "-N", node, "-f", str(self.folder / "slurm.conf")])

    def kill_node(self, node: str) -> None:
        """End a node's daemon and all that runs there, at once, as a host would that loses its power."""
        # What would tell the others first.
        for process in sorted(self._of_node(node), key=lambda one: not one.name().startswith("slurm")):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.processes.pop(node).wait()

    def _of_node(self, node: str) -> list[psutil.Process]:
        """The daemon of a node, and its tasks, which have it for an ancestor or its name in their environment."""
        found = [psutil.Process(self.processes[node].pid)]
        found += found[0].children(recursive=True)
        for process in psutil.process_iter(["pid"]):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.folder / "slurm.conf") and (
                    process.environ().get("SLURMD_NODENAME") == node
                ):
                    found.append(process)
        return found

    def called(self, tool: str, *words: str, cwd: Path | None = None, **variables: str) -> str:
        """What one of Slurm's tools says; "" where it fails."""
        done = subprocess.run(
            [str(_path(tool)), *words], cwd=cwd, env=self.environment | variables, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else ""

    @property
    def environment(self) -> dict[str, str]:
        around = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
        return around | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def wait(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something; TimeoutError with the daemons' last words where it does not come."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                logs = "".join(f"\n{log.name}: {log.read_text()[-600:]}" for log in sorted(self.folder.glob("*.log")))
                raise TimeoutError(f"{what} did not come in {seconds:.0f} s{logs}")
            time.sleep(0.3)

    def stop(self) -> None:
        for node in NODES:
            if node in self.processes:
                self.kill_node(node)
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def _run(self, name: str, command: list[str | None]) -> None:
        with (self.folder / f"{name}.out.log").open("ab") as log:
            words = [str(word) for word in command]
            self.processes[name] = subprocess.Popen(words, stdout=log, stderr=log, env=self.environment)

    def _munge_files(self) -> list[str]:
        key = self.folder / "munge.key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o400)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={self.folder / f'munge.{name}'}" for option, name in names.items()]

    def _configure(self) -> None:
        host, folder = socket.gethostname(), self.folder
        nodes = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={self.cores_per_node} "
            "State=UNKNOWN\n"
            for node in NODES
        )
        (folder / "slurm.conf").write_text(
            f"ClusterName=trial\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={free_port()}\nSlurmUser=root\n"
            f"SlurmdUser=root\nAuthType=auth/munge\nAuthInfo=socket={folder}/munge.socket,"
            f"cred_expire={CREDENTIAL_SECONDS}\nStateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool-%n\n"
            f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd-%n.pid\n"
            f"SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd-%n.log\n"
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n"
            "AccountingStorageType=accounting_storage/none\nMpiDefault=none\nReturnToService=2\nSchedulerType=sched/backfill\n"
            f"SlurmdTimeout={SILENT_SECONDS}\nSlurmctldTimeout=10\nKillWait=20\nInactiveLimit=0\nMinJobAge=600\n"
            f"SlurmdParameters=config_overrides\nSwitchType=switch/none\n{nodes}"
            "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        )


@contextlib.contextmanager
def cluster(folder: Path, cores_per_node: int = 1) -> Iterator[Cluster]:
    """Two nodes that are idle."""
    own = Cluster(folder=folder, cores_per_node=cores_per_node)
    try:
        own.start()
        yield own
    finally:
        own.stop()
