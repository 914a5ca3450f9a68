"""Run files made by hand for the tests of the reports: seven plans over two ranks with parts, memory and timelines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from executor.run.measurement import Environment, LossCheck, Measurement, PlanRun, RunFile
from planner.parts import PART_NAMES
from planner.plans import Plan
from planner.prediction import KINDS, Prediction, Span
from profiles.machines.load import MachineLoad
from profiles.models.profile import WorkloadSpec

MIB = 2**20
ASSUMPTIONS = ("gradients are reduced in buckets of 25 MiB", "one thread per rank")


def simulate_pipeline(
    schedule: str,
    num_stages: int,
    num_microbatches: int,
    forward_seconds: float,
    backward_seconds: float,
    message_seconds: float = 0.0,
) -> tuple[Span, ...]:
    """The spans of GPipe or 1F1B, each action as early as its inputs and its stage allow."""
    orders = []
    for stage in range(num_stages):
        warm_up = num_microbatches if schedule == "gpipe" else min(num_stages - stage, num_microbatches)
        order = [("F", index) for index in range(warm_up)]
        # Without a pipeline ("none") the order is 1F1B's: forward and backward of one micro-batch after the other.
        for index in range(num_microbatches):
            order.append(("B", index))
            if warm_up + index < num_microbatches:
                order.append(("F", warm_up + index))
        orders.append(order)
    done: dict[tuple[str, int, int], float] = {}
    free = [0.0] * num_stages
    next_step = [0] * num_stages
    spans = []
    while any(next_step[stage] < len(orders[stage]) for stage in range(num_stages)):
        for stage in range(num_stages):
            if next_step[stage] == len(orders[stage]):
                continue
            action, index = orders[stage][next_step[stage]]
            source = stage - 1 if action == "F" else stage + 1
            if 0 <= source < num_stages:
                if (action, source, index) not in done:
                    continue
                sent = done[action, source, index]
                ready = sent + message_seconds
                if message_seconds:
                    spans.append(
                        Span(
                            stage=stage, action="send_receive", microbatch=index, start_seconds=sent, stop_seconds=ready
                        )
                    )
            else:
                ready = done["F", stage, index] if action == "B" else 0.0
            start = max(free[stage], ready)
            stop = start + (forward_seconds if action == "F" else backward_seconds)
            spans.append(Span(stage=stage, action=action, microbatch=index, start_seconds=start, stop_seconds=stop))
            done[action, stage, index] = free[stage] = stop
            next_step[stage] += 1
    return tuple(spans)


def with_tail(spans: tuple[Span, ...], tail: dict[str, float]) -> tuple[Span, ...]:
    """`spans` and then, on every stage, the actions of `tail` one after the other with their seconds."""
    end = max(span.stop_seconds for span in spans)
    result = list(spans)
    for action, seconds in tail.items():
        for stage in sorted({span.stage for span in spans}):
            result.append(
                Span(stage=stage, action=action, microbatch=-1, start_seconds=end, stop_seconds=end + seconds)
            )
        end += seconds
    return tuple(result)


def prediction(seconds: dict[str, float], mebibytes: dict[str, float], spans: tuple[Span, ...] = ()) -> Prediction:
    """A prediction whose parts add up to the step and whose kinds add up to the peak."""
    step = sum(seconds.values())
    peak = sum(mebibytes.values()) * MIB
    return Prediction(
        step_seconds=step,
        low_seconds=step * 0.9,
        high_seconds=step * 1.12,
        seconds={part: seconds.get(part, 0.0) for part in PART_NAMES},
        bytes_per_rank={kind: mebibytes.get(kind, 0.0) * MIB for kind in KINDS},
        peak_bytes=peak,
        stage_peak_bytes=(peak, peak * 0.9) if spans else (peak,),
        fits=True,
        tokens_per_second=8192 / step,
        mfu=0.5,
        mfu_denominator="measured matmul peak",
        method="simulate",
        assumptions=ASSUMPTIONS,
        spans=spans,
    )


def measurement(
    step_seconds: Sequence[float],
    seconds: dict[str, float | None] | None = None,
    peak_bytes: tuple[float, ...] = (),
    status: str = "passed",
    spans: tuple[Span, ...] = (),
) -> Measurement:
    """A measurement with every part unobserved unless it is given."""
    return Measurement(
        num_warmup_steps=2,
        step_seconds=tuple(step_seconds),
        seconds={part: (seconds or {}).get(part) for part in PART_NAMES},
        peak_bytes=peak_bytes,
        peak_kind="resident memory above the start",
        losses=(10.8, 10.1, 9.7),
        loss_check=LossCheck(
            status=status,
            reason="first 3 losses against one device",
            tolerance_fraction=1e-3,
            largest_difference_fraction=2e-5,
            reference_losses=(10.8, 10.1),
        ),
        tokens_per_second=8192 * len(step_seconds) / (sum(step_seconds) or 1.0),
        spans=spans,
    )


def simple_run(
    predicted_seconds: float, step_seconds: Sequence[float], rank: int = 1, plan: Plan | None = None, **parts: float
) -> PlanRun:
    """A run with the given step times; `parts` are measured seconds, predicted compute is the whole step."""
    return PlanRun(
        rank=rank,
        plan=plan or Plan(data_parallel=2, micro_batch_size=rank),
        prediction=prediction({"compute": predicted_seconds}, {"parameters": 100.0}),
        measurement=measurement(step_seconds, dict(parts)),
    )


def load(other_cores: float) -> MachineLoad:
    """Two ranks on two cores over ten seconds, with others that take so many cores from them."""
    return MachineLoad(
        seconds=10.0,
        num_ranks=2,
        num_cores=2,
        other_cores=other_cores,
        waited_fraction=0.02 + other_cores / 2,
        stolen_fraction=0.0,
    )


def beside(run: PlanRun, other_cores: float) -> PlanRun:
    """The run beside other processes that took so many cores."""
    return replace(run, measurement=replace(run.measurement, load=load(other_cores)))


def run_file(runs: Sequence[PlanRun], oversubscribed: bool = False) -> RunFile:
    """A run file around `runs`."""
    return RunFile(
        model_name="gpt-25m",
        workload=WorkloadSpec(kind="transformers", name="gpt-25m", config={"n_layer": 6}),
        num_parameters=25_400_000,
        machine_name="this machine",
        machine_fingerprint="0123456789ab",
        global_batch_size=16,
        sequence_length=512,
        seed=0,
        runs=tuple(runs),
        environment=Environment(
            device="AMD EPYC",
            num_devices=2,
            num_cores=2,
            torch="2.13.0+cpu",
            python="3.11.7",
            backend="gloo",
            commit="741dd9e",
            started="2026-11-23T18:00:00+00:00",
            fingerprint="0123456789ab",
            oversubscribed=oversubscribed,
            command="execute plan.json --steps 20 -o run.json",
            data="text.txt, 1.2 MB, bytes as tokens",
        ),
        notes=("plans were interleaved, one step of each in turn",),
    )


def demo_plans() -> list[tuple[Plan, dict[str, float], float]]:
    """Plan, predicted seconds by part, and how much slower it really ran."""
    data = Plan(data_parallel=2, micro_batch_size=8)
    pipeline = Plan(pipeline_parallel=2, micro_batch_size=4, num_microbatches=4, stage_bounds=(0, 4), schedule="1f1b")
    return [
        (
            replace(data, codec="bf16"),
            {"compute": 1.52, "data_comm": 0.06, "codec": 0.03, "optimizer": 0.05, "host": 0.01},
            1.03,
        ),
        (data, {"compute": 1.52, "data_comm": 0.11, "optimizer": 0.05, "host": 0.01}, 1.01),
        (
            replace(data, codec="powersgd"),
            {"compute": 1.52, "data_comm": 0.04, "codec": 0.14, "optimizer": 0.05, "host": 0.01},
            1.12,
        ),
        (pipeline, {"compute": 1.6, "bubble": 0.4, "pipeline_comm": 0.04, "optimizer": 0.03, "host": 0.02}, 0.95),
        (
            replace(pipeline, schedule="gpipe"),
            {"compute": 1.6, "bubble": 0.42, "pipeline_comm": 0.05, "optimizer": 0.03, "host": 0.02},
            0.97,
        ),
        (
            Plan(tensor_parallel=2, micro_batch_size=16),
            {"compute": 1.66, "tensor_comm": 0.52, "optimizer": 0.03, "host": 0.06},
            1.18,
        ),
        (
            Plan(tensor_parallel=2, micro_batch_size=16, recompute="full"),
            {"compute": 1.66, "recompute": 0.55, "tensor_comm": 0.7, "optimizer": 0.03, "host": 0.08},
            1.09,
        ),
    ]


def demo_run_file(seed: int = 0) -> RunFile:
    """Seven plans over two ranks as `execute` would write them: noise of some percent, parts partly observed."""
    noise = random.Random(seed)
    runs = []
    for rank, (plan, seconds, slower) in enumerate(demo_plans(), start=1):
        tail = {
            action: seconds[part]
            for action, part in (("codec", "codec"), ("all_reduce", "data_comm"), ("optimizer", "optimizer"))
            if part in seconds
        }
        stages, count = plan.pipeline_parallel, plan.num_microbatches
        forward, message = (0.13, 0.01) if stages > 1 else (seconds["compute"] / 3, 0.0)
        spans = with_tail(simulate_pipeline(plan.schedule, stages, count, forward, 2 * forward, message), tail)
        measured = simulate_pipeline(plan.schedule, stages, count, 0.95 * forward, 1.95 * forward, 1.4 * message)
        measured_spans = with_tail(measured, tail)
        step = slower * sum(seconds.values())
        is_observed = {"compute": True, "optimizer": True, "codec": plan.codec != "none"}
        parts = {
            part: seconds.get(part, 0.0) * slower * noise.uniform(0.95, 1.02) if is_observed.get(part) else None
            for part in PART_NAMES
        }
        memory = {
            "parameters": 97.0 / plan.pipeline_parallel / plan.tensor_parallel,
            "gradients": 97.0 / plan.pipeline_parallel / plan.tensor_parallel,
            "optimizer": 194.0 / plan.pipeline_parallel / plan.tensor_parallel,
            "activations": 300.0 if plan.recompute == "full" else 900.0,
            "buffers": 50.0,
            "slack": 30.0,
            "outside": 10.0,
        }
        peak = sum(memory.values()) * MIB * noise.uniform(0.9, 1.1)
        runs.append(
            PlanRun(
                rank=rank,
                plan=plan,
                prediction=prediction(seconds, memory, spans),
                measurement=measurement(
                    [step * noise.gauss(1, 0.03) for _ in range(20)],
                    parts,
                    (peak, peak * 0.97),
                    "exempt" if plan.codec == "powersgd" else "passed",
                    measured_spans,
                ),
                is_baseline=plan.codec == "none" and plan.data_parallel == 2,
            )
        )
    return run_file(runs)
