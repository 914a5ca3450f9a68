"""A task's module over the tensor axis, by the plan that its library has for it: a module says which linears are split.

Column-wise linears feed row-wise ones within a block, and everything around them stays whole on every rank: embeddings,
heads, experts, norms. Heads that are normed with one weight on every rank have gradients that add up over the ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from profiles.errors import PlanError

# By the library's words for them.
STYLES: Mapping[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
    "rowwise_split_input": lambda: RowwiseParallel(input_layouts=Replicate()),
}
SUMMED = "replicated_with_grad_allreduce"
# Left whole, which is right wherever they stand: what is around them is whole.
WHOLE = ("embedding_rowwise", "moe_tp_experts", "packed_colwise", "packed_rowwise")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)$")


def library_plan(module: nn.Module, degree: int) -> dict[str, str]:
    """The library's words for each submodule that is split or summed, by path.

    Raises: PlanError that names what there is none for.
    """
    name = type(module).__name__
    given = getattr(module, "tp_plan", None) or {}
    found: dict[str, str] = {}
    parts = dict(module.named_modules())
    for pattern, style in given.items():
        wanted = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for path in (path for path in parts if wanted.fullmatch(path)):
            if style in WHOLE or HEAD.search(path) or ".experts." in f"{path}.":
                continue
            if style not in STYLES and style != SUMMED:
                raise PlanError(
                    f"tensor_parallel={degree}: {path} of {name} is to be split as {style}, which is not tried"
                )
            if style in STYLES and not isinstance(parts[path], nn.Linear):
                raise PlanError(f"tensor_parallel={degree}: {path} of {name} is no linear layer, and cannot be split")
            found[path] = style
    if not any(style in STYLES for style in found.values()):
        raise PlanError(f"tensor_parallel={degree}: its library does not say how {name} is split, use data_parallel")
    _check_sizes(module, found, degree)
    return found


def _check_sizes(module: nn.Module, styles: Mapping[str, str], degree: int) -> None:
    config: Any = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for what in ("num_attention_heads", "num_key_value_heads"):
        if (getattr(text, what, None) or 0) % degree:
            raise PlanError(f"tensor_parallel={degree}: {what}={getattr(text, what)} is no multiple")
    for path, style in styles.items():
        linear = module.get_submodule(path)
        if isinstance(linear, nn.Linear):
            side = linear.out_features if style.startswith("colwise") else linear.in_features
            if side % degree:
                raise PlanError(f"tensor_parallel={degree}: {side} features of {path} are no multiple")


def split_module(module: nn.Module, mesh: DeviceMesh) -> frozenset[str]:
    """Split a module over the one axis of `mesh`; names of parameters whose gradients add up over its ranks.

    Raises: PlanError where that is not known.
    """
    styles = library_plan(module, mesh.size())
    ways = {path: STYLES[style]() for path, style in styles.items() if style in STYLES}
    # Every rank has the same full weights already: nothing to broadcast.
    parallelize_module(module, mesh, ways, src_data_rank=None)
    return frozenset(
        f"{path}.{name}"
        for path, style in styles.items()
        if style == SUMMED
        for name, _ in module.get_submodule(path).named_parameters()
    )
