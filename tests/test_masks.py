"""Sparse models handed over as torch.nn.utils.prune keeps them: read back, they answer alike, and zeros stay."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from executor.compress.masks import prune_from, pruned_state, semi_structured, write_pruned
from executor.compress.sparsify import largest, two_of_four
from profiles.errors import InputError
from profiles.workloads.loading import load_workload
from tests.plan_builders import GPT2, LLAMA


def sparse_model(spec, masked):
    workload = load_workload(spec)
    model = workload.build(0, len(workload.layers), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(masked(parameter))
    return model, workload


@pytest.mark.parametrize("spec", [LLAMA, GPT2], ids=lambda spec: spec.name)
def test_torch_reads_back_what_was_written(spec, tmp_path: Path) -> None:
    model, workload = sparse_model(spec, lambda weights: largest(weights, 0.5))
    path, samples = tmp_path / "sparse.pt", workload.example_input(2, 16)
    write_pruned(model, path)
    other = workload.build(0, len(workload.layers), seed=2)
    prune_from(other, path)
    torch.testing.assert_close(other(samples), model(samples), rtol=0, atol=0)
    masked = [module for module in other.modules() if any(name.endswith("_mask") for name, _ in module.named_buffers())]
    assert masked
    assert prune.is_pruned(other)
    # Training goes on, and torch keeps the zeros.
    before = {name: mask.clone() for name, mask in other.named_buffers() if name.endswith("_mask")}
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(samples).square().mean().backward()
    optimizer.step()
    other(samples)
    for name, mask in before.items():
        module_name, _, own = name.removesuffix("_mask").rpartition(".")
        weight = getattr(other.get_submodule(module_name), own)
        assert torch.equal(weight == 0, mask == 0) or not (weight[mask == 0]).any()
        assert float((mask == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_removing_the_masks_leaves_plain_weights(tmp_path: Path) -> None:
    model, _ = sparse_model(LLAMA, two_of_four)
    write_pruned(model, tmp_path / "m.pt")
    other = copy.deepcopy(model)
    prune_from(other, tmp_path / "m.pt")
    for module in other.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            prune.remove(module, "weight")
    for (name, own), (other_name, found) in zip(model.state_dict().items(), sorted_like(model, other), strict=True):
        assert name == other_name
        assert torch.equal(own, found)
    masks = [value for name, value in pruned_state(model).items() if name.endswith("weight_mask")]
    assert all((mask.reshape(-1, 4).sum(dim=1) == 2).all() for mask in masks)
    assert semi_structured(model) is None


def sorted_like(model, other):
    found = other.state_dict()
    return [(name, found[name]) for name in model.state_dict()]


def test_a_file_of_another_model_ends_in_a_sentence(tmp_path: Path) -> None:
    model, _ = sparse_model(LLAMA, two_of_four)
    write_pruned(nn.Linear(4, 4), tmp_path / "m.pt")
    (tmp_path / "text.pt").write_text("no", encoding="utf-8")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:400])
    (tmp_path / "empty.pt").touch()
    contents = {"list": [1, 2], "number": 3, "keys": {1: torch.ones(2)}, "mask": {"final.weight_mask": 2, "a_mask": {}}}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
    for name in ("m.pt", "text.pt", "none.pt", "cut.pt", "empty.pt", *(f"{name}.pt" for name in contents)):
        with pytest.raises(InputError, match="has no pruned weights of this model"):
            prune_from(model, tmp_path / name)
