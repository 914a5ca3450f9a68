"""The space of layouts: every plan of a block costs what a single job costs, none is lost, and the best one is best."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Each, Jobs
from planner.cost.memory.footprint import footprint
from planner.published.learn import predict, total_seconds
from planner.space.best import MEMORY_STEPS
from planner.space.block import block, step_seconds
from planner.space.block_memory import device_bytes
from planner.space.explore import Space, explore
from planner.space.layouts import Options, legal_layouts
from planner.space.question import Setting, setting
from planner.space.schedule_choices import METHODS, hides_messages
from planner.space.tables import layout_jobs
from profiles.errors import NoFeasiblePlanError
from profiles.machines.devices import load_device
from profiles.models.sizes import sizes_of

SMALL = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12,
    "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192,
}  # fmt: skip
CONFIGS = {
    "dense": SMALL,
    "uneven": SMALL | {"num_hidden_layers": 22, "tie_word_embeddings": True},
    "experts": SMALL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "latent": SMALL | {
        "model_type": "deepseek_v3", "num_key_value_heads": 16, "n_routed_experts": 16, "num_experts_per_tok": 4,
        "moe_intermediate_size": 1024, "n_shared_experts": 1, "first_k_dense_replace": 2, "q_lora_rank": 512,
        "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
}  # fmt: skip


def make(config: str = "dense", num_devices: int = 16, batch: int = 48, stack: str = "trainwright", **changes: object):
    at = setting(sizes_of(config, CONFIGS[config]), load_device("h100-sxm"), num_devices, batch, 2048, stack=stack)
    return replace(at, **changes)


def job_of(space: Space, layout: int, micro: int, schedule: int, recompute: int) -> Jobs:
    """One plan as a job of its own, which the laws for single jobs price."""
    choices = space.choices(layout)
    one = layout_jobs(space.at, space.layouts.take(np.array([layout])))
    name = choices.schedules[schedule]
    return replace(
        one,
        micro_batch=choices.micro_batch[micro : micro + 1],
        num_microbatches=choices.count[micro : micro + 1],
        recompute=np.array([METHODS[choices.method[recompute]]]),
        schedule=np.array(["1f1b" if name == "none" else name]),
        chunks=choices.chunks[schedule : schedule + 1],
        overlap_pipeline=np.array([hides_messages(space.at, name)]),
    )


@pytest.mark.parametrize(
    ("config", "stack"),
    [
        ("dense", "trainwright"),
        ("uneven", "megatron-core"),
        ("experts", "megatron-core"),
        ("experts", "trainwright"),
        ("latent", "fsdp2"),
    ],
)
def test_a_plan_of_a_block_costs_what_the_job_costs_alone(config: str, stack: str) -> None:
    space = explore(make(config, stack=stack), Options())
    random = np.random.default_rng(1)
    for layout in random.integers(0, len(space.layouts), 60).tolist():
        choices = space.choices(layout)
        own = block(space.tables, np.array([layout]), choices)
        # Single jobs know no recomputation of some layers: all or none.
        whole = np.flatnonzero((choices.share == 0) | (choices.share == 1))
        place = (
            int(random.integers(len(choices.micro_batch))),
            int(random.integers(len(choices.schedules))),
            int(random.choice(whole)),
        )
        job = job_of(space, layout, *place)
        alone = total_seconds(predict(ingredients_of(job), space.learned))
        assert step_seconds(own)[(0, *place)] == pytest.approx(float(alone[0]), rel=1e-12)
        held = float(footprint(job).device_bytes[0])
        assert device_bytes(own)[(0, *place)] == pytest.approx(held, rel=1e-12)


def test_partial_recomputation_lies_between_none_and_all_of_it() -> None:
    space = explore(make(), Options(offload=("none",)))
    for layout in range(0, len(space.layouts), 7):
        choices = space.choices(layout)
        own = block(space.tables, np.array([layout]), choices)
        full = np.flatnonzero(choices.method == METHODS.index("full"))
        order = [int(np.flatnonzero(choices.share == 0)[0]), *full.tolist()]
        assert choices.share[order].tolist() == sorted(choices.share[order])
        assert (np.diff(step_seconds(own)[0][:, :, order], axis=2) >= -1e-9).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_no_plan_is_lost(config: str) -> None:
    space = explore(make(config), Options(offload=("none",)))
    assert space.generated == sum(space.choices(layout).num_plans for layout in range(len(space.layouts)))
    assert space.generated == space.accepted + space.rejected.total()
    assert space.accepted > 0


def test_the_best_is_that_of_an_exhaustive_search_job_by_job() -> None:
    """Every plan of a small space as a job of its own, priced and judged by the laws for single jobs."""
    options = Options(schedules=("gpipe", "1f1b", "interleaved-1f1b"), partial_recompute=False, offload=("none",))
    space = explore(make("dense", num_devices=4, batch=8), options)
    plans = []
    for layout in range(len(space.layouts)):
        choices = space.choices(layout)
        shape = choices.legal.shape[0], choices.legal.shape[1], len(choices.share)
        for place in itertools.product(*map(range, shape)):
            if choices.legal[place]:
                plans.append(job_of(space, layout, *place))
    jobs = joined(plans)
    fits = footprint(jobs).device_bytes <= space.at.memory_bytes
    seconds = total_seconds(predict(ingredients_of(jobs), load_learned()))
    assert fits.sum() == space.accepted
    assert space.best.step_seconds[0] == pytest.approx(float(seconds[fits].min()), rel=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_has_no_room_is_not_timed_and_changes_nothing(config: str) -> None:
    """Who watches a search sees every plan, and finds what the search finds that times only what fits."""
    at, options, shown = make(config, num_devices=8), Options(), []
    first = explore(at, options)
    second = explore(at, options, seen=lambda *block: shown.append(block[3].size))
    assert sum(shown) > first.accepted
    assert first.rejected == second.rejected
    for field in fields(first.best):
        assert np.array_equal(getattr(first.best, field.name), getattr(second.best, field.name))


@pytest.mark.parametrize("config", CONFIGS)
def test_no_plan_of_all_beats_those_that_no_other_beats(config: str) -> None:
    """Against every plan of the search; plans whose memory is less than a step apart may stand for each other."""
    at, every = make(config, num_devices=8), []
    space = explore(at, Options(), seen=lambda *block: every.append((block[3].reshape(-1), block[4].reshape(-1))))
    seconds, held = (np.concatenate(column) for column in zip(*every, strict=True))
    fits = held <= at.memory_bytes
    front = space.front
    assert len(front) > 1
    assert front.step_seconds[0] == space.best.step_seconds[0] == seconds[fits].min()
    assert (np.diff(front.step_seconds) > 0).all()
    assert (np.diff(front.device_bytes) < 0).all()
    step = at.memory_bytes / MEMORY_STEPS
    for time, held_bytes in zip(front.step_seconds, front.device_bytes, strict=True):
        assert not ((seconds[fits] <= time) & (held[fits] < held_bytes - step)).any()
        assert ((seconds == time) & (held == held_bytes)).any()
    # Seconds of the fastest plan of the front that takes no more than each plan does, but for a step.
    row = np.searchsorted(-front.device_bytes, -(held[fits] + step))
    assert row.max() < len(front)
    assert (front.step_seconds[row] <= seconds[fits]).all()


def joined(jobs: list[Jobs]) -> Jobs:
    """Many jobs of one question in one table."""
    columns = {
        field.name: np.concatenate([getattr(job, field.name) for job in jobs])
        for field in fields(Jobs)
        if field.name not in ("model", "device", "stack", "adapters", "source")
    }
    same = ("device", "stack", "adapters")
    columns |= {name: Each.same(getattr(jobs[0], name).values[0], len(jobs)) for name in same}
    return Jobs(model=jobs[0].model.take(np.zeros(len(jobs), dtype=np.int64)), **columns)


def test_layouts_are_all_products_of_degrees_that_divide() -> None:
    """Against a brute force over all quadruples of numbers."""
    at = make("dense", num_devices=24, batch=48)
    layouts, broken = legal_layouts(at, Options())
    found = {
        (int(t), int(c), int(p), int(d))
        for t, c, p, d in zip(layouts.tensor, layouts.context, layouts.pipeline, layouts.data, strict=True)
    }
    quadruples = [
        (t, c, p, 24 // (t * c * p)) for t, c, p in itertools.product(range(1, 25), repeat=3) if 24 % (t * c * p) == 0
    ]
    legal = {
        (t, c, p, d)
        for t, c, p, d in quadruples
        if 16 % t == 0 and 8 % t == 0 and 5632 % t == 0 and 2048 % (c * t) == 0 and p <= 12 and 48 % d == 0
    }
    # Sixteen heads and eight of keys and values: a tensor degree of sixteen would repeat the latter.
    assert found == legal
    assert len(quadruples) == len(legal) + broken.total()


FACTORS = st.floats(1.0, 8.0)


@settings(max_examples=12)
@given(st.sampled_from(["network_bytes_per_second", "fast_bytes_per_second"]), FACTORS, st.sampled_from([8, 12, 16]))
def test_a_faster_link_never_makes_the_best_plan_slower(field: str, factor: float, num_devices: int) -> None:
    at = make(num_devices=num_devices, devices_per_node=4, fast_domain=4)
    options = Options(partial_recompute=False, offload=("none",))
    slow, fast = explore(at, options), explore(replace(at, **{field: getattr(at, field) * factor}), options)
    assert fast.best.step_seconds[0] <= slow.best.step_seconds[0] * (1 + 1e-9)


@settings(max_examples=10)
@given(st.sets(st.sampled_from(["selective", "full"])), st.sets(st.sampled_from([1, 2, 3])), st.booleans())
def test_more_choices_never_give_a_worse_best(recompute: set[str], stages: set[int], partial: bool) -> None:
    at = make(num_devices=8, batch=32)
    few = Options(
        recompute=("none", *sorted(recompute)), zero_stages=(0, *sorted(stages)), partial_recompute=partial,
        schedules=("1f1b",), offload=("none",),
    )  # fmt: skip
    fewer, more = explore(at, few), explore(at, Options())
    assert more.best.step_seconds[0] <= fewer.best.step_seconds[0] * (1 + 1e-12)
    assert more.generated > fewer.generated


def test_the_same_question_has_the_same_answer() -> None:
    first, second = (explore(make(), Options()) for _ in range(2))
    for name in ("layout", "micro_batch", "schedule", "recompute", "step_seconds", "device_bytes"):
        assert np.array_equal(getattr(first.best, name), getattr(second.best, name))


def test_the_order_of_axes_matters_only_across_nodes() -> None:
    inside = explore(make(num_devices=8), Options())
    assert not inside.layouts.data_outside.any()
    across = explore(make(num_devices=16), Options())
    assert across.layouts.data_outside.any()


def test_no_legal_layout_is_a_reason() -> None:
    at: Setting = make(num_devices=13, batch=8)
    with pytest.raises(NoFeasiblePlanError, match="13 devices"):
        explore(replace(at, sequence_length=2048), Options())
