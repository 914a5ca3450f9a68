"""What ranks of a measured machine add to a pass for so many parameters, put together by the law of a step."""

from dataclasses import replace

import numpy as np

from planner.cost.axes.data import StageParameters
from planner.cost.axes.pipeline import idle_terms
from planner.cost.job import Jobs
from planner.cost.measured.machine import learned_of
from planner.cost.software_time import rules_of
from planner.cost.step import LayerSeconds, StepCosts, step_of
from planner.space.measured_setting import measured_setting
from planner.space.question import Setting, jobs_of
from profiles.library import load_model
from profiles.machines.profile import MachineProfile

MODEL = load_model("llama-26m")


def setting_on(machine: MachineProfile, codec: str = "none") -> Setting:
    return measured_setting(machine, MODEL, 2, 8, 128, "fp32", codec=codec)


def replicas(at: Setting, zero_stage: int, num_microbatches: int = 1) -> Jobs:
    """Two ranks that average their gradients. Shapes: one job."""
    numbers = {"data": 2.0, "zero_stage": zero_stage, "num_microbatches": num_microbatches, "shard": 2.0}
    jobs = jobs_of(at, **{name: np.array([float(value)]) for name, value in numbers.items()})
    return replace(jobs, reshard_after_forward=np.array([zero_stage == 3]))


def added_seconds(machine: MachineProfile, codec: str, zero_stage: int, parameters: float, backward: float) -> float:
    """Seconds that gradients add to a pass whose backward takes so long, and their codec's own work."""
    at = setting_on(machine, codec)
    jobs, learned, source = replicas(at, zero_stage), learned_of(machine), at.source
    assert source is not None
    rules, links = rules_of(jobs, learned), source.links(jobs)
    held = StageParameters(common=np.array([parameters]), expert=np.zeros(1))
    exchange, one, zero = source.exchange(jobs, rules, links, held), np.ones(1), np.zeros(1)
    factor, filling = learned.factors.data_comm, idle_terms(one, one, one)
    compute = np.array([1.5 * backward])
    step = step_of(
        StepCosts(
            layers={"all": LayerSeconds(total=compute, forward=compute / 3, weight=zero)},
            counts={"all": (one, one, one)}, model_counts={"all": one}, pipeline=one, num_microbatches=one,
            schedule=jobs.schedule, filling=filling[0], rounds=filling[1], message=zero, num_messages=zero,
            num_beside=zero, gradients=exchange.gradients * factor, tail=exchange.tail * factor,
            late=exchange.late * factor, parameters=exchange.parameters * factor, overlaps_gradients=jobs.overlap_grad,
            overlaps_parameters=jobs.overlap_param, num_exchanges=one, num_gathers=one, other_chunks=zero,
            round_length=one, once=zero, straggling=zero,
        ),
        learned.factors,
    )  # fmt: skip
    coding = source.kernels(jobs).codec(learned.factors, held.total)
    return float((step.exchange + coding)[0])
