"""A schedule that is registered is found everywhere: by search, prices, replay, rules, files and lists."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import planner.command
from planner.cost.axes.pipeline import bubble_left, held_microbatches
from planner.cost.ingredients import ingredients_of
from planner.cost.memory.footprint import footprint
from planner.legality import refusal
from planner.model_facts import ModelFacts
from planner.plans import Plan
from planner.prediction import PlanFile
from planner.published.learn import predict, total_seconds
from planner.schedules import registry, traits
from planner.schedules.registry import Schedule, in_flight
from planner.schedules.steps import B, F, Order, Shape
from planner.space.block import block, step_seconds
from planner.space.block_memory import device_bytes
from planner.space.explore import Place, explore
from planner.space.layouts import Options
from planner.space.predictions import predictions
from planner.space.replay_best import retimed
from planner.space.to_plans import best_places, plan_of
from profiles import artifacts
from profiles.errors import ArtifactError, PlanError
from tests.plan_builders import make_plan_file
from tests.test_replay import longest_path
from tests.test_space import job_of, make

NAME = "eager-1f1b"
FACTS = {
    "name": "toy", "num_layers": 8, "num_heads": 4, "num_kv_heads": 4, "ffn_size": 64, "vocab_size": 64,
    "tied_embeddings": False, "can_tensor_parallel": True, "can_pipeline": True, "is_transformer": True,
}  # fmt: skip


def eager(shape: Shape, rank: int) -> Order:
    """1F1B with one more forward before its turns."""
    count = shape.num_microbatches
    ahead = min(shape.num_ranks - rank, count)
    action = [F] * ahead + [F, B] * (count - ahead) + [B] * ahead
    number = {F: iter(range(count)), B: iter(range(count))}
    return Order(
        action=np.array(action),
        stage=np.full(2 * count, rank),
        microbatch=np.array([next(number[kind]) for kind in action]),
        paired=np.zeros(2 * count, dtype=bool),
    )


EAGER = Schedule(
    NAME,
    eager,
    title="1f1b with one more forward in flight",
    counts=traits.ONE_PER_STAGE,
    held=lambda pipeline, chunks, count, stage: pipeline - stage + 1,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.SCHEDULES, NAME, EAGER)


def test_its_laws_are_those_of_its_steps():
    ranks, count = 4, 16
    held = in_flight(Shape(NAME, ranks, 1, count))
    columns = (np.full(ranks, float(value)) for value in (ranks, 1, count))
    assert held_microbatches(NAME, *columns, np.arange(float(ranks))).tolist() == list(held) == [5, 4, 3, 2]
    assert bubble_left(NAME, *np.array([[4.0], [1 / 3], [1 / 3]])).tolist() == [1]


def test_the_search_offers_and_prices_it():
    space = explore(make(), Options())
    piped = [layout for layout, degree in enumerate(space.layouts.pipeline) if degree > 1]
    for layout in piped[::9]:
        choices = space.choices(layout)
        names = list(choices.schedules)
        column, usual = names.index(NAME), names.index("1f1b")
        degree = int(space.layouts.pipeline[layout])
        assert choices.legal[:, column, 0].tolist() == (choices.count >= degree).tolist()
        own = block(space.tables, np.array([layout]), choices)
        seconds, held = step_seconds(own)[0], device_bytes(own)[0]
        assert seconds[:, column] == pytest.approx(seconds[:, usual])
        micro = np.flatnonzero(choices.count > degree)
        if not space.layouts.activation_offload[layout]:
            assert (held[micro, column] > held[micro, usual]).all()
        place = (0, column, int(np.flatnonzero(choices.share == 0)[0]))
        job = job_of(space, layout, *place)
        alone = total_seconds(predict(ingredients_of(job), space.learned))
        assert seconds[place] == pytest.approx(float(alone[0]), rel=1e-12)
        assert held[place] == pytest.approx(float(footprint(job).device_bytes[0]), rel=1e-12)


def piped_places() -> tuple[object, list[Place]]:
    space = explore(make(), Options(schedules=(NAME,), offload=("none",)))
    places = [place for place in best_places(space, 400) if space.layouts.pipeline[place.layout] > 1]
    return space, places[:6]


def test_its_plans_are_replayed_exactly():
    space, places = piped_places()
    assert len(places) == 6
    found = retimed(space, places)
    for place, prediction in zip(places, predictions(space, places), strict=True):
        timed = found[place]
        assert timed.shape.schedule == plan_of(space, place).schedule == NAME
        assert timed.makespan_seconds == pytest.approx(longest_path(timed.shape, timed.stages), rel=0.015)
        if timed.shape.num_stages * timed.shape.num_microbatches <= 2048:
            assert timed.makespan_seconds == pytest.approx(longest_path(timed.shape, timed.stages))
        assert prediction.method == "schedule replay"


def test_its_plans_are_written_and_read_back(tmp_path, monkeypatch):
    space, places = piped_places()
    file = make_plan_file(*(plan_of(space, place) for place in places))
    artifacts.write(tmp_path / "plan.json", "plan", file)
    assert artifacts.read(tmp_path / "plan.json", "plan", PlanFile) == file
    monkeypatch.delitem(registry.SCHEDULES, NAME)
    with pytest.raises(ArtifactError) as refused:
        artifacts.read(tmp_path / "plan.json", "plan", PlanFile)
    sentence = str(refused.value).removeprefix(str(tmp_path))
    expected = f"/plan.json: at candidates.0.plan.schedule: unknown schedule '{NAME}': did you mean '1f1b'? known are "
    assert sentence.startswith(expected)
    assert sentence.count("\n") == 0


def test_it_is_refused_where_it_cannot_be(monkeypatch):
    facts = ModelFacts(**FACTS)
    plan = Plan(pipeline_parallel=2, schedule=NAME, stage_bounds=(0, 4), micro_batch_size=1, num_microbatches=4)
    planned_only = f"plan schedule={NAME}: can be planned but not run, as torch has no such schedule, use 1f1b"
    assert refusal(plan, facts, 32) == planned_only
    assert NAME not in registry.torch_names()
    monkeypatch.setitem(registry.SCHEDULES, NAME, replace(EAGER, torch_class="Schedule1F1B"))
    assert NAME in registry.torch_names()
    assert refusal(plan, facts, 32) == ""
    several = replace(plan, virtual_stages=2, stage_bounds=(0, 2, 4, 6))
    words = f"plan virtual_stages=2: {NAME} has one stage per rank, use virtual_stages=1 or interleaved-1f1b"
    assert refusal(several, facts, 32) == words
    few = replace(plan, num_microbatches=1)
    assert refusal(few, facts, 32) == f"plan num_microbatches=1: {NAME} needs at least one per stage, 2"
    with pytest.raises(PlanError, match=f"schedule {NAME} has one stage per rank, not 2"):
        registry.orders(Shape(NAME, 2, 2, 4))


def test_it_is_listed():
    listed = json.loads(CliRunner().invoke(planner.command.app, ["--list", "schedules", "--json"]).stdout)
    assert {"name": NAME, "title": EAGER.title} in listed


def test_schedules_of_published_runs_alone_are_priced_and_not_planned():
    for name in registry.PUBLISHED:
        assert name not in registry.plan_names()
        with pytest.raises(PlanError, match=f"schedule {name} is known from published runs only"):
            registry.orders(Shape(name, 2, registry.PUBLISHED[name].stages.least, 4))
