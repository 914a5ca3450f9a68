"""A user's own module trains as plain torch trains it: its weights, dropout, ties, single numbers, statistics."""

import re
import sys
import textwrap
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from executor.axes.optimizer import LEARNING_RATE
from executor.axes.recompute import Recomputed
from executor.run.batches import default_text, load_text
from executor.run.checks import facts_of_workload
from executor.run.plain_loop import PlainLoop
from executor.trainer import Trainer
from planner.legality import refusal
from planner.plans import Plan
from profiles.errors import InputError
from profiles.models.profile import WorkloadSpec
from profiles.ranks.launcher import launch
from profiles.ranks.rank import Rank
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload
from profiles.workloads.task_loading import load_task
from profiles.workloads.workload import Workload
from tests import own_module_entries
from tests.check_entries import material
from tests.own_module_entries import BATCH, NUM_STEPS, SEED, SEQUENCE, spec

HERE = Rank(rank=0, local_rank=0, num_ranks=1, device=torch.device("cpu"))


def workload(name: str) -> Workload:
    return load_workload(spec(name), ["tests.own_module_entries"])


def built(name: str) -> nn.Module:
    """The module as its own code builds it under the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: nn.Module = getattr(own_module_entries, name)()
    return model


def plain_training(name: str, microbatches: int) -> tuple[list[float], list[float], nn.Module]:
    """Losses, gradient norms and the model after the last step, of a loop that knows nothing of the executor."""
    model, text = built(name), load_text(default_text(), SEQUENCE, SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses, norms = [], []
    for step in range(NUM_STEPS):
        total = 0.0
        for inputs, targets in zip(*(part.chunk(microbatches) for part in text.batch(step, BATCH)), strict=True):
            loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) / microbatches
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, model


def test_weights_are_those_of_the_users_code() -> None:
    model = workload("warm").build(0, 4, SEED)
    wanted = built("warm").state_dict()
    assert set(model.state_dict()) == set(wanted)
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    assert model.get_parameter("1.warmth").item() == 5.0
    # Another seed gives others.
    assert not torch.equal(workload("warm").build(0, 4, SEED + 1).get_parameter("0.weight"), wanted["0.weight"])


def test_tied_weights_stay_tied_and_are_counted_once() -> None:
    own = workload("tied")
    model = own.build(0, 4, SEED)
    assert model[0].weight is model[3].weight
    assert trace(own, ("fp32",)).num_parameters == sum(p.numel() for p in built("tied").parameters())
    plan = Plan(pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 2), micro_batch_size=4, num_microbatches=2)
    assert "0.weight and 3.weight" in refusal(plan, facts_of_workload(own), SEQUENCE)


def gradients(plan: Plan, name: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step of the executor on this process."""
    trainer = Trainer(plan, workload(name), HERE, SEED, None)
    found: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        for path, parameter in trainer.named_parameters.items():
            assert parameter.grad is not None
            found[path] = parameter.grad.clone()

    trainer.optimizer.register_step_pre_hook(note)
    loss, _ = trainer.step(*load_text(default_text(), SEQUENCE, SEED).batch(0, BATCH))
    return float(loss), found  # type: ignore[arg-type]


def test_recomputed_dropout_drops_the_same() -> None:
    plain = Plan(micro_batch_size=4, num_microbatches=2)
    loss, wanted = gradients(plain, "dropping")
    again, found = gradients(Plan(micro_batch_size=4, num_microbatches=2, recompute="full"), "dropping")
    assert again == loss
    assert wanted
    for path, value in wanted.items():
        assert torch.equal(found[path], value), path
    # It does drop something.
    assert loss != gradients(plain, "plain")[0]


def test_recomputation_counts_statistics_once() -> None:
    batch = torch.randn(4, 16, SEQUENCE)
    ends = []
    for wrap in (lambda norm: norm, lambda norm: Recomputed(norm, draws=False)):
        norm = nn.BatchNorm1d(16)
        wrap(norm)(batch.clone().requires_grad_()).sum().backward()
        ends.append(norm.state_dict())
    assert int(ends[1]["num_batches_tracked"]) == 1
    assert torch.equal(ends[0]["running_mean"], ends[1]["running_mean"])


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"zero_stage": stage}) for name in ("plain", "tied", "warm", "counting") for stage in (0, 1, 2, 3)),
    ("counting", {"zero_stage": 0, "recompute": "full"}),
    ("warm", {"zero_stage": 3, "recompute": "full"}),
]


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_two_ranks_train_what_plain_torch_trains() -> None:
    plans = [(name, Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2, **fields)) for name, fields in CASES]
    results = launch(
        "tests.own_module_entries:train", {"cases": [(name, asdict(plan)) for name, plan in plans]}, 2, "cpu"
    )
    for (name, plan), result in zip(plans, results, strict=True):
        losses, norms, model = plain_training(name, 4)
        what = f"{name} {plan.id}"
        assert result["losses"] == pytest.approx(losses, rel=1e-6), what
        assert result["norms"] == pytest.approx(norms, rel=1e-5), what
        wanted = model.state_dict()
        if name == "tied":
            del wanted["3.weight"]
        for state in result["states"]:
            assert {key.removeprefix("model.") for key in state} == set(wanted), what
            for key, value in wanted.items():
                # Statistics are of what the first rank saw, as with DDP; before a norm, a bias has no gradient.
                if "running" not in key and "tracked" not in key and not (name == "counting" and "down.bias" in key):
                    assert torch.tensor(state[f"model.{key}"]).sub(value).abs().max() < 1e-4, (what, key)
        first, *others = ({k: v for k, v in state.items() if "running" in k} for state in result["states"])
        assert all(other == first for other in others), what
        assert name != "counting" or first, what


def test_a_module_that_its_factory_leaves_on_meta_is_refused_in_a_sentence() -> None:
    words = r"without_values leaves weight of a Embedding on the meta device: let its factory build it with weights"
    with pytest.raises(InputError, match=words):
        workload("without_values").build(0, 4, SEED)


def test_a_task_that_its_factory_leaves_on_meta_is_not_checked_and_said() -> None:
    own, data = material("task llama")
    assert own.task is not None

    build = own.task.build

    def without_values() -> nn.Module:
        with torch.device("meta"):
            return build()

    bare = replace(own, task=replace(own.task, build=without_values))
    plain = PlainLoop(bare, Plan(micro_batch_size=2), data, torch.device("cpu"))
    assert re.search(r"leaves \S+weight on the meta device, and a plain loop has no value for it$", plain.why_not())
    assert PlainLoop(own, Plan(micro_batch_size=2), data, torch.device("cpu")).why_not() == ""


def test_a_module_that_a_factory_holds_has_the_same_weights_in_every_process(tmp_path, monkeypatch) -> None:
    """torch begins with another seed in each: ranks that nobody forks would train different models."""
    code = """
        import torch
        from torch import nn
        from executor import Task
        MADE = nn.Linear(3, 2)
        def held():
            return Task(nn.Sequential(MADE, nn.Linear(2, 1)), lambda step, count: [{"x": torch.ones(3)}] * count)
    """
    (tmp_path / "held_module.py").write_text(textwrap.dedent(code), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    spec = WorkloadSpec(kind="module", name="held", factory="held_module:held", task="module")
    weights = []
    for _ in range(2):
        sys.modules.pop("held_module", None)
        torch.seed()
        before = torch.get_rng_state()
        weights.append(load_task(spec, ("held_module",)).build().state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(own, weights[1][name]) for name, own in weights[0].items())
