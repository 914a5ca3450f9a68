"""Each stack's own checks, where it is installed: one plan each is accepted, and what is wrong is refused.

The whole count is python -m tests.stacks.validate STACK.
"""

import json
from dataclasses import replace

import pytest

from planner.plans import Plan
from planner.stacks import registry
from planner.stacks.handover import Handover
from tests.plan_builders import make_plan_file
from tests.stacks.validators import VALIDATORS, is_installed, validate
from tests.test_stack_words import ONE, SHARDED


def handed_over(stack: str, plan: Plan) -> Handover:
    if not is_installed(stack):
        pytest.skip(
            f"{stack} is not installed here: python -m tests.stacks.validate {stack} says how many plans it takes"
        )
    file = make_plan_file(plan, stack=stack)
    return registry.export(stack, file, file.candidates[0])


def with_json(out: Handover, name: str, **changes: object) -> Handover:
    content = json.loads(out.files[name]) | changes
    return replace(out, files={**out.files, name: json.dumps(content)})


def with_text(out: Handover, name: str, old: str, new: str) -> Handover:
    assert old in out.files[name]
    return replace(out, files={**out.files, name: out.files[name].replace(old, new)})


@pytest.mark.parametrize("stack", VALIDATORS)
def test_a_stack_accepts_what_is_handed_over_to_it(stack: str) -> None:
    plan = ONE[stack]
    assert validate(stack, handed_over(stack, plan), plan, make_plan_file(plan)) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_batch_size": 17}, "17 != "),
        ({"zero_optimization": {"stage": 1, "new_key": 2}}, "new_key"),
        ({"zero_optimization": {"stage": 1, "mics_shard_size": 2}}, "MiCS"),
        ({"fp16": {"enabled": True}}, "simultaneously"),
        ({"my_key": 2}, "DeepSpeed silently ignores this key"),
        ({"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}, "weights are offloaded at"),
    ],
)  # fmt: skip
def test_deepspeed_and_ours_refuse_what_is_wrong(changes: dict[str, object], words: str) -> None:
    plan = ONE["deepspeed"]
    out = with_json(handed_over("deepspeed", plan), "ds_config.json", **changes)
    assert words in validate("deepspeed", out, plan, make_plan_file(plan))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rdzv_backend: static", "rdzv_backends: static", "unknown keys"),
        ("dp_shard_size: 2", "dp_shard_size: 4", "does not match"),
        ("fsdp_reshard_after_forward: true", "fsdp_reshard_after_forward: FULL_SHARD", "truth"),
        ("TRANSFORMER_BASED_WRAP", "SOME_WRAP", "SOME_WRAP"),
    ],
)
def test_accelerate_refuses_what_is_wrong(old: str, new: str, words: str) -> None:
    plan = ONE["accelerate"]
    out = with_text(handed_over("accelerate", plan), "accelerate.yaml", old, new)
    why = validate("accelerate", out, plan, make_plan_file(plan))
    assert words in why, why


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tensor_parallel_degree=2", "tensor_parallel_degree=8", "Invalid parallel dims"),
        ("data_parallel_shard_degree=2,\n            tensor_parallel_degree=2",
         "data_parallel_shard_degree=1,\n            tensor_parallel_degree=4", "must divide n_kv_heads"),
        ("pipeline_parallel_microbatch_size=2", "pipeline_parallel_microbatch_size=3", "evenly divisible"),
        ("disable_cuda_graphs=True", "disable_cuda_graphs=False", "CUDA graphs do not support pipeline parallelism"),
        ("seq_len=32", "seq_length=32", "unexpected keyword"),
    ],
)  # fmt: skip
def test_torchtitan_refuses_what_is_wrong(old: str, new: str, words: str) -> None:
    plan = ONE["torchtitan"]
    out = with_text(handed_over("torchtitan", plan), "trainwright_plan.py", old, new)
    assert words in validate("torchtitan", out, plan, make_plan_file(plan))


def test_transformers_refuses_an_argument_that_it_does_not_know() -> None:
    out = with_json(handed_over("accelerate", SHARDED), "training_arguments.json", brand_new=1)
    assert "brand_new" in validate("accelerate", out, SHARDED, make_plan_file(SHARDED))
