"""Pipeline parallelism: which layers a stage has, what it sends to the next one, and how long stages stand idle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.jobs.axes.groups import seconds
from planner.jobs.job import Jobs
from planner.jobs.rules import TimeRules
from profiles.interconnect import Fabric
from profiles.transformer import Array

MESSAGE_ELEMENT_BYTES = 2.0
# Share of 1F1B's bubble that the zero-bubble schedules leave: (p-1)(F + B - W) and (p-1)(F + B - 2W) of (p-1)(F + B +
# W), with forward, backward of the inputs and of the weights equally long. Source: Qi et al. 2024 (arXiv 2401.10241).
BUBBLE_LEFT = {"zb-1p": 1 / 3, "zb-2p": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLayers:
    """Dense and mixture-of-experts layers of the first, a middle and the last stage. Shapes: one entry per job."""

    dense: tuple[Array, Array, Array]
    moe: tuple[Array, Array, Array]


def stage_layers(jobs: Jobs) -> StageLayers:
    """Layers by stage: as even as they come, the first and last shorter by what the job says; dense ones lead."""
    model = jobs.model
    even = np.ceil((model.num_layers + jobs.first_fewer + jobs.last_fewer) / jobs.pipeline)
    first = np.where(jobs.pipeline > 1, even - jobs.first_fewer, model.num_layers)
    last = np.where(jobs.pipeline > 1, even - jobs.last_fewer, model.num_layers)
    dense_total = model.num_layers - model.num_moe_layers
    dense_first = np.where(model.is_moe, np.minimum(first, dense_total), first)
    middle_dense = np.where(model.is_moe, 0.0, even)
    last_dense = np.where(model.is_moe, np.where(jobs.pipeline > 1, 0.0, dense_total), last)
    dense = (dense_first, middle_dense, last_dense)
    totals = (first, even, last)
    return StageLayers(
        dense=dense,
        moe=tuple(total - count for total, count in zip(totals, dense, strict=True)),  # type: ignore[arg-type]
    )


def message_seconds(jobs: Jobs, rules: TimeRules, fabric: Fabric) -> Array:
    """Seconds of sending one micro-batch's activations to the next stage, 0 without a pipeline.

    Model: stages are the outermost axis; with sequence parallelism, and where the stack cuts its messages up, a rank
    sends its share alone. Source: Narayanan et al. 2021 (arXiv 2104.04473), section 4.1.
    """
    shared = jobs.sequence_parallel | (rules.scatters_pipeline > 0)
    num_bytes = jobs.tokens * jobs.model.hidden_size * MESSAGE_ELEMENT_BYTES / np.where(shared, jobs.tensor, 1.0)
    stride = jobs.num_devices / jobs.pipeline
    pair = np.where(jobs.pipeline > 1, 2.0, 1.0)
    return seconds(jobs, fabric, "send_receive", num_bytes, pair, stride)


def idle_seconds(jobs: Jobs, stage_sum: Array, slowest: Array) -> Array:
    """Seconds per step in which the slowest stage waits for the pipeline to fill and to drain.

    Model: `stage_sum` is the seconds of one micro-batch over all stages, `slowest` over the slowest one. 1F1B and
    GPipe wait for the others once; interleaving divides that by the chunks, but waits for whole rounds.
    Source: Narayanan et al. 2021 (arXiv 2104.04473).
    """
    chunks = np.where(jobs.pipeline > 1, np.maximum(jobs.chunks, 1.0), 1.0)
    left = np.ones(len(jobs))
    for schedule, share in BUBBLE_LEFT.items():
        left = np.where(jobs.schedule == schedule, share, left)
    idle = (stage_sum - slowest) / chunks * left
    missing = np.mod(-jobs.num_microbatches, jobs.pipeline)
    rounds = np.where(chunks > 1, (chunks - 1) / chunks * missing * slowest, 0.0)
    return np.asarray(np.where(jobs.pipeline > 1, np.maximum(idle, 0.0) + rounds, 0.0))
