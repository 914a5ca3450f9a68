"""A job of other software as a row of a table of runs: its configuration, and what its log measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planner.plans import Plan, recomputed_layers
from planner.schedules.registry import NONE
from planner.stacks.handover import StackJob
from profiles.models.sizes import sizes_of
from profiles.models.transformer import Transformer
from profiles.units import GIB

# Columns of a table of runs by the fields of a Transformer that they are.
SIZES = {
    "num_layers": "num_layers", "hidden_size": "hidden_size", "num_heads": "num_heads",
    "num_kv_heads": "num_kv_heads", "vocab_size": "vocab_size", "num_experts": "num_experts",
    "num_dense_layers": "num_dense_layers", "shared_expert_ffn_size": "shared_ffn_size",
}  # fmt: skip
OF_EXPERTS = {"moe_topk": "experts_per_token", "moe_ffn_size": "expert_ffn_size"}
OF_LATENT = ("mla_q_lora", "mla_kv_lora", "mla_qk_nope", "mla_qk_rope", "mla_v")


def cells_of(job: StackJob, source: Path) -> dict[str, str]:
    """The row of a job. Cells that the job's file says itself come before those that its plan implies.

    Raises: InputError for a model that is not known by its sizes.
    """
    model = sizes_of(job.workload.name, job.workload.config).transformer
    seconds = job.median_seconds
    measured = {
        "step_time_s": None if seconds is None else f"{seconds:.9g}",
        "peak_mem_gib": None if job.peak_bytes is None else f"{job.peak_bytes / GIB:.6g}",
        "peak_mem_kind": None if job.peak_bytes is None else "allocated",
    }
    said = {
        "row_id": source.stem,
        "family": source.stem,
        **_sizes(model),
        **_layout(job.plan, int(model.num_layers[0])),
        "seq_len": str(job.sequence_length),
        "num_gpus": str(job.num_devices),
        "global_batch_size": str(job.global_batch_size),
        "gpu_type": job.device or None,
        "stack": job.stack,
        "attention_kernel": job.attention_kernel,
        "overlap_tp": None if job.overlaps_tensor is None else flag(job.overlaps_tensor),
        **measured,
        **job.cells,
    }
    return {name: value for name, value in said.items() if value is not None}


def _sizes(model: Transformer) -> dict[str, str | None]:
    def number(name: str) -> str:
        return f"{float(getattr(model, name)[0]):.12g}"

    cells: dict[str, str | None] = {column: number(name) for column, name in SIZES.items()}
    is_gated, has_positions = bool(model.gated[0]), bool(model.learned_positions[0])
    cells |= {
        "arch": "gpt" if has_positions or model.biases[0] else "llama",
        "mlp_type": "swiglu" if is_gated else "gelu",
        "tied_embeddings": flag(bool(model.tied[0])),
        "ffn_size": number("ffn_size"),
        "sliding_window_alternating": number("window"),
    }
    if model.is_moe[0]:
        cells |= {"arch": "moe", "dense_ffn_size": number("ffn_size")}
        cells |= {column: number(name) for column, name in OF_EXPERTS.items()}
    if model.is_mla[0]:
        return cells | {"attention": "mla"} | {name: number(name) for name in OF_LATENT}
    return cells | {"head_dim": number("head_dim")}


def _layout(plan: Plan, num_layers: int) -> dict[str, str | None]:
    counts = np.diff([*plan.stage_bounds, num_layers + 2])
    # The embedding goes with the first stage, the head with the last.
    counts[0], counts[-1] = counts[0] - 1, counts[-1] - 1
    most = int(counts.max())
    recomputed = sum(len(recomputed_layers(plan, stage, num_layers + 2)) for stage in range(plan.num_stages))
    is_partial = plan.recompute == "full" and recomputed < num_layers
    return {
        "tp": str(plan.tensor_parallel),
        "pp": str(plan.pipeline_parallel),
        "vp": str(plan.virtual_stages),
        "dp": str(plan.data_parallel),
        "cp": str(plan.context_parallel),
        "ep": str(plan.expert_parallel),
        "zero_stage": str(plan.zero_stage),
        "dp_shard": str(plan.shard_degree) if plan.shard_degree else None,
        "sequence_parallel": flag(plan.sequence_parallel),
        "schedule": None if plan.schedule == NONE else plan.schedule,
        "first_stage_fewer_layers": str(most - counts[0]) if plan.pipeline_parallel > 1 else None,
        "last_stage_fewer_layers": str(most - counts[-1]) if plan.pipeline_parallel > 1 else None,
        "micro_batch_size": str(plan.micro_batch_size),
        "recompute_class": "partial" if is_partial else plan.recompute,
        "recompute_layers_fraction": f"{recomputed / num_layers:.6g}" if is_partial else None,
        "recompute_modules": "layer" if is_partial else None,
        "precision_class": plan.precision,
        "compiled": flag(plan.compiled),
        "optimizer_offload": flag(plan.offload == "optimizer"),
        "activation_offload": flag(plan.offload == "activations"),
    }


def flag(is_on: bool) -> str:
    """A column that is yes or no."""
    return "yes" if is_on else "no"
