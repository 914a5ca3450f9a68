"""torch's own order of steps, read from its schedule objects; the one place that touches their private attributes."""

from collections.abc import Sequence
from unittest.mock import MagicMock

from torch.distributed.pipelining.schedules import _Action, _add_unshard_reshard, _ComputationType
from torch.distributed.pipelining.stage import _PipelineStageBase

from executor.axes.pipeline import torch_schedule
from planner.schedules.registry import schedule
from planner.schedules.steps import Shape, Step
from planner.schedules.traits import ONE_STAGE


def torch_steps(shape: Shape) -> list[tuple[Step, ...]]:
    """The steps that torch would perform on each rank of `shape`; the stages are stubs, as in torch's own tests."""

    def stage(index: int) -> MagicMock:
        stub = MagicMock(spec=_PipelineStageBase)
        stub.is_first, stub.is_last = index == 0, index == shape.num_stages - 1
        stub.stage_index, stub.num_stages = index, shape.num_stages
        stub.group_size, stub.group_rank = shape.num_ranks, 0
        stub.submod = None
        return stub

    rules = schedule(shape.schedule)
    kind = torch_schedule(rules)
    if rules.stages == ONE_STAGE:
        return [_performed(kind(stage(rank), shape.num_microbatches), rank) for rank in range(shape.num_ranks)]
    places = (0, shape.num_stages - 1) if rules.stages.is_v else range(0, shape.num_stages, shape.num_ranks)
    built = kind([stage(index) for index in places], shape.num_microbatches)
    return [
        tuple(step for action in built.pipeline_order[rank] if action is not None for step in _steps(action))
        for rank in range(shape.num_ranks)
    ]


def _performed(built, rank: int) -> tuple[Step, ...]:
    """What a schedule of one stage calls; its printed order numbers the last rank's forwards from 1 (torch 2.13)."""
    steps = []
    stub = built._stage
    stub.forward_one_chunk.side_effect = lambda index, *_, **__: steps.append(Step("F", rank, index))
    stub.backward_one_chunk.side_effect = lambda index, **_: steps.append(Step("B", rank, index))
    for name in ("get_fwd_recv_ops", "get_fwd_send_ops", "get_bwd_recv_ops", "get_bwd_send_ops"):
        getattr(stub, name).return_value = []
    built._initialize_stage = lambda *_: None
    built._step_microbatches([()] * built._n_microbatches)
    return tuple(steps)


def _steps(action) -> list[Step]:
    """A pair is two steps."""
    if action.sub_actions:
        first, second = (step for part in action.sub_actions for step in _steps(part))
        return [first, Step(second.action, second.stage, second.microbatch, paired=True)]
    return [Step(action.computation_type.value, action.stage_index, action.microbatch_index)]


def gathered_stages(steps: Sequence[Step]) -> list[set[int]]:
    """The stages whose weights torch has gathered at each of a rank's forward and whole backward passes."""
    names = {"F": _ComputationType.FORWARD, "B": _ComputationType.FULL_BACKWARD}
    gathered: set[int] = set()
    result = []
    for action in _add_unshard_reshard([_Action(step.stage, names[step.action], step.microbatch) for step in steps]):
        if action.computation_type == _ComputationType.UNSHARD:
            gathered.add(action.stage_index)
        elif action.computation_type == _ComputationType.RESHARD:
            gathered.discard(action.stage_index)
        else:
            result.append(set(gathered))
    return result
