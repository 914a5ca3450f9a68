"""How fast the models of a study answer: in PyTorch, and where asked for in other runtimes and under torch.compile."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from executor.compress.evaluation import NUM_CALLS, compiled_latencies, held_out, latencies
from executor.compress.export_onnx import export_onnx
from executor.compress.masks import semi_structured, write_pruned
from executor.compress.rounded_export import ABSENT, SCHEMES, can_round, export_rounded, failures, modelopt_version
from executor.compress.runtime_latency import RuntimeLatency
from executor.compress.runtimes import RUNTIMES, TORCH, onnxruntime_model, runtime_latencies
from executor.compress.tensorrt import installed_tensorrt, onnx_path, run_trtexec, trtexec_command
from executor.compress.train_one import JUDGE_SECONDS, Study
from profiles.errors import EnvironmentFailure
from profiles.ranks.rank import report, wait_for_first

# Samples that scales are found by, and runtimes that 8-bit files are timed in: OpenVINO has its own ways to round.
CALIBRATION_SAMPLES, JUDGES = 16, ("onnxruntime",)


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
            found += _in_tensorrt(study, path, is_sparse=recipe.part == "2:4")
        if recipe.method == "none":
            found = [_judged(study, path, one) for one in found] + _rounded(study, model)
        if recipe.method == "sparse":
            write_pruned(model, path.with_suffix(".prune.pt"))
        if recipe.part == "2:4":
            found += _semi_structured(study, model, tokens)
        own["onnx_file"], own["runtimes"] = str(path), tuple(found)
    wait_for_first("export", JUDGE_SECONDS)


def _judged(study: Study, path: Path, own: RuntimeLatency) -> RuntimeLatency:
    """What ONNX Runtime timed, with its loss and right answers on held-out samples."""
    if own.runtime != RUNTIMES["onnxruntime"].title:
        return own
    loss, right = held_out(onnxruntime_model(path, study.rank.device), study.workload, study.held_out)
    return replace(own, loss=loss, right_fraction=right)


def _rounded(study: Study, model: nn.Module) -> list[RuntimeLatency]:
    """The whole model rounded to 8 bits by modelopt, where that is: written, timed and judged; else a note."""
    order, found = study.order, []
    if not can_round():
        study.notes.append(ABSENT)
        return []
    samples, _ = study.samples.batch(0, CALIBRATION_SAMPLES)
    for scheme in SCHEMES:
        path = Path(order.export_folder, f"none.{scheme}.onnx")
        precision = f"{scheme} Q/DQ by modelopt {modelopt_version()}"
        report(1.0, f"rounding to {scheme}")
        try:
            export_rounded(model, samples, scheme, path)
            own = runtime_latencies(path, model, study.held_out[0][:1], [n for n in order.runtimes if n in JUDGES])
            found += [_judged(study, path, replace(one, precision=precision)) for one in own if one.runtime != TORCH]
        except failures() as error:
            # What was trained is not thrown away for what they cannot do.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            study.notes.append(f"no {scheme} ONNX file could be made that runs here: {lines[-1][:200]}")
            continue
        if "tensorrt" in order.runtimes:
            own = _in_tensorrt(study, path, is_rounded=True)
            found += [replace(one, precision=precision) for one in own]
    return found


def _semi_structured(study: Study, model: nn.Module, tokens: Tensor) -> list[RuntimeLatency]:
    """The model in torch's kernels for two zeros of every four, where the device has them; else a note."""
    ready = semi_structured(copy.deepcopy(model))
    if ready is None:
        study.notes.append("2:4 zeros were not timed: torch has kernels for them on GPUs of capability 8.0 and later")
        return []
    seconds, spread = latencies({"2:4": ready}, tokens)["2:4"]
    return [
        RuntimeLatency(
            runtime=TORCH,
            version=torch.__version__,
            precision="fp16, 2:4 kernels",
            latency_seconds=seconds,
            spread_fraction=spread,
            num_timed=NUM_CALLS,
        )
    ]


def _in_tensorrt(
    study: Study, path: Path, *, is_sparse: bool = False, is_rounded: bool = False
) -> list[RuntimeLatency]:
    """What `trtexec` times; where it fails, a note: what was trained is not thrown away for it."""
    version = installed_tensorrt()
    sample = tuple(study.held_out[0].shape[1:])
    command = trtexec_command(path, sample, version, is_sparse=is_sparse, is_rounded=is_rounded)
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
