"""Valid files of every kind, small, and ways to spoil them."""

from __future__ import annotations

import functools
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiles import artifacts
from profiles.library import MODELS
from tests.machine_builders import machine
from tests.plan_builders import LLAMA, MIXTRAL, QWEN3, VIT, make_plan_file
from tests.report_builders import demo_run_file, prediction

LLAMA_CONFIG, MIXTRAL_CONFIG, QWEN3_CONFIG, VIT_CONFIG = (dict(s.config) for s in (LLAMA, MIXTRAL, QWEN3, VIT))
GPT2_CONFIG: dict[str, Any] = {
    "model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 256,
}  # fmt: skip
MOE_CONFIG: dict[str, Any] = {
    **QWEN3_CONFIG, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
}  # fmt: skip
DEEPSEEK_CONFIG: dict[str, Any] = {
    **LLAMA_CONFIG, "model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 64,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_CONFIG,
    "mistral": {**LLAMA_CONFIG, "model_type": "mistral"},
    "qwen2": {**LLAMA_CONFIG, "model_type": "qwen2"},
    "qwen3": QWEN3_CONFIG,
    "gpt2": GPT2_CONFIG,
    "mixtral": MIXTRAL_CONFIG,
    "qwen3_moe": MOE_CONFIG,
    "deepseek_v3": DEEPSEEK_CONFIG,
    "vit": VIT_CONFIG,
}
CLUSTER: dict[str, Any] = {
    "name": "ours", "title": "our machines", "device": "h100-sxm", "devices_per_node": 8, "fast_domain": 8,
    "nics_per_node": 8, "network_gb_per_second": 50.0, "rail_optimised": True, "network_latency_us": 3.0,
}  # fmt: skip
POOLS: dict[str, Any] = {
    "name": "ours",
    "title": "our two generations",
    "pools": [{"of": "dgx-h100", "num_devices": 1}, {"of": "a100-sxm-80gb", "num_devices": 1}],
}
ROW: dict[str, str] = {
    "row_id": "one", "step_time_s": "1.5", "peak_mem_gib": "20", "num_layers": "32", "hidden_size": "4096",
    "num_heads": "32", "num_kv_heads": "8", "ffn_size": "14336", "vocab_size": "128256", "seq_len": "4096",
    "gpu_type": "H100-SXM5-80GB", "num_gpus": "16", "tp": "1", "pp": "1", "micro_batch_size": "1",
    "global_batch_size": "32",
}  # fmt: skip
# What json writes of it is no number that a float holds.
TOO_LARGE = "1e999"
_MARK = "\ue000"


def raw(text: str) -> str:
    """A value that stands in a JSON file as it is."""
    return f"{_MARK}{text}{_MARK}"


def written(data: Any) -> str:
    """The JSON text of `data`, with raw values; numbers that JSON has not are written as Python does."""
    quoted = json.dumps(_MARK).strip('"')
    return json.dumps(data).replace(f'"{quoted}', "").replace(f'{quoted}"', "")


def changed(data: Any, path: str, value: Any) -> Any:
    """A deep copy of `data` with another value at a path such as `candidates.0.rank`."""
    copy = json.loads(json.dumps(data))
    *outer, last = path.split(".")
    place = copy
    for word in outer:
        place = place[int(word)] if isinstance(place, list) else place.setdefault(word, {})
    place[int(last) if isinstance(place, list) else last] = value
    return copy


def without(data: Any, path: str) -> Any:
    """A deep copy of `data` without what stands at a path."""
    copy = json.loads(json.dumps(data))
    *outer, last = path.split(".")
    place = copy
    for word in outer:
        place = place[int(word)] if isinstance(place, list) else place[word]
    del place[int(last) if isinstance(place, list) else last]
    return copy


@functools.cache
def text_of(kind: str) -> str:
    """The text of a valid file of ours."""
    if kind == "model":
        return (MODELS / "llama-26m.json").read_text(encoding="utf-8")
    word, value = {
        "plan": lambda: ("plan", _plan_file()),
        "run": lambda: ("run", demo_run_file()),
        "machine": lambda: ("machine-profile", machine()),
        "rehearsal": lambda: ("rehearsal", _rehearsal()),
        "compression": lambda: ("compression", _compression()),
    }[kind]()
    return artifacts.dump(word, value)


def data_of(kind: str) -> Any:
    """A valid file of ours, parsed, for a test to change."""
    return json.loads(text_of(kind))


def own(kind: str, path: str = "", value: Any = None) -> Callable[[Path], None]:
    """A file of ours, valid but for one value; made when it is needed, since building the first takes a while."""
    return lambda place: _write(place, written(changed(data_of(kind), path, value)) if path else text_of(kind))


def own_without(kind: str, path: str) -> Callable[[Path], None]:
    """A file of ours that lacks something."""
    return lambda place: _write(place, written(without(data_of(kind), path)))


def spoilt(kind: str, change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    """A file of ours whose text is changed."""
    return lambda place: _write(place, change(text_of(kind)))


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def folder(path: Path) -> None:
    """A folder in the place of a file."""
    path.mkdir()


def symlink_loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path.name)


def fifo(path: Path) -> Any:
    """A named pipe that somebody reads."""
    os.mkfifo(path)
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")


def device(minor: int) -> Callable[[Path], None]:
    """A node of a memory device: 3 is null, 7 full. Only root may make one."""
    return lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))


def toml(data: dict[str, Any]) -> str:
    """The TOML text of a table with scalars, and lists of such tables at the end."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in data.items() if not _is_tables(value)]
    for key, value in data.items():
        if _is_tables(value):
            for entry in value:
                lines += [f"[[{key}]]", *(f"{name} = {_toml_value(field)}" for name, field in entry.items())]
    return "\n".join(lines) + "\n"


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _toml_value(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value).replace(f'"{json.dumps(_MARK)[1:-1]}', "").replace(f'{json.dumps(_MARK)[1:-1]}"', "")


def table(*rows: dict[str, str]) -> str:
    """A table of runs as CSV, of the columns of its first row and whatever others have."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return "\n".join([",".join(names), *(",".join(row.get(name, "") for name in names) for row in rows)]) + "\n"


def row(**cells: str) -> dict[str, str]:
    """The usual row with other cells."""
    return ROW | cells


def _plan_file() -> Any:
    from planner.plans import Plan

    return make_plan_file(Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2))


def _rehearsal() -> Any:
    from executor.observe.events import Message
    from executor.rehearse.result import PlanRehearsal, RankRehearsal, RehearsalFile, Rehearsed
    from planner.expected_counts import Traffic, Volumes
    from planner.plans import Plan

    done = Rehearsed(
        rank=0,
        place={"data": 0, "pipeline": 0, "tensor": 0, "context": 0},
        num_operators=100,
        flops={"forward": 1e9, "backward": 2e9},
        messages=(Message(axis="data", collective="all_reduce", count=1, num_bytes=1e6),),
        peak_bytes=1e7,
        state_bytes={"parameters": 1e6},
        seconds=1.5,
    )
    expected = Volumes(flops=3e9, traffic=(Traffic(axis="data", collective="all_reduce", num_bytes=1e6),))
    plan = PlanRehearsal(
        rank=1,
        plan=Plan(data_parallel=2, micro_batch_size=2, num_microbatches=2),
        prediction=prediction({"compute": 1.0}, {"parameters": 10.0}),
        ranks=(RankRehearsal(rehearsed=done, expected=expected, expected_peak_bytes=1e7),),
    )
    return RehearsalFile(
        model_name="tiny-llama",
        workload=LLAMA,
        num_parameters=200_000,
        machine_name="here",
        num_devices=2,
        global_batch_size=8,
        sequence_length=32,
        plans=(plan,),
        torch="2.13.0",
        started="2026-11-29T00:00:00+00:00",
    )


def _compression() -> Any:
    from executor.compress.results import CompressionFile, CompressionResult
    from planner.compression.recipes import CompressionChoice, recipe
    from planner.plans import Plan

    names, plan = ("none", "prune-ffn-50"), Plan(data_parallel=2, micro_batch_size=4)
    return CompressionFile(
        model_name="tiny-llama",
        workload=LLAMA,
        plan=plan.id,
        global_batch_size=8,
        sequence_length=32,
        sample_shape=(32,),
        first_steps=3,
        seed=0,
        choices=tuple(
            CompressionChoice(
                recipe=recipe(name), plan=plan, num_parameters=200_000, stored_bytes=8e5, step_seconds=0.1,
                peak_bytes=1e7, latency_seconds=0.01, risk="none",
            )
            for name in names
        ),
        results=tuple(
            CompressionResult(
                recipe=recipe(name), num_parameters=200_000, num_zeros=0, stored_bytes=800_000, loss_before=5.0,
                loss=4.0, right_fraction=0.1, equal_time_loss=4.0, step_seconds=(0.1, 0.1), latency_seconds=0.01,
                latency_spread_fraction=0.1,
            )
            for name in names
        ),
        environment=demo_run_file().environment,
    )  # fmt: skip
