"""Megatron's arguments as a job: model, plan, what neither says, and what was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.stacks.handover import Given, StackJob, Step
from planner.stacks.megatron.read_layout import ReadLayout, least_devices, read_layout
from planner.stacks.megatron.read_model import read_model
from planner.stacks.megatron.say_software import FLASH, LOCAL, UNFUSED
from planner.stacks.megatron.told import Said, Told
from planner.stacks.megatron.words import WORDS

CORE, OLD = "megatron-core", "megatron-lm"
# Only versions before Megatron-Core have these.
OLD_WORDS = ("checkpoint-activations", "activations-checkpoint-method")
YES = {True: "yes", False: "no"}


def read_job(
    where: str,
    said: Sequence[Said],
    given: Given,
    *,
    devices: int = 0,
    whence: str = "",
    unread: Sequence[str] = (),
    accepted: bool = False,
    steps: tuple[Step, ...] = (),
    peak_bytes: float | None = None,
) -> StackJob:
    """The job of a file; `devices` are those that it is started on, as `whence` says, 0 where nothing does.

    `accepted`: Megatron itself has taken the settings, and filled in what they imply.
    Raises: InputError for settings that contradict, and for sizes that are missing or do not go together.
    """
    told = Told(where, said, accepted=accepted)
    assumed: list[str] = []
    sequence = _sequence(told, given, assumed)
    model = read_model(told, given, sequence)
    num_devices = _devices(told, given, devices, whence, assumed, has_experts=model.has_experts)
    if given.global_batch_size and not told.is_on("global-batch-size"):
        told.said["global-batch-size"] = Said(
            name="global-batch-size", values=(str(given.global_batch_size),), place="--global-batch"
        )
    if not told.is_on("micro-batch-size"):
        assumed.append("micro-batch-size: 1, as the file does not say")
    started = "" if given.num_devices or told.size("world-size") else whence
    layout = read_layout(told, model.num_layers, num_devices, has_experts=model.has_experts, whence=started)
    _read_precision(told, layout)
    _read_offload(told, layout)
    return StackJob(
        stack=OLD if _is_old(told) else CORE,
        workload=model.workload,
        plan=layout.plan,
        num_devices=num_devices,
        global_batch_size=layout.global_batch_size,
        sequence_length=sequence,
        attention_kernel=_attention(told),
        overlaps_tensor=told.is_on("tp-comm-overlap"),
        cells=model.cells | layout.cells | _cells(told, layout, has_experts=model.has_experts),
        unread=(*unread, *told.unread),
        unpriced=tuple(told.unpriced),
        assumed=(*assumed, *model.assumed, "version: not given; its arguments are read as those of 0.20.0"),
        words=told.chosen,
        steps=steps,
        peak_bytes=peak_bytes,
    )


def _sequence(told: Told, given: Given, assumed: list[str]) -> int:
    # Of a model that reads images as well, the former counts what the decoder gets.
    own = told.size("decoder-seq-length") or told.size("seq-length") or given.sequence_length
    if own:
        return own
    positions = told.size("max-position-embeddings")
    if not positions:
        raise told.refuse("it has no seq-length: say how long samples are, with --sequence-length")
    assumed.append(f"seq-length: {positions}, as max-position-embeddings")
    return positions


def _devices(told: Told, given: Given, devices: int, whence: str, assumed: list[str], *, has_experts: bool) -> int:
    own = told.size("world-size") or devices
    if given.num_devices and told.size("world-size") and given.num_devices != told.size("world-size"):
        raise told.refuse(f"--gpus {given.num_devices} contradicts it: leave one of them out", "world-size")
    if given.num_devices:
        if devices not in (0, given.num_devices):
            assumed.append(f"{given.num_devices} devices by --gpus, not {devices} {whence}")
        return given.num_devices
    if own:
        if whence and not told.size("world-size"):
            assumed.append(f"{own} devices: {whence}")
        return own
    least = least_devices(told, has_experts=has_experts)
    assumed.append(f"{least} devices, as the file does not say how many; give --gpus")
    return least


def _is_old(told: Told) -> bool:
    return told.word("transformer-impl") == LOCAL or any(told.is_on(name) for name in OLD_WORDS)


def _attention(told: Told) -> str | None:
    # Logs show the member of an enumeration.
    word = WORDS["attention-backend"]
    own = word.ours.get((told.word(word.name) or "").rsplit(".", 1)[-1])
    if own == FLASH or (told.is_on("use-flash-attn") and own is None):
        return f"{FLASH}{told.size('flash-attention-version') or ''}"
    return UNFUSED if own is None and told.word("transformer-impl") == LOCAL else own


def _read_precision(told: Told, layout: ReadLayout) -> None:
    precision = "bf16" if told.is_on("bf16") else "fp16" if told.is_on("fp16") else "fp32"
    if told.is_on("fp8-format"):
        precision = "fp8"
        word = WORDS["fp8-recipe"]
        recipe = word.ours.get(told.word(word.name) or "")
        if recipe is None:
            told.unread.append(told.said[word.name].text)
        else:
            layout.cells["fp8_recipe"] = recipe
        layout.cells["fp8_param_gather"] = YES[told.is_on("fp8-param-gather")]
    elif told.is_on("fp4-format"):
        precision = "fp8"
        layout.cells["precision_class"] = "nvfp4"
    layout.plan = replace(layout.plan, precision=precision)


def _read_offload(told: Told, layout: ReadLayout) -> None:
    if told.is_on("optimizer-cpu-offload"):
        layout.plan = replace(layout.plan, offload="optimizer")
    elif told.is_on("cpu-offloading") or told.is_on("fine-grained-activation-offloading"):
        layout.plan = replace(layout.plan, offload="activations")


def _cells(told: Told, layout: ReadLayout, *, has_experts: bool) -> dict[str, str]:
    """Columns of what is sent beside compute, and of numbers and kernels that a plan has no field for."""
    plan, cells = layout.plan, {}
    cells["overlap_grad"] = YES[told.is_on("overlap-grad-reduce")]
    cells["overlap_param"] = YES[told.is_on("overlap-param-gather")]
    if plan.virtual_stages > 1:
        cells["overlap_pp"] = YES[not told.is_on("no-overlap-p2p-communication")]
    if told.is_on("grad-reduce-in-bf16") or told.word("main-grads-dtype") in ("bf16", "torch.bfloat16"):
        cells["gradient_dtype"] = "bf16"
    elif told.is_on("accumulate-allreduce-grads-in-fp32") or told.is_on("bf16"):
        # In bf16 they are added up in 32 bits, whether it is said or not.
        cells["gradient_dtype"] = "fp32"
    if told.is_on("cross-entropy-loss-fusion") or not _is_old(told):
        cells["fused_loss"] = YES[told.is_on("cross-entropy-loss-fusion")]
    optimizer = WORDS["optimizer"].ours.get(told.word("optimizer") or "")
    if optimizer is None:
        told.unread.append(told.said["optimizer"].text)
    elif optimizer != "adamw":
        cells["optimizer"] = optimizer
    if has_experts:
        cells["moe_dispatcher"] = _dispatcher(told)
    return cells


def _dispatcher(told: Told) -> str:
    kind = told.word("moe-token-dispatcher-type") or ""
    if kind == "flex" or told.is_on("moe-enable-deepep"):
        return WORDS["moe-flex-dispatcher-backend"].ours.get(told.word("moe-flex-dispatcher-backend") or "", "deepep")
    return WORDS["moe-token-dispatcher-type"].ours.get(kind, "alltoall")
