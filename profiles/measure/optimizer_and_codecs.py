"""Measures what follows the backward pass on each rank: the optimizer's step and the gradient codecs' own work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from profiles.codecs.codec import Codec, codec
from profiles.codecs.wire_format import add_decoded, encode
from profiles.laws.curves import fit_kernel
from profiles.machines.profile import KernelCurve
from profiles.measure.matrix_kernels import sample
from profiles.measure.timing import Action, Bench
from profiles.ranks.rank import unpinned

if TYPE_CHECKING:
    # dist.GradBucket, under the only name that the type checker sees.
    from torch._C._distributed_c10d import GradBucket

GATHERED = ("int8", "fp8", "topk-1")
PARAMETER_COUNTS = (2**14, 2**18, 2**21, 2**24)
GRADIENT_ELEMENTS = (2**18, 2**20, 2**22, 3 * 2**21)  # the last is DDP's bucket of 25 MB
# Parameters come in tensors of this many elements: a model's own are of this order.
TENSOR_ELEMENTS = 2**20
MATRIX_WIDTH = 1024
# Of tensors that are no work.
TINY_ELEMENTS, TENSOR_COUNTS = 16, (8, 72)


def measure_optimizer(bench: Bench, counts: Sequence[int] = PARAMETER_COUNTS) -> KernelCurve:
    """Fused AdamW over several parameter counts; bytes are 4 per parameter for 4 reads and 3 writes."""
    timings = bench.time([_stepping(_tensor_sizes(count), bench.device) for count in counts])
    samples = [sample((float(count),), timing) for count, timing in zip(counts, timings, strict=True)]
    return fit_kernel("optimizer", "", "fp32", samples)


def measure_optimizer_tensor_seconds(bench: Bench) -> float:
    """Seconds of a tensor in AdamW's step besides its elements; 0 on a GPU, whose host runs ahead."""
    if bench.device.type != "cpu":
        return 0.0
    few, many = bench.time([_stepping([TINY_ELEMENTS] * count, bench.device) for count in TENSOR_COUNTS])
    return max(0.0, (many.seconds - few.seconds) / (TENSOR_COUNTS[1] - TENSOR_COUNTS[0]))


def measure_codecs(bench: Bench, elements: Sequence[int] = GRADIENT_ELEMENTS) -> list[KernelCurve]:
    """Encode and decode of fp32 gradients without the communication between them, per byte of gradient."""
    codecs: dict[str, Callable[[int], Action]] = {
        name: lambda count, kind=kind: _half(count, kind, bench)  # type: ignore[misc]
        for name, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    }
    for name in GATHERED:
        codecs[name] = lambda count, name=name: _encode(codec(name), count, bench.device)  # type: ignore[misc]
        codecs[f"{name} decode"] = lambda count, name=name: _decode(codec(name), count, bench.device)  # type: ignore[misc]
    if dist.is_initialized():
        with unpinned():
            alone, _ = dist.new_subgroups(group_size=1)
        codecs |= {f"powersgd-{rank}": _powersgd_maker(rank, alone, bench.device) for rank in (1, 4)}
    curves = []
    for name, make in codecs.items():
        timings = bench.time([make(count) for count in elements])
        samples = [sample((4.0 * count,), timing) for count, timing in zip(elements, timings, strict=True)]
        curves.append(fit_kernel("codec", name, "fp32", samples))
    return curves


def _stepping(sizes: Sequence[int], device: torch.device) -> Action:
    """A step of AdamW over tensors of so many elements each."""
    parameters = [torch.zeros(size, device=device) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True).step


def _tensor_sizes(count: int) -> list[int]:
    whole, rest = divmod(count, TENSOR_ELEMENTS)
    return [TENSOR_ELEMENTS] * whole + [rest] * (rest > 0)


def _encode(used: Codec, count: int, device: torch.device) -> Action:
    """Correct by what was left out, encode, and find out what this message leaves out."""
    gradient, rest = torch.randn(count, device=device), torch.zeros(count, device=device)

    def encode_and_keep() -> None:
        rest.add_(gradient)
        add_decoded(used, encode(used, rest), rest, factor=-1.0)

    return encode_and_keep


def _decode(used: Codec, count: int, device: torch.device) -> Action:
    """Add one rank's message to the mean."""
    total = torch.zeros(count, device=device)
    message = encode(used, torch.randn(count, device=device))
    return lambda: add_decoded(used, message, total, factor=0.5)


def _half(count: int, kind: torch.dtype, bench: Bench) -> Action:
    gradient, num_ranks = torch.ones(count, device=bench.device), bench.peers.num_ranks

    def encode_and_decode() -> None:
        gradient.copy_(gradient.to(kind).div_(num_ranks))

    return encode_and_decode


class _Bucket:
    """What the PowerSGD hook asks of a DDP bucket: matrices of MATRIX_WIDTH columns."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._buffer = torch.randn(MATRIX_WIDTH, device=device).repeat(count // MATRIX_WIDTH)
        self._matrices = [part.view(-1, MATRIX_WIDTH) for part in self._buffer.split(TENSOR_ELEMENTS)]

    def buffer(self) -> Tensor:
        return self._buffer

    def gradients(self) -> list[Tensor]:
        return self._matrices

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


def _powersgd_maker(rank: int, group: dist.ProcessGroup, device: torch.device) -> Callable[[int], Action]:
    """PowerSGD in a group of this rank alone, so that nothing but its local work remains."""

    def make(count: int) -> Action:
        bucket = cast("GradBucket", _Bucket(count, device))
        state = PowerSGDState(group, matrix_approximation_rank=rank, start_powerSGD_iter=2, min_compression_rate=2)
        state.iter = 2  # past the first steps, which send plain gradients
        return lambda: powerSGD_hook(state, bucket).wait()

    return make
