"""Which runs of a launch take turns: as many as there is room for, and no crowd."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import psutil
import torch.distributed as dist

from executor.engines import Engine
from planner.prediction import Candidate

ROOM_FRACTION = 0.5
# More models than this, and each runs slower for the company: their pages crowd each other out (5 % at three dozen).
MOST_TOGETHER = 9


def groups_in_turns(runs: Sequence[tuple[Candidate, Engine]], device_kind: str) -> list[list[tuple[Candidate, Engine]]]:
    """Plans that take turns: on CUDA one by one, on CPU as many as half of what is free can hold, and no crowd.

    Neighbours in rank, whose order is what matters, take turns with each other; the engines of one plan always do.
    """
    groups: list[list[tuple[Candidate, Engine]]] = []
    # All ranks must agree, so rank 0's view of the memory counts.
    room = [ROOM_FRACTION * float(psutil.virtual_memory().available)]
    dist.broadcast_object_list(room)
    held = 0.0
    for candidate, of_plan in itertools.groupby(runs, key=lambda run: run[0]):
        same = list(of_plan)
        need = sum(candidate.prediction.stage_peak_bytes) or candidate.prediction.peak_bytes
        need *= candidate.plan.num_devices / max(1, len(candidate.prediction.stage_peak_bytes)) * len(same)
        is_crowd = bool(groups) and len(groups[-1]) + len(same) > MOST_TOGETHER
        if not groups or device_kind != "cpu" or held + need > room[0] or is_crowd:
            groups.append([])
            held = 0.0
        groups[-1] += same
        held += need
    return groups
