"""Files of our own that are whole, but say what cannot be: each value with the word that its sentence must have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tests.trial.case import ACCEPTED_OR_REFUSED, Case, Content
from tests.trial.material import VIT_CONFIG, own, spoilt
from tests.trial.own_files import of_kind

HUGE = 10**30
PLAN, WORKLOAD = "candidates.0.plan", "workload.config"
# (path, values that are refused, word of the sentence where it is not the last of the path)
Rule = tuple[str, Sequence[Any], str]
PLANS: tuple[Rule, ...] = (
    ("num_devices", (0, -1, 3, HUGE), "devices|num_devices"),
    ("global_batch_size", (0, -8, 9, HUGE), "samples|global_batch_size"),
    ("sequence_length", (0, -1, 500, HUGE), "sequence|tokens"),
    ("num_layers", (0, -1), ""),
    ("num_parameters", (-1,), ""),
    ("candidates", ([], None, {}), "candidates|no plan"),
    ("candidates.0", (7, None, []), "candidates.0"),
    ("candidates.0.executable", ("yes", 1, None), ""),
    ("candidates.0.rank", ("first", 1.5), ""),
    ("candidates.0.verdict", (7,), ""),
    (f"{PLAN}.data_parallel", (0, -2, 3, HUGE), "data_parallel|devices"),
    (f"{PLAN}.tensor_parallel", (0, -1, 3, HUGE), "tensor_parallel|devices"),
    (f"{PLAN}.pipeline_parallel", (0, -1, 2, HUGE), "pipeline_parallel|stage_bounds|stages|devices"),
    (f"{PLAN}.context_parallel", (0, -1, 3, HUGE), "context_parallel|devices"),
    (f"{PLAN}.expert_parallel", (0, -1, 2, HUGE), "expert"),
    (f"{PLAN}.virtual_stages", (0, -1, 2, HUGE), "virtual_stages|stage_bounds|stages"),
    (f"{PLAN}.micro_batch_size", (0, -1, HUGE), "micro_batch_size|samples"),
    (f"{PLAN}.num_microbatches", (0, -1, HUGE), "num_microbatches|samples"),
    (f"{PLAN}.shard_degree", (-1, 3, 2), ""),
    (f"{PLAN}.zero_stage", (7, -1), ""),
    (f"{PLAN}.schedule", ("nonsense", "", "1f1b"), ""),
    (f"{PLAN}.recompute", ("nonsense", True), ""),
    (f"{PLAN}.recompute_layers", ([-1], [99], "all"), ""),
    (f"{PLAN}.replica_microbatches", ([0, 2], [2], [2, -2]), ""),
    (f"{PLAN}.offload", ("nonsense",), ""),
    (f"{PLAN}.precision", ("fp4", "", "nonsense"), ""),
    (f"{PLAN}.codec", ("zip", "topk-0", "topk-nan", "powersgd-0", ""), "codec"),
    (f"{PLAN}.stage_bounds", ([], [1], [-1], [0, 0], [0, 99]), ""),
    (f"{PLAN}.axis_order", ([], ["x", "context", "data", "pipeline"], ["data"] * 4), ""),
    (f"{PLAN}.sequence_parallel", (True,), ""),
    (f"{PLAN}.colour", ("red",), ""),
    ("candidates.0.prediction.step_seconds", (-0.1,), ""),
    ("candidates.0.prediction.peak_bytes", (-1.0,), ""),
    ("candidates.0.prediction.fits", ("yes",), ""),
    ("candidates.0.prediction.seconds", ({"compute": "x"}, []), "seconds"),
    ("workload.kind", ("nonsense", "", None), ""),
    ("workload.factory", (7,), ""),
    (WORKLOAD, ({}, [], None, {"model_type": "nonsense"}, {"model_type": None}), "config|model_type"),
    (f"{WORKLOAD}.vocab_size", (100, 0, -1, "256", 10**12), "vocab"),
    (f"{WORKLOAD}.hidden_size", (0, -64, 7, 64.5, "64", None, [64], True, HUGE), ""),
    (f"{WORKLOAD}.intermediate_size", (0, -1, 1.5, "x", HUGE), ""),
    (f"{WORKLOAD}.num_attention_heads", (0, -4, 7, "4", 4.5, HUGE), "num_attention_heads|heads"),
    (f"{WORKLOAD}.num_key_value_heads", (3, -2, "2", 2.5, HUGE), "num_key_value_heads|kv_heads"),
    (f"{WORKLOAD}.num_hidden_layers", (0, -3, 1.5, "4", True), "num_hidden_layers|layers"),
    (f"{WORKLOAD}.max_position_embeddings", (0, -1, "x", 1.5), "max_position_embeddings|sequence"),
    (f"{WORKLOAD}.hidden_act", ("nonsense", 7, None), "hidden_act"),
    (f"{WORKLOAD}.rope_parameters", ({"rope_type": "nonsense"}, "x", {"rope_theta": "x"}), "rope"),
    ("baseline", ("first", 1.5), ""),
    ("num_legal", (-1, "x"), ""),
    ("rejected", ([], {"x": "y"}), ""),
    ("notes", ("x", [7]), ""),
    ("created", (7,), ""),
    ("compression", ("x", [{}]), ""),
)
MACHINES: tuple[Rule, ...] = (
    ("origin", ("guessed",), ""),
    ("device_kind", ("tpu", ""), ""),
    ("num_devices", (0, -2), ""),
    ("devices_per_node", (0, -1), ""),
    ("memory_bytes", (0.0, -1.0, "much"), ""),
    ("memory_bytes_per_second", (0.0, -1e10), ""),
    (
        "peak_flops_per_second",
        ({}, {"fp32": 0.0}, {"fp32": -1e11}, {"fp32": "fast"}, []),
        "peak_flops_per_second|precision",
    ),
    ("launch_seconds", (-1.0, "x"), ""),
    ("parallel_linear_seconds", (-1.0,), ""),
    ("pipeline_action_seconds", (-1.0,), ""),
    ("oversubscription_factor", (-2.0,), ""),
    ("kernels", ([], None, [7]), "kernels|measured for"),
    ("kernels.0.kind", (7, "nonsense"), "kind|matmul"),
    ("kernels.0.latency_seconds", (-1.0,), ""),
    ("kernels.0.flops_per_second", (-1e11, "fast"), ""),
    ("kernels.3.bytes_per_second", (-1e10,), ""),
    ("kernels.0.error_fraction", (-0.5,), ""),
    ("kernels.0.samples", ([7], [{"dims": [], "seconds": -1.0, "spread_fraction": 0.0}]), "samples"),
    ("links", ([], None), "links|all_reduce|all-reduce"),
    ("links.0.collective", ("shout",), ""),
    ("links.0.group_size", (0, -2), ""),
    ("links.0.span", ("moon",), ""),
    ("links.0.latency_seconds", (-1e-4,), ""),
    ("links.0.bytes_per_second", (0.0, -1e9), ""),
    ("overlap", (None, {}), "overlap"),
    ("overlap.compute_slowdown_fraction", (-2.0,), ""),
    ("layer_timings", ([{}], "x"), "layer_timings"),
    ("exchange_timings", ([{}], "x"), "exchange_timings"),
    ("fingerprint", ({}, 7), "fingerprint"),
    ("price_per_hour", ([1.0], [-1.0, -1.0], 2.0), ""),
)
MODELS: tuple[Rule, ...] = (
    ("hidden_size", (0, -512), ""),
    ("num_heads", (0, -8), ""),
    ("num_kv_heads", (0, 3), ""),
    ("ffn_size", (0, -1), ""),
    ("vocab_size", (0, -1), ""),
    ("max_sequence_length", (-1,), "max_sequence_length|sequence-length"),
    ("tied_embeddings", ("no", 1), ""),
    ("structure", ([], [99], [-1], "x", [0.5]), ""),
    ("layers", ({}, [], None), "layers|precision"),
    ("layers.fp32", ([], None), "layers|fp32"),
    ("layers.fp32.0.operators", (None, [7], "x"), "operators"),
    ("layers.fp32.0.num_parameters", ("x", 7, [7]), ""),
    ("layers.fp32.0.num_parameter_tensors", (-1, "x"), ""),
    ("layers.fp32.0.saved_bytes", ("x", None), ""),
    ("layers.fp32.0.messages", ([7],), "messages"),
    ("num_experts", (-1, "x"), ""),
    ("experts_per_token", (-1,), ""),
    ("workload.kind", ("nonsense",), ""),
    ("traced_with", (7,), ""),
)
RUNS: tuple[Rule, ...] = (
    ("num_parameters", (-1,), ""),
    ("global_batch_size", (0, -1), ""),
    ("sequence_length", (0, -1), ""),
    ("runs", ([], None, [7]), "runs"),
    ("runs.0.plan.micro_batch_size", (0, -1), ""),
    ("runs.0.plan.schedule", ("nonsense",), ""),
    ("runs.0.prediction.step_seconds", (0.0, -1.0), "step_seconds|step time"),
    ("runs.0.prediction.seconds", ({"compute": "x"},), "seconds"),
    ("runs.0.prediction.bytes_per_rank", ([],), ""),
    ("runs.0.measurement", (None, {}), "measurement"),
    ("runs.0.measurement.step_seconds", ([], [0.0], [-1.0], ["x"], None), "step_seconds|step time|steps"),
    ("runs.0.measurement.peak_bytes", ([-1.0], ["x"]), ""),
    ("runs.0.measurement.losses", (["x"], None), ""),
    ("runs.0.measurement.num_warmup_steps", (-1, "x"), ""),
    ("runs.0.measurement.tokens_per_second", (-1.0,), ""),
    ("runs.0.measurement.loss_check", (None, {}), "loss_check"),
    ("runs.0.measurement.loss_check.status", ("nonsense", 7), ""),
    ("runs.0.measurement.spans", ([7], [{}]), "spans"),
    ("runs.0.measurement.spans.0.start_seconds", ("x",), ""),
    ("environment", (None, {}), "environment"),
    ("environment.num_devices", (0, -2, "two"), ""),
    ("environment.num_cores", (0, "x"), ""),
    ("environment.oversubscribed", ("yes",), ""),
    ("seed", ("x", 1.5), ""),
)
REHEARSALS: tuple[Rule, ...] = (
    ("num_devices", (0, -1), ""),
    ("plans", ([], None, [7]), "plans"),
    ("plans.0.ranks", ([], None), "ranks"),
    ("plans.0.ranks.0.rehearsed.place", ([], {"data": "x"}), "place"),
    ("plans.0.ranks.0.rehearsed.num_operators", (-1, "x"), ""),
    ("plans.0.ranks.0.rehearsed.flops", ({"forward": "x"}, {"forward": -1.0}), "flops"),
    ("plans.0.ranks.0.rehearsed.messages", ([{}], "x"), "messages"),
    ("plans.0.ranks.0.rehearsed.messages.0.count", (-1, "x"), ""),
    ("plans.0.ranks.0.rehearsed.messages.0.num_bytes", (-1.0,), ""),
    ("plans.0.ranks.0.rehearsed.seconds", (-1.0,), "seconds"),
    ("plans.0.ranks.0.expected", (None, {}), "expected"),
    ("plans.0.ranks.0.expected.flops", (-1.0, "x"), ""),
    ("plans.0.ranks.0.expected_peak_bytes", (-1.0,), ""),
)
COMPRESSIONS: tuple[Rule, ...] = (
    ("global_batch_size", (0, -1), ""),
    ("first_steps", (-1, "x"), ""),
    ("sample_shape", ("x", [0.5]), ""),
    ("choices", ("x", [{}]), "choices"),
    ("choices.0.recipe", (None, {}), "recipe"),
    ("choices.0.stored_bytes", (-1.0,), ""),
    ("choices.0.step_seconds", (-1.0,), ""),
    ("results", ([], None, [7]), "results"),
    ("results.0.recipe", (None, {}), "recipe"),
    ("results.0.recipe.method", ("nonsense",), ""),
    ("results.0.stored_bytes", (-1, 0), ""),
    ("results.0.num_zeros", (-1,), ""),
    ("results.0.loss", ("x", None), "loss"),
    ("results.0.right_fraction", (-1.0, 2.0), ""),
    ("results.0.step_seconds", ([-1.0], ["x"]), ""),
    ("results.0.latency_seconds", (0.0, -1.0), ""),
    ("environment", (None, {}), "environment"),
)
RULES = {
    "plan": PLANS, "machine": MACHINES, "model": MODELS, "run": RUNS, "rehearsal": REHEARSALS,
    "compression": COMPRESSIONS,
}  # fmt: skip
# Odd, but harmless: said or not, and never a crash.
HARMLESS: dict[str, Sequence[tuple[str, Any]]] = {
    "plan": (
        ("baseline", -7), ("num_parameters", 0), ("num_legal", 0), ("machine_device_kind", "cuda"),
        ("machine_device_kind", "tpu"), ("candidates.0.rank", -5), ("candidates.0.rank", HUGE),
        ("candidates.0.prediction.step_seconds", 0.0), ("candidates.0.prediction.step_seconds", 1e308),
        ("candidates.0.prediction.low_seconds", 9.0), ("candidates.0.prediction.tokens_per_second", 0.0),
        ("candidates.0.prediction.seconds", {"magic": 1.0}), ("machine_fingerprint", ""), (f"{WORKLOAD}.colour", "red"),
    ),
    "machine": (
        ("launch_seconds", 1e308), ("memory_bytes", 1e308), ("links.0.bytes_per_second", 1e308),
        ("links.0.latency_seconds", 1e308),
        ("overlap.compute_slowdown_fraction", 1e308), ("kernels.0.flops_per_second", 5e-324), ("num_devices", HUGE),
        ("devices_per_node", HUGE), ("price_per_hour", [3.0, 2.0]), ("sources", {"x": "y"}),
    ),
    "model": (("hidden_size", HUGE), ("vocab_size", HUGE), ("num_heads", HUGE), ("workload.config", {})),
    "run": (
        ("runs.0.rank", 0), ("runs.0.rank", HUGE), ("runs.0.measurement.losses", []),
        ("runs.0.measurement.step_seconds", [1e308]),
        ("runs.0.measurement.step_seconds", [5e-324]), ("runs.0.measurement.peak_bytes", []),
        ("runs.0.measurement.spans", []), ("runs.0.prediction.peak_bytes", 0.0), ("runs.0.prediction.spans", []),
        ("runs.0.measurement.seconds", {}), ("runs.0.prediction.seconds", {}), ("runs.0.prediction.bytes_per_rank", {}),
        ("runs.0.measurement.spans.0.start_seconds", -5.0), ("runs.0.measurement.spans.0.stage", 99),
        ("workload.config", {}),
        ("environment.started", "yesterday"), ("num_parameters", 0), ("runs.0.is_baseline", True),
    ),
    "rehearsal": (
        ("plans.0.ranks.0.rehearsed.peak_bytes", 0.0), ("plans.0.ranks.0.rehearsed.flops", {}),
        ("plans.0.ranks.0.rehearsed.place", {}),
        ("plans.0.ranks.0.rehearsed.messages", []), ("plans.0.ranks.0.expected.traffic", []),
        ("plans.0.ranks.0.expected.flops", 0.0),
        ("started", "yesterday"), ("num_devices", HUGE),
    ),
    "compression": (
        ("choices", []), ("results.0.step_seconds", []), ("results.0.recipe.name", "magic"), ("results.0.loss", -1.0),
        ("results.0.latency_seconds", 1e308), ("results.0.num_zeros", HUGE), ("choices.0.latency_seconds", 0.0),
        ("results.1.recipe.name", "none"),
    ),
}  # fmt: skip


def _refused(kind: str, rules: Sequence[Rule]) -> Iterator[Case]:
    for path, values, words in rules:
        for value in values:
            shown = "huge" if value == HUGE else repr(value)[:40]
            yield of_kind(kind, f"{path}={shown}", own(kind, path, value), words=words or path.rpartition(".")[2])


def _runs_twice(text: str) -> str:
    data = json.loads(text)
    return json.dumps(data | {"runs": data["runs"] * 2})


def _zeros(text: str) -> str:
    """Every speed and latency of a machine as nothing."""
    return re.sub(r'("(?!schema|group_size|num_devices|devices_per_node)\w+": )[0-9.e+-]+', r"\g<1>0.0", text)


def _more() -> Iterator[Case]:
    yield of_kind("machine", "all speeds zero", spoilt("machine", _zeros), words=r"machine\.json.* at ")
    for kind, odd in HARMLESS.items():
        for path, value in odd:
            shown = "huge" if value == HUGE else repr(value)[:40]
            yield of_kind(kind, f"harmless {path}={shown}", own(kind, path, value), ACCEPTED_OR_REFUSED)
    vit: dict[str, Content] = {"plan.json": own("plan", "workload.config", VIT_CONFIG)}
    yield Case(
        name="plan: tokens for a model of images",
        command="execute",
        arguments=("plan.json", "--json"),
        files=vit,
        words="image|17 tokens|17",
    )
    for what, count in (("a billion", 10**9), ("10^30", HUGE)):
        case = of_kind("plan", f"{what} layers", own("plan", f"{WORKLOAD}.num_hidden_layers", count), words="layers")
        yield replace(case, seconds=15.0)
    yield of_kind("run", "every run twice", spoilt("run", _runs_twice), ACCEPTED_OR_REFUSED)


CASES = (*(case for kind, rules in RULES.items() for case in _refused(kind, rules)), *_more())
