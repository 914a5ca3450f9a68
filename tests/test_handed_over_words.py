"""What a user is told of a plan that is written down, and of a job that is read: by whom it was priced, what goes."""

from __future__ import annotations

import json
from pathlib import Path

from planner.prediction import PlanFile
from planner.stacks.abilities import refusal_of
from profiles import artifacts
from profiles.machines.stacks import load_stack
from tests.test_handed_over import said


def test_a_plan_that_is_written_down_is_not_shown_again(tmp_path: Path) -> None:
    """Nothing but what was written is said, by whose prices it was chosen, and what the software has no words for."""
    plan = tmp_path / "plan.json"
    question = ("--model", "llama-3.1-8b", "--gpus", 64, "--device", "h100-sxm", "--top", 5)
    said(*question, "--stack", "trainwright", "-o", plan)
    told = artifacts.read(plan, "plan", PlanFile)
    export = ("--from", plan, "--export", "megatron-core", "-o", tmp_path / "job")
    stack, refused = load_stack("megatron-core"), 0
    for each in told.candidates:
        why = refusal_of(stack, each.plan, told)
        text = said(*export, "--rank", each.rank, code=2 if why else 0)
        refused += bool(why)
        assert (why or "priced for trainwright; `plan --stack megatron-core`") in text
        assert "MFU" not in text
    assert 0 < refused < len(told.candidates)
    said(*question, "--stack", "megatron-core", "-o", plan)
    assert "it was priced for" not in said(*export)


def test_adapters_are_not_promised_to_be_written_down() -> None:
    question = ("--model", "llama-3.1-8b", "--gpus", 8, "--device", "h100-sxm", "--stack", "accelerate")
    assert "--export writes one as a job" in said(*question)
    text = said(*question, "--peft", "lora:16")
    assert "--export writes one as a job" not in text
    assert "--export does not write models with adapters" in text


def test_a_user_of_deepspeed_reads_sentences_and_whole_blocks(tmp_path: Path) -> None:
    config = {
        "train_batch_size": 64, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 8,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3, "overlap_comm": True, "offload_optimizer": {"device": "cpu", "pin_memory": True},
        },
    }  # fmt: skip
    (tmp_path / "ds.json").write_text(json.dumps(config), encoding="utf-8")
    question = ("--model", "llama-3.1-8b", "--gpus", 8, "--device", "h100-sxm", "--sequence-length", 4096)
    text = said("--from", tmp_path / "ds.json", *question)
    assert "assumed: gradients are sent after the backward pass, though the file overlaps them" in text
    assert '- "offload_optimizer": {"device": "cpu"}, and everything in it' in text
    assert '- "stage": 3 + "stage": 2' in text
