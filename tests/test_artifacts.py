"""Files are read strictly, written whole, and every complaint says where and what to do."""

import json
import os
from pathlib import Path

import pytest

from profiles import artifacts
from profiles.errors import ArtifactError, EnvironmentFailure
from profiles.files import ensure_writable
from profiles.library import load_model
from profiles.machines.profile import MachineProfile
from profiles.models.profile import ModelProfile
from tests.machine_builders import machine


def test_round_trip_is_exact(tmp_path):
    for word, value, kind in (
        ("machine-profile", machine(), MachineProfile),
        ("model-profile", load_model("llama-26m"), ModelProfile),
    ):
        path = tmp_path / f"{word}.json"
        artifacts.write(path, word, value)
        assert artifacts.read(path, word, kind) == value


def _damage(path: Path, change) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def written(tmp_path) -> Path:
    path = tmp_path / "machine.json"
    artifacts.write(path, "machine-profile", machine())
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(artifact="plan"), "is a plan file, not a machine-profile: make one with `profile machine"),
        (lambda d: d.pop("artifact"), "was not written by this program"),
        (lambda d: d.update(schema=99), "has schema 99, this version reads 1"),
        (lambda d: d.update(speed=3), "at speed: "),
        (lambda d: d.update(memory_bytes="much"), "at memory_bytes: "),
        (lambda d: d["links"][0].update(group_size=1.5), r"at links\.0\.group_size: "),
        (lambda d: d.pop("name"), "at name: field required"),
    ],
)
def test_foreign_or_damaged_files_are_named(written, change, sentence):
    with pytest.raises(ArtifactError, match=sentence) as caught:
        artifacts.read(_damage(written, change), "machine-profile", MachineProfile)
    assert str(written) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\x00\xff", '{"artifact": "machine-profile", "schema": 1}'])
def test_no_text_is_read_without_a_sentence(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=str(path)):
        artifacts.read(path, "machine-profile", MachineProfile)


def test_a_full_disk_leaves_the_old_file_and_no_other(written, monkeypatch):
    before = written.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFailure, match="No space left on device; nothing was written") as caught:
        artifacts.write(written, "machine-profile", machine(name="new"))
    assert caught.value.exit_code == 5
    assert written.read_text() == before
    assert list(written.parent.iterdir()) == [written]


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="nothing was started"):
        ensure_writable(tmp_path / "file" / "run.json")
    ensure_writable(tmp_path / "new" / "run.json")
    assert list((tmp_path / "new").iterdir()) == []
