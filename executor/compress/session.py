"""One model through all recipes, on every rank: trained, compressed, trained on, and judged on text it has not seen."""

from __future__ import annotations

import copy
import itertools
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from executor.compress.distil import Teacher, place_teacher
from executor.compress.evaluation import num_stored_bytes, num_zeros
from executor.compress.fake_quantise import train_rounded
from executor.compress.latency import time_models
from executor.compress.results import CompressionResult
from executor.compress.shrink import shrink
from executor.compress.sparsify import Zeros
from executor.compress.train_one import JUDGE_SECONDS, CompressionOrder, Study
from executor.mesh import Meshes
from executor.run.batches import load_samples
from executor.run.checkpoint import load_whole, restore_weights, save_weights, save_whole
from executor.trainer import Trainer
from planner.compression.recipes import CompressionChoice, smaller
from planner.prediction import PlanFile
from profiles.artifacts import validate
from profiles.machines.counters import Watch
from profiles.machines.load import load_of_job
from profiles.ranks.rank import FOLDER_VARIABLE, Rank, join_group, own_cores, report, wait_for_first
from profiles.workloads.int8_linears import quantise
from profiles.workloads.loading import load_workload
from profiles.workloads.workload import Workload

HELD_OUT_SHARE = 0.1
# Samples by which pruning judges what matters.
JUDGED_SAMPLES = 16


def run_compression(payload: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of every rank; rank 0 gives the results, and what else the machine did, as JSON-able fields."""
    file = validate(payload["file"], PlanFile, "the plan")
    order = validate(payload["order"], CompressionOrder, "the order")
    choices = [choice for choice in file.compression if not choice.refusal]
    with join_group(order.device_kind, order.timeout_seconds) as rank:
        workload = load_workload(file.workload)
        samples = load_samples(order.data_file, workload, file.sequence_length, order.seed)
        own, held_out = samples.split_off(HELD_OUT_SHARE)
        study = Study(
            file=file,
            order=order,
            rank=rank,
            meshes=Meshes(order.device_kind, order.timeout_seconds),
            samples=own,
            held_out=_on(rank, held_out.held_out),
            folder=Path(os.environ[FOLDER_VARIABLE]),
            workload=workload,
            watch=Watch(own_cores()),
        )
        whole = _first(study, choices[0])
        for number, choice in enumerate(choices):
            report((number + 1) / (len(choices) + 1), choice.recipe.name)
            _one(study, choice, whole)
        time_models(study)
        load = load_of_job(study.watch)
    if rank.rank != 0:
        return None
    results = [asdict(result) for result in _results(study)]
    return {"results": results, "load": asdict(load), "notes": study.notes}


def _first(study: Study, choice: CompressionChoice) -> Path:
    """Train the model as it is; where its weights are."""
    report(0.0, "the unchanged model")
    trainer = Trainer(choice.plan, study.workload, study.rank, study.order.seed, study.meshes.of(choice.plan))
    _train(study, trainer, study.order.first_steps, 0)
    save_weights(study.folder / "whole", trainer)
    return study.folder / "whole"


def _one(study: Study, choice: CompressionChoice, whole: Path) -> None:
    """Compress by one recipe, train on where it does, and judge."""
    own = choice.recipe
    left = load_workload(replace(study.workload.spec, config=smaller(study.workload.spec.config, own)))
    start, end, before = study.folder / f"start-{own.name}", study.folder / f"end-{own.name}", 0.0
    taken: list[float] = []
    curve: list[tuple[float, float]] = []
    if own.method == "quantise":
        # Rounded once, after all training: that of the model as it is.
        end = study.folder / "end-none"
    if study.rank.rank == 0:
        model = _load(study, end, left) if own.method == "quantise" else _compressed(study, choice, left, whole)
        before, _ = study.judged(_rounded(model, choice), left)
        save_whole(start, model)
    wait_for_first(f"start of {own.name}", JUDGE_SECONDS)
    if own.method != "quantise":
        taken, curve = _train_on(study, choice, left, (start, end, whole))
    if study.rank.rank == 0:
        model = _load(study, end, left)
        count = sum(parameter.numel() for parameter in model.parameters())
        zeros = num_zeros(model)
        model = _rounded(model, choice)
        loss, right = study.judged(model, left)
        study.found.append(
            {
                "recipe": own,
                "num_parameters": count,
                "num_zeros": zeros,
                "stored_bytes": num_stored_bytes(model),
                "loss_before": before,
                "loss": loss,
                "right_fraction": right,
                "step_seconds": tuple(taken),
                "curve": curve,
            }
        )
    wait_for_first(f"end of {own.name}", JUDGE_SECONDS)
    study.models[own.name] = _rounded(_load(study, end, left), choice)


def _compressed(study: Study, choice: CompressionChoice, left: Workload, whole: Path) -> nn.Module:
    """The model that training goes on from; complete, on this rank alone."""
    dense = _load(study, whole, study.workload)
    if choice.recipe.method in ("prune", "distil"):
        tokens, _ = _on(study.rank, study.samples.batch(0, JUDGED_SAMPLES))
        return shrink(dense, study.workload, left, choice.recipe, tokens)
    return dense


def _load(study: Study, folder: Path, workload: Workload) -> nn.Sequential:
    model = workload.build(0, len(workload.layers), study.order.seed).to(study.rank.device)
    load_whole(folder, model)
    return model


def _rounded(model: nn.Module, choice: CompressionChoice) -> nn.Module:
    """The model as it would be used: in 8 bits where the recipe says so; the one given is left as it is."""
    if not choice.recipe.scheme:
        return model
    model = copy.deepcopy(model)
    quantise(model, choice.recipe.scheme)
    return model


def _train_on(
    study: Study, choice: CompressionChoice, left: Workload, folders: tuple[Path, Path, Path]
) -> tuple[list[float], list[tuple[float, float]]]:
    """Train from one folder's weights to the other's, where wanted with the third's as the teacher.

    Gives the seconds of the steps, and the losses by seconds on the way.
    """
    own, order = choice.recipe, study.order
    start, end, whole = folders
    mesh = study.meshes.of(choice.plan)
    teacher = None
    if own.method == "distil":
        teacher = Teacher(place_teacher(choice.plan, study.workload, whole, study.rank, mesh), own.matches_hidden)
    trainer = Trainer(
        choice.plan,
        left,
        study.rank,
        order.seed,
        mesh,
        adapt=train_rounded if own.method == "qat" else teacher.watch if teacher else None,
        adapt_loss=teacher.beside if teacher else None,
    )
    restore_weights(start, trainer)
    zeros = Zeros(trainer.parameters(), own, order.more_steps) if own.method == "sparse" else None
    taken: list[float] = []
    curve: list[tuple[float, float]] = []
    half = order.more_steps // 2 if own.method == "none" else 0
    for first, count in ((0, half), (half, order.more_steps - half)):
        if count:
            taken += _train(study, trainer, count, order.first_steps + first, zeros)
        if own.method == "none":
            curve.append((sum(taken), _judge_on_the_way(study, trainer, left, len(curve))))
    save_weights(end, trainer)
    return taken, curve


def _judge_on_the_way(study: Study, trainer: Trainer, workload: Workload, number: int) -> float:
    folder, loss = study.folder / f"on-the-way-{number}", 0.0
    save_weights(folder, trainer)
    if study.rank.rank == 0:
        loss, _ = study.judged(_load(study, folder, workload), workload)
    wait_for_first(f"intermediate {number}", JUDGE_SECONDS)
    return loss


def _train(study: Study, trainer: Trainer, count: int, first: int, zeros: Zeros | None = None) -> list[float]:
    """Seconds of so many steps from the `first` sample on, on the slowest rank."""
    taken = []
    with study.watch:
        for step in range(count):
            batch = study.samples.batch(first + step, study.file.global_batch_size)
            dist.barrier()
            start = time.perf_counter()
            trainer.step(*batch)
            if zeros is not None:
                zeros.apply(first + step + 1 - study.order.first_steps)
            taken.append(time.perf_counter() - start)
    slowest = torch.tensor(taken, device=study.rank.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return [float(value) for value in slowest]


def _results(study: Study) -> list[CompressionResult]:
    whole = study.found[0]
    curve = [(0.0, whole["loss_before"]), *whole["curve"]]
    results = []
    for own in study.found:
        fields = {name: value for name, value in own.items() if name != "curve"}
        is_trained = bool(own["step_seconds"])
        equal = _interpolated(curve, sum(own["step_seconds"])) if is_trained else whole["loss"]
        results.append(CompressionResult(**fields, equal_time_loss=equal))
    return results


def _interpolated(curve: list[tuple[float, float]], seconds: float) -> float:
    """The curve's loss after so many seconds, straight between its points; its last beyond them."""
    for (start, first), (stop, last) in itertools.pairwise(curve):
        if seconds <= stop:
            return first + (last - first) * (seconds - start) / max(stop - start, 1e-9)
    return curve[-1][1]


def _on(rank: Rank, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].to(rank.device), batch[1].to(rank.device)
