"""Plans beside those of the table: the best of every other layout, and those that take the least memory."""

from __future__ import annotations

from collections.abc import Iterator

from planner.prediction import Candidate
from planner.space.answers import Answer, is_executable, why_not_run
from planner.space.explore import Place, Space
from planner.space.memory import memories
from planner.space.predictions import predictions
from planner.space.to_plans import place_at, place_in, plan_of
from planner.verdict import verdict

# Rows of a search that are looked at, the fastest first: a longer look finds only slower plans.
MOST_LOOKED_AT = 600
# Passes of all pipelines whose memory is followed step by step: they take the longest.
MOST_PASSES = 12_000


def other_plans(answer: Answer, offers_all: bool, most: int) -> list[Candidate]:
    """At most `most` plans that fit and are not in the table, fastest first, ranked after those that are.

    Those that no other plan of the search beats in time and memory, and one of each layout. Plans that the executor
    cannot run are there where they are offered too.
    """
    space, best = answer.space, answer.file.candidates[0]
    places: list[Place] = []
    num_passes = 0
    for place in _places(space):
        if len(places) == most:
            break
        plan = plan_of(space, place)
        longer = plan.num_stages * plan.num_microbatches if plan.pipeline_parallel > 1 else 0
        is_offered = place not in answer.places and (offers_all or not why_not_run(space.at, plan))
        if is_offered and num_passes + longer <= MOST_PASSES:
            places.append(place)
            num_passes += longer
    if not places:
        return []
    room = space.at.memory_bytes
    fitting = [place for place, held in zip(places, memories(space, places), strict=True) if held.device <= room]
    predicted = predictions(space, fitting) if fitting else []
    found = sorted(zip(predicted, fitting, strict=True), key=lambda pair: pair[0].step_seconds)
    result = []
    for number, (own, place) in enumerate(found, start=len(answer.file.candidates) + 1):
        plan = plan_of(space, place)
        words = verdict(room, best.prediction, own, plan, is_best=False)
        can_run = is_executable(space.at, plan)
        result.append(Candidate(rank=number, plan=plan, prediction=own, verdict=words, executable=can_run))
    return result


def _places(space: Space) -> Iterator[Place]:
    """Those that no other beats in time and memory, then the fastest of every layout."""
    own = space.layouts
    front = [place_in(space.front, row) for row in range(len(space.front))]
    yield from front
    seen: set[tuple[int, ...]] = set()
    columns = (own.tensor, own.context, own.expert, own.pipeline, own.data, own.zero_stage, own.shard)
    for row in range(min(MOST_LOOKED_AT, len(space.best))):
        place = place_at(space, row)
        key = tuple(int(column[place.layout]) for column in columns)
        if place not in front and key not in seen:
            seen.add(key)
            yield place
