"""Settings compared: gradient codecs where a link is slow, precisions, batches, and what failures cost."""

from dataclasses import replace

import numpy as np
import pytest

from planner.ask import Request, ask, parse_batches
from planner.cost.factors import load_learned
from planner.cost.measured.on_sheet import sheet_law
from planner.purchase.bill import cost_of
from planner.purchase.terms import Reliability, usual_terms
from planner.schedules.registry import has
from planner.space.beside import Questions
from planner.space.compare_questions import try_settings
from planner.space.layouts import Options
from planner.space.predictions import predictions
from planner.space.question import Setting
from planner.space.to_plans import best_places
from profiles.errors import InputError
from profiles.library import load_sizes
from profiles.machines.devices import load_device
from tests.test_space import make

# Without sharding of weights: what DDP would do, whose gradients a codec may compress.
PLAIN = Options(offload=("none",), zero_stages=(0,))


def with_codecs(**changes: object) -> list[Setting]:
    return [replace(make(num_devices=16), codec=name, **changes) for name in ("none", "bf16", "powersgd-1")]


def test_on_a_fast_link_codecs_are_declined_and_the_reason_is_given() -> None:
    space, notes = try_settings(with_codecs(global_batch_size=4096), PLAIN, simulate=True)
    assert space.at.codec == "none"
    assert any("gradient codecs are not worth it" in note for note in notes)


def test_on_a_slow_link_a_codec_is_chosen_and_named_as_lossy() -> None:
    slow = {"network_bytes_per_second": 0.1e9, "fast_bytes_per_second": 0.1e9}
    space, notes = try_settings(with_codecs(**slow), PLAIN, simulate=True)
    assert space.at.codec == "powersgd-1"
    assert any("lossy (powersgd-1)" in note for note in notes)
    assert any(note.startswith("uncompressed gradients: ") for note in notes)


def test_a_codec_is_found_where_plans_without_it_avoid_the_exchange() -> None:
    """The best plan without codecs exchanges little, and so tells nothing of what a codec would make of another."""
    slow = {"network_bytes_per_second": 0.2e9, "global_batch_size": 256}
    (plain,) = (try_settings([at], PLAIN, simulate=True)[0] for at in with_codecs(**slow)[:1])
    best = predictions(plain, best_places(plain, 1))[0]
    assert best.seconds["data_comm"] < 0.02 * best.step_seconds
    assert try_settings(with_codecs(**slow), PLAIN, simulate=True)[0].at.codec != "none"


def test_codecs_alone_are_planned_for_what_they_work_with() -> None:
    half, low_rank = (try_settings([at], Options(), simulate=True)[0] for at in with_codecs()[1:])
    # FSDP reduces in 16 bits by itself, and knows no other codec.
    assert half.layouts.zero_stage.max() == 3
    # What is gathered mixes gradients that are whole on every tensor rank with parts of others.
    sparse = try_settings([replace(make(num_devices=16), codec="topk-1")], Options(), simulate=True)[0]
    assert (low_rank.layouts.tensor.max() > 1, sparse.layouts.tensor.max()) == (True, 1)
    space = low_rank
    assert space.at.compresses
    assert space.layouts.zero_stage.max() <= 1
    assert (space.layouts.data * space.layouts.context).min() > 1
    names = {name for layout in range(len(space.layouts)) for name in space.choices(layout).schedules}
    assert not has(tuple(names), lambda rules: rules.splits_backward).any()


def test_a_codec_sends_its_share_and_keeps_its_state() -> None:
    plain, half, low_rank = (replace(make(), codec=name) for name in ("none", "bf16", "powersgd-1"))
    spaces = [try_settings([at], PLAIN, simulate=True)[0] for at in (plain, half, low_rank)]
    ddp = [int(((space.layouts.data == 16) & (space.layouts.zero_stage == 0)).nonzero()[0][0]) for space in spaces]
    sent = [float(space.tables.shared.gradients[row]) for space, row in zip(spaces, ddp, strict=True)]
    first = [
        space.tables.shared.stages[1, False].at(0, np.array([row])) for space, row in zip(spaces, ddp, strict=True)
    ]
    held = [stage["gradients"].item() for stage in first]
    # As many messages of half the length, each of which has its latency.
    assert 0.4 * sent[0] < sent[1] < 0.7 * sent[0]
    assert sent[2] < 0.1 * sent[1]
    # Error feedback is as large as the gradients.
    assert held[0] < held[2] < 2.1 * held[0]
    once = [float(space.tables.shared.once[row]) for space, row in zip(spaces, ddp, strict=True)]
    assert once[0] < once[1]


def test_batches_are_compared_by_token() -> None:
    # Where memory is short, a step of one micro-batch may win: no gradients lie beside its activations.
    request = Request(model=load_sizes("llama-3.2-1b"), num_devices=8, device="h100-sxm", global_batches=(16, 128))
    file = ask(request, Questions())
    # A larger batch spreads the exchange of gradients over more tokens.
    assert file.global_batch_size == 128
    assert any(note.startswith("global batch 16: ") for note in file.notes)


@pytest.mark.parametrize(
    ("text", "batches"),
    [("512", (512,)), ("256,512", (256, 512)), ("256-1024", (256, 512, 1024)), ("48-100", (48, 96))],
)
def test_batches_are_read(text: str, batches: tuple[int, ...]) -> None:
    assert parse_batches(text) == batches


@pytest.mark.parametrize("text", ["", "many", "0-8", "64-32", "8-", "1.5"])
def test_what_is_no_batch_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"--global-batch"):
        parse_batches(text)


def test_failures_cost_more_the_more_devices_there_are() -> None:
    found = ask(Request(model=load_sizes("llama-3.1-8b"), num_devices=8, device="h100-sxm"), Questions())
    prediction = found.candidates[0].prediction
    days = []
    for count in (8, 1024, 16384):
        cost = cost_of(make(num_devices=count), prediction, 1e12, usual_terms(2.0))
        ideal = 1e12 / prediction.tokens_per_second / 86400
        assert cost.days == pytest.approx(ideal / cost.goodput_fraction)
        days.append(cost.days)
    assert days == sorted(days)
    # 16,384 devices at the published rate fail about every three hours.
    assert 0.85 < cost.goodput_fraction < 0.97
    never = cost_of(make(), prediction, 1e12, usual_terms(2.0, Reliability(failure_hours=1e9)))
    assert never.goodput_fraction > 0.999


def test_tf32_on_a_data_sheet_is_slower_than_16_bits() -> None:
    steps = {
        precision: ask(
            Request(model="llama-3.2-1b", num_devices=8, device="a100-sxm-80gb", precisions=(precision,), top=1),
            Questions(),
        )
        .candidates[0]
        .prediction.step_seconds
        for precision in ("bf16", "tf32")
    }
    assert 1.2 * steps["bf16"] < steps["tf32"] < 4 * steps["bf16"]
    # A traced layer's products take what the published law says of them, whatever their operands are called.
    law = sheet_law(load_device("a100-sxm-80gb"), load_learned().factors)
    flops, sides = np.array([2 * 8192.0**3]), [np.array([side]) for side in (1.0, 8192.0, 8192.0, 8192.0)]
    rates = {
        name: float((flops / law("matmul", "nn", name, flops, flops, sides))[0]) for name in ("bf16", "tf32", "other")
    }
    assert 0.4 * rates["bf16"] < rates["tf32"] < 0.6 * rates["bf16"]
    assert rates["other"] <= rates["tf32"]


def test_a_size_is_not_asked_of_samples_that_have_one() -> None:
    own = {"trusted": ("tests.own_task_module",), "device": "h100-sxm", "global_batches": (8,), "top": 1}
    request = Request(model="tests.own_task_module:tower", num_devices=2, **own)  # type: ignore[arg-type]
    assert ask(request, Questions()).sequence_length == 1
    with pytest.raises(InputError, match="--sequence-length 128: samples of Tower have a fixed size"):
        ask(replace(request, sequence_length=128), Questions())
