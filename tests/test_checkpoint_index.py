"""A checkpoint folder of somebody else: nothing of it is run, and what is wrong with it is said in a sentence."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from executor.run.checkpoint import Checkpoints, load_whole, progress_of, save_whole
from executor.run.checkpoint_index import INDEX, read_index
from executor.run.prepare import RunOptions, prepare
from planner.plans import Plan
from profiles.errors import ArtifactError
from profiles.workloads.loading import load_workload
from tests.plan_builders import LLAMA, write_plan_file

# DCP says that it saves in a single process where there is no group.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.folder,)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_whole(tmp_path / "saved", model())
    return tmp_path / "saved"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((folder / INDEX).read_text())
    edit(fields["tensors"])
    (folder / INDEX).write_text(json.dumps(fields))


def test_what_is_saved_is_read_and_other_programs_read_it_too(saved: Path) -> None:
    other, again = model(), {f"model.{name}": torch.zeros_like(p) for name, p in model().named_parameters()}
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    load_whole(saved, other)
    dcp_load(again, storage_reader=FileSystemReader(saved), no_dist=True)
    for name, parameter in model().named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter, rtol=0, atol=0)
        torch.testing.assert_close(again[f"model.{name}"], parameter.detach(), rtol=0, atol=0)


def test_a_pickle_in_the_place_of_dcps_index_is_not_read(saved: Path, tmp_path: Path) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    load_whole(saved, model())
    assert not (tmp_path / "ran").exists()
    (saved / INDEX).unlink()
    with pytest.raises(ArtifactError, match="it does not exist; the folder is not a checkpoint of"):
        load_whole(saved, model())
    assert not (tmp_path / "ran").exists()
    # Whoever does unpickle it runs it.
    pickle.loads((saved / ".metadata").read_bytes())
    assert (tmp_path / "ran").exists()


def test_a_pickle_in_the_place_of_a_tensor_is_not_run(saved: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(Evil(tmp_path / "ran"), stream)
    (saved / "__0_0.distcp").write_bytes(stream.getvalue())

    def point(tensors: dict[str, Any]) -> None:
        for tensor in tensors.values():
            tensor["pieces"][0] |= {"start": 0, "num_bytes": len(stream.getvalue())}

    change(saved, point)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_whole(saved, model())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t["model.0.weight"]["pieces"][0].update(file="../../etc/passwd"), "passwd is missing"),
        (lambda t: t["model.0.weight"]["pieces"][0].update(file="index.json"), "index.json is missing"),
        (lambda t: t["model.0.weight"]["pieces"][0].update(start=10**9), "it should lie at 1000000000"),
        (lambda t: t["model.0.weight"]["pieces"][0].update(num_bytes=-5), "it should lie at"),
        (lambda t: t["model.0.weight"]["pieces"][0].update(offsets=[2, 0]), "is outside of"),
        (lambda t: t["model.0.weight"]["pieces"][0].update(sizes=[4]), "a piece has 1 dims"),
        (lambda t: t["model.0.weight"].update(pieces=[]), "pieces are missing"),
        (lambda t: t["model.0.weight"].update(dtype="torch.quint8"), "a dtype torch.quint8 is never saved"),
        (lambda t: t["model.0.weight"].update(colour="blue"), "colour"),
        (lambda t: t["model.0.weight"].update(shape=[4, "3"]), "shape"),
        (lambda t: t.pop("model.1.bias"), "has no model.1.bias: it was saved from another model"),
        (lambda t: t["model.1.bias"].update(shape=[1], pieces=t["model.1.bias"]["pieces"][:0]), "pieces are missing"),
    ],
)
def test_what_is_damaged_is_named(saved: Path, edit: Callable[[dict[str, Any]], object], words: str) -> None:
    change(saved, edit)
    with pytest.raises(ArtifactError, match=words) as caught:
        load_whole(saved, model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"tensors": 5}', "[" * 100_000, "\0"])
def test_an_index_that_is_none_is_a_sentence(saved: Path, text: str) -> None:
    (saved / INDEX).write_text(text)
    with pytest.raises(ArtifactError, match=r"index\.json") as caught:
        read_index(saved)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_a_sentence(saved: Path) -> None:
    data = (saved / "__0_0.distcp").read_bytes()
    (saved / "__0_0.distcp").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"is damaged: .*; resume from another checkpoint"):
        load_whole(saved, model())
    (saved / "__0_0.distcp").write_bytes(bytes(len(data)))
    with pytest.raises(ArtifactError, match="is damaged") as caught:
        load_whole(saved, model())
    assert "\n" not in str(caught.value)


def test_another_models_weights_are_refused(saved: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has model\.0\.weight of shape \(4, 3\), the model has shape \(5, 3\)"):
        load_whole(saved, nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))


def test_a_foreign_folder_is_refused_before_a_rank_starts(tmp_path: Path) -> None:
    plan = Plan(data_parallel=2, micro_batch_size=4)
    path, folder = write_plan_file(tmp_path / "plan.json", plan), tmp_path / "saved"
    step = folder / "step-00000005"
    step.mkdir(parents=True)
    own = progress_of(plan, load_workload(LLAMA), 0, 5)
    (step / "progress.json").write_text(json.dumps({name: getattr(own, name) for name in own.__slots__}))
    (step / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ArtifactError, match="is not a checkpoint of this program"):
        prepare(path, RunOptions(checkpoints=Checkpoints(folder=str(folder), every=10, resume=True)))
    assert not (tmp_path / "ran").exists()
