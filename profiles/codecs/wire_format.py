"""Messages of gradients that cannot be summed on the way: encode one, and add what one decodes to.

Messages are flat tensors of bytes, of a length that depends on the codec and the number of gradients alone, so that
every rank's can be gathered in one piece.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from profiles.codecs.codec import BLOCK, SCALE_BYTES, Codec

INT8_MAX = 127.0
FP8_MAX = 448.0  # of torch.float8_e4m3fn
# So that a message of zeros has a scale to be divided by.
SMALLEST = 1e-30


def message_bytes(codec: Codec, num_gradients: int) -> int:
    """Length of a message of so many gradients."""
    if codec.is_sparse:
        return 8 * codec.num_kept(num_gradients)
    return num_gradients + int(SCALE_BYTES) * _num_blocks(num_gradients)


def encode(codec: Codec, gradients: Tensor) -> Tensor:
    """One rank's message. Shapes: (gradients,) of fp32 to (message bytes,) of uint8.

    int8 rounds to the nearest of 255 steps between plus and minus the block's largest: off by half a step at most. fp8
    (e4m3) keeps four significant bits: off by 1/16 of each, or by 2^-10/448 of the block's largest. top-k sends the
    largest as they are and nothing of the rest. Source: Seide et al. 2014 (feedback), Micikevicius et al. 2022 (e4m3).
    """
    if codec.is_sparse:
        places = gradients.abs().topk(codec.num_kept(gradients.numel()), sorted=False).indices
        return torch.cat([gradients[places].view(torch.uint8), places.to(torch.int32).view(torch.uint8)])
    count, num_blocks = gradients.numel(), _num_blocks(gradients.numel())
    blocks = nn.functional.pad(gradients, (0, num_blocks * BLOCK - count)).view(num_blocks, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST)
    if codec.name == "int8":
        scales = largest / INT8_MAX
        rounded = (blocks / scales).round_().to(torch.int8)
    else:
        scales = largest / FP8_MAX
        rounded = (blocks / scales).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return torch.cat([rounded.view(torch.uint8).flatten()[:count], scales.view(-1).view(torch.uint8)])


def add_decoded(codec: Codec, message: Tensor, total: Tensor, factor: float = 1.0) -> None:
    """Add `factor` times what the message says to `total`. Shapes: (message bytes,), (gradients,)."""
    if codec.is_sparse:
        values, places = message.split(message.numel() // 2)
        total.index_add_(0, places.view(torch.int32), values.view(torch.float32), alpha=factor)
        return
    kind, count = torch.int8 if codec.name == "int8" else torch.float8_e4m3fn, total.numel()
    # The scales need not lie where four bytes may be read as one number.
    scales = message[count:].clone().view(torch.float32).mul_(factor)
    values = message[:count].view(kind).to(torch.float32)
    whole = count // BLOCK * BLOCK
    if whole:
        total[:whole].view(-1, BLOCK).addcmul_(values[:whole].view(-1, BLOCK), scales[: whole // BLOCK, None])
    if whole < count:
        total[whole:].addcmul_(values[whole:], scales[-1])


def _num_blocks(num_gradients: int) -> int:
    return -(-num_gradients // BLOCK)
