"""A module's forward pass cut into stages gives the loss and the gradients of the whole, whatever crosses the cut."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from executor.axes.task_part import build_task_part
from executor.axes.task_stage import TaskStage, build_task_stage
from planner.plans import Plan
from profiles.errors import PlanError
from profiles.models.profile import WorkloadSpec
from profiles.workloads.task import Sample, Task, user_task

CPU, WIDTH, NUM_BLOCKS = torch.device("cpu"), 6, 4
SPEC = WorkloadSpec(kind="module", name="toy", factory="toy:f", task="toy")


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())


class Chain(nn.Module):
    """Blocks between an embedding and a head that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(NUM_BLOCKS))
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.blocks:
            x = part(x) + self.bias
        return ((x @ self.stem.weight.T * self.temperature)[:, 0] - y).square().mean()


class Skips(Chain):
    """What early blocks give is read by late ones, as in a U-Net, once through code between them."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        kept = []
        x = self.stem(x)
        first = torch.relu(x * 2).unbind(1)[0]
        for part in self.blocks[:2]:
            x = part(x)
            kept.append(x)
        for part, early in zip(self.blocks[2:], reversed(kept), strict=True):
            x = part(x + early)
        return (x[:, 0] + first - y).square().mean()


class Decides(Chain):
    """Code between blocks that goes by what they give."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.blocks[0](x)
        sign = 1.0 if x.sum().item() > -1e9 else -1.0
        x = x * 3 if (x.abs() > 0).any() else x * 5
        for part in self.blocks[1:]:
            x = part(x) * sign
        return (x[:, 0] - y).square().mean()


class Changes(Chain):
    """A tensor between blocks that is changed in place and read under its old name."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.blocks[0](x) * 1
        x[:, 0] = 0
        for part in self.blocks[1:]:
            x = part(x)
        return (x[:, 0] - y).square().mean()


class Adds(Chain):
    """A tensor between blocks that is added to in place."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x) * 1
        for part in self.blocks:
            x += self.bias
            x = part(x) * 1
        x += 1
        return (x[:, 0] - y).square().mean()


class AddsSkips(Chain):
    """What an early block gives is added in place to what a late one does."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        early = x = self.blocks[0](self.stem(x))
        for part in self.blocks[1:]:
            x = part(x) * 1
            x += early
        return (x[:, 0] - y).square().mean()


class Fills(Chain):
    """Tensors that are changed in place by functions of any name, and read under their old names."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out.add_(self.blocks[0](self.stem(x)))
        for part in self.blocks[1:]:
            out = part(out) * 1
            out.neg_()
            nn.functional.elu(out, inplace=True)
        return (out[:, 0] - y).square().mean()


class Transposes(Chain):
    """What crosses is seen along another dimension than it lies in memory."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.blocks:
            x = part(x.transpose(0, 1).contiguous().transpose(0, 1)).T.contiguous().T
        return (x[:, 0] - y).square().mean()


class ChangesView(Chain):
    """A tensor between blocks that is changed through a view of it."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x)) * 1
        nn.functional.elu(x[:, :2], inplace=True)
        for part in self.blocks[1:]:
            x = part(x)
        return (x[:, 0] - y).square().mean()


class Backwards(Chain):
    """Blocks that run from the last to the first."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        for part in reversed(self.blocks):
            x = part(x)
        return (x[:, 0] - y).square().mean()


def samples(step: int, count: int) -> list[Sample]:
    drawn = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(step))
    return [{"x": row, "y": row.sum()} for row in drawn]


def task_of(build: Callable[[], nn.Module]) -> Task:
    return user_task(build, samples, name="toy")


def stages_of(task: Task, bounds: tuple[int, ...]) -> list[TaskStage]:
    plan = Plan(
        pipeline_parallel=len(bounds), schedule="1f1b", micro_batch_size=4, num_microbatches=4, stage_bounds=bounds
    )
    return [build_task_stage(SPEC, task, plan, NUM_BLOCKS + 2, stage, 1, CPU) for stage in range(len(bounds))]


def run(stages: list[TaskStage], batch: dict[str, Tensor]) -> Tensor:
    """Loss of a batch through the stages, whose gradients go back the same way."""
    given: tuple[Tensor, ...] = ()
    sent: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    for stage in stages:
        stage.microbatches = [batch]
        output = stage(*given)
        if isinstance(output, Tensor):
            break
        assert all(tensor.is_contiguous() for tensor in output)
        given = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in output)
        sent.append((output, given))
    output.backward()
    for made, received in reversed(sent):
        pairs = [(out, into.grad) for out, into in zip(made, received, strict=True) if into.grad is not None]
        torch.autograd.backward([out for out, _ in pairs], [gradient for _, gradient in pairs])
    return output.detach()


@pytest.mark.parametrize("bounds", [(0, 1), (0, 3), (0, 4), (0, 2, 3), (0, 1, 2, 4)])
@pytest.mark.parametrize("kind", [Chain, Skips, Decides, Adds, AddsSkips, Fills, Transposes])
def test_stages_give_what_the_whole_gives(kind: type[nn.Module], bounds: tuple[int, ...]) -> None:
    task = task_of(kind)
    batch = task.collate(samples(3, 4))
    whole = build_task_part(SPEC, task, Plan(micro_batch_size=4), NUM_BLOCKS + 2, 1, CPU)
    wanted = whole(batch)
    wanted.backward()
    stages = stages_of(task, bounds)
    assert torch.equal(run(stages, batch), wanted.detach())
    for name, parameter in whole.module.named_parameters():
        held = [dict(stage.module.named_parameters()).get(name) for stage in stages]
        parts = [part.grad for part in held if part is not None and part.grad is not None]
        assert (parameter.grad is None) == (not parts), name
        if parameter.grad is not None:
            torch.testing.assert_close(torch.stack(parts).sum(0), parameter.grad)
        # What only one stage needs, no other holds.
        assert "blocks." not in name or sum(part is not None for part in held) == 1


@pytest.mark.parametrize("bounds", [(0, 1), (0, 2, 3)])
def test_blocks_may_run_in_any_order(bounds: tuple[int, ...]) -> None:
    test_stages_give_what_the_whole_gives(Backwards, bounds)


def test_only_what_is_read_behind_the_cut_is_sent() -> None:
    sizes = {kind: len(stages_of(task_of(kind), (0, 3))[1].edges()[0]) for kind in (Chain, Skips)}
    # The hidden state; with skips it is one of the two that are kept, and there is the first column.
    assert sizes == {Chain: 1, Skips: 3}


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Changes, "blocks.1 is changed in place"), (ChangesView, "blocks.1 is changed in place")],
)
def test_what_cannot_be_cut_is_refused(kind: type[nn.Module], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        stages_of(task_of(kind), (0, 2))
    # Behind it, the same module can be cut.
    stages_of(task_of(kind), (0, 3))


def test_a_cut_behind_the_last_block_is_of_another_module() -> None:
    task = task_of(Chain)
    plan = Plan(pipeline_parallel=2, schedule="1f1b", micro_batch_size=4, num_microbatches=2, stage_bounds=(0, 3))
    with pytest.raises(PlanError, match="the last"):
        build_task_stage(SPEC, task, replace(plan, stage_bounds=(0, 7)), NUM_BLOCKS + 2, 0, 1, CPU)
