"""How fast the models of a study answer: in PyTorch, and where asked for in ONNX Runtime and under torch.compile."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from executor.compress.evaluation import compiled_latencies, latencies
from executor.compress.export_onnx import export_onnx, onnxruntime_seconds
from executor.compress.train_one import JUDGE_SECONDS, Study
from profiles.ranks.rank import report, wait_for_first


def time_models(study: Study) -> None:
    """Latencies of all models, in turns, on all ranks at once: as the machine was measured for the prediction.

    Then in ONNX Runtime and under torch.compile, where that was asked for.
    """
    report(1.0, "latencies")
    dist.barrier()
    with study.watch:
        taken = latencies(study.models, study.held_out[0][:1])
    for own in study.found:
        own["latency_seconds"], own["latency_spread_fraction"] = taken[own["recipe"].name]
    if study.order.export_folder:
        _export(study)
    if study.order.compiles:
        _compile(study)


def _export(study: Study) -> None:
    """Write every model that has plain weights as ONNX, and time it in ONNX Runtime; torchao's 8 bits stay in torch."""
    tokens = study.held_out[0][:1]
    for own in study.found:
        recipe = own["recipe"]
        if recipe.scheme:
            continue
        report(1.0, f"exporting {recipe.name}")
        path = Path(study.order.export_folder, f"{recipe.name.replace(':', '-')}.onnx")
        export_onnx(study.models[recipe.name], tokens, path)
        own["onnx_file"], own["onnxruntime_seconds"] = str(path), onnxruntime_seconds(path, tokens)
    wait_for_first("export", JUDGE_SECONDS)


def _compile(study: Study) -> None:
    """Time all models under torch.compile, on all ranks at once."""
    report(1.0, "latencies under torch.compile")
    dist.barrier()
    taken = compiled_latencies(study.models, study.held_out[0][:1])
    for own in study.found:
        own["compiled_seconds"] = taken.get(own["recipe"].name)
