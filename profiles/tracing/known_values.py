"""Values of fake tensors that follow from the batch alone: masks, positions, counts, which modules ask for as numbers.

Every kernel whose inputs are all known runs on their values too, where those are few. What a module then reads as a
number, or uses as a shape, is what it would be in training. Of numbers that do depend on weights only checks that all
is well are answered, that is whether all of some are as they should be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from profiles.tracing.fake_results import KnownResults
from profiles.tracing.storages import tensors_in
from profiles.workloads.fake_tensors import FakeTensor, storage_of, unset_fake_temporarily

# Elements of a tensor whose values are kept.
MOST = 2**22
# Kernels whose result has a shape, or is a number, that depends on values.
READS = ("_local_scalar_dense", "equal")

# What makes a tensor of numbers, which may be tensors of one element each.
MADE_OF_NUMBERS = (torch.tensor, torch.as_tensor)
# Kernels without a rule for shapes: those of what they give where whole numbers, as lengths, are known and others zero.
UNRULED = ("_ctc_loss", "_ctc_loss_backward")
# Kernels that keep more for backward than fake tensors know of.
UNTOLD = ("mkldnn_rnn_layer",)


class KnownValues:
    """The values of fake tensors, where they are known; `results` are those of kernels on fake tensors."""

    def __init__(self, fake: Any, results: KnownResults | None = None) -> None:
        self._fake, self._results = fake, results
        self._values = WeakTensorKeyDictionary()
        # Storages of which any values are known.
        self._storages: set[int] = set()
        # Fake results of whether all of some numbers were as they should be.
        self._checks = WeakTensorKeyDictionary()

    def tell(self, fake: Tensor, value: Tensor) -> None:
        """Say what the values of a tensor are."""
        self._values[fake] = value
        self._storages.add(storage_of(fake))

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func` gives: on values where all are known and its result depends on them, else on fakes."""
        name = func.overloadpacket.__name__
        if name in UNTOLD:
            raise NotImplementedError(f"fake tensors do not show what {name} keeps")
        tensors = tensors_in((args, kwargs))
        known = all(tensor in self._values or not isinstance(tensor, FakeTensor) for tensor in tensors)
        if name in READS and tensors and tensors[0] in self._checks:
            return True
        if known and name in READS:
            return self._on_values(func, args, kwargs)
        if not known and name == "index":
            args = self._places(args)
        if known and (torch.Tag.dynamic_output_shape in func.tags):
            values = self._on_values(func, args, kwargs)
            return tree_map(self._as_fake, values)
        if name in UNRULED and all(tensor in self._values or tensor.is_floating_point() for tensor in tensors):
            return self._on_zeros(func, args, kwargs)
        result = func(*args, **kwargs) if self._results is None else self._results.call(func, args, kwargs)
        if name == "all":
            self._checks[result] = True
        if known or func._schema.is_mutable:
            self._follow(func, args, kwargs, result, known, sum(tensor.numel() for tensor in tensors))
        return result

    def number(self, leaf: Any) -> Any:
        """The number that a tensor of one element holds, where it is known; anything else as it is."""
        if isinstance(leaf, Tensor) and leaf.numel() == 1 and leaf in self._values:
            with unset_fake_temporarily():
                return self._values[leaf].item()
        return leaf

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any, known: bool, size: int) -> None:
        made = tensors_in(result)
        few = size + sum(tensor.numel() for tensor in made) <= MOST
        if known and few and made:
            values = tensors_in(self._on_values(func, args, kwargs))
            for fake, value in zip(made, values, strict=True):
                self.tell(fake, value)
                self._checks.pop(fake, None)
        elif func._schema.is_mutable:
            for tensor in made:
                self._forget(tensor)

    def _forget(self, changed: Tensor) -> None:
        """Values of all tensors in the storage of one that was changed by what is not known are not known either."""
        place = storage_of(changed)
        if place in self._storages:
            for tensor in [fake for fake in self._values if storage_of(fake) == place]:
                del self._values[tensor]

    def _on_values(self, func: Any, args: Any, kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return func(*tree_map(self._value, args), **tree_map(self._value, kwargs))

    def _value(self, leaf: Any) -> Any:
        return self._values.get(leaf, leaf) if isinstance(leaf, Tensor) else leaf

    def _on_zeros(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Fakes of what `func` gives for known values, and zeros for others: of its result only the look is kept."""

        def given(leaf: Any) -> Any:
            if isinstance(leaf, FakeTensor) and leaf not in self._values:
                return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype).zero_()
            return self._value(leaf)

        with unset_fake_temporarily():
            result = func(*tree_map(given, args), **tree_map(given, kwargs))
        return tree_map(lambda leaf: self._fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, result)

    def _as_fake(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        fake = self._fake.from_tensor(value)
        self.tell(fake, value)
        return fake

    def _places(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments of an index by flags, which are known, as those of one by places."""
        flags = [index for index in args[1] if isinstance(index, Tensor) and index.dtype == torch.bool]
        if not flags or not all(index in self._values for index in flags):
            return args
        places: list[Any] = []
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype == torch.bool:
                with unset_fake_temporarily():
                    found = self._values[index].nonzero(as_tuple=True)
                places.extend(self._as_fake(place) for place in found)
            else:
                places.append(index)
        return (args[0], places, *args[2:])


class NumbersOf(TorchFunctionMode):
    """While entered, a tensor may be made of a list of fake ones, of one element each, whose values are known."""

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self._known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run `func`, on numbers where it would read them."""
        if func in MADE_OF_NUMBERS and args and isinstance(args[0], list | tuple):
            args = (tree_map(self._known.number, args[0]), *args[1:])
        return func(*args, **(kwargs or {}))
