"""A folder of checkpoints: one owner, checksums, the one before where the newest is damaged, a full disk."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import executor
from executor.run import checkpoint_index, checkpoint_sums, owner
from executor.run.checkpoint import latest
from executor.run.checkpoint_choice import newest_whole
from executor.run.checkpoint_sums import SUMS, damage
from planner.plans import Plan
from profiles.errors import ArtifactError, EnvironmentFailure

SOURCE = Path(__file__).parent.parent


class Plain(nn.Module):
    """A module of a user's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).square().mean()


def trained() -> Any:
    """A job of one rank with an optimizer."""
    torch.manual_seed(0)
    job = executor.apply(Plan(micro_batch_size=2), Plain(), device="cpu")
    job.optimizer(torch.optim.AdamW, lr=0.1)
    return job


def take_step(job: Any) -> None:
    job.step({"x": torch.ones(2, 8)})
    job._own_optimizer.step()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two checkpoints, after one step and after two."""
    job = trained()
    for _ in range(2):
        take_step(job)
        job.save(tmp_path / "saved", {"at": job.num_steps})
    return tmp_path / "saved"


def test_the_sums_are_those_of_the_files(saved: Path) -> None:
    folder = saved / "step-00000002"
    sums = json.loads((folder / SUMS).read_text())["crc32"]
    assert sorted(sums) == ["__0_0.distcp", "index.json", "loop.json", "progress.json"]
    for name, wanted in sums.items():
        assert zlib.crc32((folder / name).read_bytes()) == int(wanted, 16), name
    assert not damage(folder)


@pytest.mark.parametrize("name", ["__0_0.distcp", "index.json", "loop.json", "progress.json", SUMS])
def test_every_byte_counts(saved: Path, name: str) -> None:
    path = saved / "step-00000002" / name
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert newest_whole(saved, is_read=False).path is not None
        found = newest_whole(saved)
        assert found.path == saved / "step-00000001", place
        (notice,) = found.notices
        assert notice.startswith(f"{path.parent} is damaged (")
        assert notice.endswith(": resuming from step-00000001 instead")
        # It was put aside, so that it does not count as one of those that are kept.
        (saved / "damaged-step-00000002").rename(path.parent)


def test_what_was_just_saved_is_kept_beside_later_ones(saved: Path) -> None:
    for number in (7, 8):
        (saved / f"step-{number:08d}").mkdir()
    job = trained()
    for _ in range(3):
        take_step(job)
        assert job.save(saved).exists()
    assert sorted(path.name[-1] for path in saved.glob("step-*")) == ["2", "3", "7", "8"]


def test_ranks_share_the_reading(saved: Path) -> None:
    folder = saved / "step-00000002"
    (folder / "loop.json").write_text("{}")
    # The third of four by name.
    assert [bool(damage(folder, place, 4)) for place in range(4)] == [False, False, True, False]


def test_a_loop_goes_on_from_the_one_before(saved: Path) -> None:
    (saved / "step-00000002" / "__0_0.distcp").write_bytes(b"short")
    job = trained()
    with pytest.warns(UserWarning, match=r"step-00000002 is damaged \(.*\): resuming from step-00000001 instead"):
        assert job.load(saved) == {"at": 1}
    assert job.num_steps == 1


def test_where_none_is_whole_it_is_said(saved: Path) -> None:
    for folder in saved.glob("step-*"):
        (folder / "progress.json").unlink()
    with pytest.raises(ArtifactError, match=r"no checkpoint in \S+ is complete \(step-00000002: .*; step-00000001: "):
        trained().load(saved)


def test_checkpoints_of_before_have_no_sums(saved: Path) -> None:
    (saved / "step-00000002" / SUMS).unlink()
    assert newest_whole(saved).path == saved / "step-00000002"


def check_that_it_is_full(folder: Path, words: str) -> None:
    """A third checkpoint cannot be saved: it is said, nothing is half written, and the second is whole."""
    job = trained()
    job.load(folder)
    take_step(job)
    with pytest.raises(EnvironmentFailure, match=words) as caught:
        job.save(folder)
    assert caught.value.exit_code == 5
    assert "step-00000002 is complete" in str(caught.value)
    assert latest(folder) == folder / "step-00000002"
    assert not damage(folder / "step-00000002")
    assert not [*folder.glob(".step*")]


def test_a_disk_without_room_is_said_before_anything_is_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three times the parameters are saved.
    least = 3 * sum(parameter.numel() * 4 for parameter in Plain().parameters())
    usage = checkpoint_sums.shutil.disk_usage(saved)
    monkeypatch.setattr(checkpoint_sums.shutil, "disk_usage", lambda _: usage._replace(free=least - 1))
    monkeypatch.setattr(checkpoint_index.Writer, "write_data", lambda *_: pytest.fail("it writes"))
    check_that_it_is_full(saved, r"no space left on \S+saved: need [\d.]+ KiB, \d+ B free; ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_in_the_middle_is_said(saved: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = checkpoint_sums._Summed.write

    def write(stream: Any, data: Any) -> int:
        if stream._files.sums[stream._name]:
            stream._files.refused = OSError(number, os.strerror(number))
            raise stream._files.refused
        return real(stream, data)

    monkeypatch.setattr(checkpoint_sums._Summed, "write", write)
    check_that_it_is_full(
        saved, r"no space left on \S+saved: need [\d.]+ KiB, [\d.]+ .iB free but refused \(a quota\?\); "
    )


def test_what_cannot_be_written_otherwise_is_said_too(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("executor.run.saving.write_sums", refuse)
    check_that_it_is_full(saved, r"cannot save in \S+saved: .*Input/output error; ")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder."""
    code = (
        f"from pathlib import Path; from executor.run.owner import own; own(Path({str(tmp_path)!r})); print(1); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=SOURCE, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_has_one_owner_until_that_is_gone(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    part = tmp_path / ".step-00000001.part"
    part.mkdir()
    words = rf"{tmp_path} belongs to another run that is still going \(process {other.pid} on \S+, since \S+\): wait"
    for take in (owner.own, owner.check_free):
        with pytest.raises(EnvironmentFailure, match=words):
            take(tmp_path)
    with pytest.raises(EnvironmentFailure, match="belongs to another run"):
        trained().save(tmp_path)
    assert part.exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    owner.check_free(tmp_path)
    owner.own(tmp_path)
    owner.own(tmp_path)
    assert not part.exists()
    assert trained().save(tmp_path).exists()


def test_where_there_are_no_locks_the_file_tells(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(EnvironmentFailure, match=f"process {other.pid} on"):
        owner.own(tmp_path)
    other.kill()
    other.wait()
    held = owner.Owner(**json.loads((tmp_path / owner.OWNER).read_text()))
    # Of another host nobody here knows whether it runs.
    assert held.is_gone
    assert not replace(held, host="elsewhere").is_gone
    # The number of a process is given again.
    assert replace(held, process=os.getpid()).is_gone
    owner.own(tmp_path)
