"""Each stack's own checks of a handed-over plan. They need the stack: run them where it is installed."""

import importlib.util
import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from planner.plans import Plan
from planner.prediction import PlanFile
from planner.stacks.handover import Handover


def write(out: Handover, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in out.files.items():
        (folder / name).write_text(text, encoding="utf-8")


def deepspeed(out: Handover, plan: Plan, file: PlanFile, folder: Path) -> None:
    """DeepSpeedConfig with an mpu of the plan's replicas; its own partition of blocks; what it swallows, by ours."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed import comm
    from deepspeed.runtime import utils
    from deepspeed.runtime.config import DeepSpeedConfig

    from planner.stacks.deepspeed.words import check
    from planner.stacks.said import from_yaml

    comm.get_rank = lambda *_: 0
    path = folder / "ds_config.json"
    mpu = SimpleNamespace(get_data_parallel_world_size=lambda: plan.data_parallel)
    config = DeepSpeedConfig(json.loads(path.read_text()), mpu=mpu)
    check(from_yaml(path, path.read_text()))
    assert config.train_batch_size == plan.global_batch_size
    assert int(config.zero_optimization_stage) == max(plan.zero_stage, int(plan.offload == "optimizer"))
    if plan.pipeline_parallel > 1:
        blocks = file.num_layers - 2
        weights = [0, *[1] * blocks, 0]
        parts = utils.partition_balanced(weights=weights, num_parts=plan.pipeline_parallel)
        counts = [sum(weights[start:stop]) for start, stop in pairwise(parts)]
        assert counts == [blocks // plan.pipeline_parallel] * plan.pipeline_parallel, counts


def accelerate(out: Handover, plan: Plan, file: PlanFile, folder: Path) -> None:
    """`accelerate launch`'s parser and environment, then the plugins that a rank makes of that; TrainingArguments."""
    from accelerate import ParallelismConfig
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    from transformers import HfArgumentParser, TrainingArguments

    load_config_from_file(str(folder / "accelerate.yaml"))
    words = ["--config_file", str(folder / "accelerate.yaml"), "--main_process_port", "0"]
    if "--main_process_ip" in out.command:
        words += ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    before = dict(os.environ)
    try:
        arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([*words, "train.py"]))
        if plan.num_devices > 1:
            os.environ.update(prepare_multi_gpu_env(arguments))
        sizes = ParallelismConfig()
        if plan.zero_stage:
            plugin = FullyShardedDataParallelPlugin()
            assert plugin.fsdp_version == 2
            assert plugin.reshard_after_forward == (plan.zero_stage == 3)
            assert plugin.activation_checkpointing == (plan.recompute == "full")
            assert sizes.dp_shard_enabled or sizes.cp_enabled
            sizes._validate_accelerator(
                SimpleNamespace(
                    multi_device=True, num_processes=plan.num_devices, is_fsdp2=True, is_main_process=False,
                    distributed_type="FSDP",
                )
            )  # fmt: skip
        for name in [key for key in os.environ if key.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_"))]:
            del os.environ[name]
        content = json.loads((folder / "training_arguments.json").read_text()) | {"use_cpu": True}
        parsed = HfArgumentParser(TrainingArguments).parse_dict(content)[0]
        assert parsed.per_device_train_batch_size == plan.micro_batch_size
        assert parsed.gradient_accumulation_steps == plan.num_microbatches
    finally:
        os.environ.clear()
        os.environ.update(before)


def torchtitan(out: Handover, plan: Plan, file: PlanFile, folder: Path) -> None:
    """The config function called, which checks itself; its degrees, its batch, and the model's own checks of both."""
    import torchtitan.components.quantization.float8 as float8
    from torchtitan.distributed.parallel_dims import ParallelDims
    from torchtitan.distributed.pipeline_parallel import _get_pp_rank_to_stage_indices_mapping

    # There is no GPU here, which it asks for before it writes a line of configuration.
    float8.has_cuda_capability = lambda *_: True
    sys.path.insert(0, str(folder))
    try:
        for name in ("titan_model", "trainwright_plan"):
            sys.modules.pop(name, None)
        config = importlib.import_module("trainwright_plan").plan()
    finally:
        sys.path.remove(str(folder))
    parallel, training = config.parallelism, config.training
    dims = ParallelDims.from_config(parallel, plan.num_devices)
    config.model_spec.model.update_from_config(config=config)
    replicas = dims.dp_replicate * dims.dp_shard
    assert training.global_batch_size % (training.local_batch_size * replicas) == 0
    pieces = (dims.tp if parallel.enable_sequence_parallel else 1) * (2 * dims.cp if dims.cp > 1 else 1)
    assert training.seq_len % pieces == 0
    if dims.pp > 1:
        stages = len(parallel.module_fqns_per_model_part)
        _get_pp_rank_to_stage_indices_mapping(0, dims.pp, parallel.pipeline_parallel_schedule, stages)
        assert sum(map(len, parallel.module_fqns_per_model_part)) == file.num_layers + 1


def script(out: Handover, plan: Plan, file: PlanFile, folder: Path) -> None:
    """A script of ours: it compiles, and its settings are the plan's."""
    compile((folder / "train.py").read_text(), "train.py", "exec")
    settings = json.loads((folder / "job.json").read_text())["settings"]
    assert settings["micro_batch_size"] * settings["num_microbatches"] * plan.num_devices == plan.global_batch_size


VALIDATORS = {
    "deepspeed": (deepspeed, "deepspeed"),
    "accelerate": (accelerate, "accelerate"),
    "torchtitan": (torchtitan, "torchtitan"),
    "horovod": (script, ""),
    "tensorflow": (script, ""),
}


def is_installed(stack: str) -> bool:
    package = VALIDATORS[stack][1]
    return not package or importlib.util.find_spec(package) is not None


def validate(stack: str, out: Handover, plan: Plan, file: PlanFile) -> str:
    """What the stack says against a plan that is handed over to it, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        write(out, Path(folder))
        try:
            VALIDATORS[stack][0](out, plan, file, Path(folder))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""
