"""What the software of each job does with memory, in columns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_type_hints

import numpy as np

from planner.cost.hardware import generations
from planner.cost.job import Jobs
from profiles.models.transformer import Array, Flags
from profiles.units import GIB

MIB = 2.0**20
# cuBLAS workspace of one stream. Source: PyTorch's CUBLAS_WORKSPACE_CONFIG, 32 MiB from Hopper on, 8 MiB before.
LARGE_WORKSPACE_BYTES, SMALL_WORKSPACE_BYTES = 32 * MIB, 8.125 * MIB
LARGE_WORKSPACES = ("hopper", "blackwell")
# Of a linear's input as it is kept for backward; block scales included.
INPUT_BYTES = {"fp32": 4.0, "fp8": 1.0, "mxfp8": 1.0 + 1 / 32, "nvfp4": 0.5 + 1 / 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRules:
    """StackMemory's numbers, one per job, for the job's precision. Shapes: one entry per job.

    `element_bytes`: of an activation. `input_bytes`: of a linear's input as kept for backward.
    """

    weight_bytes: Array
    gradient_bytes: Array
    master_bytes: Array
    moment_bytes: Array
    step_bytes: Array
    cast_bytes: Array
    shards_weights_at: Array
    gathered_bytes: Array
    gathered_gradient_bytes: Array
    layer_gradient_bytes: Array
    head_gradient_bytes: Array
    loss_logit_bytes: Array
    head_logit_bytes: Array
    split_logit_bytes: Array
    fused_activation: Flags
    keeps_packed_qkv: Flags
    keeps_gathered: Flags
    keeps_dropout_masks: Flags
    norm_extra_bytes: Array
    attention_output_copies: Array
    context_output_copies: Array
    receives_whole_step: Flags
    accumulates_whole: Flags
    experts_in_turns: Flags
    frees_by_moment: Flags
    cuts_by_parameters: Flags
    selective_by_operator: Flags
    bucket_bytes: Array
    workspace_bytes: Array
    vocabulary_slack: Array
    logit_slack: Array
    working_slack: Array
    context_bytes: Array
    element_bytes: Array
    input_bytes: Array


def memory_rules(jobs: Jobs) -> MemoryRules:
    """The rules of every job's stack at its precision.

    Model: fp32 training has no copies in another precision; compilers fuse activations and norms.
    """

    def column(name: str) -> Array:
        return jobs.stack.read(lambda stack: float(getattr(stack.memory, name)))

    is_fp32 = jobs.precision == "fp32"
    element = np.where(is_fp32, 4.0, 2.0)
    low = np.ones(len(jobs)) * element
    for precision, size in INPUT_BYTES.items():
        low = np.where((jobs.precision == precision) & (column("keeps_low_precision") > 0), size, low)
    is_low = low < element
    num_workspaces = column("workspaces") + np.where(jobs.model.is_moe, column("routed_workspaces"), 0.0)
    large = np.isin(generations(jobs), LARGE_WORKSPACES)
    own = {
        "element_bytes": element,
        "input_bytes": low,
        "weight_bytes": np.where(is_fp32, 4.0, _weights(column("weight_bytes"), low, is_low)),
        "gradient_bytes": np.where(is_fp32, 4.0, column("gradient_bytes")),
        "master_bytes": np.where(is_fp32, 0.0, column("master_bytes")),
        # Sharded weights are gathered in 16 bits and need no copies beside.
        "cast_bytes": np.where(is_fp32 | (jobs.zero_stage >= 2), 0.0, column("cast_bytes")),
        "gathered_bytes": np.where(is_fp32, 4.0, column("gathered_bytes")),
        # As they are reduced; what passes compute in 16 bits is beside that.
        "gathered_gradient_bytes": np.where(is_fp32, 4.0, column("gathered_gradient_bytes")),
        "fused_activation": (column("fused_activation") > 0) | jobs.compiled,
        "norm_extra_bytes": np.where(jobs.compiled, 0.0, column("norm_extra_bytes")),
        "bucket_bytes": column("bucket_mib") * MIB,
        "workspace_bytes": num_workspaces * np.where(large, LARGE_WORKSPACE_BYTES, SMALL_WORKSPACE_BYTES),
        "context_bytes": column("context_gib") * GIB,
    }
    flags = {name for name, kind in get_type_hints(MemoryRules).items() if kind == Flags}
    for field in fields(MemoryRules):
        if field.name not in own:
            own[field.name] = column(field.name) > 0 if field.name in flags else column(field.name)
    return MemoryRules(**own)


def _weights(wide: Array, low: Array, is_low: Flags) -> Array:
    """Bytes of a weight: 8-bit ones, in both directions, replace the wide ones, 4-bit ones stand beside them."""
    both = 2.0 * low
    return np.where(is_low, np.where(low < 1.0, wide + both, np.maximum(wide, both)), wide)
