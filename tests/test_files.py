"""What is written for the user: whole or not at all, through links, and to devices and pipes as they are."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import planner.space.export
from planner.ask import Request, answer_to
from profiles.errors import EnvironmentFailure, InputError
from profiles.files import ensure_folder, ensure_writable, replacing, write_text
from profiles.library import load_sizes


def write_plans(path: Path, _: str = "") -> None:
    """Write every plan of a small model, which is the other way to write a file."""
    sizes = load_sizes("llama-3.2-1b")
    assert sizes is not None
    request = Request(
        model=sizes, num_devices=2, device="h100-sxm", global_batches=(2,), sequence_length=128, all_file=path
    )
    answer_to(request)


WRITERS = pytest.mark.parametrize("write", [write_text, write_plans])


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@WRITERS
def test_a_new_file_has_the_usual_permissions_and_an_old_one_keeps_its_own(write, tmp_path, umask):
    path = tmp_path / "all.csv"
    write(path, "text")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write(path, "text")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["all.csv"]


REAL_OPEN = Path.open


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(path: Path, mode: str = "r", *rest: object, **named: object) -> object:
    if mode.startswith("r"):
        return REAL_OPEN(path, mode, *rest, **named)  # type: ignore[call-overload]
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@WRITERS
@pytest.mark.parametrize(
    ("where", "patch", "sentence"),
    [
        ("file/all.csv", None, "Not a directory; nothing was written"),
        ("folder.csv", None, "Is a directory; nothing was written"),
        ("all.csv", (os, "fsync", full_disk), "No space left on device; nothing was written"),
        ("all.csv", (Path, "open", read_only), "Read-only file system; nothing was written"),
        ("circle.csv", None, "Too many levels of symbolic links; nothing was written"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(write, where, patch, sentence, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "circle.csv").symlink_to(tmp_path / "circle.csv")
    before = sorted(os.listdir(tmp_path))
    if patch is not None:
        monkeypatch.setattr(planner.space.export, "explore", lambda *_, **__: None)
        monkeypatch.setattr(*patch)
    with pytest.raises(EnvironmentFailure, match=sentence) as caught:
        write(tmp_path / where, "text")
    assert caught.value.exit_code == 5
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == before


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with replacing(path) as stream:
            stream.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "target.txt").write_text("old")
    for link, target in (("a/link.txt", "target.txt"), ("a/new.txt", "b/made.txt")):
        (tmp_path / link).symlink_to(tmp_path / target)
        write_text(tmp_path / link, "new")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / target).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "a")) == ["link.txt", "new.txt"]


def test_a_pipe_is_written_to(tmp_path):
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    ensure_writable(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_text(path, "text")
    reader.join()
    assert read == ["text"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_reader_that_has_left_a_pipe_is_no_error(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: path.open().close())
    reader.start()
    with replacing(path) as stream:
        reader.join()
        stream.write("x" * 2**20)


def test_a_device_is_written_to(tmp_path):
    # Nodes of our own, as (major, minor) of Linux's null and full: those of /dev must not be put at risk.
    nodes = {"null": (1, 3), "full": (1, 7)}
    try:
        for name, numbers in nodes.items():
            os.mknod(tmp_path / name, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
            os.close(os.open(tmp_path / name, os.O_WRONLY))
    except PermissionError:
        pytest.skip("device nodes can be made by root alone, where the file system lets them be used")
    ensure_writable(tmp_path / "null")
    write_text(tmp_path / "null", "text")
    with pytest.raises(EnvironmentFailure, match="No space left on device; the file is incomplete"):
        write_text(tmp_path / "full", "text")
    assert all(stat.S_ISCHR((tmp_path / name).stat().st_mode) for name in nodes)
    assert sorted(os.listdir(tmp_path)) == ["full", "null"]


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_our_own_output_is_written_behind_what_was_said(how, tmp_path):
    code = (
        "from pathlib import Path; from profiles.files import write_text; print('first'); "
        "write_text(Path('/proc/self/fd/1'), 'second\\n'); print('third')"
    )
    path = tmp_path / "out.txt"
    with path.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=stream if how == "file" else subprocess.PIPE, text=True, check=True
        )
    assert (path.read_text() if how == "file" else done.stdout) == "first\nsecond\nthird\n"


def test_names_that_are_no_text_are_escaped(tmp_path):
    write_text(tmp_path / "a.txt", "±\udcff\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "±\\udcff\r\n".encode()


@pytest.mark.parametrize("ensure", [ensure_writable, ensure_folder])
def test_a_place_is_tried_before_the_work(ensure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    ensure(Path("new/place"))
    assert list(Path("new").rglob("*")) == ([] if ensure is ensure_writable else [Path("new/place")])
    with pytest.raises(EnvironmentFailure, match="file/below: Not a directory; nothing was started"):
        ensure(Path("file/below"))
    monkeypatch.setattr("tempfile.TemporaryFile", full_disk)
    with pytest.raises(EnvironmentFailure, match="No space left on device; nothing was started"):
        ensure(Path("new/place"))


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(EnvironmentFailure, match="Is a directory; nothing was started"):
        ensure_writable(tmp_path)


def test_every_plan_is_written_in_columns(tmp_path):
    write_plans(tmp_path / "all.csv")
    first, *rows = (tmp_path / "all.csv").read_text().splitlines()
    assert len(rows) > 10
    assert first not in rows
    assert {row.count(",") for row in rows} == {first.count(",")}
    with pytest.raises(InputError, match="must end in"):
        write_plans(tmp_path / "all.txt")
