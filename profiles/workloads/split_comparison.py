"""Numbers of ranks held against those of the whole module: what they give, and the gradients of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from profiles.workloads.tensor_splits import COLUMNS, COLUMNS_INSIDE, EXPERTS, ROWS, Split

# In fp32, of the largest number of a tensor, and of the largest around it: what cancels out leaves rounding alone.
ROUNDING, ROUNDING_AROUND = 5e-5, 2e-6
# Numbers of tensors that are compared at once.
MOST_AT_ONCE = 2**18


class Failure(Exception):
    """A split that is not right, at the linear of this path, or the parameter of this name."""

    def __init__(self, *, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


def close(value: Tensor, wanted: Tensor, own: float = 0.0, least: float = 0.0) -> bool:
    """Whether two tensors differ by rounding alone, of numbers up to `own`; `least` is rounding of what is around."""
    return _apart(value, wanted) <= ROUNDING * max(_size(wanted), own) + least


def largest(tensors: list[Tensor]) -> float:
    """The largest number of some tensors, 0 of none."""
    return max(map(_size, tensors), default=0.0)


def _size(tensor: Tensor) -> float:
    """The largest of a tensor's numbers, 0 of none."""
    if not tensor.numel():
        return 0.0
    least, most = tensor.aminmax()
    return float(torch.maximum(-least, most))


def _apart(value: Tensor, wanted: Tensor) -> float:
    """The largest difference between numbers of two tensors; of large ones a few rows at a time."""
    if value.numel() <= MOST_AT_ONCE:
        return _size(value - wanted)
    rows = max(1, MOST_AT_ONCE * len(value) // value.numel())
    pairs = zip(value.split(rows), wanted.split(rows), strict=True)
    return _size(torch.tensor([_size(part - own) for part, own in pairs]))


def around(sizes: Mapping[str, float]) -> dict[str, float]:
    """By name of a gradient, below what a difference is rounding: as those of the module around it are."""
    found: dict[str, float] = {}
    for name, value in sizes.items():
        owner = name.rpartition(".")[0]
        found[owner] = max(value, found.get(owner, 0.0))
    return {name: found[name.rpartition(".")[0]] * ROUNDING_AROUND for name in sizes}


class Compared:
    """Gradients of ranks beside those of the whole module; of ranks their sum is kept alone."""

    def __init__(self, whole: dict[str, Tensor]) -> None:
        self.whole, self.total = whole, dict[str, Tensor]()
        # By name, of the ranks: the largest number, and the largest difference from the whole module's.
        self.largest, self.apart = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0.0)

    def add(self, parts: dict[str, Tensor]) -> None:
        """Compare those of the next rank."""
        for name, part in parts.items():
            self.largest[name] = max(self.largest[name], _size(part))
            self.apart[name] = max(self.apart[name], _apart(part, self.whole[name]))
            self.total[name] = self.total[name].add_(part) if name in self.total else part.clone()


def summed_over(split: Split, ranks: Compared) -> frozenset[str]:
    """Names of parameters whose gradients add up over ranks.

    Raises: Failure where one is neither a sum over them nor the same on all.
    """
    found = set()
    # By module: the gradient of a bias that changes nothing, as that of keys, is what rounding leaves of sums.
    owners: dict[str, float] = {}
    for name, size in ranks.largest.items():
        owner = name.rpartition(".")[0]
        owners[owner] = max(owners.get(owner, 0.0), size)
    least = around(owners)
    for name, wanted in ranks.whole.items():
        owner, _, last = name.rpartition(".")
        style = split.styles.get(owner)
        is_apart = style in (COLUMNS, COLUMNS_INSIDE, EXPERTS) or (style == ROWS and last == "weight")
        total = _apart(ranks.total[name], wanted)
        is_same = not is_apart and ranks.apart[name] <= total
        most = ROUNDING * max(_size(wanted), owners[owner]) + least[owner]
        if not (ranks.apart[name] if is_same else total) <= most:
            raise Failure(path=name, why="its gradient is neither the same on all ranks nor their sum")
        if not is_same and not is_apart:
            found.add(name)
    return frozenset(found)
