"""Peak memory of a rank on CPU, in the sense of CUDA's allocator counter: bytes of all live tensors.

What the process holds (RSS) would not do: it includes the interpreter, the libraries and what the C allocator keeps.
Every tensor that comes into being while the counter is on is counted once, by storage, until the storage dies.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # the documented extension point, though underscored
from torch.utils._pytree import tree_iter

from executor.fake_group import FakeTensor, FakeTensorMode

Key = int


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of storages made under it, in `live_bytes` and `peak_bytes`.

    In a rehearsal the tensors of `fakes` stand for real ones.
    Ignores: workspaces inside a kernel, and what other threads make.
    """

    def __init__(self, fakes: FakeTensorMode | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fakes = fakes
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: dict[Key, weakref.ref[torch.UntypedStorage]] = {}
        self._bytes: dict[Key, int] = {}

    def __enter__(self) -> Self:
        """Start counting. FSDP frees gathered parameters by resizing their storage, which is no operator."""

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = self._resize(storage, size)
            self._count_storage(storage)
            return result

        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator and count what it returns."""
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            # A wrapper such as DTensor goes first; its operators on plain tensors come back here.
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if self.holds(value):
                self._count(value)
        return result

    def holds(self, value: object) -> bool:
        """Whether `value` is a tensor that has memory, or would have.

        Fake tensors, by which DTensor works out shapes, are a class of their own and never do, unless of `fakes`.
        """
        if isinstance(value, FakeTensor):
            return value.fake_mode is self._fakes
        return type(value) in (Tensor, nn.Parameter)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made elsewhere."""
        for tensor in tensors:
            self._count(tensor)

    def reset_peak(self) -> None:
        """Start looking for the peak from what lives now."""
        self.peak_bytes = self.live_bytes

    def _count(self, tensor: Tensor) -> None:
        if tensor.device.type != "meta":
            self._count_storage(tensor.untyped_storage())

    def _count_storage(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that is new, or has another size than it had."""
        # torch keeps one Python object per storage for as long as the storage lives, so its id is a good key.
        key, num_bytes = id(storage), storage.nbytes()
        if key not in self._storages:
            if not num_bytes:
                return

            def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
                del self._storages[key]
                self.live_bytes -= self._bytes.pop(key)

            self._storages[key] = weakref.ref(storage, forget)
        self.live_bytes += num_bytes - self._bytes.get(key, 0)
        self._bytes[key] = num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
