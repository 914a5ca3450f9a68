"""Runs beside Megatron-LM: whether its own parse_args, validate_args and configurations accept given arguments.

Reads one JSON object per line (argv, environment, devices, capability) and answers each with one (error, "" if none).
A GPU, TransformerEngine and process groups of many ranks are stood in for: only their answers are asked for. So is
what Megatron imports of Python 3.12 where this one is older.
"""

import contextlib
import io
import json
import os
import sys
import types
import typing
from typing import Any

ENGINE_VERSION = "2.14.0"


def _stand_in(torch: Any, capability: list[int]) -> None:
    device = types.SimpleNamespace(major=capability[0], minor=capability[1], multi_processor_count=132, name="stand-in")
    torch.cuda.get_device_capability = lambda *args: tuple(capability)
    torch.cuda.get_device_properties = lambda *args: device
    torch.cuda.device_count = lambda: 8


def _stand_in_kernels() -> None:
    """TransformerEngine, of which is asked only whether it is there, and of what version."""
    from megatron.core import utils
    from megatron.core.models.common.embeddings import rope_utils
    from packaging.version import Version

    utils._te_version = Version(ENGINE_VERSION)

    for name in ("fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_thd"):
        setattr(rope_utils, name, print)


def _groups(args: Any) -> None:
    """Build all process groups over a store that sends nothing."""
    import torch
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=args.world_size)
    try:
        parallel_state.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            args.virtual_pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
            order="tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
            create_gloo_process_groups=False,
        )
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _configurations(args: Any) -> None:
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator as unset
    from megatron.training.arguments import core_transformer_config_from_args

    config = core_transformer_config_from_args(args)
    if args.pipeline_model_parallel_layout is not None:
        config.pipeline_model_parallel_layout.validate_layer_layout(args.num_layers, 0)
    DistributedDataParallelConfig(
        use_distributed_optimizer=args.use_distributed_optimizer,
        overlap_grad_reduce=args.overlap_grad_reduce,
        overlap_param_gather=args.overlap_param_gather,
        num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
        use_megatron_fsdp=args.use_megatron_fsdp,
        data_parallel_sharding_strategy=args.data_parallel_sharding_strategy,
    )
    unset()
    init_num_microbatches_calculator(0, None, args.global_batch_size, args.micro_batch_size, args.data_parallel_size)


def accepts(asked: dict[str, Any]) -> tuple[str, str]:
    """Megatron's objection to the arguments, "" where it has none, and what it printed."""
    import torch
    from megatron.training.arguments import parse_args, validate_args

    _stand_in(torch, asked["capability"])
    _stand_in_kernels()
    os.environ.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    os.environ.update(asked["environment"], WORLD_SIZE=str(asked["devices"]), RANK="0")
    sys.argv = ["pretrain_gpt.py", *asked["argv"]]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            args = parse_args(ignore_unknown_args=bool(asked.get("only_arguments")))
            validate_args(args)
            if asked.get("only_arguments"):
                return "", shown.getvalue()
            _configurations(args)
            _groups(args)
    except (Exception, SystemExit) as error:
        said = "" if str(error) not in ("2", "") else shown.getvalue().strip().splitlines()[-1:]
        return f"{type(error).__name__}: {error} {said or ''}", shown.getvalue()
    return "", shown.getvalue()


def main() -> None:
    """Answer line by line."""
    sys.path.insert(0, os.environ["MEGATRON_FOLDER"])
    if sys.version_info < (3, 12):
        # It marks a method and changes nothing.
        typing.override = lambda method: method  # type: ignore[attr-defined]
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        error, shown = accepts(json.loads(line))
        print(json.dumps({"error": error, "shown": shown}), file=answers, flush=True)


if __name__ == "__main__":
    main()
