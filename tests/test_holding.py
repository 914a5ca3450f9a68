"""What ranks hold step by step: against lists of steps, torch's own gathering, and sums by hand."""

import pytest
from torch.distributed.pipelining.schedules import _Action, _add_unshard_reshard, _ComputationType

from planner.holding import Chunk, Layer, Rank, _coming
from planner.orders import ACTIONS, Shape
from planner.schedules import in_flight, orders, stage_ranks

NOTHING = {
    "casts": 0.0, "cached": 0.0, "weights": 0.0, "stays_whole": False, "gradients": 0.0, "shards": 0.0,
    "reducing": 0.0, "waiting": 0.0, "at_loss": 0.0, "at_head": 0.0, "embedding": 0.0,
}  # fmt: skip
SHAPES = [
    Shape("gpipe", 4, 1, 6),
    Shape("1f1b", 4, 1, 6),
    Shape("interleaved-1f1b", 2, 4, 4),
    Shape("interleaved-1f1b", 4, 2, 8),
    Shape("interleaved-1f1b", 2, 4, 1),
]
# As pipelining names what our lists call forward, whole backward and its halves.
TORCH = {"F": _ComputationType.FORWARD, "B": _ComputationType.FULL_BACKWARD}
SHARDING = (_ComputationType.UNSHARD, _ComputationType.RESHARD)


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
        steps = order.steps()
        actions = [_Action(step.stage, TORCH[step.action], step.microbatch) for step in steps]
        gathered: set[int] = set()
        theirs = []
        for action in _add_unshard_reshard(actions):
            if action.computation_type not in SHARDING:
                theirs.append(set(gathered))
            elif action.computation_type == SHARDING[0]:
                gathered.add(action.stage_index)
            else:
                gathered.discard(action.stage_index)
        assert [set(stages) for stages in _coming(order)] == theirs


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


def test_every_action_has_a_name_in_the_lists() -> None:
    assert set(TORCH) < set(ACTIONS)
