"""Python blocks of pages, run with small models in place of what they leave to the reader."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

import executor
from planner.plans import Plan
from tests.documented.pages import Block
from tests.plan_builders import LLAMA, NUM_LAYERS, write_plan_file

SAMPLES, STEPS, TOKENS = 4, 2, 16
PLAN = Plan(micro_batch_size=2, num_microbatches=2, stage_bounds=(0,), precision="fp32")


def config() -> transformers.PretrainedConfig:
    """Of a small Llama."""
    return transformers.AutoConfig.for_model(**LLAMA.config)


def model() -> nn.Module:
    """A small Llama with new weights."""
    built: nn.Module = transformers.AutoModelForCausalLM.from_config(config())
    return built


def samples(step: int, count: int) -> list[dict[str, Tensor]]:
    """What a step is trained on."""
    tokens = torch.randint(256, (count, TOKENS), generator=torch.Generator().manual_seed(step))
    return [{"input_ids": one, "labels": one} for one in tokens]


def collate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of some samples."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def steps() -> list[dict[str, Tensor]]:
    """The batches of a short training."""
    return [collate(samples(step, SAMPLES)) for step in range(STEPS)]


def module_loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss that the module says."""
    loss: Tensor = module(**batch).loss
    return loss


def plan_file() -> str:
    """A plan of a single rank for the small Llama."""
    count = sum(parameter.numel() for parameter in model().parameters())
    spec = replace(LLAMA, name="llama")
    return str(write_plan_file(Path("plan.json"), PLAN, spec=spec, num_parameters=count, num_layers=NUM_LAYERS))


def weights_folder() -> str:
    """Weights of the small Llama, as a page calls them."""
    model().save_pretrained("llama-3.1-8b")
    return "llama-3.1-8b"


def trainer() -> Any:
    """transformers' Trainer, where what it asks for is installed."""
    pytest.importorskip("accelerate")
    return transformers.Trainer


# What pages leave to the reader, by the name that they have for it.
GIVEN: dict[str, Callable[[], Any]] = {
    "plan.json": plan_file,
    "llama-3.1-8b": weights_folder,
    "config": config,
    "model": model,
    "batches": lambda: samples,
    "collate": lambda: collate,
    "loss": lambda: module_loss,
    "batch": lambda: steps()[0],
    "loader": steps,
    "dataset": steps,
    "data": steps,
    "folder": lambda: Path("checkpoints"),
    "Trainer": trainer,
    "lightning": lambda: pytest.importorskip("lightning"),
}
# Names that a reader imports by habit, by where they are.
IMPORTED = {
    "AutoModelForCausalLM": "transformers", "TrainingArguments": "transformers",
    "SingleDeviceStrategy": "lightning.pytorch.strategies",
    "LightningEnvironment": "lightning.pytorch.plugins.environments",
}  # fmt: skip


def run_block(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a block in `folder`; what it has made by name, and what it was given."""
    monkeypatch.chdir(folder)
    code = compile(block.text, block.name, "exec")
    names: dict[str, Any] = {"torch": torch, "executor": executor, "DataLoader": DataLoader}
    names |= {name: GIVEN[name]() for name in block.marks.get("given", "").split(", ") if name}
    names |= {
        name: getattr(importlib.import_module(IMPORTED[name]), name) for name in code.co_names if name in IMPORTED
    }
    exec(code, names)
    return names
