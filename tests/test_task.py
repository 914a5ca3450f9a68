"""Tasks: a user's module or a class of transformers, batches with labels, and a loss."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from profiles.errors import InputError
from profiles.models.profile import WorkloadSpec
from profiles.workloads.repeated_blocks import repeated_blocks
from profiles.workloads.task import module_loss, samples_of, stack, user_task
from profiles.workloads.task_loading import load_task
from tests.matrix.architectures import ARCHITECTURES

BERT = {
    "model_type": "bert", "architectures": ["BertForQuestionAnswering"], "vocab_size": 64, "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def spec(config, task=""):
    return WorkloadSpec(kind="transformers", name="small", config=config, task=task)


def test_the_task_is_read_from_the_architecture_and_its_batches_have_labels():
    task = load_task(spec(BERT), size=32)
    assert (task.name, task.unit, task.size) == ("question-answering", "tokens", 32)
    batch = task.example(3, 16)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (3, 16), "attention_mask": (3, 16), "start_positions": (3,), "end_positions": (3,),
    }  # fmt: skip
    loss = task.loss(task.build(), batch)
    assert loss.dim() == 0
    assert loss.requires_grad


def test_batches_of_a_step_are_equal_wherever_they_are_made_and_differ_by_step():
    task = load_task(spec(BERT, "masked-lm"), size=16)
    first, again, later = task.batches(1, 2), task.batches(1, 2), task.batches(2, 2)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["input_ids"], later[0]["input_ids"])
    assert task.collate(first)["input_ids"].shape == (2, 16)


@pytest.mark.parametrize(
    ("config", "task", "words"),
    [
        (BERT | {"architectures": ["BertModel"]}, "", "BertModel is for no known task: give --task"),
        (BERT, "object-detection", "no bert is for the task object-detection: there are causal-lm, masked-lm"),
        (BERT, "detectoin", "detectoin': did you mean"),
        ({"model_type": "nothing"}, "", "knows no model_type .nothing."),
        (BERT | {"hidden_size": "wide"}, "", "does not accept its configuration"),
    ],
)
def test_what_cannot_be_a_task_is_said_in_a_sentence(config, task, words):
    with pytest.raises(InputError, match=words) as found:
        load_task(spec(config, task))
    assert "\n" not in str(found.value)


def test_a_module_of_the_users_own_gives_its_loss_in_any_form():
    class Regression(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.linear, self.form = nn.Linear(2, 1), form

        def forward(self, x, y):
            loss = (self.linear(x) - y).square().mean()
            return {"scalar": loss, "dict": {"loss": loss}, "tuple": (loss, x), "none": x}[self.form]

    def batches(step, samples):
        return [{"x": torch.ones(2), "y": torch.zeros(1)} for _ in range(samples)]

    for form in ("scalar", "dict", "tuple"):
        task = user_task(Regression(form), batches)
        one, other = task.build(), task.build()
        assert one is not other
        assert task.loss(one, task.example(3, 0)) == module_loss(other, stack(batches(0, 3)))
    with pytest.raises(InputError, match="gave no loss for a batch of x, y"):
        module_loss(Regression("none"), stack(batches(0, 3)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": torch.ones(2, 3)}, "a dict of tensors: give one dict for each sample"),
        (None, "nothing"),
        (torch.ones(2, 3), "one Tensor"),
        ([{"x": torch.ones(3)}] * 3, "3 of them where 2 were asked for"),
        ([torch.ones(3), torch.ones(3)], "a list with one Tensor in it"),
    ],
)
def test_batches_that_are_no_samples_are_said_in_a_sentence(given, words):
    task = user_task(nn.Linear(3, 1), lambda step, count: given)
    for draw in (task.batches, lambda step, count: task.example(count, 0)):
        with pytest.raises(InputError, match=r"batches\(step, count\) must return a list of count samples.*" + words):
            draw(0, 2)


def test_samples_may_be_anything_that_the_users_collate_takes():
    task = user_task(nn.Linear(3, 1), lambda step, count: ("a",) * count, lambda samples: {"x": "".join(samples)})
    assert task.example(2, 0) == {"x": "aa"}


def test_samples_and_batches_turn_into_each_other():
    batch = {"pixels": torch.rand(2, 3), "labels": [{"boxes": torch.rand(1, 4)}, {"boxes": torch.rand(2, 4)}]}
    again = stack(samples_of(batch))
    assert torch.equal(again["pixels"], batch["pixels"])
    assert again["labels"] == batch["labels"]


def test_blocks_are_what_repeats_outermost_first_and_within_stages_that_differ():
    def block(size):
        return nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))

    class Stage(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.blocks, self.last = nn.ModuleList([block(size), block(size)]), nn.Linear(size, size)

    model = nn.ModuleDict(
        {"stages": nn.ModuleList([Stage(2), Stage(4)]), "heads": nn.ModuleList([nn.Linear(2, 2)] * 2)}
    )
    assert list(repeated_blocks(model)) == [f"stages.{i}.blocks.{j}" for i in range(2) for j in range(2)]
    alike = nn.ModuleDict({"stages": nn.ModuleList([Stage(2), Stage(2)])})
    assert list(repeated_blocks(alike)) == ["stages.0", "stages.1"]
    assert repeated_blocks(nn.Linear(2, 2)) == {}


def test_weights_come_from_safetensors_and_from_nothing_else(tmp_path):
    made = load_task(spec(BERT)).build()
    made.save_pretrained(tmp_path)
    # A pickle that a configuration names is not opened either.
    (tmp_path / "adapter_model.bin").write_bytes(b"no pickle at all")
    asked = replace(spec(BERT | {"transformers_weights": "adapter_model.bin"}), weights=str(tmp_path))
    read = load_task(asked).build()
    assert read.training
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in made.state_dict().items())
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in load_task(asked).build().parameters())
    save_file({"other.weight": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="are another model's: none fits"):
        load_task(asked).build()
    (tmp_path / "model.safetensors").unlink()
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"has no model\.safetensors"):
            load_task(replace(asked, weights=str(folder)))


def test_a_module_of_the_users_own_has_its_weights_itself():
    own = WorkloadSpec(kind="module", name="tower", factory="tests.own_task_module:tower", weights="folder")
    with pytest.raises(InputError, match="leave out --weights"):
        load_task(own, ("tests.own_task_module",))


def test_no_part_of_a_configuration_loads_code_from_elsewhere():
    elsewhere = {
        "auto_map": {"AutoModel": "someone/model--modeling.Model"}, "trust_remote_code": True,
        "attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel",
    }  # fmt: skip
    (clip,) = (model.config for model in ARCHITECTURES if model.name == "clip")
    parts = {name: clip[name] | elsewhere for name in ("text_config", "vision_config")}
    for config in (BERT | elsewhere, clip | elsewhere | parts):
        module = load_task(spec(config)).build()
        kinds = {part.config._attn_implementation for part in module.modules() if hasattr(part, "config")}
        assert kinds == {"sdpa"}
        assert type(module).__module__.startswith("transformers.models.")
