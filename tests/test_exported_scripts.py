"""Exported scripts run, with a stand-in for Horovod: what they take, how they average, and that they clip nothing."""

import json
import runpy
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from planner.plans import Plan
from planner.stacks import registry
from tests.plan_builders import GPT2, LLAMA, make_plan_file

NUM_STEPS, SEQUENCE = 3, 16


class Averaged:
    """An optimizer as Horovod gives it: it steps over what `backward_passes_per_step` passes have added up."""

    def __init__(self, optimizer: torch.optim.Optimizer, passes: int) -> None:
        self.optimizer, self.passes, self.steps = optimizer, passes, 0
        self.seen: list[torch.Tensor] = []
        self.counted = 0
        first = optimizer.param_groups[0]["params"][0]
        first.register_post_accumulate_grad_hook(self._count)

    def _count(self, parameter: torch.Tensor) -> None:
        self.counted += 1

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        # Horovod waits for gradients that were never handed over where passes are not as many as were said.
        assert self.counted == self.passes
        self.counted, self.steps = 0, self.steps + 1
        grads = [own.grad.detach().flatten() for group in self.optimizer.param_groups for own in group["params"]]
        self.seen.append(torch.cat(grads).clone())
        self.optimizer.step()


@dataclass
class Horovod:
    """What the stand-in was asked."""

    calls: list[str] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)
    optimizer: Averaged | None = None
    model: torch.nn.Module | None = None

    def module(self) -> types.ModuleType:
        found = types.ModuleType("horovod.torch")
        found.Compression = types.SimpleNamespace(none="none", fp16="fp16")
        found.init = lambda: self.calls.append("init")
        found.rank = found.local_rank = lambda: 0
        found.size = lambda: 2
        found.DistributedOptimizer = self.distributed
        found.broadcast_parameters = lambda state, root_rank: self.calls.append("parameters")
        found.broadcast_optimizer_state = lambda optimizer, root_rank: self.calls.append("states")
        return found

    def distributed(self, optimizer: torch.optim.Optimizer, **asked: Any) -> Averaged:
        self.asked = {**asked, "named_parameters": dict(asked["named_parameters"])}
        self.optimizer = Averaged(optimizer, asked["backward_passes_per_step"])
        return self.optimizer


@contextmanager
def handed_over(stack: str, plan: Plan, spec: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the folder of an exported job, its own modules new."""
    file = make_plan_file(plan, stack=stack, spec=spec, sequence=SEQUENCE)
    for name, text in registry.export(stack, file, file.candidates[0]).files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "job", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "--steps", str(NUM_STEPS)])
    monkeypatch.delenv("STEP_LOG", raising=False)
    yield
    sys.modules.pop("job", None)


def by_hand(job: Any, plan: Plan) -> list[torch.Tensor]:
    """Gradients of the first step over the whole batch at once."""
    model, data = job.build_model(), job.batches(plan.micro_batch_size, 0)
    parts = [next(data) for _ in range(plan.num_microbatches)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    model(**whole).loss.backward()
    return torch.cat([own.grad.flatten() for own in model.parameters()])


@pytest.mark.parametrize(
    ("spec", "plan"),
    [
        (LLAMA, Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2)),
        (GPT2, Plan(data_parallel=2, micro_batch_size=1, codec="fp16", precision="bf16", recompute="full")),
    ],
    ids=["llama", "gpt2"],
)
def test_horovods_script_trains_as_the_plan_says(
    spec: Any, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    horovod, own = Horovod(), types.ModuleType("horovod")
    own.torch = horovod.module()
    monkeypatch.setitem(sys.modules, "horovod", own)
    monkeypatch.setitem(sys.modules, "horovod.torch", own.torch)
    with handed_over("horovod", plan, spec, tmp_path, monkeypatch):
        runpy.run_path(str(tmp_path / "train.py"), run_name="__main__")
        wanted = by_hand(sys.modules["job"], plan)
    assert horovod.calls == ["init", "parameters", "states"]
    assert horovod.asked["compression"] == plan.codec
    assert horovod.asked["backward_passes_per_step"] == plan.num_microbatches
    optimizer = horovod.optimizer
    assert optimizer is not None
    assert optimizer.steps == NUM_STEPS
    assert len(horovod.asked["named_parameters"]) == len(optimizer.optimizer.param_groups[0]["params"])
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 1, 2, 3]
    assert all(line["loss"] > 0 and line["seconds"] > 0 for line in lines[1:])
    assert "step 3: " in capsys.readouterr().out
    # The gradient is that of the whole batch, by its own length: nothing is clipped.
    close = 1e-4 if plan.precision == "fp32" else 0.1
    assert float((optimizer.seen[0] - wanted).norm() / wanted.norm()) < close


@pytest.mark.parametrize("plan", [Plan(data_parallel=2, micro_batch_size=2), Plan(data_parallel=2, zero_stage=3)])
def test_deepspeed_is_told_to_clip_nothing(plan: Plan) -> None:
    file = make_plan_file(plan, stack="deepspeed", spec=LLAMA)
    content = json.loads(registry.export("deepspeed", file, file.candidates[0]).files["ds_config.json"])
    assert content["gradient_clipping"] == 0.0


@pytest.mark.parametrize("spec", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_tensorflows_script_compiles_and_calls_what_it_defines(spec: Any) -> None:
    """It is not run here: names that it uses and nobody gives are what compiling does not find."""
    file = make_plan_file(Plan(data_parallel=2, num_microbatches=2), stack="tensorflow", spec=spec)
    code = compile(registry.export("tensorflow", file, file.candidates[0]).files["train.py"], "train.py", "exec")
    named, used = set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__), set()
    below = [code]
    while below:
        one = below.pop()
        below += [each for each in one.co_consts if isinstance(each, types.CodeType)]
        if one is code:
            named |= set(one.co_names)
        used |= globals_of(one)
    assert used <= named | {"__name__", "__file__"}


def globals_of(code: types.CodeType) -> set[str]:
    """Names that a function takes from its module."""
    import dis

    return {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
