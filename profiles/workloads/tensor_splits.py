"""How the linears of a module are split over ranks: which, in what way, and what else of the module changes with them.

No process group is needed to find that out; the executor applies it to a module on a rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from profiles.errors import PlanError

# Linears that are split, in the library's words: by what they give, or by what they are given.
COLUMNS, COLUMNS_GATHERED = "colwise", "colwise_gather_output"
ROWS, ROWS_OF_WHOLE = "rowwise", "rowwise_split_input"
SPLIT = (COLUMNS, COLUMNS_GATHERED, ROWS, ROWS_OF_WHOLE)
SUMMED = "replicated_with_grad_allreduce"
# Left whole, which is right wherever they stand: what is around them is whole.
WHOLE = ("embedding_rowwise", "moe_tp_experts", "packed_colwise", "packed_rowwise")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A module over `degree` ranks.

    `styles` are by path of a module: linears that are split, each in one of the ways of SPLIT. `attributes` are numbers
    that modules, by path, keep of what a rank has: heads, widths. `summed` are names of parameters whose gradients add
    up over the ranks.
    """

    degree: int
    styles: Mapping[str, str]
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    summed: frozenset[str] = frozenset()


def library_split(module: nn.Module, degree: int) -> Split:
    """The split that the library of a module has a plan for; the module may hold nothing.

    Raises: PlanError that names what there is none for.
    """
    name = type(module).__name__
    given = getattr(module, "tp_plan", None) or {}
    found: dict[str, str] = {}
    summed: set[str] = set()
    parts = dict(module.named_modules())
    for pattern, style in given.items():
        wanted = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for path in (path for path in parts if wanted.fullmatch(path)):
            if style in WHOLE or HEAD.search(path) or ".experts." in f"{path}.":
                continue
            if style == SUMMED:
                summed |= {f"{path}.{name}" for name, _ in parts[path].named_parameters()}
                continue
            if style not in SPLIT:
                raise PlanError(
                    f"tensor_parallel={degree}: {path} of {name} is to be split as {style}, which is not tried"
                )
            if not isinstance(parts[path], nn.Linear):
                raise PlanError(f"tensor_parallel={degree}: {path} of {name} is no linear layer, and cannot be split")
            found[path] = style
    if not found:
        raise PlanError(f"tensor_parallel={degree}: its library does not say how {name} is split, use data_parallel")
    _check_sizes(module, found, degree)
    return Split(degree=degree, styles=found, summed=frozenset(summed))


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
