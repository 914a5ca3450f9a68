"""transformers' Trainer and Lightning train, around an applied plan, what a loop of plain torch does."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from planner.plans import Plan
from profiles.ranks.launcher import launch
from tests.apply_entries import MOST, RATE, STEPS, batch_of, module_of, task_of
from tests.test_apply import HALVES, WHOLE

STAGED = {**WHOLE, "pipeline_parallel": 2, "schedule": "1f1b", "stage_bounds": (0, 2)}


def by_hand() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of plain torch in one process."""
    task = task_of("llama")
    module, losses = module_of(task), []
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    for step in range(STEPS):
        loss = module(**batch_of(task, step)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), MOST)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, dict(module.state_dict())


@pytest.mark.gloo
@pytest.mark.parametrize(("library", "entry"), [("accelerate", "in_trainer"), ("lightning", "in_lightning")])
@pytest.mark.parametrize("layout", [{**HALVES, "zero_stage": 3}, STAGED], ids=["zero3", "pp2"])
def test_loops_of_others_train_as_one_by_hand(library: str, entry: str, layout: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    payload = {"plan": asdict(Plan(**layout)), "folder": str(tmp_path)}
    found = launch(f"tests.other_loops:{entry}", payload, 2, "cpu")
    losses, weights = by_hand()
    assert found == pytest.approx(losses, rel=2e-6)
    written = load_file(tmp_path / "exported" / "model.safetensors")
    assert set(written) <= set(weights)
    for path, tensor in written.items():
        torch.testing.assert_close(tensor, weights[path], rtol=1e-4, atol=1e-5)
