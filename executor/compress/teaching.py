"""Knowledge distillation: a whole model says beside the text what the smaller one should have answered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from executor.tensor import Loss

# The share of the teacher's word in the loss, and how much both answers are softened. Source: Hinton et al. 2015.
TEACHER_SHARE, TEMPERATURE = 0.5, 2.0


class Teacher:
    """A frozen model on this rank that sees the tokens its student sees."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self._tokens: Tensor | None = None

    def watch(self, student: nn.Module) -> None:
        """Note the tokens of every forward pass of the student."""
        student.register_forward_pre_hook(lambda module, given: setattr(self, "_tokens", given[0]))

    def beside(self, loss: Loss) -> Loss:
        """`loss` with the teacher's word in it."""

        def taught(logits: Tensor, targets: Tensor) -> Tensor:
            assert self._tokens is not None
            with torch.no_grad():
                wanted = self.model(self._tokens)
            said = loss(logits, targets)
            return (1 - TEACHER_SHARE) * said + TEACHER_SHARE * divergence(logits, wanted)

        return taught


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of softened answers, times the squared temperature, so that gradients keep size.

    Shapes: both (batch, sequence, vocabulary).
    """
    own = nn.functional.log_softmax(logits.float().flatten(0, -2) / TEMPERATURE, dim=-1)
    other = nn.functional.log_softmax(wanted.float().flatten(0, -2) / TEMPERATURE, dim=-1)
    return nn.functional.kl_div(own, other, reduction="batchmean", log_target=True) * TEMPERATURE**2
