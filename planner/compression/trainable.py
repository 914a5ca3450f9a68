"""The best plan that a recipe can be trained in: of the one space, flat layouts alone, with room for a teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from planner.compression.recipes import Recipe, cannot_train, smaller
from planner.compression.smaller_settings import left_by
from planner.compression.teacher import teacher_bytes
from planner.plans import Plan
from planner.prediction import Prediction
from planner.schedules.registry import USUAL
from planner.space.answers import why_not_run
from planner.space.explore import Place, Space, explore
from planner.space.layouts import Ints, Options, legal_layouts
from planner.space.memory import memories
from planner.space.predictions import predictions
from planner.space.question import Setting
from planner.space.schedule_choices import Variants
from planner.space.tables import layout_jobs
from planner.space.to_plans import plan_of
from profiles.errors import NoFeasiblePlanError
from profiles.models.transformer import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The setting of what a recipe leaves, the best plan that it can be trained in, and what the plan would take.

    The prediction is without what the recipe adds.
    """

    at: Setting
    plan: Plan
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A space, and the fastest plan of each flat layout that fits, fastest first."""

    space: Space
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Searches:
    """The spaces of a model and of what recipes leave of it, each searched once."""

    whole: Setting
    _found: dict[str, _Found] = field(default_factory=dict)

    def best(self, own: Recipe) -> Trained:
        """The best plan that a recipe can be trained in, with its teacher where it has one.

        Raises: PlanError where the family cannot have such a model; NoFeasiblePlanError.
        """
        found = self._of(own)
        space, refused = found.space, ""
        for place in found.places:
            plan = plan_of(space, place)
            reason = cannot_train(own, plan) or why_not_run(space.at, plan)
            refused = refused or reason
            if not reason and memories(space, [place])[0].device <= space.at.memory_bytes:
                return Trained(at=space.at, plan=plan, prediction=predictions(space, [place])[0])
        words = f"no plan that {own.name} of {self.whole.model.name} can be trained in fits {self.whole.num_devices}"
        raise NoFeasiblePlanError(f"{words} devices; {refused}" if refused else f"{words} devices")

    def _of(self, own: Recipe) -> _Found:
        has_teacher, config = own.method == "distil", smaller(self.whole.model.config, own)
        key = json.dumps((config, has_teacher), sort_keys=True)
        if key not in self._found:
            known = (found.space.at for found in self._found.values() if found.space.at.model.config == config)
            at = next(known, None) or left_by(self.whole, own)
            self._found[key] = _search(at, self.whole if has_teacher else None)
        return self._found[key]


def _search(at: Setting, teacher: Setting | None) -> _Found:
    """The space of a setting, and its fastest flat plans that leave room for a teacher, whose answers are whole.

    Without pipelines, which no recipe is trained in, one schedule is as good as all, and the closed form is exact.
    """
    splits = Options().vocab_parallel if teacher is None else (0,)
    options = Options(schedules=(USUAL,), offload=("none",), vocab_parallel=splits)
    layouts, _ = legal_layouts(at, options)
    is_flat = (layouts.pipeline == 1) & (layouts.context == 1) & (layouts.expert == 1)
    beside = np.zeros(len(layouts)) if teacher is None else teacher_bytes(layout_jobs(teacher, layouts))
    fastest: list[tuple[float, float, Place]] = []

    def seen(_: int, layout: Ints, choices: Variants, seconds: Array, held: Array) -> None:
        rows = np.flatnonzero(is_flat[layout])
        if not len(rows):
            return
        bytes_held, taken = held[rows], np.broadcast_to(seconds, held.shape)[rows]
        fits = bytes_held + beside[layout[rows], None, None, None] <= at.memory_bytes
        usable = np.where(fits, taken, np.inf).reshape(len(rows), -1)
        for row, column in enumerate(usable.argmin(axis=1).tolist()):
            if np.isfinite(usable[row, column]):
                chosen = map(int, np.unravel_index(column, held.shape[1:]))
                place = Place(int(layout[rows[row]]), *chosen)
                fastest.append((float(usable[row, column]), float(bytes_held[row].flat[column]), place))

    space = explore(at, options, seen=seen)
    fastest.sort(key=lambda one: (*one[:2], one[2].layout))
    return _Found(space=space, places=tuple(place for _, _, place in fastest))
