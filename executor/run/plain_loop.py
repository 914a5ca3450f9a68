"""Training as it is written down without any layout: one process, the whole model, autograd, sums of gradients.

It shares the model and its loss with what it stands beside, and no other code: samples are drawn, micro-batches cut,
gradients averaged and weights moved in ways of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from executor.run.batches import Data, Text
from executor.run.own_data import Arrays, GivenPairs, TaskSamples
from planner.plans import Plan
from profiles.models.profile import MIXED, SCALED
from profiles.workloads.precision import low_dtype, lower, set_products
from profiles.workloads.randomness import begin_random, random_kept, silence
from profiles.workloads.task import stack
from profiles.workloads.workload import Workload

# Of numbers of 24 bits.
LAST_BIT = 2.0**-23
# Of losses in fp16, halved until every gradient is a number.
FIRST_SCALE, LEAST_SCALE = 2.0**16, 2.0**-14


def drawn(data: Data, step: int, count: int) -> list[Any]:
    """The samples of a step, one by one: pairs of an input and a target, or a task's."""
    if isinstance(data, TaskSamples):
        return list(data.task.batches(step, count))
    if isinstance(data, GivenPairs):
        given = data.batches(step, count)
        values = [tuple(sample.values()) if isinstance(sample, dict) else tuple(sample) for sample in given]
        return [(torch.as_tensor(one), torch.as_tensor(other)) for one, other in values]
    generator = torch.Generator()
    generator.manual_seed(data.seed * 1_000_003 + step)
    if isinstance(data, Text):
        length = data.sequence_length
        starts = torch.randint(0, len(data.data) - length, (count,), generator=generator).tolist()
        windows = [data.data[start : start + length + 1].long() for start in starts]
        return [(window[:-1], window[1:]) for window in windows]
    inputs, targets = (data.inputs, data.targets) if isinstance(data, Arrays) else (data.patches, data.labels)
    return [
        (inputs[place], targets[place])
        for place in torch.randint(0, len(targets), (count,), generator=generator).tolist()
    ]


@dataclass(slots=True)
class Parts:
    """What ranks send of the gradients of one parameter: the mean of the sizes of all parts, and of those of each sign.

    The last two bound what is the sum of some parts and not of others.
    """

    sizes: Tensor
    below: Tensor
    above: Tensor

    def add(self, part: Tensor, share: float) -> None:
        """Add a part that counts for a share of the mean."""
        self.sizes += part.abs() * share
        self.below += part.clamp(max=0.0) * share
        self.above += part.clamp(min=0.0) * share


class PlainLoop:
    """The whole model on one device, trained on the global batch of a plan.

    `parts` are kept where ranks may send less than their gradients, `largest` is the mean of the largest of each part.
    `moved` is how far each weight has gone, `sent` and `largest_sent` what was sent on the way. Weights that the plan
    shards are gathered in 16 bits in mixed precision.
    """

    def __init__(
        self, workload: Workload, plan: Plan, data: Data, device: torch.device, precision: str = "", sends: str = ""
    ) -> None:
        self.workload, self.plan, self.data, self.device = workload, plan, data, device
        self.precision, self.sends = precision or plan.precision, sends
        self.low, self.scale = low_dtype(self.precision), FIRST_SCALE if self.precision == SCALED else 1.0
        self.is_gathered_low = plan.zero_stage >= 2 and self.precision in MIXED
        self.model = self._built()
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        self.on_meta = next((name for name, own in tensors if own.is_meta), "")
        if not self.on_meta:
            self.model.to(device)
        silence(self.model)
        self.whole = _Whole(self.model, workload)
        self.moved: dict[str, Tensor] = {}
        self.parts: dict[str, Parts] = {}
        self.sent: dict[str, Tensor] = {}
        self.largest, self.largest_sent = 0.0, 0.0

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All weights by name, tied ones once."""
        return self.model.named_parameters()

    def gradients(self, step: int) -> float:
        """Make the gradients of a step's loss, and say what that is.

        That is the mean over micro-batches of their losses, as is written down in the plan: so many in a row for each
        replica.
        """
        total = self._gradients(step)
        while self.scale > LEAST_SCALE and self.precision == SCALED and not self._is_finite():
            self.scale /= 2
            total = self._gradients(step)
        return total

    def _gradients(self, step: int) -> float:
        for _, weight in self.weights():
            weight.grad = None
        self.parts, self.largest = {}, 0.0
        plan = self.plan
        samples = drawn(self.data, step, plan.global_batch_size)
        size, total = plan.micro_batch_size, 0.0
        pieces = [samples[first : first + size] for first in range(0, len(samples), size)]
        for replica in range(plan.data_parallel):
            own = pieces[replica * plan.num_microbatches :][: plan.num_microbatches]
            for group in [own] if self.sends != "micro-batches" else [[piece] for piece in own]:
                total += self._add(group, 1.0 / len(pieces))
        return total

    def descend(self, rate: float) -> None:
        """Move every weight against its gradient."""
        with torch.no_grad():
            for name, weight in self.weights():
                if weight.grad is not None:
                    step = weight.grad * -rate
                    weight.add_(step)
                    self.moved[name] = self.moved[name] + step if name in self.moved else step

        for name, part in self.parts.items():
            self.sent[name] = self.sent[name] + part.sizes if name in self.sent else part.sizes
        self.largest_sent += self.largest

    def nudge(self) -> None:
        """Change every weight in its last bit or so."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, weight in self.weights():
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.mul_(1 + LAST_BIT * noise)

    def distances(self, other: PlainLoop) -> dict[str, float]:
        """How far each weight is from that of another loop."""
        others = dict(other.weights())
        return {name: float((weight.detach() - others[name].detach()).norm()) for name, weight in self.weights()}

    def why_not(self) -> str:
        """Why nothing can be held against this loop, in words; or ""."""
        title = self.workload.spec.title
        if self.on_meta:
            return f"{title} leaves {self.on_meta} on the meta device, and a plain loop has no value for it"
        return f"{title} draws random numbers, which cannot be turned off" if self.draws() else ""

    def draws(self) -> bool:
        """Whether the loss of the same samples differs from one time to the next."""
        samples = drawn(self.data, 0, self.plan.global_batch_size)[: self.plan.micro_batch_size]
        losses = []
        for seed in (1, 2):
            with random_kept(), torch.no_grad():
                begin_random(seed)
                losses.append(float(self._loss(samples)))
        return losses[0] != losses[1]

    def _add(self, pieces: Sequence[list[Any]], share: float) -> float:
        """Add the gradients of some micro-batches, each of which counts for a share of the mean."""
        before = {name: weight.grad for name, weight in self.weights()}
        is_apart = bool(self.sends) or self.precision == SCALED
        for _, weight in self.weights() if is_apart else ():
            weight.grad = None
        total = 0.0
        for piece in pieces:
            loss = self._loss(piece) * share
            (loss.float() * self.scale).backward()
            total += float(loss.detach())
        for _, weight in self.weights() if is_apart else ():
            if weight.grad is not None:
                weight.grad /= self.scale
        if self.sends:
            self._keep_parts(before)
        for name, weight in self.weights() if is_apart and not self.sends else ():
            earlier = before[name]
            if earlier is not None:
                weight.grad = earlier if weight.grad is None else weight.grad + earlier
        return total

    def _is_finite(self) -> bool:
        return all(bool(weight.grad.isfinite().all()) for _, weight in self.weights() if weight.grad is not None)

    def _keep_parts(self, before: dict[str, Tensor | None]) -> None:
        replicas, largest = self.plan.data_parallel, 0.0
        for name, weight in self.weights():
            if weight.grad is None:
                weight.grad = before[name]
                continue
            if name not in self.parts:
                self.parts[name] = Parts(*(torch.zeros_like(weight) for _ in range(3)))
            self.parts[name].add(weight.grad, 1.0)
            # What a rank sends is not yet divided by their number.
            largest = max(largest, float(weight.grad.abs().max()) * replicas)
            earlier = before[name]
            if earlier is not None:
                weight.grad += earlier
        self.largest += largest / replicas

    def _loss(self, samples: list[Any]) -> Tensor:
        set_products(self.precision)
        if self.workload.task is not None:
            batch = self.workload.task.collate(samples)
        else:
            batch = stack([{"inputs": one, "targets": other} for one, other in samples])
        batch = tree_map_only(Tensor, lambda value: value.to(self.device), batch)
        with torch.autocast(self.device.type, self.low, enabled=self.precision in MIXED):
            if not self.is_gathered_low:
                loss: Tensor = self.whole(batch)
                return loss
            low = {
                f"model.{name}": weight.to(self.low) if weight.dim() else weight
                for name, weight in self.model.named_parameters()
            }
            return torch.func.functional_call(self.whole, low, (batch,))  # type: ignore[no-any-return]

    def _built(self) -> nn.Module:
        if self.workload.task is not None:
            with random_kept():
                begin_random(self.data.seed)
                return self.workload.task.build().train()
        count = len(self.workload.layers)
        layers = self.workload.build(0, count, self.data.seed)
        return nn.Sequential(*(lower(layer, self.precision, at == count - 1) for at, layer in enumerate(layers)))


class _Whole(nn.Module):
    """A model that gives its loss."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        super().__init__()
        self.model, self.workload = model, workload

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        if self.workload.task is not None:
            return self.workload.task.loss(self.model, batch)
        hidden = batch["inputs"]
        assert isinstance(self.model, nn.Sequential)
        for layer in self.model:
            hidden = layer(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.workload.loss(hidden, batch["targets"])
