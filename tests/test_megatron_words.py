"""Plans in Megatron's arguments and back, without Megatron: round trips, goldens, refusals, the table of arguments.

Where a checkout of Megatron-LM is named (MEGATRON_FOLDER, MEGATRON_PYTHON), its own checks are asked as well.
"""

import dataclasses
import os
import random
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.plans import Plan
from planner.prediction import PlanFile
from planner.stacks import registry
from planner.stacks.handover import Given
from planner.stacks.megatron.export import LAYERS, MOCK, TRAINING, argv, settings_of
from planner.stacks.megatron.read_layout import read_stages
from planner.stacks.megatron.say_layout import say_stages, stage_counts
from planner.stacks.megatron.say_model import say_pattern
from planner.stacks.megatron.words import ATTRIBUTES, SAME, WORDS, of_meaning
from profiles.errors import InputError
from profiles.library import load_sizes
from profiles.machines.stacks import load_stack
from profiles.models.adapters import adapters
from profiles.models.hf_config import checked
from profiles.models.transformer import Transformer
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, VIT, make_plan_file
from tests.stacks.megatron_plans import meant, random_plans

GOLDEN = Path(__file__).parent / "golden" / "stacks"
MODELS = (
    "llama-3.1-8b", "gpt3-175b", "mixtral-8x7b", "deepseek-v3", "qwen3-8b", "qwen3-235b-a22b", "mistral-7b", "gpt2-xl",
)  # fmt: skip
PIPED = Plan(
    data_parallel=2, tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True, vocab_parallel=True,
    schedule="1f1b", stage_bounds=(0, 4), num_microbatches=4, zero_stage=1, precision="bf16", recompute="full",
    recompute_layers=(1, 1),
)  # fmt: skip
SHARDED = Plan(data_parallel=8, zero_stage=3, shard_degree=4, micro_batch_size=2, precision="fp8")
PLAIN = Plan(data_parallel=2, pipeline_parallel=4, virtual_stages=2, schedule="interleaved-1f1b", num_microbatches=6,
             stage_bounds=(0, 2, 3, 4, 5, 6, 7, 8), zero_stage=1, precision="fp16")  # fmt: skip


@lru_cache
def files() -> tuple[PlanFile, ...]:
    """One plan file for each model, whose plans do not matter."""
    found = []
    for name in MODELS:
        sizes = load_sizes(name)
        assert sizes is not None
        found.append(make_plan_file(Plan(), spec=sizes.workload, num_layers=sizes.num_layers + 2, sequence=1024))
    return tuple(found)


def hand_over(stack: str, plan: Plan, **fields: object):
    file = make_plan_file(plan, stack=stack, **fields)
    return registry.export(stack, file, file.candidates[0])


@pytest.mark.parametrize("stack", sorted(LAYERS))
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), overlaps=st.booleans(), kernel=st.sampled_from(("", "cudnn", "flash3", "unfused")))
def test_a_plan_that_is_written_and_read_again_is_the_same(stack: str, seed: int, overlaps: bool, kernel: str) -> None:
    runs = load_stack(stack).runs
    assert runs is not None
    ((file, plan),) = random_plans(files(), runs, 1, random.Random(seed))
    overlaps, kernel = (overlaps, kernel) if stack == "megatron-core" else (False, "unfused")
    file = replace(file, stack=stack, attention_kernel=kernel, overlaps_tensor=overlaps and plan.sequence_parallel)
    out = registry.export(stack, file, replace(file.candidates[0], plan=plan))
    given_devices = Given(num_devices=plan.num_devices)
    jobs = [registry.read(Path(name), text, given_devices) for name, text in out.files.items()]
    assert len(jobs) == 2
    for job in jobs:
        assert meant(job.plan, file.num_layers) == meant(plan, file.num_layers)
        assert (job.stack, job.sequence_length) == (stack, file.sequence_length)
        assert job.global_batch_size == plan.global_batch_size
        assert checked("a", job.workload.config).sizes == checked("b", file.workload.config).sizes
        assert job.attention_kernel == (kernel or "flash2")
        assert job.overlaps_tensor == file.overlaps_tensor
        assert (job.unread, job.unpriced) == ((), ())


@pytest.mark.parametrize(("stack", "plan", "spec"), [("megatron-core", PIPED, LLAMA), ("megatron-lm", PLAIN, GPT2)])
def test_what_is_handed_over_is_as_it_was(stack: str, plan: Plan, spec) -> None:
    layers = 10 if spec is GPT2 else 6
    spec = replace(spec, config=spec.config | ({"n_layer": 8} if spec is GPT2 else {}))
    kernel = "unfused" if spec.name == GPT2.name else "cudnn"
    out = hand_over(stack, plan, spec=spec, num_layers=layers, devices_per_node=4, attention_kernel=kernel)
    text = "".join(f"{line}\n" for line in out.files["launch.sh"].splitlines() if "Written by" not in line)
    assert text == (GOLDEN / f"{stack}.sh").read_text(encoding="utf-8")
    assert out.version == load_stack(stack).runs.version
    assert out.command == "NODE_RANK=0 MASTER_ADDR=first-node bash launch.sh"


# Of the published config.json of Llama 3.1, whatever its size.
LLAMA31 = {
    "rotary-base": 500000, "norm-epsilon": 1e-5, "use-rope-scaling": True, "rope-scaling-factor": 8.0,
    "max-position-embeddings": 131072,
}  # fmt: skip


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"])
def test_positions_and_norms_are_the_models_own(name: str) -> None:
    sizes = load_sizes(name)
    out = hand_over("megatron-core", Plan(), spec=sizes.workload, num_layers=sizes.num_layers + 2)
    arguments = yaml.safe_load(out.files["arguments.yaml"])["MODEL_ARGS"]
    assert {key: arguments[f"--{key}"] for key in LLAMA31} == LLAMA31
    assert not [note for note in out.notes if "rotary" in note or "lacks" in note]
    job = registry.read(Path("launch.sh"), out.files["launch.sh"], Given(num_devices=1))
    assert job.workload.config["rope_theta"] == 500000
    assert job.workload.config["rope_scaling"]["factor"] == 8


def test_what_a_configuration_lacks_is_left_to_the_user() -> None:
    out = hand_over("megatron-core", PIPED, spec=LLAMA)
    assert "--rotary-base" not in out.files["launch.sh"]
    assert "--norm-epsilon" not in out.files["launch.sh"]
    assert [note for note in out.notes if "set --rotary-base and --norm-epsilon" in note]
    told = replace(LLAMA, config=LLAMA.config | {"rms_norm_eps": 1e-6, "rope_parameters": {
        "rope_theta": 7e4, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0}})  # fmt: skip
    out = hand_over("megatron-core", PIPED, spec=told)
    assert "--rotary-base 70000" in out.files["launch.sh"]
    assert "--rope-scaling-factor 32" in out.files["launch.sh"]
    assert [note for note in out.notes if "low_freq_factor 2" in note]


def test_queues_are_set_for_what_runs_beside_compute() -> None:
    """Megatron asks for one queue with tensor parallelism; its FSDP refuses that."""
    for plan, queues in ((PIPED, "1"), (SHARDED, "8")):
        assert hand_over("megatron-core", plan).environment["CUDA_DEVICE_MAX_CONNECTIONS"] == queues


@pytest.mark.parametrize(
    ("stack", "plan", "fields", "words"),
    [
        ("megatron-core", replace(PIPED, zero_stage=3, recompute_layers=()), {}, "no argument for zero_stage=3 with"),
        ("megatron-core", replace(PIPED, recompute_layers=(0, 1)), {}, "as many layers of every stage"),
        ("megatron-core", replace(PIPED, codec="int8"), {}, "no argument for codec=int8"),
        ("megatron-core", replace(PIPED, compiled=True), {}, "compiled"),
        ("megatron-core", replace(PIPED, vocab_parallel=False), {}, "use vocab_parallel"),
        ("megatron-core", replace(PIPED, schedule="gpipe"), {}, "schedule=gpipe: use 1f1b"),
        ("megatron-core", replace(PIPED, axis_order=("data", "tensor", "context", "pipeline")), {}, "axis_order"),
        ("megatron-core", replace(PIPED, axis_order=("tensor", "context", "pipeline", "data")), {"spec": MIXTRAL},
         "experts have as many ranks"),
        ("megatron-core", PIPED, {"attention_kernel": "flex"}, "no attention by flex"),
        ("megatron-core", replace(PIPED, precision="tf32"), {}, "precision=tf32"),
        ("megatron-core", Plan(data_parallel=6), {"devices_per_node": 4}, "as many on every node"),
        ("megatron-lm", replace(PIPED, precision="fp8"), {}, "precision=fp8"),
        ("megatron-lm", Plan(context_parallel=2, precision="bf16"), {}, "context_parallel=2"),
        ("megatron-lm", PIPED, {"attention_kernel": "flash2"}, "own layers have no attention by flash2"),
        ("megatron-core", PIPED, {"spec": VIT}, "only language models"),
        ("megatron-core", PIPED, {"spec": replace(LLAMA, adapters=adapters(8, ("q",), "nf4"))}, "trains all weights"),
        ("megatron-core", PIPED, {"spec": replace(LLAMA, config={**LLAMA.config, "hidden_act": "relu"})}, "silu"),
    ],
)  # fmt: skip
def test_what_has_no_argument_is_refused_in_a_sentence(stack: str, plan: Plan, fields: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        hand_over(stack, plan, **fields)


def test_the_table_says_each_thing_once() -> None:
    assert len(ATTRIBUTES) == len(WORDS)
    assert not set(SAME) & set(WORDS)
    for subject, known in (("plan", Plan), ("sizes", Transformer)):
        assert set(of_meaning(subject)) <= {field.name for field in dataclasses.fields(known)}
    for word in WORDS.values():
        assert not word.ours or word.kind == "word"
        assert all(word.their(own) in word.ours for own in word.ours.values())


@given(counts=st.lists(st.integers(0, 30), min_size=2, max_size=12).filter(any))
def test_stages_are_read_as_they_are_written(counts: list[int]) -> None:
    assert read_stages(say_stages(counts)) == counts


@pytest.mark.parametrize(
    ("layout", "counts"),
    [("Ettt|(tt|)*3,m|L", [3, 2, 2, 2, 0, 0]), ("E|t*2|L", [0, 2, 0]), ("tt|tt", None), ("E(t|)*99999999L", None)],
)
def test_layouts_of_stages_are_read_by_their_rules(layout: str, counts: list[int] | None) -> None:
    """Brackets repeat stages, commas are for the eye, the embedding comes first and the loss last."""
    assert read_stages(layout) == counts


def test_stages_and_marks_are_written_by_their_rules() -> None:
    plan = Plan(pipeline_parallel=3, schedule="1f1b", stage_bounds=(0, 4, 6), num_microbatches=3)
    assert stage_counts(plan, 10) == [3, 2, 3]
    assert say_stages([3, 2, 3]) == "Et*3|t*2|t*3L"
    assert say_pattern([0, 0, 1, 1, 1]) == "([0]*2+[1]*3)"


@pytest.mark.skipif("MEGATRON_FOLDER" not in os.environ, reason="MEGATRON_FOLDER names no checkout of Megatron-LM")
def test_megatron_accepts_what_is_written_and_refuses_what_is_not() -> None:
    from tests.stacks.megatron import Megatron

    megatron, file = Megatron(), files()[0]
    try:
        for stack, layers in LAYERS.items():
            runs = load_stack(stack).runs
            assert runs is not None
            plain = replace(file, attention_kernel="unfused")
            for _, plan in random_plans([file], runs, 5, random.Random(1)):
                words = argv({**settings_of(load_stack(stack), layers, plain, plan), **TRAINING, **MOCK})
                out = registry.export(stack, plain, replace(file.candidates[0], plan=plan))
                assert megatron.objection(words, dict(out.environment), plan.num_devices) == ""
                assert megatron.objection([*words, "--frobnicate", "3"], dict(out.environment), plan.num_devices)
    finally:
        megatron.close()
