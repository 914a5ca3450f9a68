"""What one device says of a plan's first loss, where that depends on how many samples a micro-batch has."""

import pytest
import torch
from torch import Tensor, nn

from executor.run.own_data import TaskSamples
from executor.run.reference import references_of
from executor.run.subject import workload_of_task
from planner.plans import Plan
from profiles.models.profile import WorkloadSpec
from profiles.ranks.rank import Rank
from profiles.workloads.task import Sample, user_task
from tests.plan_builders import SEED

HERE = Rank(rank=0, local_rank=0, num_ranks=1, device=torch.device("cpu"))
SPEC = WorkloadSpec(kind="module", name="own", factory="own:f", task="own")
SAMPLES = 8
PLANS = [Plan(micro_batch_size=size, num_microbatches=SAMPLES // size) for size in (2, 4, 8)]


class Normed(nn.Module):
    """A layer over what the norm of a micro-batch, or of a sample, leaves."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm, self.linear = norm(5), nn.Linear(5, 5)
        nn.init.eye_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(self.norm(x))).square().mean()


def rows(step: int, count: int) -> list[Sample]:
    """Samples far from each other."""
    draw = torch.Generator().manual_seed(step)
    return [{"x": row} for row in torch.randn(count, 5, generator=draw) * torch.arange(1, count + 1)[:, None]]


@pytest.mark.parametrize(("norm", "num_losses"), [(nn.BatchNorm1d, 3), (nn.LayerNorm, 1)])
def test_each_size_has_its_own_where_norms_are_over_a_micro_batch(norm: type[nn.Module], num_losses: int) -> None:
    task = user_task(lambda: Normed(norm), rows)
    workload, samples = workload_of_task(SPEC, task, 5), TaskSamples(task=task, spec=SPEC, seed=SEED)
    found = references_of(workload, PLANS, samples, HERE, 0, num_steps=1)
    assert len({reference.losses for reference in found.values()}) == num_losses
    (batch,) = samples.batch(0, SAMPLES)
    x = torch.stack([sample["x"] for sample in batch])
    for size, reference in found.items():
        means = [task.build().train()(part).item() for part in x.split(size)]
        assert reference.losses[0] == pytest.approx(sum(means) / len(means), rel=1e-5)
