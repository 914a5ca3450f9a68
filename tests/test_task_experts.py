"""Experts of a task's mixtures are shared out over ranks, which train as one process does, or refused by name."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from executor.axes.optimizer import LEARNING_RATE
from executor.run.checks import check_task
from planner.legality import refusal
from planner.model_facts import ModelFacts
from planner.plans import Plan
from profiles.errors import PlanError
from profiles.ranks.launcher import launch
from profiles.workloads import expert_shares
from profiles.workloads.expert_shares import mixtures_of, prove_shares
from profiles.workloads.experts import expert_parameters, experts
from profiles.workloads.randomness import silence
from tests.task_entries import SEED, subject

HIDDEN, WIDE, COUNT = 8, 12, 4


class Mixture(nn.Module):
    """Four experts with biases and a norm behind, all weights in one."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.has_gate, self.has_bias, self.has_post_expert_norm = COUNT, False, True, True
        self.up_proj = nn.Parameter(torch.randn(COUNT, WIDE, HIDDEN))
        self.up_proj_bias = nn.Parameter(torch.randn(COUNT, WIDE))
        self.down_proj = nn.Parameter(torch.randn(COUNT, HIDDEN, WIDE))
        self.down_proj_bias = nn.Parameter(torch.randn(COUNT, HIDDEN))
        self.act_fn, self.post_expert_norm = nn.ReLU(), nn.LayerNorm(HIDDEN)

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return experts(self, hidden, index, weights)


class Alone(Mixture):
    """The same, computed expert by expert in code of its own."""

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        made = torch.zeros_like(hidden)
        for expert in range(COUNT):
            wide = self.act_fn(hidden @ self.up_proj[expert].t() + self.up_proj_bias[expert])
            own = self.post_expert_norm(wide @ self.down_proj[expert].t() + self.down_proj_bias[expert])
            made = made + own * (weights * (index == expert)).sum(-1, keepdim=True)
        return made


class Routed(nn.Module):
    """Two of four experts for each token."""

    def __init__(self, kind: type[Mixture] = Mixture) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(HIDDEN, COUNT), kind()

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.router(x).softmax(-1).topk(2)
        made: Tensor = self.experts(x, index, weights)
        return made


class Listed(nn.Module):
    """Experts that are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self.experts]).mean(0)


def seeded(kind: type[nn.Module], *args: type[Mixture]) -> nn.Module:
    torch.manual_seed(5)
    return kind(*args)


def run(module: nn.Module) -> Tensor:
    x = torch.randn(10, HIDDEN, generator=torch.Generator().manual_seed(2))
    loss: Tensor = (module(x) ** 3).mean()
    return loss


def test_experts_give_what_a_loop_over_them_gives_biases_and_norm_included() -> None:
    ours, plain = seeded(Routed), seeded(Routed, Alone)
    losses = run(ours), run(plain)
    for loss in losses:
        loss.backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-5)
    for own, wanted in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad, rtol=1e-4, atol=1e-5)


def test_shares_are_proven_and_leave_the_module_as_it_was() -> None:
    module = seeded(Routed)
    before = {name: own.clone() for name, own in module.state_dict().items()}
    assert prove_shares(module, run, 2) == ("experts",)
    assert prove_shares(module, run, 4) == ("experts",)
    assert mixtures_of(module) == {"experts": COUNT}
    assert "dispatch" not in vars(module.experts)
    assert all(torch.equal(own, before[name]) for name, own in module.state_dict().items())
    assert all(own.grad is None for own in module.parameters())


@pytest.mark.parametrize(
    ("module", "degree", "words"),
    [
        (Routed(), 3, "experts has 4 experts, not a multiple of it"),
        (Routed(Alone), 2, "experts computes all its experts at once"),
        (Listed(), 2, "experts has its experts as separate modules"),
        (nn.Linear(HIDDEN, HIDDEN), 2, "Linear has no mixture of experts"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_by_name(module: nn.Module, degree: int, words: str) -> None:
    with pytest.raises(PlanError, match=f"expert_parallel={degree}: {words}"):
        prove_shares(module, run, degree)


def test_a_parameter_that_is_not_shared_out_with_the_others_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_biases(module: nn.Module) -> dict[str, nn.Parameter]:
        return {name: one for name, one in expert_parameters(module).items() if not name.endswith("bias")}

    monkeypatch.setattr(expert_shares, "expert_parameters", without_biases)
    with pytest.raises(PlanError, match=r"expert_parallel=2: experts fails when its experts are shared"):
        prove_shares(seeded(Routed), run, 2)


def test_shares_in_another_order_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(module: nn.Module) -> dict[str, nn.Parameter]:
        return {name: one.flip(0) if "down" in name else one for name, one in expert_parameters(module).items()}

    monkeypatch.setattr(expert_shares, "expert_parameters", turned)
    with pytest.raises(PlanError, match=r"expert_parallel=2: shared experts give a different gradient of "):
        prove_shares(seeded(Routed), run, 2)


def plain_steps(name: str) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of plain torch, with the library's own loop over experts."""
    task = subject(name)[0].task
    assert task is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = task.build()
    silence(model)
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._experts_implementation = "eager"
    optimizer, losses, norms = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE), [], []
    for step in range(3):
        samples, total = task.batches(step, 8), 0.0
        for start in range(0, 8, 2):
            loss = model(**task.collate(samples[start : start + 2])).loss / 4
            loss.backward()
            total += float(loss.detach())
        own = [one.grad.double().square().sum() for one in model.parameters() if one.grad is not None]
        norms.append(float(torch.stack(own).sum().sqrt()))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, norms


def check(names: list[str], plans: list[Plan]) -> None:
    payload = {"cases": [(name, [asdict(plan) for plan in plans]) for name in names]}
    results = launch("tests.task_entries:train", payload, 2, "cpu")
    assert [result["case"] for result in results if result["status"] != "passed"] == [], results
    assert max(result["loss"] for result in results) < 1e-6
    assert max(result["norm"] for result in results) < 1e-6
    for name, result in zip(names, results[:: len(plans)], strict=True):
        losses, norms = plain_steps(name)
        assert result["reference"] == pytest.approx(losses, rel=1e-6)
        assert result["norms"] == pytest.approx(norms, rel=1e-5)


SHARED = Plan(data_parallel=2, expert_parallel=2, micro_batch_size=2, num_microbatches=2)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_a_mixture_with_biases_and_one_with_another_head_train_as_one_process_does() -> None:
    check(["gpt_oss", "mixtral_classes"], [SHARED])


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe", "granitemoe", "phimoe"])
def test_mixtures_train_as_one_process_does(name: str) -> None:
    recomputed = Plan(data_parallel=2, expert_parallel=2, recompute="full", micro_batch_size=2, num_microbatches=2)
    check([name], [SHARED, recomputed])


def test_experts_of_a_task_are_not_shared_beside_other_parts_of_it() -> None:
    facts = ModelFacts(
        name="mixture", num_layers=6, num_heads=0, num_kv_heads=0, ffn_size=0, vocab_size=0, tied_embeddings=False,
        can_tensor_parallel=True, can_pipeline=True, is_transformer=False, num_experts=None, is_task=True,
    )  # fmt: skip
    assert refusal(SHARED, facts, 32) == ""
    assert "expert_parallel=2 with tp or pp of mixture" in refusal(replace(SHARED, tensor_parallel=2), facts, 32)
    assert "use zero_stage=0" in refusal(replace(SHARED, zero_stage=2), facts, 32)
    # Where it is known, as of a profile, that there are none.
    assert "mixture has 0 experts" in refusal(SHARED, replace(facts, num_experts=0), 32)


def test_a_module_without_mixtures_is_refused_before_ranks_start() -> None:
    with pytest.raises(PlanError, match=r"expert_parallel=2: GPT2LMHeadModel has no mixture of experts"):
        check_task(SHARED, subject("gpt2")[0], "cpu")
    assert check_task(SHARED, subject("gpt_oss")[0], "cpu") == []


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_shared_experts_go_on_whole_and_whole_ones_shared(tmp_path: Path) -> None:
    whole = replace(SHARED, expert_parallel=1, zero_stage=3)
    pairs = [[asdict(SHARED), asdict(whole)], [asdict(whole), asdict(SHARED)]]
    told = {"model": "gpt_oss", "pairs": pairs, "folder": str(tmp_path)}
    for before, after in launch("tests.task_entries:save_and_go_on", told, 2, "cpu"):
        assert after == pytest.approx(before, rel=1e-5)
