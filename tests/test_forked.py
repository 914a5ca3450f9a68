"""Ranks that are forked from the program that starts them: as those that start themselves, and none is left behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from profiles.ranks.environment import allocator_environment
from profiles.ranks.forked import Server

SOURCE = Path(__file__).parent.parent


def started(entry: str, restarts: int = 0, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.forked_program", f"tests.launch_entries:{entry}", str(restarts)],
        cwd=SOURCE,
        env=os.environ | allocator_environment("cpu") | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(entry: str, restarts: int = 0) -> Any:
    out, _ = started(entry, restarts).communicate(timeout=120)
    first, result, last = out.splitlines()
    # Once: what a rank ends with is not what the program does at its end.
    assert (first, last) == ("forking", "the program ends")
    return json.loads(result)


@pytest.mark.gloo
def test_ranks_are_the_program_that_was_and_draw_their_own() -> None:
    ranks = said("about")
    assert all(rank["was_the_program"] for rank in ranks)
    # As processes that have just started do.
    assert all(len({rank[name] for rank in ranks}) == 2 for name in ("random", "numpy", "torch_seed"))
    assert {rank["parent"] for rank in ranks} == {ranks[0]["parent"]}


@pytest.mark.gloo
def test_a_rank_that_is_killed_is_named_and_ranks_are_started_again() -> None:
    assert "rank 1 of 2 was killed by SIGKILL" in said("die_once")
    assert said("die_once", restarts=1) == 2


@pytest.mark.gloo
def test_ranks_of_a_server_that_is_killed_are_named_and_started_again_by_themselves() -> None:
    assert re.search("rank [01] of 2 was killed by SIGKILL", said("lose_server_once"))
    assert said("lose_server_once", restarts=1) == 2


def test_who_is_killed_while_it_asks_for_a_rank_takes_no_other_with_it(tmp_path: Path) -> None:
    listener, (ended, alive) = socket.socket(socket.AF_UNIX), os.pipe()
    with listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "listener"))
        listener.listen()
        client.connect(str(tmp_path / "listener"))
        client.send(b"+")
        client.close()
        assert Server(listener, ended)._fork(listener.accept()[0]) is None
    os.close(ended)
    os.close(alive)


@pytest.mark.gloo
def test_a_rank_heeds_sigterm_as_one_that_has_just_started() -> None:
    assert "rank 1 of 2 failed: ZeroDivisionError: of rank 1" in said("fail_beside_work")


def family_of(program: psutil.Process) -> list[psutil.Process]:
    """All that the program has started, once the server that it is too has forked two ranks."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        servers = [child for child in program.children() if child.cmdline() == program.cmdline()]
        if servers and len(servers[0].children()) == 2:
            return program.children(recursive=True)
        time.sleep(0.1)
    pytest.fail("no ranks were forked")


@pytest.mark.gloo
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_rank_and_no_folder_outlives_its_program(number: signal.Signals) -> None:
    # Not pytest's: with that of a worker before it, a socket's path would be too long.
    with tempfile.TemporaryDirectory(prefix="ended-") as folder, started("sleep", TMPDIR=folder) as program:
        family = family_of(psutil.Process(program.pid))
        program.send_signal(number)
        # It ends after those it waits for, and removes the folder last.
        program.wait(timeout=20)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
        assert [*Path(folder).glob("trainwright-*")] == []


@pytest.mark.gloo
def test_ranks_are_forked_where_the_folder_for_temporary_files_has_a_long_path(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    with started("sleep", TMPDIR=str(long)) as program:
        assert family_of(psutil.Process(program.pid))
        program.kill()


def test_a_process_of_several_threads_or_started_otherwise_does_not_fork() -> None:
    code = """
import sys, threading
from profiles.ranks.forked import rank_server
with rank_server("cpu") as server: print(server is not None)
with rank_server("cuda") as server: print(server is not None)
over = threading.Event(); threading.Thread(target=over.wait).start()
with rank_server("cpu") as server: print(server is not None)
over.set(); print("torch" in sys.modules)
"""
    ready = os.environ | allocator_environment("cpu")
    for environment, words in ((ready, ["True", "False", "False"]), (dict(os.environ), ["False"] * 3)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=SOURCE, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [*words, "False"]


def test_a_command_is_started_again_once_also_where_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from profiles.ranks import forked

    environments: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda _, __, environment: environments.append(dict(environment)))
    for name in ("_may_fork", "_is_ready", "_is_a_command"):
        monkeypatch.setattr(forked, name, lambda *_, answer=name != "_is_ready": answer)
    forked.restart_for_ranks()
    assert environments[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv(forked.RESTARTED_VARIABLE, environments[0][forked.RESTARTED_VARIABLE])
    forked.restart_for_ranks()
    assert len(environments) == 1
    # Nor is it told to what this one starts.
    assert forked.RESTARTED_VARIABLE not in os.environ


def test_another_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from profiles.ranks import forked

    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    monkeypatch.setattr(forked, "_is_ready", lambda: False)
    forked.restart_for_ranks()
