"""Rehearsals: what one process counts is what real ranks do, and what the planner expects of them."""

import itertools
import json
import random
import statistics
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from executor.command import app
from executor.rehearse.all_ranks import rehearse_all
from executor.rehearse.result import RehearsalFile, Rehearsed
from planner.build_memory import build_peak_bytes
from planner.expected_counts import volumes
from planner.legality import refusal
from planner.model_facts import facts_of_sizes
from planner.plans import Plan
from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.predictions import predictions
from planner.space.question import setting
from planner.space.to_plans import best_places, plan_of
from planner.space.topology import first_group
from profiles import artifacts
from profiles.errors import InputError, PlanError
from profiles.library import load_model, load_sizes
from profiles.machines.devices import load_device
from profiles.models.adapters import adapters
from profiles.models.profile import SCALED, WorkloadSpec
from profiles.models.sizes import sizes_of
from profiles.ranks.launcher import launch
from profiles.tracing.trace import trace
from profiles.workloads.loading import load_workload
from reports.command import app as compare
from tests.marks import slow
from tests.parity_cases import EXPERTS, Case, four_ranks, make_plan, two_ranks
from tests.parity_entries import SPECS
from tests.plan_builders import LLAMA, SEQUENCE, write_plan_file

RUNNER = CliRunner()
FP16 = Plan(data_parallel=2, micro_batch_size=4, zero_stage=3, precision=SCALED)
# A llama with more heads, layers and vocabulary to split; its layers are as small as they come.
WIDE = WorkloadSpec(
    kind="transformers",
    name="wide-llama",
    config={
        **LLAMA.config,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 8,
    },
)


def rehearse(jobs: list[tuple[Plan, WorkloadSpec, int, int]]) -> list[Rehearsed]:
    return list(rehearse_all(jobs, lambda fraction, words: None))


def together(plan: Plan) -> list[list[int]]:
    """Ranks to be compared: the first and the last, or where tokens choose their experts' ranks, all in one sum."""
    if plan.expert_parallel > 1:
        return [list(range(plan.num_devices))]
    return [[rank] for rank in sorted({0, plan.num_devices - 1})]


def totals(counted: list[dict[str, Any]]) -> tuple[Counter[str], Counter[tuple[str, str, str]], float]:
    """Of some ranks: FLOPs by kind, number and bytes of messages by axis and collective, and their mean peak."""
    flops, sent = Counter(), Counter()
    for own in counted:
        flops.update(own["flops"])
        for message in own["messages"]:
            for what in ("count", "num_bytes"):
                sent[message["axis"], message["collective"], what] += message[what]
    return flops, sent, statistics.mean(own["peak_bytes"] for own in counted)


def check_against_ranks(cases: list[Case], num_ranks: int) -> None:
    """FLOPs and messages are the same; the peak is close, for real tensors die when the last thread lets go of them."""
    payload = [(name, asdict(plan)) for name, plan in cases]
    real = launch("tests.rehearsal_entries:count_all", payload, num_ranks, "cpu")
    compared = [
        (name, plan, own, ranks) for (name, plan), own in zip(cases, real, strict=True) for ranks in together(plan)
    ]
    rehearsed = iter(
        rehearse([(plan, SPECS[name], SEQUENCE, rank) for name, plan, _, ranks in compared for rank in ranks])
    )
    for name, plan, everyone, ranks in compared:
        counted = totals([everyone[rank] for rank in ranks])
        found = totals([asdict(next(rehearsed)) for _ in ranks])
        what = f"{name} {plan.id}, ranks {ranks}"
        assert found[:2] == counted[:2], what
        assert found[2] == pytest.approx(counted[2], rel=0.1), what


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
def test_two_ranks_do_what_was_rehearsed() -> None:
    check_against_ranks([*two_ranks(complete=False)[1::42], ("mixtral", make_plan(EXPERTS[0])), ("llama", FP16)], 2)


def test_experts_that_are_fewer_than_ranks_are_sharded_without_padding() -> None:
    plan = Plan(data_parallel=8, micro_batch_size=2, num_microbatches=1, zero_stage=3)
    check_against_planner([(SPECS["mixtral"], plan, 7)], SEQUENCE)


CODED = [
    Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2, codec=name, zero_stage=stage)
    for name, stage in (("int8", 0), ("topk-5", 0), ("bf16", 3))
]


# Sharded over half of the ranks, and summed in 16 bits over the halves.
SHARDED = Plan(data_parallel=4, micro_batch_size=2, num_microbatches=1, codec="bf16", zero_stage=3, shard_degree=2)


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
def test_compressed_gradients_are_rehearsed_and_expected() -> None:
    check_against_ranks([("llama", plan) for plan in CODED], 2)
    check_against_planner([(SPECS["llama"], plan, plan.num_devices - 1) for plan in (*CODED, SHARDED)], SEQUENCE)


def test_adapters_are_built_beside_frozen_weights_of_sixteen_bits() -> None:
    spec = replace(WIDE, adapters=adapters(4))
    model = trace(load_workload(spec), ("bf16",))
    plans = [
        Plan(data_parallel=2, micro_batch_size=4, precision="bf16"),
        Plan(data_parallel=2, micro_batch_size=4, zero_stage=3, precision="bf16"),
    ]
    for plan, own in zip(plans, rehearse([(plan, spec, SEQUENCE, 0) for plan in plans]), strict=True):
        assert build_peak_bytes(plan, model, 0) == pytest.approx(own.build_peak_bytes, rel=0.1), plan.id


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.slow
@pytest.mark.parametrize(("cases", "num_ranks"), [(two_ranks, 2), (four_ranks, 4)])
def test_all_ranks_do_what_was_rehearsed(cases, num_ranks) -> None:
    check_against_ranks(cases(complete=False), num_ranks)


def check_against_planner(cases: list[tuple[WorkloadSpec, Plan, int]], sequence: int) -> None:
    """FLOPs, and bytes by axis and collective, within 1 %."""
    models = {}
    for (spec, plan, rank), own in zip(
        cases, rehearse([(plan, spec, sequence, rank) for spec, plan, rank in cases]), strict=True
    ):
        key = spec.digest, plan.precision
        if key not in models:
            models[key] = trace(load_workload(spec), (plan.precision,))
        expected = volumes(plan, models[key], sequence, own.place["pipeline"])
        what = f"{spec.name} {plan.id}, rank {rank}"
        assert expected.flops == pytest.approx(sum(own.flops.values()), rel=0.01), what
        build = build_peak_bytes(plan, models[key], own.place["pipeline"])
        # A shared weight is kept whole until both of its layers are there.
        is_shared = spec.config.get("tie_word_embeddings", False)
        # A block of GPT-2 is made of other linears, each replaced in turn: the widest stands there twice, and a
        # third time where it is split. Longer positions change nothing of it, wider linears do.
        width = int(spec.config.get("n_embd", 0))
        copies = 2 * 4 * 4 * width * (width + 1)
        assert own.build_peak_bytes == pytest.approx(build, rel=0.5 if is_shared else 0.1, abs=copies), what
        sent = {(message.axis, message.collective): message.num_bytes for message in own.messages}
        assert {(t.axis, t.collective): t.num_bytes for t in expected.traffic} == pytest.approx(sent, rel=0.01), what


@pytest.mark.parametrize("complete", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_planner_expects_what_every_combination_of_axes_does(complete: bool) -> None:
    every = [*two_ranks(complete), *four_ranks(complete)]
    # fp16 is bf16 and one message more.
    scaled = [(name, plan) for name, plan in every if plan.precision == SCALED]
    cases = [(name, plan) for name, plan in every if plan.precision != SCALED][:: 1 if complete else 11] + scaled
    check_against_planner([(SPECS[name], plan, plan.num_devices - 1) for name, plan in cases], SEQUENCE)


@pytest.mark.parametrize("seed", [slow(seed) for seed in range(8)])
def test_the_planner_expects_what_plans_drawn_from_its_space_do(seed: int) -> None:
    draw, drawn = random.Random(seed), []
    sizes = sizes_of(WIDE.name, WIDE.config)
    for num_devices in (8, 64, 512):
        at = setting(sizes, load_device("h100-sxm"), num_devices, 2 * num_devices, 128)
        space = explore(at, Options(offload=("none",)))
        places = best_places(space, len(space.best))
        draw.shuffle(places)
        plans = (plan_of(space, place) for place in places)
        chosen = (
            plan
            for plan in plans
            if not refusal(plan, facts_of_sizes(at.model), 128)
            and plan.num_microbatches <= 32
            # Every rank has a row of every weight: otherwise FSDP fills up.
            and plan.data_parallel * plan.context_parallel * plan.tensor_parallel <= 256
        )
        drawn += [(WIDE, next(chosen), draw.randrange(num_devices)) for _ in range(2)]
    check_against_planner(drawn, 128)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "counts"), [("llama-3.1-8b", (8, 64)), ("mixtral-8x7b", (64, 512))])
def test_peak_memory_is_what_the_laws_of_shipped_devices_say(name: str, counts: tuple[int, ...]) -> None:
    """Plans drawn from the space, against live tensors of the same program on CPU; README says so."""
    draw, model, jobs, expected = random.Random(2), load_model(name), [], []
    for num_devices in counts:
        at = setting(load_sizes(name), load_device("h100-sxm"), num_devices, 4 * num_devices, 2048)
        space = explore(at, Options(offload=("none",)))
        places = best_places(space, len(space.best))
        draw.shuffle(places)
        found = ((place, plan_of(space, place)) for place in places)
        chosen = (
            (place, p)
            for place, p in found
            if not refusal(p, facts_of_sizes(at.model), 2048) and p.num_microbatches <= 16
        )
        for place, plan in itertools.islice(chosen, 10):
            stage = draw.randrange(plan.pipeline_parallel)
            jobs.append((plan, model.workload, 2048, first_group(plan, "pipeline")[stage]))
            expected.append(predictions(space, [place])[0].stage_peak_bytes[stage])
    off = [abs(law / own.peak_bytes - 1) for law, own in zip(expected, rehearse(jobs), strict=True)]
    assert statistics.median(off) < 0.03
    assert sum(value < 0.05 for value in off) >= 0.9 * len(off)
    assert max(off) < 0.1


@pytest.mark.slow
def test_seventy_billion_parameters_are_built_in_the_memory_that_was_told() -> None:
    """The best plan of all, layer by layer from nothing, on one of 64 devices; README says so."""
    name, sequence_length, device = "llama-3.1-70b", 4096, load_device("h100-sxm")
    model = load_model(name)
    at = setting(load_sizes(name), device, 64, 512, sequence_length)
    space = explore(at, Options(offload=("none",)))
    plan = plan_of(space, best_places(space, 1)[0])
    (own,) = rehearse([(plan, model.workload, sequence_length, 0)])
    expected = build_peak_bytes(plan, model, 0)
    assert own.build_peak_bytes == pytest.approx(expected, rel=0.05)
    assert own.build_peak_bytes < at.memory_bytes
    # One layer beside the shards, and by no means all layers.
    assert own.build_peak_bytes < 0.1 * 4 * model.num_parameters


def test_a_rank_of_four_thousand_is_rehearsed_in_seconds() -> None:
    model = load_model("llama-3.1-8b")
    plan = Plan(
        data_parallel=64, tensor_parallel=8, pipeline_parallel=8, sequence_parallel=True, vocab_parallel=True,
        num_microbatches=8, stage_bounds=(0, 4, 8, 12, 17, 22, 26, 30), schedule="1f1b", zero_stage=1,
        precision="bf16",
    )  # fmt: skip
    (own,) = rehearse([(plan, model.workload, 4096, 4095)])
    assert own.place == {"tensor": 7, "context": 0, "data": 63, "pipeline": 7}
    expected = volumes(plan, model, 4096, 7)
    assert expected.flops == pytest.approx(sum(own.flops.values()), rel=0.01)
    sent = {(message.axis, message.collective): message.num_bytes for message in own.messages}
    assert {(t.axis, t.collective): t.num_bytes for t in expected.traffic} == pytest.approx(sent, rel=0.01)
    # Eight stages of a model of 8 G parameters in 32 bits, split eight times; a sixty-fourth of its moments.
    assert own.state_bytes["parameters"] == pytest.approx(4 * model.num_parameters / 64, rel=0.3)


def test_shapes_that_do_not_fit_together_are_found_before_a_cluster_does() -> None:
    plan = Plan(tensor_parallel=3, micro_batch_size=2)
    assert refusal(plan, facts_of_sizes(sizes_of("x", LLAMA.config)), 32)
    with pytest.raises(PlanError, match=r"tp3 mb2x1 fp32 cannot run on rank 1"):
        rehearse([(plan, LLAMA, SEQUENCE, 1)])


def test_all_ranks_tell_one_share_that_never_falls() -> None:
    plan = Plan(data_parallel=2, micro_batch_size=2, zero_stage=3)
    told: list[tuple[float, str]] = []
    rehearse_all([(plan, LLAMA, SEQUENCE, rank) for rank in (0, 1)], lambda *words: told.append(words), (), [1.0, 1.0])
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert max(fractions) <= 1
    assert {words for _, words in told} >= {"rank 0: starting", "rank 1: starting"}


@pytest.mark.parametrize(("plan", "words"), [(Plan(codec="powersgd-1"), "codec"), (Plan(compiled=True), "compiled")])
def test_what_cannot_be_rehearsed_is_refused_by_name(plan: Plan, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        rehearse([(plan, LLAMA, SEQUENCE, 0)])


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    return write_plan_file(tmp_path / "plan.json", make_plan({"pipeline_parallel": 2, "schedule": "1f1b"}))


def test_the_command_writes_what_compare_shows(plan_file: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "rehearsal.json", tmp_path / "page.html"
    done = RUNNER.invoke(app, [str(plan_file), "--rehearse", "--all-stages", "-o", str(output)])
    assert done.exit_code == 0, done.output
    file = artifacts.read(output, "rehearsal", RehearsalFile)
    (own,) = file.plans
    assert [rank.rehearsed.place["pipeline"] for rank in own.ranks] == [0, 1]
    for words in ("rehearsing ranks 0, 1 of 2 of", "pipeline send", "FLOPs", "peak memory", "expected", "rehearsed"):
        assert words in done.output
    shown = RUNNER.invoke(compare, [str(output), "-o", str(page), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)[0]["plans"][0]["ranks"][0]["rehearsed"]["flops"]
    text = page.read_text()
    assert own.plan.id in text
    assert "pipeline send" in text
    assert "http" not in text.split("</style>")[-1]


def test_one_rank_is_rehearsed_as_json(plan_file: Path) -> None:
    done = RUNNER.invoke(app, [str(plan_file), "--rehearse", "--rank", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert [rank["rehearsed"]["rank"] for rank in json.loads(done.stdout)["plans"][0]["ranks"]] == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "0"], "--rank has no effect without --rehearse"),
        (["--rehearse", "--rank", "7"], "ranks 0 to 1"),
        (["--rehearse", "--rank", "0", "--all-stages"], "--all-stages cannot be combined with --rank"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(plan_file: Path, arguments: list[str], words: str) -> None:
    done = RUNNER.invoke(app, [str(plan_file), *arguments])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)


def test_rehearsals_and_runs_are_not_compared(plan_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "rehearsal.json"
    RUNNER.invoke(app, [str(plan_file), "--rehearse", "-o", str(output)])
    done = RUNNER.invoke(compare, [str(output), str(plan_file)])
    assert "rehearsals and runs cannot be compared" in str(done.exception)
