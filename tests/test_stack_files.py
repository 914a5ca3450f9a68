"""Files and logs of other software as people have them: what is read, listed, assumed, and what contradicts itself."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.stacks import registry
from planner.stacks.handover import Given
from planner.stacks.said import from_toml, from_yaml
from planner.stacks.said_code import from_flags, from_python
from planner.stacks.secrets import is_secret
from profiles.errors import InputError
from profiles.library import load_sizes
from profiles.units import GIB
from tests.plan_builders import LLAMA

KNOWN = Given(num_devices=8, sequence_length=128, workload=LLAMA)
ZERO3 = """{
    "bf16": {"enabled": true},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": true,
        "offload_optimizer": {"device": "cpu", "pin_memory": true},
        "offload_param": {"device": "cpu"},
        "reduce_bucket_size": 1e9,
        "zero_hpz_partition_size": 8
    },
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 2,
    "my_own_key": {"a": 1}
}
"""
FSDP1 = """compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_backward_prefetch: BACKWARD_PRE
  fsdp_sharding_strategy: HYBRID_SHARD
  fsdp_offload_params: false
  fsdp_new_thing: 3
machine_rank: 0
mixed_precision: bf16
num_machines: 2
num_processes: 8
"""
WITH_DEEPSPEED = """compute_environment: LOCAL_MACHINE
deepspeed_config:
  gradient_accumulation_steps: 2
  offload_optimizer_device: cpu
  offload_param_device: none
  zero_stage: 2
distributed_type: DEEPSPEED
mixed_precision: fp16
num_machines: 1
num_processes: 8
"""
TITAN_TOML = """[job]
dump_folder = "./outputs"

[model]
name = "llama3"
flavor = "70B"

[training]
local_batch_size = 8
seq_len = 8192
steps = 1000

[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
tensor_parallel_degree = 8
pipeline_parallel_degree = 4
new_degree = 2

[activation_checkpoint]
mode = "full"
"""
TITAN_SH = """#!/bin/bash
NGPU=${NGPU:-"8"}
export LOG_RANK=0
PYTORCH_ALLOC_CONF="expandable_segments:True" \\
torchrun --nproc_per_node=${NGPU} --rdzv_backend c10d -m torchtitan.train --module llama3 --config llama3_8b \\
    --parallelism.tensor_parallel_degree 2 --training.seq_len=8192 --training.local_batch_size 2 \\
    --compile.enable --parallelism.brand_new 7
"""
TITAN_LOG = """\
[titan] - root - INFO - torchtitan version: {version} (0.0.0 means __version__ is not defined correctly).
[titan] - root - INFO - Building device mesh with parallelism: pp=1, dp_replicate=1, dp_shard=8, cp=1, tp=1, ep=1
[titan] - root - INFO - CUDA capacity: NVIDIA H100 with 95.00GiB memory
[titan] - root - INFO - Model llama3 8B size: 8,030,261,248 total parameters
[titan] - root - INFO - Applied SelectiveAC activation checkpointing to the model
[titan] - root - INFO - Compiling each TransformerBlock with torch.compile
[titan] - root - INFO - Trainer is initialized with local batch size 1, global batch size 8, gradient accumulation \
steps 1, sequence length 8192, total steps 10 (warmup 2)
[titan] - root - INFO - \x1b[31mstep:  1  \x1b[32mloss: 12.25000  \x1b[38;2;180;60;0mgrad_norm:  4.1234  \
\x1b[36mmemory: 53.10GiB(55.90%)  \x1b[34mtps: 800  \x1b[36mtflops: 41.00  \x1b[35mmfu: 4.15%\x1b[39m
[titan] - root - INFO - [31mstep: 10  [32mloss: 10.12345  [38;2;180;60;0mgrad_norm:  2.1234  \
[36mmemory: 61.98GiB(65.24%)  [34mtps: 5,762  [36mtflops: 333.69  [35mmfu: 33.74%[39m
"""


def read(tmp_path: Path, name: str, text: str, given: Given = KNOWN):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return registry.read(path, text, given)


def test_deepspeeds_json_is_read_and_what_is_not_understood_is_listed(tmp_path: Path) -> None:
    job = read(tmp_path, "zero3.json", ZERO3)
    assert job.plan.id == "dp8 mb2x4 zero3 offload-optimizer bf16"
    assert (job.stack, job.num_devices, job.global_batch_size, job.sequence_length) == ("deepspeed", 8, 64, 128)
    assert job.cells == {"overlap_grad": "yes", "parameter_offload": "yes"}
    assert job.unread == ("line 9: zero_optimization.zero_hpz_partition_size: 8", "line 15: my_own_key.a: 1")
    assert any("gradient_clipping" in one for one in job.unpriced)
    assert any("names no version" in one for one in job.assumed)


def test_devices_follow_from_a_batch_where_nobody_says(tmp_path: Path) -> None:
    job = read(tmp_path, "a.json", ZERO3, replace(KNOWN, num_devices=0))
    assert job.num_devices == 64 // (2 * 4)
    assert any("8 devices" in one for one in job.assumed)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"stage": 3', '"stage": 1', r"line 7: .*offload_param.device.*line 4: .*stage: 1: weights are offloaded"),
        ('"stage": 3', '"stage": 0', r"line 6: .*offload_optimizer.device.*line 4"),
        ('"train_batch_size": 64', '"train_batch_size": 48', r"line 13: .*line 14: .*line 11: .*48 samples a step"),
        ('"bf16": {"enabled": true}', '"bf16": {"enabled": true}, "fp16": {"enabled": true}', "only one precision"),
        ('"gradient_clipping": 1.0', '"train_batch_size": 32', "line 1[23]: .* contradicts line 1[23]"),
        ('"stage": 3', '"stage": "three"', "line 4: .*no whole number"),
        ('"bf16": {"enabled": true}', '"bf16": {"enabled": "perhaps"}', "line 2: .*it may be"),
        ('"bf16": {', '"bf16": {{', "line 17"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named_with_its_lines(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, "bad.json", ZERO3.replace(old, new))


def test_what_is_left_to_other_files_is_said(tmp_path: Path) -> None:
    text = ZERO3.replace("64", '"auto"').replace(
        '"train_micro_batch_size_per_gpu": 2', '"train_micro_batch_size_per_gpu": "auto"'
    )
    job = read(tmp_path, "auto.json", text, replace(KNOWN, global_batch_size=32))
    assert (job.plan.micro_batch_size, job.plan.num_microbatches) == (1, 4)
    assert any("said elsewhere" in one for one in job.assumed)
    with pytest.raises(InputError, match="--global-batch"):
        read(tmp_path, "auto.json", text)


@pytest.mark.parametrize("missing", ["workload", "sequence_length"])
def test_what_no_file_says_is_asked_for(tmp_path: Path, missing: str) -> None:
    empty = {"workload": None, "sequence_length": 0}[missing]
    with pytest.raises(InputError, match="give --"):
        read(tmp_path, "a.json", ZERO3, replace(KNOWN, **{missing: empty}))


def test_older_settings_of_accelerate_are_read(tmp_path: Path) -> None:
    given = replace(KNOWN, num_devices=0, global_batch_size=32)
    job = read(tmp_path, "default_config.yaml", FSDP1, given)
    assert job.plan.id == "dp8 mb4x1 zero3 shard4 bf16"
    assert job.stack == "fsdp"
    assert job.unread == ("line 9: fsdp_config.fsdp_new_thing: 3",)
    job = read(tmp_path, "default_config.yaml", WITH_DEEPSPEED, given)
    assert job.stack == "deepspeed"
    assert job.plan.id == "dp8 mb2x2 zero2 offload-optimizer fp16"
    with pytest.raises(InputError, match="8 devices, not for --gpus 4"):
        read(tmp_path, "default_config.yaml", FSDP1, replace(given, num_devices=4))
    with pytest.raises(InputError, match="only FSDP shards"):
        read(tmp_path, "default_config.yaml", FSDP1.replace(": FSDP", ": MULTI_GPU"), given)
    with pytest.raises(InputError, match="give Megatron's own arguments"):
        read(tmp_path, "default_config.yaml", FSDP1.replace(": FSDP", ": MEGATRON_LM"), given)


def test_a_deepspeed_file_that_accelerate_names_is_read_beside_it(tmp_path: Path) -> None:
    (tmp_path / "zero3.json").write_text(ZERO3)
    text = WITH_DEEPSPEED.replace("  gradient_accumulation_steps: 2\n", "  deepspeed_config_file: conf/zero3.json\n")
    job = read(tmp_path, "default_config.yaml", text, replace(KNOWN, num_devices=0))
    assert job.plan.zero_stage == 3
    assert job.num_devices == 8


def test_training_arguments_are_a_job_of_plain_replicas(tmp_path: Path) -> None:
    text = json.dumps(
        {"output_dir": "x", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "fp16": True,
         "gradient_checkpointing": True, "optim": "adafactor", "warmup_steps": 3, "brand_new": 1},
        indent=1,
    )  # fmt: skip
    job = read(tmp_path, "args.json", text)
    assert job.plan.id == "dp8 mb4x2 recompute fp16"
    assert job.cells == {"optimizer": "adafactor"}
    assert job.unread == ("line 9: brand_new: 1",)


def test_torchtitans_toml_names_its_model_and_shares_layers_out(tmp_path: Path) -> None:
    """Four stages of 80 blocks, the first and the last with one block less: 82 places over four, the first two more."""
    job = read(tmp_path, "train.toml", TITAN_TOML, Given(num_devices=64))
    assert job.workload == load_sizes("llama-3.1-70b").workload
    assert job.plan.stage_bounds == (0, 21, 42, 62)
    assert job.plan.data_parallel == 2
    assert (job.plan.micro_batch_size, job.plan.num_microbatches, job.global_batch_size) == (1, 8, 16)
    assert (job.plan.recompute, job.plan.zero_stage) == ("full", 2)
    assert job.unread == ("line 18: parallelism.new_degree: 2",)
    with pytest.raises(InputError, match="do not divide the job's 8"):
        read(tmp_path, "train.toml", TITAN_TOML, Given(num_devices=8))
    with pytest.raises(InputError, match="give --gpus"):
        read(tmp_path, "train.toml", TITAN_TOML, Given())


def test_torchtitans_launch_script_is_read_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    job = read(tmp_path, "run.sh", TITAN_SH + f"touch {trap}\n$(touch {trap})\n", Given())
    assert job.plan.id == "dp4 tp2 sp vocab mb2x1 zero3 recompute-attention compiled bf16"
    assert job.workload == load_sizes("llama-3.1-8b").workload
    assert job.sequence_length == 8192
    assert [one for one in job.unread if "brand_new" in one] == ["line 4: parallelism.brand_new: 7"]
    assert not trap.exists()


def test_a_config_function_is_read_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    text = f"""
from torchtitan.config import ParallelismConfig, TrainingConfig
open({str(trap)!r}, "w")
def mine():
    config = llama3_8b()
    config.model_spec = model_registry("8B")
    config.parallelism = ParallelismConfig(tensor_parallel_degree=4, context_parallel_degree=2)
    config.training.local_batch_size = 3
    config.training.steps = compute()
    config.activation_checkpoint = None
    return config
"""
    job = read(tmp_path, "mine.py", text, Given(num_devices=16, sequence_length=4096))
    assert job.plan.id == "dp2 tp4 cp2 sp vocab mb3x1 zero3 bf16"
    assert not trap.exists()
    with pytest.raises(InputError, match="line 3: not valid Python"):
        read(tmp_path, "mine.py", "ParallelismConfig\n\nimport (\n", Given())


def test_torchtitans_log_is_a_job_and_its_steps(tmp_path: Path) -> None:
    """Its rate is tokens a second and device: 8192 a device and step."""
    job = read(tmp_path, "train.log", TITAN_LOG.format(version="0.3.0"), Given())
    assert job.plan.id == "dp8 mb1x1 zero3 recompute-attention compiled bf16"
    assert job.workload == load_sizes("llama-3.1-8b").workload
    assert [step.number for step in job.steps] == [1, 10]
    assert job.steps[1].seconds == pytest.approx(8192 / 5762)
    assert job.steps[1].loss == 10.12345
    assert job.peak_bytes == pytest.approx(61.98 * GIB)
    assert (job.device, job.version, job.unread) == ("NVIDIA H100", "0.3.0", ())
    old = read(tmp_path, "train.log", TITAN_LOG.format(version="0.1.0"), Given())
    assert any("0.1.0 was not tried" in one for one in old.assumed)
    both = (
        TITAN_LOG.format(version="0.3.0")
        + "Building device mesh with parallelism: pp=1, dp_replicate=1, dp_shard=4, cp=1, tp=2, ep=1\n"
    )
    with pytest.raises(InputError, match="contradicts line"):
        read(tmp_path, "train.log", both, Given())


def test_a_printed_configuration_counts_where_lines_say_less(tmp_path: Path) -> None:
    config = {"training": {"local_batch_size": 1, "global_batch_size": -1, "seq_len": 8192},
              "parallelism": {"data_parallel_shard_degree": -1, "fsdp_reshard_after_forward": "never"},
              "model_spec": {"name": "llama3", "flavor": "8B", "model": {"layers": []}}}  # fmt: skip
    text = TITAN_LOG.format(version="0.3.0") + f"Running with configs: {json.dumps(config, indent=2)}\n"
    job = read(tmp_path, "train.log", text, Given())
    assert (job.plan.zero_stage, job.global_batch_size) == (2, 8)


STATE = {
    "global_step": 20, "train_batch_size": 2,
    "log_history": [
        {"loss": 5.5, "step": 10, "epoch": 0.1}, {"loss": 4.5, "step": 20},
        {"train_runtime": 10.0, "train_samples_per_second": 64.0, "train_steps_per_second": 2.0, "step": 20},
    ],
}  # fmt: skip
PRINTED = """
{'loss': '5.53', 'grad_norm': '1.0', 'learning_rate': '0.0001', 'epoch': '0.1'}
{'train_runtime': '10.0', 'train_samples_per_second': '64', 'train_steps_per_second': '2.0', 'train_loss': '5.0'}
"""


def test_what_the_trainer_says_is_a_job_and_its_steps(tmp_path: Path) -> None:
    job = read(tmp_path, "trainer_state.json", json.dumps(STATE))
    assert (job.plan.micro_batch_size, job.plan.num_microbatches, job.global_batch_size) == (2, 2, 32)
    assert [(step.number, step.seconds, step.loss) for step in job.steps] == [(10, 0.5, 5.5), (20, 0.5, 4.5)]
    job = read(tmp_path, "out.log", PRINTED)
    assert (job.global_batch_size, job.steps[0].loss) == (32, 5.53)
    arguments = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    (tmp_path / "training_arguments.json").write_text(json.dumps(arguments))
    with pytest.raises(InputError, match="32 samples a step by its rates, not the 64"):
        read(tmp_path, "trainer_state.json", json.dumps(STATE))
    unfinished = {**STATE, "log_history": STATE["log_history"][:2]}
    with pytest.raises(InputError, match="a training that has ended"):
        read(tmp_path, "trainer_state.json", json.dumps(unfinished))


def step_log(**settings: object) -> str:
    job = {"stack": "tensorflow", "version": "2.21.0", "model": "m", "sequence_length": 32, "settings": settings}
    head = {"log": "steps", "job": job, "config": LLAMA.config, "settings": settings, "num_devices": 2}
    return json.dumps(head) + '\n{"step": 1, "seconds": 2.5, "loss": 5.0}\n{"step": 2, "seconds": 0.5, "loss": 4.0}\n'


def test_steps_that_our_scripts_log_are_read(tmp_path: Path) -> None:
    text = step_log(micro_batch_size=2, num_microbatches=4, precision="bfloat16")
    job = read(tmp_path, "steps.jsonl", text + '{"step": 3, "sec', Given())
    assert job.plan.id == "dp2 mb2x4 bf16"
    assert [(step.number, step.seconds) for step in job.steps] == [(1, 2.5), (2, 0.5)]
    assert job.workload.config == LLAMA.config
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read(tmp_path, "steps.jsonl", text.replace('{"step": 1', '{"step'), Given())
    with pytest.raises(InputError, match="no steps yet"):
        read(tmp_path, "steps.jsonl", text.splitlines()[0], Given())


def test_a_file_of_something_else_is_refused_with_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DeepSpeed's configuration"):
        read(tmp_path, "notes.txt", "hello")


@given(st.text(max_size=200))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    path = Path("x")
    for parse in (from_yaml, from_toml, from_flags, from_python):
        try:
            parse(path, text)
        except InputError as error:
            assert "\n" not in str(error).strip()  # noqa: PT017


def test_files_that_refer_to_themselves_end(tmp_path: Path) -> None:
    many = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} {{k: *b{n - 1}, l: *b{n - 1}}}\n" for n in range(1, 30)).replace(
        "*b0", "*a"
    )
    for text in ("a: &a\n  b: *a\n", many):
        with pytest.raises(InputError, match=r"nested too deep|more than|settings"):
            from_yaml(tmp_path / "x.yaml", text)


DAMAGE = ("0", "-1", "1e400", "null", "[]", "{}", '"x"', "true", "99999999999999999999", "0.5", "[1, [2]]", "NaN")
DOCUMENTS = {
    "zero3.json": ZERO3, "default_config.yaml": FSDP1, "deepspeed.yaml": WITH_DEEPSPEED, "train.toml": TITAN_TOML,
    "run.sh": TITAN_SH, "train.log": TITAN_LOG.format(version="0.3.0"),
    "trainer_state.json": json.dumps(STATE, indent=1),
    "out.log": PRINTED, "steps.jsonl": step_log(micro_batch_size=2, num_microbatches=4, precision="bfloat16"),
}  # fmt: skip


@given(name=st.sampled_from(sorted(DOCUMENTS)), value=st.sampled_from(DAMAGE), data=st.data())
def test_a_damaged_value_ends_in_a_job_or_a_sentence(name: str, value: str, data: st.DataObject) -> None:
    text = DOCUMENTS[name]
    places = list(re.finditer(r'\b\d+\b|\btrue\b|\bfalse\b|"[a-z0-9]+"', text))
    place = data.draw(st.sampled_from(places))
    damaged = text[: place.start()] + value + text[place.end() :]
    try:
        job = registry.read(Path(name), damaged, KNOWN)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert job.plan.num_devices == job.num_devices


TOKENS = """from torchtitan.config import ParallelismConfig, TrainingConfig

CONFIG = Trainer.Config(
    training=TrainingConfig({training}),
    parallelism=ParallelismConfig(pipeline_parallel_degree={stages}, num_pp_microbatches=4),
)
"""


@pytest.mark.parametrize(
    ("training", "stages", "micro", "count"),
    [
        ("num_tokens_per_microbatch_per_dp_rank=512, max_context_length=128", 2, 4, 4),
        ("num_tokens_per_microbatch_per_dp_rank=512, max_context_length=128, num_tokens_per_train_step=16384", 2, 4, 8),
        # Without a pipeline there are no micro-batches beside those that gradients are added up over.
        ("num_tokens_per_microbatch_per_dp_rank=512, max_context_length=128", 1, 4, 1),
        ("max_context_length=128", 1, 128, 1),
    ],
)
def test_batches_in_tokens_are_those_of_torchtitans_trainer(
    training: str, stages: int, micro: int, count: int, tmp_path: Path
) -> None:
    """Tokens of a step are those of a pass x passes of a pipeline x gradient accumulation x replicas."""
    job = read(tmp_path, "a.py", TOKENS.format(training=training, stages=stages))
    assert (job.plan.micro_batch_size, job.plan.num_microbatches, job.sequence_length) == (micro, count, 128)
    assert not job.unread


@pytest.mark.parametrize("batch", ["training.global_batch_size", "parallelism.data_parallel_shard_degree"])
def test_a_word_where_a_number_belongs_is_refused(batch: str, tmp_path: Path) -> None:
    section, name = batch.split(".")
    text = f"[{section}]\n{name} = 'many'\n[experimental]\n"
    with pytest.raises(InputError, match=f"line 2: {batch}"):
        read(tmp_path, "a.toml", text)


MEGATRON_WITH_KEYS = """[ -f x ] && export WANDB_API_KEY='hf_abc123'
python pretrain_gpt.py --num-layers 4 --hidden-size 64 --num-attention-heads 4 --hf-token hf_abc123
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training_arguments.json", '{"per_device_train_batch_size": 1, "bf16": true, "hub_token": "hf_abc123"}'),
        ("ds.json", ZERO3.replace('"my_own_key": {"a": 1}', '"comet": {"api_key": "hf_abc123"}')),
        ("a.sh", "export HF_TOKEN=hf_abc123\ntorchrun -m torchtitan.train --training.local_batch_size 1"),
        ("b.sh", MEGATRON_WITH_KEYS),
    ],
)
def test_secrets_are_neither_shown_nor_stored(name: str, text: str, tmp_path: Path) -> None:
    job = read(tmp_path, name, text)
    told = [*job.unread, *job.unpriced, *job.assumed]
    assert any("(hidden)" in word for word in told)
    assert not any("hf_abc123" in word for word in told)
    assert not is_secret("training.num_tokens_per_train_step")
