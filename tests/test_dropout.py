"""Dropout that a configuration states is trained with, as transformers trains, and checked without."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from executor.run.batches import default_text, load_text
from executor.run.own_data import TaskSamples
from executor.run.reference import NUM_STEPS, check_losses, first_steps, reference_of
from executor.run.subject import workload_of_task
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.models.profile import WorkloadSpec
from profiles.ranks.rank import Rank
from profiles.workloads.loading import load_workload
from profiles.workloads.randomness import begin_random, holds_dropout, silence
from profiles.workloads.task import user_task
from tests.plan_builders import GPT2, NUM_LAYERS, SEED, SEQUENCE, VIT

HERE = Rank(rank=0, local_rank=0, num_ranks=1, device=torch.device("cpu"))
DROPPING = replace(GPT2, config={**GPT2.config, "resid_pdrop": 0.1, "embd_pdrop": 0.2, "attn_pdrop": 0.3})


def transformers_logits(model: nn.Sequential, tokens: Tensor) -> Tensor:
    """What transformers' own GPT-2 of these weights answers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in DROPPING.config.items() if key != "model_type"}
    own = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **fields), attn_implementation="sdpa").train()
    embedding, *blocks, head = model
    state = {"transformer.wte.weight": embedding.tokens.weight, "transformer.wpe.weight": embedding.positions.weight}
    for number, block in enumerate(blocks):
        for name, value in block.block.state_dict().items():
            is_transposed = "c_" in name and value.dim() == 2
            state[f"transformer.h.{number}.{name}"] = value.T if is_transposed else value
    state |= {f"transformer.ln_f.{name}": value for name, value in head.norm.state_dict().items()}
    own.load_state_dict(state | {"lm_head.weight": head.projection.weight})
    torch.manual_seed(1)
    return own(input_ids=tokens, use_cache=False).logits


def test_gpt2_drops_what_transformers_drops() -> None:
    model = load_workload(DROPPING).build(0, NUM_LAYERS, SEED)
    tokens = torch.randint(0, 256, (2, SEQUENCE))
    torch.manual_seed(1)
    logits = model(tokens)
    assert torch.equal(logits, transformers_logits(model, tokens))
    silence(model)
    assert not torch.equal(logits, model(tokens))


@pytest.mark.parametrize(("spec", "name"), [(GPT2, "resid_pdrop"), (VIT, "hidden_dropout_prob")])
def test_what_is_not_stated_is_not_dropped(spec, name) -> None:
    assert not holds_dropout(load_workload(spec).build(0, NUM_LAYERS, SEED))
    stated = replace(spec, config={**spec.config, name: 0.1})
    assert all(holds_dropout(layer) for layer in load_workload(stated).build(0, NUM_LAYERS, SEED)[1:-1])


def test_the_check_is_without_dropout_and_training_with_it() -> None:
    workload, text = load_workload(DROPPING), load_text(default_text(), SEQUENCE, SEED)
    plan = Plan(micro_batch_size=4, num_microbatches=2)
    reference = reference_of(workload, [plan], text, HERE, 0)
    assert reference.is_silent
    silent = first_steps(Trainer(plan, workload, HERE, SEED, None, is_silent=True), text, NUM_STEPS)
    check = check_losses(plan, [loss or 0.0 for loss in silent.losses], silent.norms, reference)
    assert check.status == "passed"
    assert check.reason.endswith("compared with dropout off")
    drawn = [first_steps(Trainer(plan, workload, HERE, SEED, None), text, 1) for _ in range(2)]
    # Training drops, the same again from the same seed.
    assert drawn[0] == drawn[1]
    assert drawn[0].losses[0] != silent.losses[0]
    assert not reference_of(load_workload(GPT2), [plan], text, HERE, 0).is_silent


class DropsByOthers(nn.Module):
    """Blocks that drop by random numbers which are not torch's, and weights that begin with such."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            nn.init.constant_(self.linear.bias, float(np.random.rand()))

        def forward(self, x: Tensor) -> Tensor:
            kept = torch.as_tensor(np.random.rand(*x.shape) > 0.3)
            return torch.tanh(self.linear(x)) * kept * (2.0 if random.random() > 0.5 else 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x.square().mean()


def test_random_numbers_of_others_are_the_same_again_with_recomputation() -> None:
    task = user_task(DropsByOthers, lambda step, n: [{"x": row} for row in torch.linspace(step, 1, 6 * n).view(n, 6)])
    spec = WorkloadSpec(kind="module", name="other", factory="other:f", task="other")
    workload, samples = workload_of_task(spec, task, 5), TaskSamples(task=task, spec=spec, seed=SEED)
    plan, found = Plan(micro_batch_size=2, num_microbatches=2), []
    for recompute in ("none", "full"):
        random.seed(len(found))
        np.random.seed(len(found))
        found.append(first_steps(Trainer(replace(plan, recompute=recompute), workload, HERE, SEED, None), samples, 3))
    assert found[0] == found[1]


def test_a_step_leaves_random_numbers_where_they_were() -> None:
    """Replicas draw different ones within a step, and what a loop draws between steps must be the same for all."""
    task = user_task(DropsByOthers, lambda step, n: [{"x": row} for row in torch.linspace(step, 1, 6 * n).view(n, 6)])
    spec = WorkloadSpec(kind="module", name="other", factory="other:f", task="other")
    trainer = Trainer(Plan(micro_batch_size=2), workload_of_task(spec, task, 5), HERE, SEED, None)
    drawn = []
    for takes_a_step in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        if takes_a_step:
            trainer.step(task.batches(0, 2))
        drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))
    assert drawn[0] == drawn[1]


def test_weights_of_a_users_layers_may_begin_with_others_random_numbers() -> None:
    workload = replace(load_workload(GPT2), whole=lambda: nn.Sequential(DropsByOthers.Block()))
    first, again = (workload.build(0, 1, SEED)[0].state_dict() for _ in range(2))
    assert torch.equal(first["linear.bias"], again["linear.bias"])


def test_random_numbers_begin_as_torch_begins_them_without_asking_devices_that_are_not_there(monkeypatch) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)

    def queued(*_: object, **__: object) -> None:
        raise AssertionError("a call was queued for a device that is not there, with a traceback")

    for library in ("xpu", "mtia", *(() if torch.cuda.is_available() else ("cuda",))):
        monkeypatch.setattr(f"torch.{library}._lazy_call", queued)
    begin_random(7)
    assert torch.equal(torch.rand(3), wanted)
