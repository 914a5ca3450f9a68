"""Software stacks: how the programs that train behave in time, one catalogue file each. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from profiles.artifacts import STRICT, read_toml
from profiles.errors import UnknownNameError

FOLDER = Path(__file__).parent / "catalog" / "stacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackTime:
    """What a stack adds to its kernels.

    `product_slowdown`: seconds of a product over the best library's. `element_passes` and `score_passes`: memory
    traffic of element-wise kernels, and of unfused attention's scores, over that of fused ones; `gated_` is that of
    models with RMS norms, rotary positions and gated activations, which eager code spells out in many kernels.
    `selective_product_share`: share of a layer's products that selective recomputation repeats, with all element-wise
    work but not attention; 0 where it repeats attention's core alone. `loss_bytes`: bytes
    moved per logit, forward and backward together. `accumulate_bytes`: bytes per parameter and micro-batch to add
    gradients up; `optimizer_bytes`: bytes per updated parameter and step. `*_message_bytes`: bytes per parameter that
    is reduced or gathered. `reduces_every_microbatch`: whether sharded gradients are reduced for each micro-batch.
    `host_layer_us`: host time to launch one layer's forward; `host_step_ms`: of a step outside the layers.
    `tensor_overlap`: share of tensor-parallel messages hidden where the job overlaps them. `compiled_*`: the same
    numbers under a compiler.
    """

    __pydantic_config__ = STRICT

    product_slowdown: float = 1.0
    element_passes: float
    gated_element_passes: float
    selective_product_share: float = 0.0
    compiled_element_passes: float = 1.0
    score_passes: float
    loss_bytes: float
    accumulate_bytes: float
    optimizer_bytes: float
    gradient_message_bytes: float
    parameter_message_bytes: float = 2.0
    reduces_every_microbatch: bool = False
    host_layer_us: float
    compiled_host_layer_us: float = 250.0
    host_step_ms: float
    tensor_overlap: float = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One program that trains; `sources` says whence each number is.

    `group`: stacks whose layers are written alike, so that runs of one tell of the others: "megatron" fuses by hand,
    "native" runs PyTorch's own operators, "compiler" leaves it to a compiler.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str
    group: str
    time: StackTime
    sources: dict[str, str]


def stack_names() -> list[str]:
    """The names of all shipped stacks."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@lru_cache(maxsize=64)
def load_stack(name: str) -> Stack:
    """The shipped stack called `name`.

    Raises: UnknownNameError with the nearest name.
    """
    if name not in stack_names():
        raise UnknownNameError("stack", name, stack_names())
    return read_toml(FOLDER / f"{name}.toml", Stack)
