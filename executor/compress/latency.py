"""How fast the models of a study answer: in PyTorch, and where asked for in other runtimes and under torch.compile."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from executor.compress.evaluation import compiled_latencies, latencies
from executor.compress.export_onnx import export_onnx
from executor.compress.runtime_latency import RuntimeLatency
from executor.compress.runtimes import runtime_latencies
from executor.compress.tensorrt import installed_tensorrt, onnx_path, run_trtexec, trtexec_command
from executor.compress.train_one import JUDGE_SECONDS, Study
from planner.compression.recipes import Recipe
from profiles.errors import EnvironmentFailure
from profiles.ranks.rank import report, wait_for_first


def time_models(study: Study) -> None:
    """Latencies of all models, in turns, on all ranks at once: as the machine was measured for the prediction.

    Then in other runtimes and under torch.compile, where that was asked for.
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
    """Write each model of plain weights as ONNX, and time it in other runtimes; torchao's 8 bits stay in torch."""
    tokens, order = study.held_out[0][:1], study.order
    for own in study.found:
        recipe = own["recipe"]
        if recipe.scheme:
            continue
        report(1.0, f"exporting {recipe.name}")
        path, model = onnx_path(Path(order.export_folder), recipe.name), study.models[recipe.name]
        export_onnx(model, tokens, path)
        found = runtime_latencies(path, model, tokens, order.runtimes)
        if "tensorrt" in order.runtimes:
            report(1.0, f"{recipe.name} in TensorRT")
            found += _in_tensorrt(study, path, recipe)
        own["onnx_file"], own["runtimes"] = str(path), tuple(found)
    wait_for_first("export", JUDGE_SECONDS)


def _in_tensorrt(study: Study, path: Path, recipe: Recipe) -> list[RuntimeLatency]:
    """What `trtexec` times; where it fails, a note: what was trained is not thrown away for it."""
    version = installed_tensorrt()
    sample = tuple(study.held_out[0].shape[1:])
    command = trtexec_command(path, sample, version, is_sparse=recipe.part == "2:4")
    try:
        return [run_trtexec(path, command, version)]
    except EnvironmentFailure as error:
        study.notes.append(str(error))
        return []


def _compile(study: Study) -> None:
    """Time all models under torch.compile, on all ranks at once."""
    report(1.0, "latencies under torch.compile")
    dist.barrier()
    taken = compiled_latencies(study.models, study.held_out[0][:1])
    for own in study.found:
        own["compiled_seconds"] = taken.get(own["recipe"].name)
