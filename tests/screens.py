"""Everything that the four commands print of a result, with long plan ids and a word of one's choice in every name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from executor.compress.results import CompressionFile, CompressionResult
from executor.compress.show import show as show_compression
from executor.observe.events import Message
from executor.rehearse.result import PlanRehearsal, RankRehearsal, RehearsalFile, Rehearsed
from executor.rehearse.show import show as show_rehearsal
from executor.run.follow import Follower
from executor.run.measurement import RunFile
from executor.run.show import show as show_run
from planner.compression.recipes import CompressionChoice, recipe
from planner.expected_counts import Traffic, Volumes
from planner.plans import Plan
from planner.prediction import Candidate, Prediction
from planner.published.predict import Forecast
from planner.terminal.show import show as show_plan
from profiles.command import _show_machine, _show_model
from profiles.library import load_model
from profiles.ranks.rank import Report
from profiles.terminal.console import Console
from reports.comparison import Source
from reports.published.rows import PublishedRun
from reports.published.summary import summarise
from reports.published.terminal import show as show_published
from reports.report import build
from reports.terminal import show as show_report
from tests.machine_builders import machine
from tests.plan_builders import make_plan_file, make_prediction
from tests.report_builders import demo_run_file, run_file, simple_run

LONG = Plan(
    data_parallel=64, tensor_parallel=2, context_parallel=2, pipeline_parallel=4, vocab_parallel=True,
    num_microbatches=128, schedule="interleaved-1f1b", virtual_stages=2, zero_stage=3, recompute="full",
    recompute_layers=(79,), precision="bf16", stage_bounds=tuple(range(8)),
)  # fmt: skip
WITH_CODEC = replace(LONG, codec="powersgd-1")
RECIPES = ("none", "distil-layers-50-hidden", "prune-heads-50", "int8-dynamic")


def long_prediction() -> Prediction:
    return replace(
        make_prediction(), step_seconds=104.0, low_seconds=84.0, high_seconds=124.0, peak_bytes=76.1 * 2**30,
        tokens_per_second=47_500.0, mfu=0.361, assumptions=("kernels learned from published runs",),
    )  # fmt: skip


def choices() -> tuple[CompressionChoice, ...]:
    return tuple(
        CompressionChoice(
            recipe=recipe(name), plan=LONG, num_parameters=70_600_000_000, stored_bytes=68.7 * 2**30,
            step_seconds=82.7, peak_bytes=1e10, latency_seconds=0.0489,
            risk="unknown: half of a large model's weights went with little loss (Frantar and Alistarh 2023)",
            note="zeros are multiplied like any number: dense kernels gain nothing",
        )
        for name in RECIPES
    )  # fmt: skip


def plan_screen(name: str, out: Console) -> None:
    candidates = tuple(
        Candidate(
            rank=rank, plan=plan, prediction=long_prediction(), executable=rank == 9,
            verdict="as fast within 1%; +105 ms context-parallel communication (lossy gradients)",
        )
        for rank, plan in ((9, LONG), (10, WITH_CODEC))
    )  # fmt: skip
    file = make_plan_file(LONG, model_name=name, machine_name=name, candidates=candidates, notes=(name,))
    show_plan(replace(file, compression=choices()), out, Path("plan.json"))


def named_run_file(name: str) -> RunFile:
    runs = [simple_run(1.2, [1.0, 1.1, 1.4], rank=rank, plan=plan) for rank, plan in ((9, LONG), (10, WITH_CODEC))]
    file = run_file([replace(run, measurement=replace(run.measurement, peak_bytes=(7e10,))) for run in runs])
    return replace(
        file, model_name=name, machine_name=name, machine_fingerprint=name, notes=(name,),
        environment=replace(file.environment, device=name),
    )  # fmt: skip


def run_screen(name: str, out: Console) -> None:
    show_run(named_run_file(name), 2, out, Path("run.json"))


def log_screen(name: str, out: Console) -> None:
    follow = Follower(out, lambda fraction, text: None, True, None)
    follow(Report(fraction=0.5, text=name, line=f"{LONG.id} {name}  step: 20  loss: 2.1234", notice=name))


def rehearsal_screen(name: str, out: Console) -> None:
    rehearsed = Rehearsed(
        rank=1023, place={"data": 1}, num_operators=185_541, flops={"mm": 1.8e16}, peak_bytes=6.6e10, state_bytes={},
        messages=(Message(axis="data", collective="reduce_scatter", count=3, num_bytes=5e11),), seconds=49.8,
    )  # fmt: skip
    expected = Volumes(flops=1.9e16, traffic=(Traffic(axis="data", collective="reduce_scatter", num_bytes=5e11),))
    own = RankRehearsal(rehearsed=rehearsed, expected=expected, expected_peak_bytes=7e10)
    plan = PlanRehearsal(rank=1, plan=LONG, prediction=long_prediction(), ranks=(own,))
    given = make_plan_file(LONG)
    show_rehearsal(
        RehearsalFile(
            model_name=name, workload=given.workload, num_parameters=1, machine_name=name, num_devices=1024,
            global_batch_size=1, sequence_length=1, plans=(plan,), torch=name, started="", notes=(name,),
        ),
        out,
    )  # fmt: skip


def compression_screen(name: str, out: Console) -> None:
    results = tuple(
        CompressionResult(
            recipe=one.recipe, num_parameters=1, num_zeros=0, stored_bytes=68 * 2**30, loss_before=2.276, loss=1.844,
            right_fraction=0.456, equal_time_loss=1.978, step_seconds=(0.652,), latency_seconds=0.0489,
            latency_spread_fraction=0.06, onnx_file="", compiled_seconds=0.05,
        )
        for one in choices()
    )  # fmt: skip
    given = named_run_file(name)
    show_compression(
        CompressionFile(
            model_name=name, workload=given.workload, plan=LONG.id, global_batch_size=1, sequence_length=1,
            sample_shape=(1,), first_steps=40, seed=0, choices=choices(), results=results,
            environment=given.environment, notes=(name,),
        ),
        out,
    )  # fmt: skip


def report_screen(name: str, out: Console) -> None:
    show_report(build([Source(name=name, file=named_run_file(name)), Source(name="demo", file=demo_run_file())]), out)


def published_screen(name: str, out: Console) -> None:
    runs = [
        PublishedRun(
            row_id=f"{name} row-{number}", family=f"{name} family-of-long-names", measured_bytes=None, counter="",
            is_out_of_memory=False, is_fit=True, is_memory_fit=False, measured_seconds=1.0,
            forecast=Forecast(
                row_id="", step_seconds=1.2, low_seconds=1.0, high_seconds=1.4, assumptions=(f"stack: {name} assumed",)
            ),
        )
        for number in range(3)
    ]  # fmt: skip
    show_published(runs, summarise(runs), out)


def model_screen(name: str, out: Console) -> None:
    profile = load_model("llama-26m")
    layers = {
        precision: tuple(replace(layer, name=f"{name}transformer_block") for layer in own)
        for precision, own in profile.layers.items()
    }
    _show_model(replace(profile, name=name, traced_with=name, layers=layers), 128, out, Path("model.json"))


def machine_screen(name: str, out: Console) -> None:
    _show_machine(machine(name=name, device_name=name, created=name), out, Path("machine.json"))


SCREENS: dict[str, Callable[[str, Console], None]] = {
    "plan": plan_screen,
    "execute": run_screen,
    "execute -v": log_screen,
    "rehearsal": rehearsal_screen,
    "compression": compression_screen,
    "compare": report_screen,
    "published runs": published_screen,
    "profile model": model_screen,
    "profile machine": machine_screen,
}
