"""Dynamic scaling of losses, for gradients of fp16 that would be too small for it: one scale for all ranks of a job.

The rule is that of torch.amp.GradScaler, and so are its kernels. That class itself takes no list in which gradients of
several meshes stand together, as tensor-parallel ranks have them, and asks the ranks of each mesh in a message of its
own. Source: Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from executor.fake_group import is_fake
from profiles.artifacts import STRICT
from profiles.errors import ToleranceError
from profiles.inputs.ranges import Positive, Whole

# As torch's.
FIRST_SCALE, GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0**16, 2.0, 0.5, 2000
# Where gradients of losses this small are no numbers either, they will not become any.
SMALLEST_SCALE = 2.0**-14


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleState:
    """What a checkpoint keeps of a scale."""

    __pydantic_config__ = STRICT

    scale: Positive
    num_good: Whole = 0
    num_skipped: Whole = 0


class LossScale:
    """What losses are multiplied by; halved where a gradient is no number, whose step is skipped, else it may grow.

    `scale` and `growth_interval`, the steps without such a gradient before it is doubled, may be set between steps.
    `num_good` counts those steps, `num_skipped` all that were skipped; `is_skipping` tells whether the newest one was.
    One that `is_alone` asks no other ranks.
    """

    def __init__(self, device: torch.device, *, is_alone: bool) -> None:
        self.device, self._is_alone = device, is_alone
        self.scale, self.growth_interval = FIRST_SCALE, GROWTH_INTERVAL
        self.num_good = self.num_skipped = 0
        self.is_skipping = False
        self._aside: list[tuple[nn.Parameter, Tensor]] = []

    def go_on_with(self, state: ScaleState | None) -> None:
        """Go on with the scale of a checkpoint, where it had one."""
        if state is not None:
            self.scale, self.num_good, self.num_skipped = state.scale, state.num_good, state.num_skipped

    def unscale(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Divide the gradients of this rank by the scale; 1 where one of them is no number, else 0."""
        gradients = [_own_part(own.grad) for own in parameters if own.grad is not None]
        gradients = [gradient for gradient in gradients if gradient.numel()]
        found, inverse = torch.zeros(1, device=self.device), torch.full((1,), 1.0 / self.scale, device=self.device)
        if gradients:
            with torch.no_grad():
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, inverse)
        return found

    def update(self, found: Tensor) -> None:
        """Agree over all ranks whether the step is skipped, and set the next scale.

        Raises: ToleranceError where no scale is small enough.
        """
        if not self._is_alone:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        # A rehearsal's numbers have no values.
        self.is_skipping = not is_fake() and bool(found)
        if not self.is_skipping:
            self.num_good += 1
            if self.num_good == self.growth_interval:
                self.scale, self.num_good = self.scale * GROWTH, 0
            return
        self.scale, self.num_good, self.num_skipped = self.scale * BACKOFF, 0, self.num_skipped + 1
        if self.scale < SMALLEST_SCALE:
            raise ToleranceError(
                f"gradients are not finite even with the loss scaled by {self.scale / BACKOFF:g}: training "
                "diverged, or exceeded fp16's largest value, 65504: use bf16 or fp32"
            )

    def put_aside(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the gradients of a skipped step away, so that an optimizer has nothing to take a step by."""
        self._aside = [(own, own.grad) for own in parameters if own.grad is not None]
        for own, _ in self._aside:
            own.grad = None

    def put_back(self) -> None:
        """Give the memory of gradients back, which DDP's buckets are."""
        for own, gradient in self._aside:
            own.grad = gradient
        self._aside = []


def scale_of(own: LossScale | None) -> ScaleState | None:
    """What of a scale a checkpoint keeps."""
    if own is None:
        return None
    return ScaleState(scale=own.scale, num_good=own.num_good, num_skipped=own.num_skipped)


def scaled(loss: Tensor, scale: LossScale | None) -> Tensor:
    """A loss as its backward pass begins with it; where it is scaled in 32 bits, for those of fp16 end too early."""
    return loss if scale is None else loss.float() * scale.scale


def unscaled(loss: Tensor | None, scale: LossScale | None) -> Tensor | None:
    """A loss as it is, of one that was scaled."""
    return loss if loss is None or scale is None else loss / scale.scale


def _own_part(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
