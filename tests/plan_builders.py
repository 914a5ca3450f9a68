"""Plan files made by hand, with made-up predictions."""

from pathlib import Path
from typing import Any

from planner.parts import PART_NAMES
from planner.plans import Plan
from planner.prediction import KINDS, Candidate, PlanFile, Prediction
from profiles import artifacts
from profiles.machines.fingerprint import current_fingerprint
from profiles.models.profile import WorkloadSpec

LLAMA = WorkloadSpec(
    kind="transformers",
    name="tiny-llama",
    config={
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    },
)
GPT2 = WorkloadSpec(
    kind="transformers",
    name="tiny-gpt2",
    config={
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 128,
        "vocab_size": 256,
        "tie_word_embeddings": False,
    },
)
QWEN3 = WorkloadSpec(
    kind="transformers",
    name="tiny-qwen3",
    config={**LLAMA.config, "model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 4},
)
MIXTRAL = WorkloadSpec(
    kind="transformers",
    name="tiny-mixtral",
    config={**LLAMA.config, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
)
VIT = WorkloadSpec(
    kind="transformers",
    name="tiny-vit",
    config={
        "model_type": "vit",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "num_labels": 10,
    },
)
# Sixteen patches and the class token.
VIT_TOKENS = 17
NUM_LAYERS = 6
SEED, SEQUENCE, NUM_STEPS, GLOBAL_BATCH = 3, 32, 3, 8


def make_prediction() -> Prediction:
    return Prediction(
        step_seconds=0.1,
        low_seconds=0.05,
        high_seconds=0.15,
        seconds=dict.fromkeys(PART_NAMES, 0.0),
        bytes_per_rank=dict.fromkeys(KINDS, 0.0),
        peak_bytes=1e7,
        stage_peak_bytes=(1e7,),
        fits=True,
        tokens_per_second=1.0,
        mfu=0.1,
        mfu_denominator="made up",
        method="made up",
    )


def make_plan_file(*plans: Plan, spec: WorkloadSpec = LLAMA, sequence: int = 32, **fields: Any) -> PlanFile:
    values: dict[str, Any] = {
        "model_name": spec.name,
        "workload": spec,
        "num_layers": NUM_LAYERS,
        "num_parameters": 200_000,
        "machine_name": "here",
        "machine_origin": "measured",
        "machine_device_kind": "cpu",
        "machine_fingerprint": current_fingerprint("cpu").digest,
        "num_devices": plans[0].num_devices,
        "global_batch_size": plans[0].global_batch_size,
        "sequence_length": sequence,
        "candidates": tuple(
            Candidate(rank=rank, plan=plan, prediction=make_prediction(), verdict="", executable=plan.offload == "none")
            for rank, plan in enumerate(plans, 1)
        ),
        "baseline": -1,
        "num_legal": len(plans),
        "rejected": {},
    }
    return PlanFile(**{**values, **fields})


def write_plan_file(path: Path, *plans: Plan, **fields: Any) -> Path:
    artifacts.write(path, "plan", make_plan_file(*plans, **fields))
    return path
