"""What goes wrong on a cluster: a rank that hangs, runs out of memory, computes no number, dies while it saves."""

import errno
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from executor.run import faults
from executor.run.checkpoint import Checkpoints, latest, read_progress
from executor.run.checkpoint_refused import by_first
from executor.run.faults import axes_between, explained
from executor.run.prepare import RunOptions, prepare
from planner.plans import Plan
from profiles.errors import EnvironmentFailure, LostPeer, RankFailure, ToleranceError
from profiles.ranks.launcher import launch
from profiles.ranks.rank import Rank, is_lost_peer, is_of_messages
from tests.fault_entries import FAULTY_STEP
from tests.plan_builders import write_plan_file

DATA = Plan(data_parallel=2, micro_batch_size=4)
STAGES = Plan(pipeline_parallel=2, schedule="1f1b", micro_batch_size=2, num_microbatches=4, stage_bounds=(0, 3))
BOTH = Plan(
    data_parallel=2, pipeline_parallel=2, schedule="1f1b", micro_batch_size=1, num_microbatches=4, stage_bounds=(0, 3)
)


def run_into(fault: str, plan: Plan = DATA, **fields: Any) -> Any:
    payload = {"plan": asdict(plan), "fault": fault, **fields}
    return launch("tests.fault_entries:run_into", payload, plan.num_devices, "cpu")


@pytest.mark.gloo
@pytest.mark.alone
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize(
    ("plan", "rank", "waits"),
    [
        pytest.param(DATA, 1, ((0, "data"),), id="data", marks=pytest.mark.slow),
        pytest.param(STAGES, 0, ((1, "pipeline"),), id="pipeline", marks=pytest.mark.slow),
        pytest.param(BOTH, 3, ((1, "pipeline"), (2, "data")), id="data and pipeline"),
    ],
)
def test_a_rank_that_hangs_is_named_with_axis_and_step(
    plan: Plan, rank: int, waits: tuple[tuple[int, str], ...]
) -> None:
    with pytest.raises(RankFailure) as caught:
        run_into("hangs in a step", plan, rank=rank)
    assert any(
        f"rank {rank} of {plan.num_devices} hangs: rank {waiter} waited 3 s for it on the {axis} axis in step "
        f"{FAULTY_STEP} of plan {plan.id}" in str(caught.value)
        for waiter, axis in waits
    ), caught.value


@pytest.mark.gloo
@pytest.mark.alone
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_a_rank_that_never_comes_to_the_next_step_is_named() -> None:
    with pytest.raises(RankFailure, match=f"rank 1 of 2 hangs: .* for it before step {FAULTY_STEP} of plan"):
        run_into("hangs before a step")


@pytest.mark.gloo
@pytest.mark.alone
@pytest.mark.usefixtures("warm_ranks")
def test_a_rank_that_is_stopped_is_named_as_such_and_ended() -> None:
    # Servers of ranks that still load, as this test is the first, are none of its time.
    launch("tests.launch_entries:add_up", {}, 4, "cpu")
    started = time.monotonic()
    with pytest.raises(RankFailure) as caught:
        run_into("stopped", BOTH, rank=3)
    # The time-out is 3 s, and what is left is given 5 s to end by itself; torch's launcher alone would take 30 s more.
    assert time.monotonic() - started < 25
    said = re.search(
        rf"rank 3 of 4 hangs: it gave no sign of life for [345] s in step ({FAULTY_STEP - 1}|{FAULTY_STEP}) of plan "
        rf"{re.escape(BOTH.id)}, and rank (1|2) waits for it on the (pipeline|data) axis; it is stopped",
        str(caught.value),
    )
    assert said, caught.value
    assert {"1": "pipeline", "2": "data"}[said[2]] == said[3]


def test_axes_are_those_on_which_ranks_differ() -> None:
    plan = Plan(tensor_parallel=2, data_parallel=2, pipeline_parallel=2, stage_bounds=(0, 3))
    found = {axes_between(plan, 0, other) for other in range(1, 8)}
    assert {len(axes) for _, axes in found} == {1, 2, 3}
    assert all(count == len(axes) for count, axes in found)
    for axis, stride in zip(plan.axis_order, (1, 2, 4), strict=False):
        if plan.degree(axis) > 1:
            assert axis in {a for _, axes in found for a in axes}, stride


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_rank_without_memory_says_how_much_it_had_and_leaves_a_list(tmp_path: Path) -> None:
    with pytest.raises(RankFailure) as caught:
        run_into("exhausted", Plan(data_parallel=2, micro_batch_size=64), sequence=128)
    message = str(caught.value)
    assert re.search(r"rank 1 of 2 ran out of memory in step 1 of plan .* with [\d.]+ MiB resident", message)
    assert "against the 954 MiB predicted" in message
    snapshot = Path(re.search(r"its allocations are in (\S+\.json)", message)[1])  # type: ignore[index]
    rows = json.loads(snapshot.read_text())
    snapshot.unlink()
    assert rows == sorted(rows, key=lambda row: -row["bytes"])
    assert rows[0]["bytes"] >= 256 * 64 * 4


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run() -> None:
    with pytest.raises(ToleranceError, match=r"the loss of step \d+ is nan: training diverged$"):
        run_into("diverges")


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_what_is_no_number_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ToleranceError, match=rf"the loss of step {FAULTY_STEP} is nan.*step-0000000{FAULTY_STEP - 1} "):
        run_into("diverges", checkpoints={"folder": str(tmp_path), "every": 1})
    newest = latest(tmp_path)
    assert newest is not None
    assert read_progress(newest).step == FAULTY_STEP - 1


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_kill_while_saving_loses_nothing(tmp_path: Path) -> None:
    checkpoints = {"folder": str(tmp_path), "every": 1}
    with pytest.raises(RankFailure, match="rank 0 of 2 was killed by SIGKILL"):
        run_into("killed while saving", checkpoints=checkpoints, spared=2)
    newest = latest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000002"
    assert (tmp_path / ".step-00000003.part").exists()
    resumed = run_into("none", checkpoints={**checkpoints, "resume": True})
    # That it goes on with the same losses is compared elsewhere.
    newest = latest(tmp_path)
    assert newest is not None
    assert read_progress(newest).step == 2 + len(resumed)


@pytest.mark.gloo
def test_a_job_that_is_asked_to_end_saves_and_goes_on_later(tmp_path: Path) -> None:
    plan, saved, runs = write_plan_file(tmp_path / "plan.json", DATA), tmp_path / "saved", tmp_path / "runs"
    command = [sys.executable, "-m", "executor", str(plan), "--checkpoint", str(saved), "--checkpoint-every", "100000"]
    process = subprocess.Popen(
        [*command, "--steps", "100000", "--runs", str(runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 180
        while not any(path.stat().st_size for path in runs.glob("*.log.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        # Its ranks end with it, and would go on for hours.
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    said = re.search(r"stopped by SIGTERM after step (\d+) of plan", " ".join(errors.split()))
    assert said, errors
    newest = latest(saved)
    assert newest is not None
    assert read_progress(newest).step == int(said[1])
    again = Checkpoints(folder=str(saved), every=10, resume=True)
    assert (
        f"resuming from step {said[1]}, {newest}" in prepare(plan, RunOptions(steps=100_000, checkpoints=again)).notes
    )


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 6000ms for recv operation"


@pytest.mark.parametrize(
    ("error", "is_theirs"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError("Operation timed out!"), True),
        (dist.DistBackendError("timeout of 600000 ms"), True),
        (ConnectionResetError("by peer"), True),
        (RuntimeError("the data server: read timeout, connection lost to its peer"), False),
        (RuntimeError("timed out"), False),
    ],
)
def test_a_timeout_is_a_peers_where_messages_are_sent(error: Exception, is_theirs: bool) -> None:
    assert is_of_messages(error) == is_lost_peer(error) == is_theirs
    wrapped = RuntimeError("rank 1 failed to run forward")
    wrapped.__cause__ = error
    assert is_of_messages(wrapped) == is_theirs


def test_a_users_own_timeout_is_told_as_what_it_is() -> None:
    rank = Rank(rank=0, local_rank=0, num_ranks=2, device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"^the data server: timeout$"), explained(DATA, rank, 1, 6.0, 0.0):
        raise RuntimeError("the data server: timeout")


def test_memory_that_ran_out_is_told_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(faults, "write_text", fails)
    rank = Rank(rank=0, local_rank=0, num_ranks=2, device=torch.device("cpu"))
    words = r"rank 0 of 2 ran out of memory in step 1 .*; its allocations could not be written \(OSError\); smaller"
    with pytest.raises(RankFailure, match=words), explained(DATA, rank, 1, 6.0, 0.0):
        raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError(errno.ENOSPC, "full"), EnvironmentFailure), (ValueError("x"), LostPeer)]
)
def test_what_stops_the_first_rank_is_told_to_the_others_at_once(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ranks = dist.HashStore(), iter([0, 1, 0, 1])
    monkeypatch.setattr("profiles.ranks.rank.job_store", lambda: store)
    monkeypatch.setattr(dist, "get_rank", lambda: next(ranks))

    def fails() -> None:
        raise error

    own = EnvironmentFailure if isinstance(error, OSError) else ValueError
    with pytest.raises(own):
        by_first("it", fails, 5.0)
    with pytest.raises(kind, match=r"full|rank 0 ended: ValueError"):
        by_first("it", fails, 5.0)
    done = []
    by_first("that", lambda: done.append(1), 5.0)
    by_first("that", fails, 5.0)
    assert done == [1]
