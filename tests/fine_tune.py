"""`python -m tests.fine_tune`: a checkpoint made here, fine-tuned in layouts, exported and read by transformers.

A small model is trained for some steps by plain torch and saved with `save_pretrained`, as what one begins from. Two
gloo ranks go on from it in each layout, from an eager build or from the meta device; a loop of plain torch does so in
one process. Losses, gradient norms and the weights that `from_pretrained` reads must be the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import executor
from executor.run.batches import default_text, load_text
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.ranks.launcher import launch

SAMPLES, TOKENS, SEED, RATE, MOST = 8, 64, 5, 3e-4, 1.0
BEFORE = 20
# What plain torch and a layout may differ by, relatively, by the order of sums.
LOSS, NORM, WEIGHTS = 2e-6, 5e-5, 1e-5
HALVES = {"micro_batch_size": 2, "num_microbatches": 2, "data_parallel": 2}
WHOLE = {"micro_batch_size": 2, "num_microbatches": 4}
# By name: the layout, and whether the model comes from the meta device.
LAYOUTS: dict[str, tuple[dict[str, Any], bool]] = {
    "dp2": (HALVES, False),
    "dp2 zero3 recompute": ({**HALVES, "zero_stage": 3, "recompute": "full"}, True),
    "tp2": ({**WHOLE, "tensor_parallel": 2}, True),
    "pp2": ({**WHOLE, "pipeline_parallel": 2, "schedule": "1f1b", "stage_bounds": (0, 3)}, True),
}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came of a fine-tuning: losses and norms of its steps, and its weights."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def config() -> LlamaConfig:
    """A model of 2.4 million parameters."""
    return LlamaConfig(
        vocab_size=256, hidden_size=192, intermediate_size=512, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=TOKENS, use_cache=False, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip


def batch_of(step: int) -> dict[str, Tensor]:
    """The samples of a step: bytes of a text of Python's."""
    ids, _ = load_text(default_text(), TOKENS, SEED).batch(step, SAMPLES)
    return {"input_ids": ids, "labels": ids}


def options_of(name: str, parameter: nn.Parameter) -> dict[str, Any]:
    """No weight decay for norms."""
    return {"weight_decay": 0.0} if parameter.dim() < 2 else {}


def tune(model: nn.Module, first: int, last: int, rate: float = RATE) -> Tuned:
    """Train by plain torch in one process."""
    groups = [{"params": [own], **options_of(name, own)} for name, own in model.named_parameters()]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    losses, norms = [], []
    for step in range(first, last):
        loss = model(**batch_of(step)).loss
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MOST)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return Tuned(losses=losses, norms=norms, weights={name: own.detach() for name, own in model.state_dict().items()})


def pretrain(folder: Path) -> None:
    """Make the checkpoint that all begin from."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config()).train()
    tune(model, 0, BEFORE, 1e-3)
    model.save_pretrained(folder, max_shard_size="4MB")


def ranks(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Fine-tune in each layout on this rank, from the same checkpoint."""
    found = []
    for case in payload["cases"]:
        plan, folder = validate(case["plan"], Plan, "the test"), Path(payload["checkpoint"])
        own = SAMPLES // plan.data_parallel
        example = {name: value[:own] for name, value in batch_of(0).items()}
        if case["from_meta"]:
            with torch.device("meta"):
                model = LlamaForCausalLM(config()).train()
            job = executor.apply(plan, model, example=example, weights=folder, device="cpu")
        else:
            model = LlamaForCausalLM.from_pretrained(folder, local_files_only=True).train()
            job = executor.apply(plan, model, example=example, device="cpu")
        optimizer = job.optimizer(torch.optim.AdamW, groups=options_of, lr=RATE)
        losses, norms, start = [], [], job.replica * own
        for step in range(BEFORE, BEFORE + payload["steps"]):
            batch = {name: value[start : start + own] for name, value in batch_of(step).items()}
            losses.append(float(job.step(batch)))
            norms.append(job.clip_(MOST))
            optimizer.step()
        job.export(case["exported"])
        found.append({"losses": losses, "norms": norms})
    dist.barrier()
    dist.destroy_process_group()
    return found


def fine_tune(names: list[str], steps: int, folder: Path) -> dict[str, dict[str, float]]:
    """By layout, the largest relative differences from plain torch."""
    checkpoint = folder / "pretrained"
    pretrain(checkpoint)
    wanted = tune(LlamaForCausalLM.from_pretrained(checkpoint).train(), BEFORE, BEFORE + steps)
    cases = [
        {
            "plan": asdict(Plan(**LAYOUTS[name][0])), "from_meta": LAYOUTS[name][1],
            "exported": str(folder / name.replace(" ", "-")),
        }
        for name in names
    ]  # fmt: skip
    payload = {"cases": cases, "checkpoint": str(checkpoint), "steps": steps}
    found = launch("tests.fine_tune:ranks", payload, 2, "cpu")
    differences = {}
    for name, case, own in zip(names, cases, found, strict=True):
        again = LlamaForCausalLM.from_pretrained(case["exported"], local_files_only=True)
        weights = again.state_dict()
        assert weights.keys() == wanted.weights.keys()
        differences[name] = {
            "losses": _off(torch.tensor(own["losses"]), torch.tensor(wanted.losses)),
            "norms": _off(torch.tensor(own["norms"]), torch.tensor(wanted.norms)),
            "weights": max(
                float((weights[path] - value).norm() / value.norm()) for path, value in wanted.weights.items()
            ),
        }
    return differences


def holds(found: dict[str, float]) -> bool:
    """Whether a layout trained what plain torch did."""
    return found["losses"] <= LOSS and found["norms"] <= NORM and found["weights"] <= WEIGHTS


def _off(own: Tensor, wanted: Tensor) -> float:
    assert own.shape == wanted.shape
    return float(((own - wanted) / wanted).abs().max())


def main() -> None:
    """Fine-tune in all layouts and print how far each is from plain torch."""
    parser = argparse.ArgumentParser(prog="python -m tests.fine_tune", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        found = fine_tune(list(LAYOUTS), steps, Path(folder))
    print(f"{steps} steps on from a checkpoint, against plain torch; largest relative difference")
    print(f"{'layout':24}{'losses':>10}{'norms':>10}{'weights as from_pretrained reads them':>40}")
    for name, own in found.items():
        words = "" if holds(own) else "  NOT THE SAME"
        print(f"{name:24}{own['losses']:10.1e}{own['norms']:10.1e}{own['weights']:40.1e}{words}")
    sys.exit(0 if all(map(holds, found.values())) else 4)


if __name__ == "__main__":
    main()
