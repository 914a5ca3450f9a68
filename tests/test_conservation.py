"""What a step sends, counts and hides, over random layouts: nothing twice, nothing that nobody works with."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.axes import context, data, expert
from planner.cost.axes.groups import replica_seconds
from planner.cost.axes.pipeline import chunks_in_rounds, round_length, stage_counts
from planner.cost.factors import expected, load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Jobs
from planner.cost.layers import exposed, often_of, often_sharded, sharded_message, waits
from planner.cost.links import links_of
from planner.cost.memory.stage_content import stage_content
from planner.cost.once import num_exchanges
from planner.cost.software_time import rules_of
from planner.cost.step import LayerSeconds, StepCosts, step_of
from planner.schedules.registry import rank_steps, schedule
from planner.schedules.steps import Shape
from planner.simulate.step import simulate
from planner.simulate.step_work import Bucket, StageWork, StepWork, Transfer
from planner.space.question import jobs_of
from profiles.machines.stacks import load_stack, stack_names
from profiles.models.operators import PHASES
from tests.test_space import make

POWERS = (1, 2, 4, 8)
# Stacks whose pipelines are torch.distributed.pipelining's.
TORCH_PIPELINES = ("trainwright", "fsdp2")
RATE = 1e9


def jobs(config: str, stack: str = "fsdp2", **columns: object) -> Jobs:
    """One job of a small model."""
    at = make(config, num_devices=64, stack=stack)
    kinds = {
        name: np.array([value if isinstance(value, str | bool) else float(value)]) for name, value in columns.items()
    }
    return jobs_of(at, **kinds)


def sharded(one: Jobs) -> data.Sharded:
    return data.sharded(one, rules_of(one, expected()), links_of(one))


@st.composite
def expert_layouts(draw: st.DrawFn) -> dict[str, int]:
    tensor, context, replicas = (draw(st.sampled_from(POWERS[:3])) for _ in range(3))
    ranks = tensor * context * replicas
    parallel = draw(st.sampled_from([size for size in POWERS if ranks % size == 0]))
    split = draw(st.sampled_from([size for size in (1, 2) if ranks % (parallel * size) == 0]))
    shard = draw(st.sampled_from([size for size in range(1, context * replicas + 1) if context * replicas % size == 0]))
    return {
        "tensor": tensor, "context": context, "data": replicas, "expert": parallel, "expert_tensor": split,
        "shard": shard, "zero_stage": 3,
    }  # fmt: skip


@settings(max_examples=60)
@given(config=st.sampled_from(("dense", "experts", "latent")), layout=expert_layouts())
def test_no_rank_gathers_more_than_it_works_with(config, layout):
    one = jobs(config, **(layout if config != "dense" else layout | {"expert": 1, "expert_tensor": 1}))
    own = sharded(one)
    group = float(layout["shard"] * layout["tensor"])
    for kind in one.model.kinds:
        common, experts = one.model.parameters_of(kind)
        works_with = common / one.tensor + experts / (one.expert * one.expert_tensor)
        each = rules_of(one, expected()).parameter_message_bytes
        assert own.layer_gathered[kind] <= works_with * each * (1 + 1e-12)
        bare = sharded(replace(one, model=replace(one.model, expert_ffn_size=np.zeros(1))))
        if one.expert[0] * one.expert_tensor[0] >= group and group > one.tensor[0]:
            # Every rank has its experts to itself.
            assert own.layer_gather[kind] == pytest.approx(bare.layer_gather[kind])
        assert own.layer_gather[kind] >= bare.layer_gather[kind]


@settings(max_examples=30)
@given(shard=st.sampled_from((2, 8, 64)), tensor=st.sampled_from((1, 4)))
def test_matrices_that_are_messages_of_their_own_cost_every_rank_once(shard, tensor):
    """Early DeepSpeed's gathers, counted matrix by matrix; nothing hides them, and large layers come twice again."""
    one = jobs("dense", "deepspeed", data=64, shard=shard, tensor=tensor, zero_stage=3)
    rules, links = rules_of(one, expected()), links_of(one)
    own, time = sharded(one), load_stack("deepspeed").time
    (gathered,) = own.layer_gathered.values()
    # Queries, keys, values, projection; gate, up, down.
    mean, parameters = gathered / 7, gathered / 2
    message = replica_seconds(one, links, "all_gather", mean, one.shard, one.tensor) + time.shard_rank_us * 1e-6 * shard
    assert own.layer_gather["dense"] == pytest.approx(7 * message)
    assert not own.layer_again["dense"].any()
    small = replace(rules, reuse_parameters=parameters / 2)
    assert data.sharded(one, small, links).layer_again["dense"].all()
    visible, _ = waits(
        np.ones(1), np.zeros(1), own.layer_gather["dense"], rules.overlaps_shards > 0, expected().factors
    )
    assert visible == own.layer_gather["dense"]


@settings(max_examples=40)
@given(
    stack=st.sampled_from(TORCH_PIPELINES),
    pipeline=st.sampled_from((2, 4)),
    rounds=st.integers(1, 5),
    zero=st.sampled_from((2, 3)),
)
def test_a_torch_pipeline_sends_as_much_whatever_the_micro_batches(stack, pipeline, rounds, zero):
    sent = []
    for count in (pipeline, pipeline * rounds):
        layout = {"data": 8, "pipeline": pipeline, "zero_stage": zero, "shard": 8, "num_microbatches": count}
        one = jobs("dense", stack, reshard_after_forward=False, **layout)
        made = ingredients_of(one)
        if zero == 3:
            gather, scatter = made.sharded.layer_gather["dense"], made.sharded.layer_scatter["dense"]
            assert gather > 0
            each = [sharded_message(phase, gather, scatter, often_of(made)) for phase in PHASES]
            sent.append(float(count * sum(each)[0]))
        else:
            often = [
                num_exchanges(one.zero_stage, every > 0, one.num_microbatches)
                for every in (made.rules.reduces_every_microbatch, made.rules.gathers_every_microbatch)
            ]
            sent.append(float((made.exchange.gradients * often[0] + made.exchange.parameters * often[1])[0]))
    assert sent[0] == pytest.approx(sent[1])


@settings(max_examples=40)
@given(
    pipeline=st.sampled_from((2, 3, 4)),
    rounds=st.integers(1, 3),
    name=st.sampled_from(("gpipe", "1f1b", "interleaved-1f1b", "interleaved-zb")),
)
def test_a_torch_pipeline_gathers_before_what_no_backward_pass_left_whole(pipeline, rounds, name):
    """Of weights that every forward pass shards again, counted in the steps of each rank."""
    count, chunks = pipeline * rounds, schedule(name).stages.least
    shape = Shape(name, pipeline, chunks, count)
    every = often_sharded(np.array([float(pipeline)]), np.array([float(count)]), *np.ones((3, 1), dtype=bool))
    for rank in range(pipeline):
        steps = rank_steps(shape, rank)
        for stage in {step.stage for step in steps}:
            actions = [step.action for step in steps if step.stage == stage]
            gathers = 1 + sum(action == "F" for action in actions[:-1])
            assert count * float((every.gathered + every.returned)[0]) == pytest.approx(gathers)


@settings(max_examples=60)
@given(
    config=st.sampled_from(("dense", "uneven", "experts", "latent")),
    stack=st.sampled_from(("megatron-core", "nanotron", "trainwright")),
    pipeline=st.integers(1, 8),
    fewer=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_time_counts_the_layers_that_memory_counts(config, stack, pipeline, fewer):
    if stack == "nanotron" or pipeline == 1:
        fewer = (0, 0)
    one = jobs(config, stack, pipeline=pipeline, first_fewer=fewer[0], last_fewer=fewer[1])
    stages = [stage_content(one, stage) for stage in range(pipeline)]
    counts = stage_counts(one)
    for kind in one.model.kinds:
        of_memory = [float(stage.layers[kind][0]) for stage in stages]
        of_time = [float(count[0]) for count in counts[kind]]
        assert sum(of_memory) == one.model.num_of(kind)[0]
        assert (of_time[0], of_time[-1]) == (of_memory[0], of_memory[-1])
        assert set(of_time) <= set(of_memory)
    whole = [sum(float(stage.layers[kind][0]) for kind in one.model.kinds) for stage in stages]
    assert max(whole) == max(sum(column) for column in zip(*counts.values(), strict=True))[0]


@pytest.mark.parametrize("name", stack_names())
def test_gradients_are_added_up_once(name):
    time = load_stack(name).time
    assert not (time.adds_up_in_products and time.accumulate_bytes)


@settings(max_examples=40)
@given(
    chosen=st.integers(1, 8),
    parallel=st.sampled_from((2, 4, 8, 16, 32)),
    used=st.sampled_from(expert.ONE_COPY),
)
def test_one_copy_per_destination_never_takes_longer_than_one_per_expert(chosen, parallel, used):
    one = jobs("latent", "megatron-core", expert=parallel, data=parallel, dispatcher=used)
    one = replace(one, model=replace(one.model, experts_per_token=np.array([float(chosen)])))
    several = replace(one, dispatcher=np.array(["alltoall"]))
    first, second = (expert.layer_seconds(which, links_of(which))[0] for which in (one, several))
    assert first <= second * (1 + 1e-12)
    if chosen == 1:
        assert first == pytest.approx(second)
    copies = expert.expected_copies(np.array(float(parallel)), np.array(float(chosen)))
    assert 1 - 1e-12 <= copies <= min(chosen, parallel) + 1e-12


@pytest.mark.parametrize(("places", "chosen"), [(8, 8), (4, 6), (16, 2), (3, 1)])
def test_expected_copies_are_those_of_counted_routings(places, chosen):
    random = np.random.default_rng(0)
    counted = [len(set(random.integers(places, size=chosen).tolist())) for _ in range(20000)]
    assert float(expert.expected_copies(np.array(places), np.array(chosen))) == pytest.approx(
        np.mean(counted), rel=0.01
    )


@settings(max_examples=30)
@given(ranks=st.sampled_from((1, 2, 4, 8)), sequence=st.sampled_from((256, 8192)), network=st.floats(1e9, 1e11))
def test_a_ring_sends_what_its_messages_send_and_hides_no_more_than_attention(ranks, sequence, network):
    one = jobs("dense", "megatron-core", context=ranks)
    one = replace(one, sequence=np.array([float(sequence)]), network_bytes_per_second=np.array([network]))
    block = sequence / ranks * 8 * (128 + 128) * 2
    message = links_of(one).seconds("send_receive", np.array([block]), one.context, np.minimum(one.fast_domain, ranks))
    assert context.layer_seconds(one, links_of(one))[0] == pytest.approx((ranks - 1) * float(message[0]))
    assert 0 <= context.hiding_share(one)[0] < 1


@settings(max_examples=40)
@given(
    ranks=st.sampled_from((1, 2, 4)),
    chunks=st.sampled_from((1, 2, 4)),
    rounds=st.integers(1, 3),
    forward=st.floats(0.1, 2.0),
    backward=st.floats(0.1, 2.0),
    sent=st.floats(0.0, 40.0),
)
def test_gradients_hide_behind_the_last_passes_of_all_chunks(ranks, chunks, rounds, forward, backward, sent):
    """The closed form adds to a step what the events add that are played one by one."""
    chunks = chunks if ranks > 1 else 1
    name = "interleaved-1f1b" if chunks > 1 else "1f1b"
    count = ranks * rounds
    shape, num_buckets = Shape(name, ranks, chunks, count), 64
    steps = []
    for seconds in (0.0, sent):
        each = Transfer(
            name="all_reduce", stream="data", span="network", num_bytes=seconds / chunks / num_buckets * RATE
        )
        buckets = tuple(Bucket(done_fraction=(i + 1) / num_buckets, transfer=each) for i in range(num_buckets))
        stage = StageWork(
            forward_seconds=forward / chunks, backward_seconds=backward / chunks, buckets=buckets if seconds else ()
        )
        work = StepWork(
            shape=shape, stages=(stage,) * ranks * chunks, node_bytes_per_second=RATE, network_bytes_per_second=RATE
        )
        steps.append(simulate(work).step_seconds)
    law = hidden(name, ranks, chunks, count, forward, backward, sent)
    assert steps[1] - steps[0] == pytest.approx(law, abs=2 * (sent + backward) / num_buckets)


def hidden(name: str, ranks: int, chunks: int, count: int, forward: float, backward: float, sent: float) -> float:
    """Seconds that the law of a step adds for gradients, where neither they nor passes slow each other down."""
    one, zero, yes = np.ones(1), np.zeros(1), np.ones(1, dtype=bool)
    pipeline, parts = ranks * one, chunks * one
    costs = StepCosts(
        layers={"all": LayerSeconds(total=(forward + backward) * one, forward=forward * one, weight=zero)},
        counts={"all": (one, one, one)}, model_counts={"all": pipeline}, pipeline=pipeline,
        num_microbatches=count * one, schedule=np.array([name]), filling=zero, rounds=zero, message=zero,
        num_messages=zero, num_beside=zero, gradients=sent * one, tail=zero, late=zero, parameters=zero,
        overlaps_gradients=yes, overlaps_parameters=yes, num_exchanges=one, num_gathers=one,
        other_chunks=chunks_in_rounds(np.array([schedule(name).counts.in_rounds]), parts),
        round_length=round_length(pipeline, count * one), once=zero, straggling=zero,
    )  # fmt: skip
    alone = replace(load_learned().factors, compute_slowdown=0.0, comm_slowdown=0.0)
    return float(step_of(costs, alone).exchange[0])


@settings(max_examples=40)
@given(
    chunks=st.sampled_from([1, 2, 4, 8]),
    count=st.sampled_from([4, 8, 64]),
    message=st.floats(1e-4, 0.1),
    share=st.floats(0.0, 1.0),
)
def test_a_message_beside_a_pass_costs_less_than_one_waited_for_and_more_with_every_chunk(
    chunks, count, message, share
):
    one, zero, no = np.ones(1), np.zeros(1), np.zeros(1, dtype=bool)
    factors = replace(load_learned().factors, compute_slowdown=share, comm_slowdown=share)

    def step_with(chunks: int, *, hides: bool) -> float:
        pipeline, sent = 4 * one, 2.0 * count * chunks * one
        costs = StepCosts(
            layers={"all": LayerSeconds(total=one, forward=one / 3, weight=zero)}, counts={"all": (one, one, one)},
            model_counts={"all": pipeline}, pipeline=pipeline, num_microbatches=count * one,
            schedule=np.array(["interleaved-1f1b"]), filling=one / chunks, rounds=zero, message=message * one,
            num_messages=zero if hides else sent, num_beside=sent if hides else zero, gradients=zero, tail=zero,
            late=zero, parameters=zero, overlaps_gradients=no, overlaps_parameters=no, num_exchanges=one,
            num_gathers=one, other_chunks=zero, round_length=one, once=zero, straggling=zero,
        )  # fmt: skip
        return float(step_of(costs, factors).messages[0])

    beside, waited = (step_with(chunks, hides=word) for word in (True, False))
    # As `exposed` has it of a message that is shorter than what it goes beside, both in full.
    assert beside == pytest.approx(2 * count * chunks * float(exposed(message * one, 1e3 * one, factors)[0]))
    assert beside <= waited
    assert beside < step_with(2 * chunks, hides=True) or not share
