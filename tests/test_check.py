"""The check of training: it passes what is right, and catches every fault of a list, in fp32 and in bf16."""

import ast
import itertools
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from executor import command
from executor.run.adamw_by_hand import AdamWByHand
from executor.run.check_bounds import beyond, projection_error, sends
from executor.run.check_findings import COPIES, GRADIENTS, LOSS, OPTIMIZER, RESUMED, Findings, verdict
from executor.run.check_plans import _subjects, both, narrowed, num_parameters
from executor.run.check_subject import enlarged, kept_layers, subject_of
from executor.run.checks import facts_of_workload
from executor.run.measurement import LossCheck
from executor.run.plain_loop import Parts
from planner.legality import refusal
from planner.plans import Plan
from profiles.codecs.codec import codec
from profiles.codecs.wire_format import add_decoded, encode, message_bytes
from profiles.models.profile import WorkloadSpec
from profiles.ranks import launcher
from profiles.workloads.loading import load_workload
from tests import check_plans
from tests.check_entries import material
from tests.check_faults import DATA, FAULTS, SHARDED
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, SEED, write_plan_file
from tests.test_architecture import ROOT, imports

# What shows a fault, where that is not the gradients of the first step.
SHOWN_BY = {
    "one bucket skipped": COPIES,
    "learning rate x 1.1": OPTIMIZER,
    "weight decay missing": OPTIMIZER,
    "moments reset": OPTIMIZER,
    "a stale shard after resume": RESUMED,
    "a copy that drifts": COPIES,
}
# Of each kind one or two, at one precision or the other, in the default suite.
SAMPLE = (
    ("rank 1 fed rank 0's data", "bf16"),
    ("all-reduce skipped", "bf16"),
    ("positions of context ranks wrong", "bf16"),
    ("weight decay missing", "bf16"),
    ("pipeline division missing", "fp32"),
    ("a stale shard after resume", "fp32"),
    ("gradients summed", "fp16"),
)


def checked(cases: list[tuple[str, Plan, str]], folder: Path) -> list[dict[str, Any]]:
    payload = {"cases": [(name, asdict(plan), fault) for name, plan, fault in cases], "folder": str(folder)}
    return launcher.launch("tests.check_entries:check_all", payload, 2, "cpu")


def caught(faults: list[tuple[str, str]], folder: Path) -> None:
    """Every fault is caught by what should show it, and plans without one pass, a resumed one too."""
    right = [
        ("llama", replace(DATA, precision="bf16"), ""),
        ("llama", replace(SHARDED, precision="fp16"), "resumed"),
        ("llama", SHARDED, "resumed"),
        ("task gpt2", Plan(tensor_parallel=2, micro_batch_size=2), "resumed"),
    ]
    wrong = [(FAULTS[name][0], replace(FAULTS[name][1], precision=precision), name) for name, precision in faults]
    results = checked([*right, *wrong], folder)
    for found in results[: len(right)]:
        assert found["status"] == "passed", found
    for found in results[len(right) :]:
        assert found["status"] == "failed", found
        ratio = found["found"][SHOWN_BY.get(found["fault"], GRADIENTS)]
        # None stands for what is no share of anything: any difference there is a fault.
        assert ratio is None or ratio > 5, found


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_faults_of_every_kind_are_caught(tmp_path: Path) -> None:
    caught(list(SAMPLE), tmp_path)


@pytest.mark.slow
@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_every_fault_is_caught_in_fp32_and_in_16_bits(tmp_path: Path) -> None:
    caught(list(itertools.product(FAULTS, ("fp32", "bf16", "fp16"))), tmp_path)


@pytest.mark.slow
@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_random_plans_pass() -> None:
    for num_ranks in (2, 4):
        for found in check_plans.check(list(itertools.islice(check_plans.plans(1, num_ranks), 10)), num_ranks):
            assert found["status"] == "passed", found


def test_the_plain_loop_shares_no_code_with_the_trainer() -> None:
    waiting, seen = ["executor.run.plain_loop", "executor.run.adamw_by_hand"], set[str]()
    while waiting:
        name = waiting.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name in seen or not name.startswith("executor.") or not path.exists():
            continue
        seen.add(name)
        waiting += imports(ast.parse(path.read_text(encoding="utf-8")), top_level_only=False)
    # Its samples, as they were loaded, and nothing else.
    assert seen == {f"executor.run.{name}" for name in ("plain_loop", "adamw_by_hand", "batches", "own_data")}


def test_what_is_checked_is_small_and_as_legal_as_the_plan() -> None:
    for num_ranks in (2, 4):
        for name, plan in itertools.islice(check_plans.plans(5, num_ranks), 30):
            workload, data = material(name)
            subject = subject_of(plan, workload, data)
            subject.plan.check(len(subject.workload.layers))
            assert not refusal(subject.plan, facts_of_workload(subject.workload), 32), plan.id
            assert len(subject.workload.layers) <= max(
                4, plan.num_stages + 2, len(workload.layers) * bool(workload.task)
            )
            assert subject.plan.global_batch_size <= plan.global_batch_size


def llama_of(**fields: Any) -> WorkloadSpec:
    return WorkloadSpec(kind="transformers", name="large", config={**LLAMA.config, **fields})


def test_as_many_layers_are_kept_as_stages_need() -> None:
    workload = load_workload(llama_of(num_hidden_layers=80))
    assert kept_layers(Plan(), workload) == (0, 1, 2, 81)
    deep = Plan(
        pipeline_parallel=4, virtual_stages=2, schedule="interleaved-1f1b", stage_bounds=tuple(range(0, 80, 10)),
        num_microbatches=64, recompute="full", recompute_layers=(3,) * 8,
    )  # fmt: skip
    subject = subject_of(deep, workload, material("llama")[1])
    assert subject.words == "on 10 of 82 layers"
    assert subject.plan.stage_bounds == (0, 2, 3, 4, 5, 6, 7, 8)
    assert subject.plan.recompute_layers == (1,) * 8
    assert subject.plan.num_microbatches == 16


def test_layers_of_every_kind_are_kept() -> None:
    fields = {**MIXTRAL.config, "model_type": "qwen3_moe", "num_hidden_layers": 9, "num_experts": 4, "head_dim": 16}
    config = {key: value for key, value in fields.items() if key != "num_local_experts"} | {"mlp_only_layers": [5]}
    workload = load_workload(WorkloadSpec(kind="transformers", name="mixed", config=config))
    assert kept_layers(Plan(), workload) == (0, 1, 6, 10)


def test_narrow_models_have_whole_heads() -> None:
    workload = load_workload(llama_of(hidden_size=256, intermediate_size=512, num_attention_heads=16, vocab_size=1000))
    narrow = narrowed(workload, 2)
    assert narrow is not None
    assert (narrow.hidden_size, narrow.num_heads, narrow.num_kv_heads, narrow.vocab_size) == (128, 8, 1, 448)
    assert num_parameters(narrow) < num_parameters(workload) / 2
    # Two heads of keys and values cannot be had by a quarter each.
    assert narrowed(workload, 4) is None


def test_what_does_not_fit_is_checked_at_a_reduced_width() -> None:
    wide = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
    workload = load_workload(llama_of(**wide, num_hidden_layers=80, vocab_size=128256))
    subjects = list(_subjects(Plan(data_parallel=8, tensor_parallel=2), workload, material("llama")[1]))
    words = [subject.words for subject in subjects]
    assert words == ["on 4 of 82 layers", *(f"on 4 of 82 layers, at 1/{part} of its width" for part in (2, 4))]
    sizes = [num_parameters(subject.workload) for subject in subjects]
    assert 3.7e9 < sizes[0] < 3.9e9
    # Half as wide is a quarter of the matrices, and so is the vocabulary.
    assert sizes[0] / 4.1 < sizes[1] < sizes[0] / 3.9


def test_weights_are_enlarged_alike_on_every_stage() -> None:
    for spec in (LLAMA, GPT2, MIXTRAL):
        workload = enlarged(load_workload(spec))
        whole, part = workload.build(0, 6, SEED), workload.build(2, 4, SEED)
        for (name, one), (_, other) in zip(whole[2:4].named_parameters(), part.named_parameters(), strict=True):
            assert torch.equal(one, other), name
        assert float(whole[2].block.state_dict()[next(iter(whole[2].block.state_dict()))].abs().max()) > 0.1


@pytest.mark.parametrize("changed", [{}, {"lr": 1.1e-3}, {"weight_decay": 0.0}, {"betas": (0.9, 0.99)}])
def test_adamw_by_hand_is_torchs_and_no_other(changed: dict[str, Any]) -> None:
    torch.manual_seed(1)
    weights = {"one": nn.Parameter(torch.randn(64, 32)), "other": nn.Parameter(torch.ones(7))}
    by_hand = AdamWByHand(weights)
    optimizer = torch.optim.AdamW(weights.values(), **({"lr": 1e-3} | changed), fused=True)
    for _ in range(3):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape)
        by_hand.see()
        optimizer.step()
    ratio, difference, _ = by_hand.compare()
    assert (ratio > 4) == bool(changed)
    assert (difference > 1e-4) == bool(changed)


def sent_by(name: str, parts: list[Tensor]) -> Tensor:
    """The mean of what all ranks' messages say."""
    if name in ("bf16", "fp16"):
        kind = torch.bfloat16 if name == "bf16" else torch.float16
        return torch.stack([(part / len(parts)).to(kind) for part in parts]).sum(dim=0).float()
    total = torch.zeros_like(parts[0])
    for part in parts:
        message = encode(codec(name), part)
        assert len(message) == message_bytes(codec(name), part.numel())
        add_decoded(codec(name), message, total, 1 / len(parts))
    return total


@pytest.mark.parametrize("name", ["bf16", "fp16", "int8", "fp8", "topk-5"])
def test_a_codec_is_allowed_its_rounding_and_no_more(name: str) -> None:
    torch.manual_seed(2)
    parts = [torch.randn(5000) * 10.0 ** torch.randint(-3, 1, (5000,)) for _ in range(2)]
    plan, wanted = Plan(data_parallel=2, codec=name), (parts[0] + parts[1]) / 2
    known = Parts(*(torch.zeros(5000) for _ in range(3)))
    for part in parts:
        known.add(part / 2, 1.0)
    largest = sum(float(part.abs().max()) for part in parts) / 2
    found = sent_by(name, parts)
    assert sends(plan) == "replicas"
    assert float(beyond(plan, found, wanted, known, largest).norm()) < 1e-6 * float(wanted.norm())
    for wrong in (2 * found, parts[0], sent_by(name, [parts[0], parts[0]])):
        assert float(beyond(plan, wrong, wanted, known, largest).norm()) > 0.05 * float(wanted.norm())


def test_a_low_rank_gradient_is_a_projection() -> None:
    torch.manual_seed(3)
    wanted = torch.randn(40, 30)
    columns = torch.linalg.qr(wanted @ torch.randn(30, 2)).Q
    found = columns @ (columns.T @ wanted)
    assert projection_error(found, wanted) < 1e-6
    assert projection_error(2 * found, wanted) > 0.1
    assert projection_error(found, torch.randn(40, 30)) > 0.1


def test_a_verdict_names_what_is_off_the_most() -> None:
    findings = Findings()
    findings.add(LOSS, "", 1e-7, 1e-5)
    findings.add(GRADIENTS, "1.norm", 1e-7, 1e-5)
    findings.add(GRADIENTS, "2.norm", 1e-6, 1e-5)
    passed = verdict(Plan(), "on 4 of 82 layers", findings)
    assert (passed.status, passed.reason) == ("passed", "gradients within 1e-06 of a plain loop, on 4 of 82 layers")
    findings.add(GRADIENTS, "3.norm", float("nan"), 1e-5)
    failed = verdict(Plan(), "", findings)
    assert failed.status == "failed"
    assert "gradient of 3.norm" in failed.reason
    assert failed.found[GRADIENTS] is None


def test_either_check_can_fail_a_plan() -> None:
    passed, failed, skipped, exempt = (
        LossCheck(status=status, reason=status, tolerance_fraction=0.0)
        for status in ("passed", "failed", "skipped", "exempt")
    )
    assert both(failed, passed).status == both(passed, failed).status == "failed"
    assert both(failed, passed).reason == "failed"
    assert both(passed, skipped).status == both(passed, exempt).status == "passed"
    assert both(skipped, passed).status == "passed"
    assert both(skipped, skipped).status == "skipped"


@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("failed", 4)])
def test_the_check_alone_ends_with_its_verdict(
    status: Any, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_plan_file(tmp_path / "plan.json", DATA)
    verdict = LossCheck(status=status, reason="as it is", tolerance_fraction=1e-5)
    orders = []

    def launched(entry: str, payload: dict[str, Any], *arguments: object, **options: object) -> list[dict[str, Any]]:
        orders.append(payload["order"])
        return [asdict(verdict)]

    monkeypatch.setattr(launcher, "launch", launched)
    monkeypatch.setattr(sys, "argv", ["execute", str(path), "--check", "--json"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert int(ended.value.code or 0) == code
    assert orders[0]["only_checks"]
    said = capsys.readouterr()
    assert json.loads(said.out)[0]["status"] == status
    assert DATA.id in said.err
