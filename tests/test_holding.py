"""What ranks hold step by step: against lists of steps, torch's own gathering, and sums by hand."""

from dataclasses import fields, replace

import pytest

from planner.cost.memory.footprint import footprint
from planner.schedules.activations import Chunk, Layer, Rank, _coming
from planner.schedules.registry import in_flight, orders, stage_ranks
from planner.schedules.steps import Shape
from planner.space.answers import runnable_places
from planner.space.best import Best
from planner.space.explore import Space, explore
from planner.space.layouts import Options
from planner.space.memory_by_step import held_exactly
from planner.space.predictions import predictions
from planner.space.question import setting
from planner.space.to_plans import best_places, jobs_at, plan_of
from profiles.library import load_sizes
from profiles.machines.devices import load_device
from tests.torch_schedules import gathered_stages

NOTHING = {
    "casts": 0.0, "cached": 0.0, "lingering": 0.0, "weights": 0.0, "stays_whole": False, "gradients": 0.0,
    "shards": 0.0, "reducing": 0.0, "waiting": 0.0, "at_loss": 0.0, "at_head": 0.0, "embedding": 0.0,
}  # fmt: skip
SHAPES = [
    Shape("gpipe", 4, 1, 6),
    Shape("1f1b", 4, 1, 6),
    Shape("interleaved-1f1b", 2, 4, 4),
    Shape("interleaved-1f1b", 4, 2, 8),
    Shape("interleaved-1f1b", 2, 4, 1),
]


def chunk(*layers: tuple[float, float], **own) -> Chunk:
    """A stage of layers that keep so much and whose backward adds so much."""
    return Chunk(layers=tuple(Layer(kept, backward, 0.0, 0.0) for kept, backward in layers), **(NOTHING | own))


def gone_through(shape: Shape, rank: int, **own) -> Rank:
    stages = [stage for stage, owner in enumerate(stage_ranks(shape)) if owner == rank]
    result = Rank(chunks={stage: chunk((1.0, 0.0), **own) for stage in stages})
    result.go_through(orders(shape)[rank])
    return result


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_activations_are_those_of_the_most_micro_batches_under_way(shape) -> None:
    for rank, most in enumerate(in_flight(shape)):
        assert gone_through(shape, rank).most == {"activations": most, "logits": 0, "gradients": 0, "buffers": 0}


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.virtual_stages > 1], ids=str)
def test_chunks_are_gathered_when_torch_gathers_them(shape) -> None:
    for order in orders(shape):
        assert [set(stages) for stages in _coming(order)] == gathered_stages(order.steps())


def test_the_first_layers_are_recomputed_and_the_last_goes_backward_first() -> None:
    one = Shape("1f1b", 1, 1, 1)
    recomputed, whole = (1.0, 10.0), (10.0, 2.0)
    rank = Rank(chunks={0: chunk(recomputed, whole)})
    rank.go_through(orders(one)[0])
    assert rank.most_bytes == max(1 + 10 + 2, 1 + 10)
    rank = Rank(chunks={0: chunk(whole, recomputed)})
    rank.go_through(orders(one)[0])
    assert rank.most_bytes == 10 + 1 + 10


def test_gradients_add_up_until_a_chunks_last_backward_pass_and_leave_shards() -> None:
    rank = gone_through(Shape("interleaved-1f1b", 1, 2, 1), 0, weights=4.0, gradients=8.0, shards=1.0, reducing=3.0)
    # When the second chunk has gone backward: its weights alone, for the schedule believes those of the first, which
    # fully_shard gave back after their forward pass, to be there. The first one's activation is left.
    assert rank.most == {"activations": 1.0, "logits": 0.0, "gradients": 8.0 + 3.0, "buffers": 4.0}


@pytest.fixture(scope="module")
def space() -> Space:
    at = setting(load_sizes("llama-3.1-8b"), load_device("h100-sxm"), 64, 256, 2048)
    return explore(at, Options(offload=("none",)))


def test_step_by_step_is_the_closed_form_where_one_moment_says_all(space: Space) -> None:
    """No sharded weights, one stage per rank that alternates, all layers recomputed or none."""
    plain = []
    for place in best_places(space, len(space.best)):
        plan = plan_of(space, place)
        if plan.schedule == "1f1b" and plan.zero_stage < 2 and not plan.recompute_layers:
            plain.append(place)
    for place in plain[:40]:
        closed = footprint(jobs_at(space, [place])).stage_allocated_bytes[0]
        held = held_exactly(space, place)
        assert held is not None
        assert held.rank_bytes == pytest.approx(closed, rel=0.03), plan_of(space, place).id
        assert sum(held.parts.values()) == pytest.approx(held.rank_bytes.max())


def test_what_is_offered_fits_step_by_step(space: Space) -> None:
    found = list(runnable_places(space, False, 10))
    assert all(prediction.fits for prediction in predictions(space, found))
    # In half a GiB nothing is offered, of the first hundred that fit in more.
    at = replace(space.at, device=replace(space.at.device, memory_gib=0.5))
    first = Best(**{field.name: getattr(space.best, field.name)[:100] for field in fields(Best)})
    assert not list(runnable_places(replace(space, at=at, best=first), False, 1))


def test_the_first_stage_goes_backward_when_its_weights_do() -> None:
    """It has no input gradients: what its linears gave does not wait, as it does on other stages."""
    shape = Shape("zbv", 1, 2, 1)
    assert [step.action for step in orders(shape)[0].steps()].count("I") == 2
    first = Rank(chunks={0: chunk((1.0, 5.0), embedding=0.5), 1: chunk((1.0, 0.0))})
    first.go_through(orders(shape)[0])
    # The other stage is done by then.
    assert first.most == {"activations": 1.0 + 5.0, "logits": 0, "gradients": 0, "buffers": 0}
