"""Precision, overlap and kernels of a plan in Megatron's arguments, and the environment that they ask for."""

from __future__ import annotations

from planner.plans import Plan
from planner.prediction import PlannedFor
from planner.stacks.megatron.say_layout import FSDP_STAGES
from planner.stacks.megatron.say_model import Settings
from planner.stacks.megatron.words import WORDS
from profiles.errors import PlanError
from profiles.machines.stacks import Stack

PRECISIONS = ("fp32", "bf16", "fp16", "fp8")
UNFUSED, FLASH = "unfused", "flash"
FLASH_VERSIONS = ("2", "3", "4")
LOCAL, ENGINE = "local", "transformer_engine"


def say_software(planned: PlannedFor, plan: Plan, stack: Stack, layers: str) -> Settings:
    """Which numbers are computed in, by which kernels, and what is sent beside compute.

    `layers`: whose they are, in Megatron's word: its own (LOCAL) or TransformerEngine's.
    Raises: PlanError for what Megatron has no argument for.
    """
    local = layers == LOCAL
    if local and plan.context_parallel > 1:
        raise PlanError(f"Megatron's own layers have no context_parallel={plan.context_parallel}: use 1")
    settings: Settings = {"transformer-impl": layers}
    if local:
        # It is TransformerEngine that has these kernels.
        settings |= {"no-rope-fusion": True, "no-persist-layer-norm": True}
    else:
        # As its layers' memory is counted; its own layers are counted with a plain one.
        settings["cross-entropy-loss-fusion"] = True
    settings |= _precision(plan, stack, local=local)
    if planned.gradient_dtype:
        if plan.precision == "fp32":
            raise PlanError(f"Megatron does not send gradients in {planned.gradient_dtype} when weights are in fp32")
        settings["grad-reduce-in-bf16"] = True
    settings |= _attention(planned, stack, local=local)
    if stack.habits.overlaps_gradients and plan.data_parallel * plan.context_parallel > 1:
        settings["overlap-grad-reduce"] = True
        if stack.habits.overlaps_parameters and plan.zero_stage:
            settings["overlap-param-gather"] = True
    if planned.overlaps_tensor and plan.sequence_parallel:
        if local:
            raise PlanError("Megatron's own layers cannot overlap tensor-parallel messages: give --no-tp-overlap")
        settings["tp-comm-overlap"] = True
    return settings


def _precision(plan: Plan, stack: Stack, *, local: bool) -> Settings:
    if plan.precision not in PRECISIONS or (local and plan.precision == "fp8"):
        known = [name for name in PRECISIONS if not (local and name == "fp8")]
        raise PlanError(f"Megatron has no argument for precision={plan.precision}: use {', '.join(known)}")
    if plan.precision == "fp32":
        return {}
    if plan.precision in ("bf16", "fp16"):
        return {plan.precision: True}
    recipe = WORDS["fp8-recipe"].their(stack.time.fp8_recipe)
    if recipe is None:
        raise PlanError(f"Megatron has no argument for 8 bits scaled {stack.time.fp8_recipe}: use bf16")
    settings: Settings = {"bf16": True, "fp8-format": "hybrid", "fp8-recipe": recipe}
    if stack.time.keeps_low_weights and plan.zero_stage:
        # Sharded weights can be gathered in 8 bits; whole ones are converted once a step all the same.
        settings["fp8-param-gather"] = True
    return settings


def _attention(planned: PlannedFor, stack: Stack, *, local: bool) -> Settings:
    kernel = planned.attention_kernel or stack.habits.attention
    if local:
        if kernel != UNFUSED:
            raise PlanError(
                f"Megatron's own layers have no attention by {kernel}: plan for --stack megatron-core, or with "
                f"--attention-kernel {UNFUSED}"
            )
        return {}
    family, version = (FLASH, kernel.removeprefix(FLASH)) if kernel.startswith(FLASH) else (kernel, "")
    theirs = WORDS["attention-backend"].their(family)
    if theirs is None or version not in ("", *FLASH_VERSIONS):
        known = ", ".join(f"{FLASH}{one}" for one in FLASH_VERSIONS)
        raise PlanError(f"Megatron has no attention by {kernel}: use --attention-kernel cudnn, {known} or {UNFUSED}")
    return {"attention-backend": theirs, **({"flash-attention-version": int(version)} if version else {})}


def environment(plan: Plan) -> dict[str, str]:
    """Variables that its ranks need, by name."""
    # One queue keeps a sum that was launched first ahead of the products beside it; FSDP's copies need several.
    queues = "8" if plan.zero_stage in FSDP_STAGES else "1"
    return {
        "CUDA_DEVICE_MAX_CONNECTIONS": queues,
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
        "NCCL_NVLS_ENABLE": "0",
    }
