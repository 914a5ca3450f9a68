"""Plans in other software's words and back, without that software: round trips, refusals, what is listed, goldens."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.answers import Cost
from planner.plans import Plan
from planner.stacks import registry
from planner.stacks.handover import Given
from profiles.errors import InputError, PlanError
from profiles.machines.stacks import load_stack
from profiles.version import version
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, VIT, VIT_TOKENS, make_plan_file
from tests.stacks.draws import drawn
from tests.stacks.validate import MAIN, read_back
from tests.stacks.validators import write

GOLDEN = Path(__file__).parent / "golden" / "stacks"
BERT = replace(
    GPT2,
    name="tiny-bert",
    task="masked-lm",
    config={"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 128, "vocab_size": 256},
)  # fmt: skip
SHARDED = Plan(
    data_parallel=4, zero_stage=3, micro_batch_size=2, num_microbatches=2, precision="bf16", recompute="full"
)
PIPED = Plan(
    data_parallel=2, pipeline_parallel=2, schedule="1f1b", stage_bounds=(0, 3), micro_batch_size=2, num_microbatches=4,
    precision="bf16",
)  # fmt: skip
ONE = {
    "deepspeed": replace(PIPED, zero_stage=1),
    "accelerate": replace(SHARDED, shard_degree=2),
    "torchtitan": replace(PIPED, zero_stage=2, tensor_parallel=2, vocab_parallel=True),
    "horovod": Plan(data_parallel=2, codec="fp16", precision="bf16", recompute="full"),
    "tensorflow": Plan(data_parallel=2, num_microbatches=2),
}


def hand_over(stack, plan, **fields):
    file = make_plan_file(plan, stack=stack, **fields)
    return registry.export(stack, file, file.candidates[0])


@pytest.mark.parametrize("stack", MAIN)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_a_plan_that_is_written_and_read_again_is_the_same(stack: str, seed: int) -> None:
    file, plan = next(drawn(stack, seed))
    out = registry.export(stack, file, file.candidates[0])
    assert read_back(stack, out, plan, file) == ""


@pytest.mark.parametrize("stack", MAIN)
def test_what_is_handed_over_is_as_it_was(stack: str) -> None:
    """Small golden files; what wrote them is left out, for it has a version."""
    out = hand_over(stack, ONE[stack], devices_per_node=2)
    text = out.files[MAIN[stack]].replace(f"trainwright {version()}", "trainwright")
    shown = "\n".join([text, f"# {out.command}", *(f"# {name}={value}" for name, value in out.environment.items()), ""])
    golden = GOLDEN / f"{stack}.txt"
    assert shown == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("stack", MAIN)
def test_every_file_says_what_wrote_it_and_scripts_compile(stack: str) -> None:
    out = hand_over(stack, ONE[stack])
    assert out.version == load_stack(stack).runs.version
    for name, text in out.files.items():
        assert "trainwright" in text or name.startswith("tf_config"), name
        if name.endswith(".py"):
            compile(text, name, "exec")
        if name.endswith(".json"):
            json.loads(text)


def test_batches_are_those_that_deepspeed_multiplies() -> None:
    """Samples are micro-batch x accumulation x replicas, by DeepSpeed's documentation."""
    content = json.loads(hand_over("deepspeed", ONE["deepspeed"]).files["ds_config.json"])
    per_replica = content["train_micro_batch_size_per_gpu"] * content["gradient_accumulation_steps"]
    assert content["train_batch_size"] == per_replica * 2
    assert content["pipeline"] == {"stages": 2}


@pytest.mark.parametrize(("zero", "precision", "is_told"), [(0, "bf16", True), (1, "bf16", False), (0, "fp16", False)])
def test_states_that_deepspeeds_pipelines_shard_anyway_are_told_of(
    zero: int, precision: str, is_told: bool, tmp_path: Path
) -> None:
    """BF16_Optimizer, which pipelines in bf16 have without ZeRO, cuts its groups by the data-parallel ranks."""
    plan = replace(ONE["deepspeed"], zero_stage=zero, precision=precision)
    handover = hand_over("deepspeed", plan)
    write(handover, tmp_path)
    path = tmp_path / MAIN["deepspeed"]
    job = registry.read(path, path.read_text(encoding="utf-8"), Given())
    for words in (handover.notes, job.assumed):
        assert any("BF16_Optimizer" in word for word in words) == is_told


def test_degrees_of_accelerate_make_its_processes() -> None:
    content = yaml.safe_load(hand_over("accelerate", ONE["accelerate"]).files["accelerate.yaml"])
    product = 1
    for size in content["parallelism_config"].values():
        product *= size
    assert product == content["num_processes"] == 4
    assert content["fsdp_config"]["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("stack", "plan", "words"),
    [
        ("deepspeed", Plan(tensor_parallel=2, vocab_parallel=True), "no tensor parallel"),
        ("deepspeed", replace(PIPED, zero_stage=2), "no ZeRO stage 2 with a pipeline"),
        ("deepspeed", Plan(data_parallel=2, offload="optimizer"), "no optimizer states offloaded"),
        ("deepspeed", replace(PIPED, schedule="gpipe"), "no schedule gpipe"),
        ("deepspeed", replace(SHARDED, shard_degree=2), "no ZeRO stage 3 over some of the replicas"),
        ("accelerate", replace(PIPED, data_parallel=1), "no pipeline parallel"),
        ("accelerate", replace(SHARDED, recompute="selective"), "no recomputation 'selective'"),
        ("accelerate", Plan(data_parallel=2, context_parallel=2), "no replicas without ZeRO beside context parallel"),
        ("accelerate", Plan(data_parallel=2, zero_stage=1), "no ZeRO stage 1"),
        ("torchtitan", Plan(tensor_parallel=4, vocab_parallel=True), "no more tensor-parallel ranks than key"),
        ("torchtitan", replace(SHARDED, precision="fp16"), "no precision fp16"),
        ("horovod", SHARDED, "no ZeRO stage 3"),
        ("horovod", Plan(data_parallel=2, codec="int8"), "no codec int8"),
        ("tensorflow", Plan(data_parallel=2, recompute="full"), "no recomputation 'full'"),
        (
            "tensorflow", Plan(data_parallel=2, num_microbatches=2, replica_microbatches=(1, 2)),
            "no replicas with different numbers of micro-batches",
        ),
    ],
)  # fmt: skip
def test_a_plan_without_words_is_refused_in_a_sentence(stack: str, plan: Plan, words: str) -> None:
    with pytest.raises(PlanError, match=re.escape(f"cannot be written for {stack}: {stack} has {words}")):
        hand_over(stack, plan)


def test_samples_that_cannot_be_cut_are_refused() -> None:
    plan = Plan(context_parallel=4, zero_stage=3, precision="bf16")
    assert hand_over("torchtitan", plan, sequence=16).files
    with pytest.raises(PlanError, match="samples of this length"):
        hand_over("torchtitan", plan, sequence=12)


@pytest.mark.parametrize(
    ("stack", "spec", "words"),
    [
        ("torchtitan", GPT2, "torchtitan has no models of type gpt2"),
        ("torchtitan", MIXTRAL, "torchtitan has no models of type mixtral"),
        ("tensorflow", VIT, "tensorflow has no models of type vit"),
        ("deepspeed", replace(GPT2, kind="module", factory="mine:build", config={}), "a module of yours"),
        ("deepspeed", replace(BERT, task="object-detection"), "task object-detection"),
    ],
)
def test_a_model_that_a_script_cannot_build_is_refused(stack: str, spec, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        hand_over(stack, Plan(data_parallel=2, precision="bf16"), spec=spec, num_layers=6)


@pytest.mark.parametrize("stack", ["deepspeed", "accelerate", "horovod"])
@pytest.mark.parametrize("spec", [BERT, VIT, MIXTRAL], ids=lambda spec: spec.name)
def test_models_of_other_tasks_come_back(stack: str, spec) -> None:
    plan = Plan(data_parallel=2, precision="bf16", micro_batch_size=4)
    file = make_plan_file(plan, spec=spec, sequence=VIT_TOKENS if spec is VIT else 32, stack=stack)
    assert read_back(stack, registry.export(stack, file, file.candidates[0]), plan, file) == ""


def test_tied_weights_are_stages_of_deepspeed_and_none_of_torchtitans() -> None:
    tied = replace(LLAMA, config={**LLAMA.config, "tie_word_embeddings": True})
    assert hand_over("deepspeed", PIPED, spec=tied).files
    with pytest.raises(PlanError, match="pipelines of models with tied embeddings"):
        hand_over("torchtitan", replace(PIPED, zero_stage=2), spec=tied)


def test_a_launch_line_of_several_nodes_names_the_first(tmp_path: Path) -> None:
    out = hand_over("deepspeed", SHARDED, devices_per_node=2)
    assert "--nnodes 2 --nproc-per-node 2" in out.command
    assert "MASTER_ADDR" in out.command
    assert any("each of 2 nodes" in note for note in out.notes)
    assert "--standalone" in hand_over("deepspeed", SHARDED).command
    out = hand_over("accelerate", SHARDED, devices_per_node=2)
    assert "--machine_rank" in out.command
    assert yaml.safe_load(out.files["accelerate.yaml"])["num_machines"] == 2
    out = hand_over("tensorflow", replace(ONE["tensorflow"], data_parallel=4), devices_per_node=2)
    workers = [json.loads(out.files[f"tf_config.{node}.json"]) for node in range(2)]
    assert [one["task"]["index"] for one in workers] == [0, 1]
    assert len(workers[0]["cluster"]["worker"]) == 2


def test_an_export_is_read_again_when_it_was_changed(tmp_path: Path) -> None:
    """What counts is what the file says, not what is noted beside it."""
    out = hand_over("torchtitan", SHARDED)
    write(out, tmp_path)
    main = tmp_path / MAIN["torchtitan"]
    text = main.read_text().replace("FullAC.Config()", "SelectiveAC.Config()").replace("seq_len=32", "seq_len=16")
    job = registry.read(main, text, Given())
    assert job.plan.recompute == "selective"
    with pytest.raises(InputError, match="16 tokens, not"):
        registry.read(main, text, Given(sequence_length=32))
    assert job.sequence_length == 16


# Where each stack says how many steps are trained.
STEPS = {
    "megatron-core": ("launch.sh", "--train-iters {}"), "megatron-lm": ("launch.sh", "--train-iters {}"),
    "accelerate": ("training_arguments.json", '"max_steps": {}'), "torchtitan": ("trainwright_plan.py", "steps={}"),
    "deepspeed": ("", "--steps {}"), "horovod": ("", "--steps {}"), "tensorflow": ("", "--steps {}"),
}  # fmt: skip


@pytest.mark.parametrize("stack", sorted(registry.exporters()))
def test_steps_are_those_of_the_tokens_that_were_asked_for(stack: str) -> None:
    file = make_plan_file(Plan(data_parallel=2, num_microbatches=3), stack=stack)
    name, words = STEPS[stack]
    few = registry.export(stack, file, file.candidates[0])
    tokens = 7 * file.global_batch_size * file.sequence_length
    for more, steps in ((0, 7), (1, 8)):
        cost = Cost(
            tokens=tokens + more, days=1, device_hours=1, kwh=1, goodput_fraction=1, num_failures=0, interval_seconds=1,
            dollars=None,
        )  # fmt: skip
        asked = replace(file, answers=replace(file.answers, cost=cost))
        out = registry.export(stack, asked, file.candidates[0])
        assert words.format(steps) in (out.files[name] if name else out.command)
        assert any(note.startswith(f"{steps} steps: ") for note in out.notes)
    assert not any(" steps: " in note for note in few.notes)
