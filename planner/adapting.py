"""Adapters as they are asked for: what they do not go together with, and what is said of them. Torch-free."""

from __future__ import annotations

from planner.cost.adapted import adapter_count
from planner.cost.axes.groups import FULL_PRECISIONS
from planner.cost.hardware import LOW_PRECISIONS
from planner.request import Request
from profiles.errors import InputError
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.adapters import AS_IT_IS, NETWORK_TARGETS
from profiles.models.families import BUILT_FAMILIES, VISION_FAMILIES
from profiles.models.sizes import ModelSizes
from profiles.units import format_count


def refuse_adapters(request: Request) -> None:
    """Refuse adapters beside what has none, or with what they do not go together.

    Raises: InputError.
    """
    own = request.adapters
    if not own.freezes:
        return
    sizes, base = request.sizes(), f"--quantised-base {own.base}"
    if sizes is None:
        families = ", ".join(name for name in BUILT_FAMILIES if name not in VISION_FAMILIES)
        raise InputError(
            f"--peft: the linears of {request.model} are known by name only if its class is built in: for the "
            f"families {families}, or with --simulate for all that are planned by their sizes; else leave it out"
        )
    if request.codecs != ("none",):
        raise InputError("--codecs: gradients of adapters are few and are sent uncompressed: leave it out with --peft")
    model = sizes.transformer
    if model.num_experts[0] and set(own.targets) & set(NETWORK_TARGETS):
        raise InputError("--peft: adapters of routed experts are not priced: name linears of attention, as in q,k,v,o")
    if not adapter_count(sizes):
        raise InputError(f"--peft: {sizes.name} has no linear called {', '.join(own.targets)}: name others, as in q,v")
    if own.base_bytes and request.is_measured:
        raise InputError(f"{base}: its conversion was not measured on this machine: leave it out, or give --device")
    if own.base_bytes and request.stack == THIS_PROGRAM and not request.simulate:
        raise InputError(f"{base}: `execute` keeps frozen weights in computing precision: give --simulate or --stack")
    if own.base_bytes and set(request.precisions) & {*LOW_PRECISIONS, *FULL_PRECISIONS}:
        raise InputError(f"{base}: computation with it is in 16 bits: leave --precision out, or give bf16")


def trained_note(sizes: ModelSizes) -> list[str]:
    """What is trained of a model, in words; nothing where all of it is."""
    own = sizes.adapters
    if not own.freezes:
        return []
    beside = f"{format_count(adapter_count(sizes))} parameters, adapters of rank {own.rank} beside "
    base = "in the computing precision" if own.base == AS_IT_IS else f"stored in {own.base}"
    frozen = format_count(float(sizes.transformer.num_parameters[0]))
    return [f"trained: {beside}{', '.join(own.targets)}; {frozen} frozen, linears {base}"]
