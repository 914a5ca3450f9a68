"""Shapes and times of pipelines for tests: possible ones, drawn or in a grid."""

import numpy as np
from hypothesis import strategies as st

from planner.schedules.registry import SCHEDULES, schedule
from planner.schedules.replay import PipelineSeconds
from planner.schedules.steps import Shape


def is_possible(shape):
    if schedule(shape.schedule).counts.in_rounds:
        return shape.num_microbatches % max(1, shape.num_microbatches // shape.num_ranks) == 0
    return shape.schedule != "dualpipev" or shape.num_microbatches >= shape.num_stages


def chunk_counts(name):
    return [chunks for chunks in (1, 2, 3, 4) if schedule(name).stages.allows(chunks)]


@st.composite
def shapes(draw, max_ranks=6, max_microbatches=20):
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    ranks, count = draw(st.integers(1, max_ranks)), draw(st.integers(1, max_microbatches))
    shape = Shape(name, ranks, draw(st.sampled_from(chunk_counts(name))), count)
    if not is_possible(shape):
        count = max(ranks, count // ranks * ranks) if schedule(name).counts.in_rounds else shape.num_stages + count
    return Shape(name, ranks, shape.virtual_stages, count)


def even_seconds(shape, forward=1.0, backward=2.0, weight=1.0, message=0.0):
    ones = np.ones((shape.num_stages, 1))
    return PipelineSeconds(
        forward=forward * ones, backward=backward * ones, weight=weight * ones, message=message * ones
    )


def random_seconds(shape, num_plans, spread, message, seed=0):
    """Stages that differ by up to `spread`, forward and backward each; messages up to `message` of a forward."""
    random = np.random.default_rng(seed)
    size = (shape.num_stages, num_plans)
    forward = 1 + spread * random.uniform(-1, 1, size)
    backward = (1.7 + 0.6 * random.random(num_plans)) * (1 + spread * random.uniform(-1, 1, size))
    return PipelineSeconds(
        forward=forward,
        backward=backward,
        weight=backward * random.uniform(0.35, 0.5, num_plans),
        message=message * random.random(size),
    )
