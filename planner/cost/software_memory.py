"""What the software of each job does with memory, in columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import get_type_hints

import numpy as np

from planner.cost.adapted import is_frozen
from planner.cost.hardware import generations
from planner.cost.job import Jobs
from profiles.models.transformer import Array, Flags
from profiles.units import GIB

CHUNKS_RULE = "the unsplit logits alone exceed the device's memory"
MIB = 2.0**20
# cuBLAS workspace of one stream. Source: PyTorch's CUBLAS_WORKSPACE_CONFIG, 32 MiB from Hopper on, 8 MiB before.
LARGE_WORKSPACE_BYTES, SMALL_WORKSPACE_BYTES = 32 * MIB, 8.125 * MIB
LARGE_WORKSPACES = ("hopper", "blackwell")
# Share of Adam's moments that another optimizer has: none; both in 8 bits of 32; one of them, as Muon's matrices; sums
# of rows and columns alone (Adafactor).
MOMENT_SHARES = {"sgd": 0.0, "adam8bit": 0.25, "adam8bit_in_backward": 0.25, "muon": 0.5, "adafactor": 0.0}
NARROW_BYTES, WIDE_BYTES = 2.0, 4.0
# Of 16-bit gradients that go after every micro-batch: what lies in between keeps the allocator from using their place
# again. Assumed; 20 published runs agree in the mean.
LOW_GRADIENT_HOLES = 0.5
# Of a loss that waits for its backward, as GPipe's all do: the logarithms of the softmax in 32 bits. The pipeline keeps
# the logits themselves.
KEPT_LOGIT_BYTES = 4.0
# Of a linear's input as it is kept for backward; block scales included.
INPUT_BYTES = {"fp32": 4.0, "fp8": 1.0, "mxfp8": 1.0 + 1 / 32, "nvfp4": 0.5 + 1 / 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRules:
    """StackMemory's numbers, one per job, for the job's precision. Shapes: one entry per job.

    `element_bytes`: of an activation. `input_bytes`: of a linear's input as kept for backward. `waiting_logit_bytes`:
    of a logit whose loss waits for its backward. `idle_logit_bytes`: of what the allocator holds beside a loss and
    would give back. `outputs_kept`: share of what a stage gave that it keeps. `hole_bytes`: of holes that a
    parameter's gradients leave. `base_bytes`: of a weight of a layer that adapters leave as it is, `adapter_bytes` of
    one of theirs.
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
    waiting_logit_bytes: Array
    idle_logit_bytes: Array
    hole_bytes: Array
    fused_activation: Flags
    keeps_packed_qkv: Flags
    keeps_gathered: Flags
    keeps_dropout_masks: Flags
    norm_extra_bytes: Array
    attention_output_copies: Array
    context_output_copies: Array
    receives_whole_step: Flags
    outputs_kept: Array
    live_parameters: Array
    accumulates_whole: Flags
    experts_in_turns: Flags
    frees_by_moment: Flags
    frees_gradients: Flags
    selective_by_operator: Flags
    bucket_bytes: Array
    bucket_gradient_bytes: Array
    workspace_bytes: Array
    vocabulary_slack: Array
    logit_slack: Array
    working_slack: Array
    context_bytes: Array
    element_bytes: Array
    input_bytes: Array
    base_bytes: Array
    adapter_bytes: Array


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
    is_low, is_fused = low < element, jobs.compiled | (jobs.fused_norms == "yes")
    num_workspaces = column("workspaces") + np.where(jobs.model.is_moe, column("routed_workspaces"), 0.0)
    large = np.isin(generations(jobs), LARGE_WORKSPACES)
    # Of a frozen norm that is spelled out, the normed input is kept for no gradient of its weight.
    spared = np.where(is_frozen(jobs) & jobs.model.gated, element, 0.0)
    own = {
        "element_bytes": element,
        "input_bytes": low,
        "weight_bytes": np.where(is_fp32, 4.0, _weights(column("weight_bytes"), low, is_low)),
        "gathered_bytes": np.where(
            jobs.parameter_bytes > 0, jobs.parameter_bytes, np.where(is_fp32, 4.0, column("gathered_bytes"))
        ),
        "fused_activation": (column("fused_activation") > 0) | is_fused,
        "norm_extra_bytes": np.where(is_fused, 0.0, np.maximum(column("norm_extra_bytes") - spared, 0.0)),
        "bucket_bytes": column("bucket_mib") * MIB,
        "outputs_kept": column("keeps_outputs") / np.where(_cuts_messages(jobs), jobs.tensor, 1.0),
        "workspace_bytes": num_workspaces * np.where(large, LARGE_WORKSPACE_BYTES, SMALL_WORKSPACE_BYTES),
        "context_bytes": column("context_gib") * GIB + num_communicators(jobs) * column("communicator_mib") * MIB,
        **_trained(jobs, column),
        **_of_loss(jobs, column, element),
    }
    own |= _as_told(jobs, own, column)
    flags = _flags()
    for field in fields(MemoryRules):
        if field.name not in own:
            own[field.name] = column(field.name) > 0 if field.name in flags else column(field.name)
    return MemoryRules(**own)


@cache
def _flags() -> frozenset[str]:
    """Names of the rules that are yes or no."""
    return frozenset(name for name, kind in get_type_hints(MemoryRules).items() if kind == Flags)


def num_communicators(jobs: Jobs) -> Array:
    """Groups of ranks that a rank exchanges data with: one per axis; in a pipeline both neighbours.

    Model: where several axes split the ranks, there is one of all of them as well, in which they start and agree; a
    model that is split both ways sums the norm of its gradients over both.
    """
    axes = (jobs.tensor, jobs.context, jobs.data)
    split = np.asarray(sum(np.where(axis > 1, 1.0, 0.0) for axis in axes))
    experts = np.where(jobs.expert * jobs.expert_tensor > 1, 1.0, 0.0)
    is_piped = np.where(jobs.pipeline > 1, 1.0, 0.0)
    everyone = np.where(split + is_piped > 1, 1.0, 0.0)
    return np.asarray(split + experts + everyone + is_piped * np.where(jobs.tensor > 1, 3.0, 2.0))


def _cuts_messages(jobs: Jobs) -> Flags:
    """Whether tensor-parallel ranks each send a share of what goes to the next stage, and keep that alone."""
    return np.asarray(
        (jobs.stack.read(lambda stack: float(stack.time.scatters_pipeline)) > 0) & ~jobs.sequence_parallel
    )


def moment_share(jobs: Jobs) -> Array:
    """Bytes of the optimizer's moments over those of Adam's in 32 bits. Shapes: one entry per job."""
    share = np.ones(len(jobs))
    for name, of_adam in MOMENT_SHARES.items():
        share = np.where(jobs.optimizer == name, of_adam, share)
    return share


def chunks_loss(jobs: Jobs) -> Flags:
    """Whether the logits of a job's loss alone exceed its device, where it does not say that its loss is a plain one.

    No software could run it so. Shapes: one entry per job.
    """
    per_logit = jobs.stack.read(lambda stack: stack.memory.loss_logit_bytes)
    logits = jobs.tokens * jobs.model.vocab_size / jobs.vocabulary_split * per_logit
    return np.asarray((jobs.fused_loss == "") & (logits > jobs.device_memory_bytes))


def _trained(jobs: Jobs, column: Callable[[str], Array]) -> dict[str, Array]:
    """Bytes of gradients and optimizer of a parameter.

    Model: fp32 training has no copies in another precision. Where losses are scaled (fp16), some stacks hold gradients
    in 16 bits and copy them as they update; some keep 16-bit gradients beside those that they add up in 32 bits, and
    widen one after the other for it.
    """
    is_fp32, is_fp16 = jobs.precision == "fp32", jobs.precision == "fp16"
    scaled, told = column("fp16_gradient_bytes"), jobs.gradient_bytes
    is_wide = np.where(told > 0, told > NARROW_BYTES, ~is_fp32 & ~(is_fp16 & (scaled > 0)))
    low = np.where(is_wide, column("low_gradient_bytes"), 0.0)
    gradient = np.where(is_fp16 & (scaled > 0), scaled, column("gradient_bytes"))
    gradient = np.where(told > 0, told + np.where(told > NARROW_BYTES, column("low_gradient_bytes"), 0.0), gradient)
    gathered = column("gathered_gradient_bytes")
    return {
        "gradient_bytes": np.where(is_fp32, 4.0, gradient),
        # As they are reduced; what passes compute in 16 bits is beside that.
        "gathered_gradient_bytes": np.where(
            is_fp32, 4.0, np.where((told > 0) & (gathered > NARROW_BYTES), NARROW_BYTES + told, gathered)
        ),
        "master_bytes": np.where(is_fp32, 0.0, column("master_bytes")),
        "moment_bytes": column("moment_bytes") * moment_share(jobs),
        "step_bytes": column("step_bytes") + np.where(is_fp16, column("fp16_step_bytes"), 0.0),
        # Sharded weights are gathered in 16 bits and need no copies beside.
        "cast_bytes": np.where(is_fp32 | (jobs.zero_stage >= 2), 0.0, column("cast_bytes")),
        "head_gradient_bytes": np.where(low > 0, WIDE_BYTES, column("head_gradient_bytes")),
        "hole_bytes": low * LOW_GRADIENT_HOLES,
        "bucket_gradient_bytes": column("bucket_gradient_bytes"),
    }


def _as_told(jobs: Jobs, own: dict[str, Array], column: Callable[[str], Array]) -> dict[str, Array]:
    """What is otherwise where nothing is in 32 bits, where a parameter's update frees its gradient, and of adapters.

    Model: a frozen weight has neither gradient nor state, and is stored in as few bits as it may be.
    """
    pure = (jobs.master_weights == "no") & (jobs.precision != "fp32")
    is_eager = np.char.endswith(jobs.optimizer, "_in_backward")
    frozen = is_frozen(jobs)
    if not (np.any(pure) or np.any(is_eager) or np.any(frozen)):
        return {"base_bytes": own["weight_bytes"], "adapter_bytes": own["weight_bytes"]}
    narrow, in_buckets = (
        np.where(jobs.gradient_bytes > 0, jobs.gradient_bytes, NARROW_BYTES),
        own["bucket_gradient_bytes"],
    )
    # Temporaries of an update are as wide as what it updates.
    ratio = np.where(pure, NARROW_BYTES / np.maximum(column("weight_bytes") + column("master_bytes"), 1.0), 1.0)
    plain = {
        "weight_bytes": np.where(pure, np.minimum(own["weight_bytes"], NARROW_BYTES), own["weight_bytes"]),
        "gradient_bytes": np.where(pure, narrow, own["gradient_bytes"]),
        "gathered_gradient_bytes": np.where(pure, NARROW_BYTES, own["gathered_gradient_bytes"]),
        "master_bytes": np.where(pure, 0.0, own["master_bytes"]),
        "moment_bytes": np.where(pure, 0.5, 1.0) * own["moment_bytes"],
        "step_bytes": own["step_bytes"] * np.minimum(ratio, 1.0),
        "cast_bytes": np.where(pure, 0.0, own["cast_bytes"]),
        "bucket_gradient_bytes": np.where(pure, np.minimum(narrow, in_buckets), in_buckets),
    }
    for name in ("gradient_bytes", "step_bytes", "bucket_gradient_bytes"):
        plain[name] = np.where(is_eager, 0.0, plain[name])
    stored, element = jobs.adapters.read(lambda one: one.base_bytes), own["element_bytes"]
    base = np.where(stored > 0, stored, element)
    # Adapters are held as the stack holds what it trains, whatever the weights beside them are in.
    states = ("gradient_bytes", "master_bytes", "moment_bytes", "step_bytes", "bucket_gradient_bytes")
    nothing = ("gathered_gradient_bytes", "cast_bytes", "head_gradient_bytes", "layer_gradient_bytes")
    adapted: dict[str, Array | float] = {name: own[name] for name in states} | dict.fromkeys(nothing, 0.0)
    adapted["weight_bytes"] = element
    held = own | plain | {"layer_gradient_bytes": column("layer_gradient_bytes")}
    return (
        plain
        | {"gathered_bytes": np.where(frozen, base, own["gathered_bytes"])}
        | {name: np.where(frozen, value, held[name]) for name, value in adapted.items()}
        | {"base_bytes": np.where(frozen, base, held["weight_bytes"]), "adapter_bytes": own["weight_bytes"]}
    )


def _of_loss(jobs: Jobs, column: Callable[[str], Array], element: Array) -> dict[str, Array]:
    """Bytes of a logit: in the loss, in the head's backward, and while a loss waits for it.

    Model: a fused loss writes gradients over what it was given; one in chunks has as many logits at once as there are
    hidden states, as Liger Kernel does.
    """
    own, head, split = (column(name) for name in ("loss_logit_bytes", "head_logit_bytes", "split_logit_bytes"))
    plain = np.maximum(own, column("plain_logit_bytes"))
    fused = np.minimum(plain, column("fused_logit_bytes"))
    share = np.minimum(jobs.model.hidden_size / np.maximum(jobs.model.vocab_size, 1.0), 1.0)
    is_fused, is_chunked = jobs.fused_loss == "yes", jobs.fused_loss == "chunked"
    loss = np.where(jobs.fused_loss == "no", plain, np.where(is_fused, fused, own))
    spared = is_fused | is_chunked
    waiting, chunk = KEPT_LOGIT_BYTES + element, np.minimum(fused, plain * share)
    return {
        "loss_logit_bytes": np.where(is_chunked, chunk, loss),
        "head_logit_bytes": np.minimum(head, np.where(is_chunked, chunk, np.where(is_fused, fused, head))),
        "split_logit_bytes": np.where(spared, 0.0, split),
        # Where logits are in 16 bits, or never whole, there is less than a fused loss over wide ones has.
        "idle_logit_bytes": np.where(is_chunked | (loss < fused), 0.0, column("idle_logit_bytes")),
        "waiting_logit_bytes": np.where(is_chunked, 0.0, np.where(is_fused, element, waiting)),
    }


def _weights(wide: Array, low: Array, is_low: Flags) -> Array:
    """Bytes of a weight: 8-bit ones, in both directions, replace the wide ones, 4-bit ones stand beside them."""
    both = 2.0 * low
    return np.where(is_low, np.where(low < 1.0, wide + both, np.maximum(wide, both)), wide)
