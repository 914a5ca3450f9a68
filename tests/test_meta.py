"""Modules on the meta device get the values of an eager build, in parts, in any order, on any layout."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import MixtralForCausalLM

import executor
from executor.axes.optimizer import LEARNING_RATE
from planner.plans import Plan
from profiles.errors import ArtifactError, InputError
from profiles.ranks.launcher import launch
from profiles.workloads.meta_values import MetaValues
from profiles.workloads.repeated_blocks import repeated_blocks
from tests.apply_entries import MOST, RATE, SEED, STEPS, batch_of, task_of
from tests.meta_entries import initialised, sizes, skeleton
from tests.test_apply import HALVES, WHOLE

CPU = torch.device("cpu")
# Beside shards and a block: buffers, and shards of what does not divide evenly.
ROOM = 0.02


def eager(name: str) -> nn.Module:
    torch.manual_seed(SEED + 1)
    return task_of(name).build().train()


def values(module: nn.Module, folder: Path | None = None, seed: int = SEED) -> MetaValues:
    return MetaValues(module, seed, CPU, folder)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: own.detach() for name, own in (*module.named_parameters(), *module.named_buffers())}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "mamba2", "t5", "swin", "marian", "mask2former"])
def test_values_made_in_parts_are_spread_as_those_of_an_eager_build_and_buffers_are_equal(name: str) -> None:
    wanted = eager(name)
    found = values(skeleton(name)).whole()
    trained = {path for path, own in wanted.named_parameters() if own.requires_grad}
    made = tensors(found)
    assert made.keys() == tensors(wanted).keys()
    for path, own in tensors(wanted).items():
        if path not in trained or own.numel() < 2 or float(own.std()) == 0:
            torch.testing.assert_close(made[path], own, rtol=0, atol=0, msg=path)
        elif own.numel() > 256:
            assert float(made[path].std()) == pytest.approx(float(own.std()), rel=0.3), path


def test_values_depend_on_the_seed_and_the_place_alone() -> None:
    whole = tensors(values(skeleton("gpt2")).whole())
    parts, found = values(skeleton("gpt2")), {}
    torch.manual_seed(0)
    for group in reversed(parts.groups):
        with parts.of(group, group.names) as read:
            found |= {name: read(name, ()).clone() for name in group.names}
        torch.rand(3)
    assert whole.keys() <= found.keys()
    for name, own in whole.items():
        assert torch.equal(own, found[name]), name
    blocks = [found[f"transformer.h.{block}.attn.c_attn.weight"] for block in range(2)]
    other = tensors(values(skeleton("gpt2"), seed=SEED + 1).whole())
    assert not torch.equal(*blocks)
    assert not torch.equal(other["transformer.wte.weight"], whole["transformer.wte.weight"])


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "llava"])
def test_weights_of_a_folder_are_those_that_transformers_reads(name: str, tmp_path: Path) -> None:
    wanted = eager(name)
    wanted.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    stored = values(skeleton(name), tmp_path)
    assert not stored.missing
    found = tensors(stored.whole())
    for path, own in tensors(wanted).items():
        assert torch.equal(found[path], own), path


def test_experts_of_a_folder_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    config = copy.deepcopy(eager("mixtral").config)
    # Of names, the tenth would come before the second.
    config.num_local_experts = 12
    wanted = MixtralForCausalLM(config)
    wanted.save_pretrained(tmp_path)
    with torch.device("meta"):
        module = MixtralForCausalLM(config)
    found = tensors(values(module, tmp_path).whole())
    for path, own in wanted.named_parameters():
        assert torch.equal(found[path], own), path


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_of_a_model_without_its_head_are_read_and_of_one_with_it(name: str, tmp_path: Path) -> None:
    wanted = eager(name)
    body = wanted.base_model
    body.save_pretrained(tmp_path / "body")
    wanted.save_pretrained(tmp_path / "whole")
    with torch.device("meta"):
        alone = type(body)(wanted.config)
    inside = tensors(values(skeleton(name), tmp_path / "body").whole())
    outside = tensors(values(alone, tmp_path / "whole").whole())
    for path, own in body.named_parameters():
        assert torch.equal(inside[f"{wanted.base_model_prefix}.{path}"], own), path
        assert torch.equal(outside[path], own), path


def test_a_part_of_a_tensor_is_read_alone(tmp_path: Path) -> None:
    wanted = eager("llama")
    wanted.save_pretrained(tmp_path)
    stored = values(skeleton("llama"), tmp_path)
    (group,) = [group for group in stored.groups if group.path == "lm_head"]
    with stored.of(group, group.names) as read:
        part = read("lm_head.weight", (slice(5, 9), slice(0, 32)))
    assert torch.equal(part, wanted.get_parameter("lm_head.weight")[5:9])


def test_weights_of_a_folder_that_do_not_fit_are_said(tmp_path: Path) -> None:
    module = eager("llama")
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        values(skeleton("llama"), tmp_path)
    module.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    head = weights.pop("lm_head.weight")
    save_file(weights, file)
    with pytest.warns(UserWarning, match=r"has no lm_head\.weight: new in LlamaForCausalLM"):
        executor.apply(Plan(), skeleton("llama"), weights=tmp_path, device="cpu")
    save_file({**weights, "lm_head.weight": head[:8]}, file)
    with pytest.raises(InputError, match=r"lm_head\.weight has the shape \(8, 32\), LlamaForCausalLM has \(96, 32\)"):
        executor.apply(Plan(), skeleton("llama"), weights=tmp_path, device="cpu")
    with pytest.raises(InputError, match="are of another model than ResNetForImageClassification: none fits"):
        values(skeleton("resnet"), tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="the weights cannot be read"):
        values(skeleton("llama"), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b"}}))
    with pytest.raises(ArtifactError, match="is not the name of a file beside it"):
        values(skeleton("llama"), tmp_path)


class Scaled(nn.Module):
    """A layer of a user's with a buffer that its code computes when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.linear(x * self.scale)
        return scaled.square().mean()


class Resettable(Scaled):
    """The same where it can compute it again."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.scale.copy_(torch.arange(4.0))


def test_what_no_code_gives_a_value_is_refused_by_name() -> None:
    with torch.device("meta"):
        able, unable = Resettable(), Scaled()
    with pytest.raises(InputError, match="Scaled is on the meta device, and its own code sets no value for scale"):
        executor.apply(Plan(), unable, device="cpu")
    job = executor.apply(Plan(), able, device="cpu")
    assert able.scale.tolist() == [0, 1, 2, 3]
    assert 0 < float(able.linear.weight.detach().abs().max()) <= 0.5
    assert float(job.step({"x": torch.ones(1, 4)})) > 0


def by_hand(module: nn.Module, name: str) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of plain torch in one process."""
    task, losses, norms = task_of(name), [], []
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    for step in range(STEPS):
        loss = task.loss(module, batch_of(task, step))
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), MOST)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_model_from_meta_trains_as_one_that_was_built_and_is_never_whole(tmp_path: Path) -> None:
    built = eager("llama")
    built.save_pretrained(tmp_path)
    staged = {**WHOLE, "pipeline_parallel": 2, "schedule": "1f1b", "stage_bounds": (0, 2)}
    sharded = {**HALVES, "zero_stage": 3, "recompute": "full"}
    layouts: list[tuple[dict[str, Any], bool]] = [
        (sharded, False), (sharded, True), (staged, False), ({**WHOLE, "tensor_parallel": 2}, True), (HALVES, True),
    ]  # fmt: skip
    cases = [
        {
            "name": "llama", "plan": asdict(Plan(**layout)), "weights": str(tmp_path) if stored else "",
            "counts": layout is sharded,
        }
        for layout, stored in layouts
    ]  # fmt: skip
    found = launch("tests.meta_entries:loops", {"cases": cases}, 2, "cpu")
    wanted = {False: by_hand(initialised("llama"), "llama"), True: by_hand(built, "llama")}
    size = sizes("llama")
    for (layout, stored), own in zip(layouts, found, strict=True):
        assert own["errors"] == []
        losses, norms = wanted[stored]
        assert own["losses"] == pytest.approx(losses, rel=2e-6), layout
        assert own["norms"] == pytest.approx(norms, rel=2e-5), layout
        if layout is sharded:
            # A file's tensor is mapped whole, though a shard of it is read; a block is made whole.
            part = size["tensor"] if stored else size["block"]
            assert size["whole"] / 2 <= own["peak"] <= size["whole"] * (0.5 + ROOM) + part + size["beside"]


def test_frozen_weights_are_missing_but_not_what_is_computed(tmp_path: Path) -> None:
    """Sinusoids are not saved, and are no weights that are missing."""
    eager("marian").save_pretrained(tmp_path)
    assert values(skeleton("marian"), tmp_path).missing == []
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = "model.encoder.layers.0.fc1.weight"
    del weights[name]
    save_file(weights, file)
    assert values(skeleton("marian").requires_grad_(False), tmp_path).missing == [name]


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_stored_weights_of_a_task_are_never_whole_where_they_are_sharded(tmp_path: Path) -> None:
    built = eager("llama")
    built.save_pretrained(tmp_path)
    payload = {
        "weights": str(tmp_path), "num_layers": len(repeated_blocks(built)) + 2,
        "plans": [asdict(Plan(**HALVES)), asdict(Plan(**HALVES, zero_stage=3))],
    }  # fmt: skip
    whole, sharded = launch("tests.meta_entries:tasks", payload, 2, "cpu")
    optimizer, losses = torch.optim.AdamW(built.parameters(), lr=LEARNING_RATE), []
    for step in range(2):
        loss = task_of("llama").loss(built, batch_of(task_of("llama"), step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    for own in (whole, sharded):
        assert own["losses"] == pytest.approx(losses, rel=2e-6)
    size = sizes("llama")
    assert sharded["peak"] <= size["whole"] * (0.5 + ROOM) + size["tensor"] < size["whole"] <= whole["peak"]


def test_experts_that_do_not_go_together_are_said(tmp_path: Path) -> None:
    eager("mixtral").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    odd = next(name for name in weights if ".experts.1." in name)
    weights[odd] = weights[odd][:3].clone()
    save_file(weights, file)
    with pytest.raises(InputError, match=r"experts\S* cannot be made from \S*experts.* give weights of the same"):
        tensors(values(skeleton("mixtral"), tmp_path).whole())
