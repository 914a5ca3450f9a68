"""Counts and kinds of devices side by side: against loops of single plans, arithmetic by hand, and brute force."""

import dataclasses
import io
import json
import sys
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from planner.ask import answer_to, parse_counts
from planner.command import main
from planner.prediction import PlanFile
from planner.purchase import answer as answers
from planner.purchase.answer import PurchaseAnswer, read_purchase
from planner.purchase.bill import checkpoint_bytes, cost_of
from planner.purchase.compare import _software, compare, marks
from planner.purchase.questions import Place, Purchase, batches_of, places_of
from planner.purchase.terms import Prices, Reliability, Terms, days_until, parse_prices, usual_energy, usual_terms
from planner.request import Request, parse_headroom
from planner.terminal.show_purchase import money, show_purchase
from profiles import artifacts
from profiles.errors import InputError, NoFeasiblePlanError, UnknownNameError
from profiles.library import load_sizes
from profiles.machines.power import load_power
from profiles.machines.stacks import THIS_PROGRAM
from profiles.models.adapters import parse_adapters
from profiles.terminal.console import Console
from profiles.units import format_hours, three_digits
from tests.machine_builders import machine

MODEL, COUNTS, DEVICES, BATCH, SEQUENCE = "llama-3.2-1b", (4, 8, 16), ("h100-sxm", "a100-sxm-80gb", "t4"), 64, 2048
TOKENS, DEADLINE, PRICES, SPOT = 50e9, 3.0, {"h100-sxm": 2.5, "a100-sxm-80gb": 1.3}, {"h100-sxm": 1.4}
# What t4, which has no bf16, is left out by.
FAILED = "t4"
PRECISION = "bf16"
# Of other software there are fewer plans to search.
STACK = "torchtitan"


def terms_of(**changes) -> Terms:
    return dataclasses.replace(
        Terms(
            energy=usual_energy(kwh_price=0.1, grid_grams=400.0), prices=Prices(by_name=PRICES),
            spot_prices=Prices(by_name=SPOT), deadline_days=DEADLINE,
        ),
        **changes,
    )  # fmt: skip


REQUEST = Request(
    model=MODEL,
    num_devices=1,
    global_batches=(BATCH,),
    sequence_length=SEQUENCE,
    precisions=(PRECISION,),
    top=1,
    stack=STACK,
)


@pytest.fixture(scope="module")
def found() -> PurchaseAnswer:
    places = tuple(Place(device=name) for name in DEVICES)
    return compare(Purchase(request=REQUEST, num_devices=COUNTS, places=places, terms=terms_of(), tokens=TOKENS))


def test_every_row_is_what_a_plan_of_it_alone_says(found):
    rows = {(row.device, row.num_devices): row for row in found.rows if not row.is_spot}
    assert set(rows) == {(device, count) for device in DEVICES for count in COUNTS}
    for (device, count), row in rows.items():
        alone = dataclasses.replace(REQUEST, device=device, num_devices=count)
        if device == FAILED:
            with pytest.raises(InputError) as raised:
                answer_to(alone)
            assert row.refusal == str(raised.value)
            assert (row.plan, row.cost, row.plan_file) == ("", None, -1)
            continue
        best = answer_to(alone).file.candidates[0]
        assert found.best(row.rank) == best
        assert (row.plan, row.step_seconds) == (best.plan.id, best.prediction.step_seconds)
        assert (row.low_seconds, row.high_seconds) == (best.prediction.low_seconds, best.prediction.high_seconds)
        assert row.tokens_per_second == BATCH * SEQUENCE / row.step_seconds
        assert found.plan_of(row.rank).global_batch_size == BATCH


def test_money_days_energy_and_storage_are_arithmetic(found):
    power = load_power()
    for row in found.rows:
        if row.cost is None:
            continue
        cost, hourly = row.cost, (SPOT if row.is_spot else PRICES)[row.device]
        trains = TOKENS / (BATCH * SEQUENCE) * row.step_seconds
        assert cost.days == pytest.approx(trains / cost.goodput_fraction / 86400)
        assert cost.device_hours == pytest.approx(cost.days * 24 * row.num_devices)
        assert cost.dollars == pytest.approx((cost.device_hours * hourly,) * 2)
        watts = {"h100-sxm": 700.0, "a100-sxm-80gb": 400.0}[row.device]
        assert cost.kwh == pytest.approx(cost.device_hours * watts / 1000)
        assert cost.facility_kwh == pytest.approx(cost.kwh * (1 + power.host_share) * power.pue)
        assert cost.energy_dollars == pytest.approx(0.1 * cost.facility_kwh)
        assert cost.co2_kg == pytest.approx(0.4 * cost.facility_kwh)
        assert (cost.low_days, cost.high_days) == pytest.approx(
            tuple(cost.days * seconds / row.step_seconds for seconds in (row.low_seconds, row.high_seconds))
        )
        # Weights and two moments in 32 bits.
        assert cost.checkpoint_bytes == 12 * found.num_parameters
        assert cost.stored_bytes == 2 * cost.checkpoint_bytes
        assert cost.in_time == (cost.days <= DEADLINE)


def test_marks_are_those_of_a_brute_force(found):
    billed = [row for row in found.rows if row.cost]
    cheapest, fastest = found.row(found.cheapest), found.row(found.fastest)
    assert all(cheapest.cost.dollars <= row.cost.dollars for row in billed)
    assert all(fastest.cost.days <= row.cost.days for row in billed)
    in_time = [row for row in billed if row.cost.days <= DEADLINE]
    assert 0 < len(in_time) < len(billed)
    assert found.enough == min(in_time, key=lambda row: row.cost.dollars).rank
    assert cheapest.is_spot
    assert not fastest.is_spot


def test_without_prices_enough_is_the_fewest_devices():
    terms = terms_of(prices=Prices(), spot_prices=None, deadline_days=5.0)
    places = (Place(device="a800-sxm-80gb"),)
    own = compare(Purchase(request=REQUEST, num_devices=COUNTS, places=places, terms=terms, tokens=TOKENS))
    assert [row.cost.dollars for row in own.rows] == [None] * 3
    in_time = [row for row in own.rows if row.cost.days <= 5]
    assert len(in_time) == 2
    assert (own.cheapest, own.enough) == (0, in_time[0].rank)


def test_rows_without_a_price_are_not_the_cheapest(found):
    """Of the rows that are in time, the cheapest whose price is known; where none is, that of the fewest devices."""
    in_time = [row for row in found.rows if row.cost and row.cost.in_time]
    unknown = {
        row.rank: dataclasses.replace(row, cost=dataclasses.replace(row.cost, dollars=None)) for row in in_time[:2]
    }
    rows = [unknown.get(row.rank, row) for row in found.rows]
    known = [row for row in in_time if row.rank not in unknown]
    assert marks(rows)["enough"] == min(known, key=lambda row: row.dollars).rank
    assert marks(rows)["cheapest"] not in unknown
    late = [row for row in found.rows if row.cost and not row.cost.in_time]
    assert marks(late) == {
        "enough": 0,
        "cheapest": min(late, key=lambda row: row.dollars).rank,
        "fastest": min(late, key=lambda row: row.cost.days).rank,
    }
    assert marks([]) == {"enough": 0, "cheapest": 0, "fastest": 0}


def test_efficiency_is_throughput_per_device_over_that_of_the_fewest(found):
    for device in ("h100-sxm", "a100-sxm-80gb"):
        rows = [row for row in found.rows if row.device == device and not row.is_spot]
        each = [row.tokens_per_second / row.num_devices for row in rows]
        assert [row.efficiency_fraction for row in rows] == pytest.approx([rate / each[0] for rate in each])
        # As many devices again are faster, and not twice as fast by much: a little, where they leave more memory each.
        days = [row.cost.days for row in rows]
        assert days == sorted(days, reverse=True)
        assert all(0.5 < row.efficiency_fraction < 1.1 for row in rows)


def test_rows_stand_by_kind_and_count_and_the_fastest_first_where_there_is_one_count(found):
    assert [row.rank for row in found.rows] == list(range(1, len(found.rows) + 1))
    order = [(DEVICES.index(row.device), row.num_devices, row.is_spot) for row in found.rows]
    assert order == sorted(order)
    one = Purchase(
        request=REQUEST, num_devices=(8,), places=tuple(Place(device=name) for name in reversed(DEVICES)),
        terms=terms_of(), tokens=TOKENS,
    )  # fmt: skip
    rows = compare(one).rows
    assert [row.device for row in rows] == ["h100-sxm", "h100-sxm", "a100-sxm-80gb", FAILED]
    assert [row.cost.days for row in rows[:3]] == sorted(row.cost.days for row in rows[:3])


def test_spot_devices_stop_more_often_by_node():
    at = answer_to(dataclasses.replace(REQUEST, device="h100-sxm", num_devices=16)).space.at
    prediction = (
        answer_to(dataclasses.replace(REQUEST, device="h100-sxm", num_devices=16)).file.candidates[0].prediction
    )
    never = Reliability(failure_hours=1e9, spot_node_hours=10.0)
    spot = cost_of(at, prediction, 1e12, terms_of(reliability=never), is_spot=True)
    # Two nodes, each taken back every ten hours.
    assert spot.num_failures == pytest.approx(spot.days * 24 / 5, rel=1e-3)
    both = dataclasses.replace(never, failure_hours=160.0)
    assert cost_of(at, prediction, 1e12, terms_of(reliability=both), is_spot=True).num_failures == pytest.approx(
        cost_of(at, prediction, 1e12, terms_of(reliability=both), is_spot=True).days * 24 * (2 / 10 + 16 / 160),
        rel=1e-6,
    )
    hopeless = dataclasses.replace(never, spot_node_hours=0.02)
    with pytest.raises(InputError, match="see --spot-hours, --mtbf"):
        cost_of(at, prediction, 1e12, terms_of(reliability=hopeless), is_spot=True)


def test_each_question_is_asked_once_and_the_model_is_read_once(monkeypatch, tmp_path):
    import planner.purchase.compare as module
    import planner.request as requests

    (tmp_path / "config.json").write_text(json.dumps(load_sizes(MODEL).config))
    asked, reads, heard = [], [], []
    load = requests.load_sizes
    monkeypatch.setattr(requests, "load_sizes", lambda *given: reads.append(given) or load(*given))

    def once(request, **options):
        asked.append((request.device, request.cluster, request.num_devices, request.global_batches))
        return answer_to(request, **options)

    monkeypatch.setattr(module, "answer_to", once)
    purchase = Purchase(
        request=dataclasses.replace(REQUEST, model=str(tmp_path)), num_devices=(4, 8), terms=usual_terms(),
        places=(Place(device="h100-sxm"), Place(cluster="dgx-a100")),
    )  # fmt: skip
    compare(purchase, lambda share, words: heard.append((share, words)))
    questions = [("h100-sxm", None), (None, "dgx-a100")]
    assert asked == [(*place, count, (BATCH,)) for place in questions for count in (4, 8)]
    assert len(reads) == 1
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert {words.partition(":")[0] for _, words in heard} == {
        f"{count} x {name}" for count in (4, 8) for name in ("h100-sxm", "dgx-a100")
    }


def test_a_measured_machine_is_compared_with_itself(tmp_path):
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine())
    own = planner.buy(
        "llama-26m", "1-2", machine=tmp_path / "machine.json", global_batch=8, sequence_length=64, price=0.1
    )
    assert [row.num_devices for row in own.rows] == [1, 2]
    alone = planner.plan("llama-26m", 2, machine=tmp_path / "machine.json", global_batch=8, sequence_length=64, top=1)
    assert own.best(2).prediction.step_seconds == alone.best.prediction.step_seconds
    assert own.row(2).cost.kwh == 0
    assert own.tokens == 1e9
    assert not own.is_budget
    assert repr(own) == f"<llama-26m on {own.row(1).title}, {own.row(2).title}>"


def test_what_fits_nowhere_is_an_error_and_what_fits_somewhere_is_none():
    terms, big = usual_terms(), dataclasses.replace(REQUEST, model="llama-3.1-70b")
    with pytest.raises(NoFeasiblePlanError, match="no row of 2 has a plan that fits; for the most devices: no plan of"):
        compare(Purchase(request=big, num_devices=(1, 2), places=(Place(device="h100-sxm"),), terms=terms))
    for field, value, error, words in (
        ("sequence_length", 99_999_999, InputError, "--sequence-length 99999999"),
        ("model", "llama-7", UnknownNameError, "model"),
    ):
        wrong = dataclasses.replace(REQUEST, **{field: value})
        with pytest.raises(error, match=words):
            compare(Purchase(request=wrong, num_devices=(1, 2), places=(Place(device="h100-sxm"),), terms=terms))


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=6, unique=True))
def test_a_batch_that_nobody_gives_is_the_same_for_all_counts(counts):
    request = dataclasses.replace(REQUEST, global_batches=())
    (batch,), notes = batches_of(request, counts)
    assert 8 * max(counts) <= batch <= 24 * max(counts)
    if all(max(counts) % count == 0 for count in counts):
        assert batch == 8 * max(counts)
        assert all(batch % count == 0 for count in counts)
    assert str(batch) in notes[0]


def test_one_batch_is_compared():
    request = dataclasses.replace(REQUEST, global_batches=(64, 128))
    assert batches_of(request, (8,)) == ((64, 128), [])
    with pytest.raises(InputError, match="--global-batch: counts of --gpus are compared at one batch"):
        batches_of(request, (8, 16))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("64", (64,)),
        ("64,256", (64, 256)),
        ("256,64,64", (64, 256)),
        ("64-1024", (64, 128, 256, 512, 1024)),
        ("3-20", (3, 6, 12)),
    ],
)
def test_counts_are_read(text, counts):
    assert parse_counts(text) == counts


@pytest.mark.parametrize("text", ["", "x", "64-", "1024-64", "0-8", "8;16", "1" * 5000, f"1-{'9' * 40}", "-8"])
def test_what_is_no_count_is_refused_in_a_sentence(text):
    with pytest.raises(InputError, match="--gpus"):
        parse_counts(text)


def test_prices_are_read():
    assert parse_prices("--price", "2.5") == Prices(every=2.5)
    own = parse_prices("--price", "H100=2.5, dgx-a100=1.2 ,0.5")
    assert own == Prices(every=0.5, by_name={"h100-sxm": 2.5, "dgx-a100": 1.2})
    assert [own.of("h100-sxm"), own.of("a100-sxm-80gb", "dgx-a100"), own.of("t4")] == [2.5, 1.2, 0.5]
    for text in ("", "x", "nan", "-1", "1,2", "h100-sxm=", "=2", "h100-sxm=1,h100=2", "h1oo=3", "2.5:1.4", "1e9"):
        with pytest.raises(InputError):
            parse_prices("--price", text)


def test_dates_and_shares_are_read():
    assert days_until("2027-03-01", date(2026, 12, 1)) == 90
    for text in ("", "soon", "2026-12-01", "1999-01-01", "2027-13-01", "9999-01-01"):
        with pytest.raises(InputError, match="--by"):
            days_until(text, date(2026, 12, 1))
    assert parse_headroom("5%") == parse_headroom(" 5 % ") == 0.05
    assert parse_headroom(None) == parse_headroom("0%") == 0.0
    for text in ("", "5", "0.05", "%", "-1%", "100%", "nan%", "inf%"):
        with pytest.raises(InputError, match="--headroom"):
            parse_headroom(text)


def test_places_stand_side_by_side_and_each_once():
    assert places_of(None, None) == (Place(),)
    assert places_of("h100-sxm", "dgx-h100") == (Place(device="h100-sxm", cluster="dgx-h100"),)
    assert places_of("h100-sxm,H100,t4", None) == (Place(device="h100-sxm"), Place(device="t4"))
    assert places_of("h100-sxm", "dgx-a100,dgx-h100") == (
        Place(device="h100-sxm"), Place(cluster="dgx-a100"), Place(cluster="dgx-h100"),
    )  # fmt: skip


def test_headroom_is_a_device_of_less_memory():
    request = dataclasses.replace(REQUEST, device="h100-sxm", num_devices=8, model="llama-3.2-1b")
    whole, freer = (answer_to(dataclasses.replace(request, headroom_fraction=left)) for left in (0.0, 0.3))
    assert freer.space.at.memory_bytes == 0.7 * whole.space.at.memory_bytes
    held = whole.file.candidates[0].prediction.peak_bytes
    assert freer.space.at.memory_bytes < held < whole.space.at.memory_bytes
    assert freer.file.candidates[0].prediction.peak_bytes <= freer.space.at.memory_bytes
    assert any("30.0 % of memory is left free" in note for note in freer.file.notes)
    assert answer_to(request).file.candidates == whole.file.candidates
    smaller = dataclasses.replace(whole.space.at.device, memory_gib=0.7 * whole.space.at.device.memory_gib)
    at = dataclasses.replace(whole.space.at, device=smaller)
    assert at.memory_bytes == pytest.approx(freer.space.at.memory_bytes)


def test_what_stands_outside_torch_is_told_apart(found):
    held = found.best(found.fastest).prediction.bytes_per_rank
    # A CUDA context of 0.6 GiB, and at least the communicator of a job of several devices.
    assert 0.6 * 2**30 < held["outside"] < 4 * 2**30
    assert sum(held.values()) == pytest.approx(found.best(found.fastest).prediction.peak_bytes)
    assert all(value >= 0 for value in held.values())


def test_a_checkpoint_has_what_the_executor_writes():
    import torch

    from executor.axes.optimizer import build_optimizer, states_by_parameter
    from executor.run.checkpoint import state_of

    at = answer_to(dataclasses.replace(REQUEST, device="h100-sxm", num_devices=1)).space.at
    module = torch.nn.Linear(64, 32)
    optimizer = build_optimizer(module.parameters(), None)
    module(torch.ones(1, 64)).sum().backward()
    optimizer.step()

    class Trained:
        named_parameters, buffers, rearranged = dict(module.named_parameters()), {}, {}
        moments_by_parameter = states_by_parameter(optimizer)

        def updates(self, parameter):
            return True

    written = sum(value.numel() * value.element_size() for value in state_of(Trained()).values() if value.dim())
    per_parameter = written / sum(parameter.numel() for parameter in module.parameters())
    assert checkpoint_bytes(at) == per_parameter * float(at.model.transformer.num_parameters[0])


def test_a_checkpoint_of_adapters_has_no_moments_of_frozen_weights():
    tuned = dataclasses.replace(REQUEST, device="h100-sxm", num_devices=8, adapters=parse_adapters("lora:8:all", None))
    at = answer_to(tuned).space.at
    whole = float(at.model.transformer.num_parameters[0])
    assert checkpoint_bytes(at) < 4.2 * whole


def test_the_file_holds_every_answer(found, tmp_path):
    found.save(tmp_path / "purchase.json")
    read = read_purchase(tmp_path / "purchase.json")
    assert read == found
    assert isinstance(read.plan_of(1), PlanFile)
    failed = next(row for row in found.rows if row.device == FAILED)
    with pytest.raises(InputError, match=f"--rank {failed.rank}: 4 x t4 has no plan"):
        read.plan_of(failed.rank)
    with pytest.raises(InputError, match=f"numbered 1 to {len(found.rows)}"):
        read.row(0)
    frame = found.to_frame()
    assert list(frame["rank"]) == [row.rank for row in found.rows]
    assert frame["cheapest"].sum() == frame["fastest"].sum() == frame["enough"].sum() == 1
    assert frame["cost_days"].dropna().tolist() == [row.cost.days for row in found.rows if row.cost]


def shown(answer, columns) -> list[str]:
    stream = io.StringIO()
    show_purchase(answer, Console(file=stream, width=columns), None)
    return stream.getvalue().splitlines()


def test_eighty_columns_hold_a_row_in_a_line(found):
    lines = shown(found, 80)
    assert max(map(len, lines)) <= 80
    for row in found.rows:
        (line,) = (
            line
            for line in lines
            if line.split()[:4] == [str(row.rank), *row.title.split()[:3]] and row.is_spot == ("spot" in line)
        )
        assert ("no plan" in line) == (row.plan == "")
    text = " ".join(lines)
    assert f"enough: {found.enough}" in text
    assert "4 x t4" in text
    assert text.count(" * ") + text.count(" *\n") >= 2


def test_ranges_of_money_have_one_scale():
    assert money(792_000, 3_980_000) == "$0.79-3.98 M"
    assert money(41_500, 41_500) == "$41.5 k"
    assert money(0.0, 12.0) == "$0-12"


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


ASKED = (
    "--model",
    MODEL,
    "--global-batch",
    BATCH,
    "--sequence-length",
    SEQUENCE,
    "--precision",
    PRECISION,
    "--stack",
    STACK,
)


def test_the_command_writes_all_of_it_or_the_plan_of_one_row(monkeypatch, capsys, tmp_path, found):
    asked = (*ASKED, "--gpus", "4-16", "--device", ",".join(DEVICES), "--tokens", "50B", "--days", DEADLINE,
             "--price", "h100-sxm=2.5,a100-sxm-80gb=1.3", "--spot-price", "h100-sxm=1.4", "--kwh-price", "0.1",
             "--grid-grams", "400")  # fmt: skip
    path = tmp_path / "purchase.json"
    code, out, err = run(monkeypatch, capsys, *asked, "--json", "-o", path)
    assert code == 0, err
    told = artifacts.parse(json.loads(out), answers.ARTIFACT, PurchaseAnswer, "here")
    assert told == read_purchase(path)
    assert told.rows == found.rows
    assert (told.cheapest, told.fastest, told.enough) == (found.cheapest, found.fastest, found.enough)
    plan = tmp_path / "plan.json"
    code, out, err = run(monkeypatch, capsys, "--from", path, "--rank", found.fastest, "-o", plan)
    assert code == 0, err
    written = artifacts.read(plan, "plan", PlanFile)
    assert written == told.plan_of(found.fastest)
    assert written.candidates[0] == found.best(found.fastest)
    assert "its plans are for torchtitan" in " ".join(out.split())
    code, out, err = run(
        monkeypatch, capsys, "--from", path, "--rank", 2, "--export", "torchtitan", "-o", tmp_path / "job"
    )
    assert code in (0, 2), err
    assert "Traceback" not in err
    code, _, err = run(monkeypatch, capsys, "--from", path, "--rank", 99, "-o", plan)
    assert (code, "--rank 99: the rows are numbered 1 to" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ("--gpus 4,8 --device h100-sxm --why-not tp=2", 2, "--why-not is not asked of several"),
        ("--gpus 4,8 --device h100-sxm --all x.csv", 2, "--all is not asked of several"),
        ("--gpus 4 --device h100-sxm,h100-smx", 2, "unknown device 'h100-smx': did you mean"),
        ("--gpus 4 --device h100-sxm,", 2, "--device h100-sxm,: give names with commas between"),
        ("--gpus 4,8 --cluster dgx-h100:4,dgx-a100:4", 2, "has two kinds of devices: plan for it by itself"),
        ("--gpus 4,8 --device h100-sxm --price t4=1", 2, "--price t4: it is not among the devices asked about"),
        ("--gpus 4 --device h100-sxm --tokens 1T --price t4=1", 2, "--price t4: it is not among the devices"),
        ("--gpus 4,8 --device h100-sxm --days 9", 2, "--days has no effect without --tokens"),
        ("--gpus 4 --device h100-sxm --pue 1.2", 2, "--pue has no effect without --tokens"),
        ("--gpus 4 --device h100-sxm --epochs 3", 2, "--epochs has no effect without --samples"),
        ("--gpus 4 --device h100-sxm --tokens 1T --samples 1M", 2, "--tokens and --samples both say"),
        ("--gpus 4 --device h100-sxm --tokens 1T --days 9 --by 2999-01-01", 2, "--by and --days both say"),
        (
            "--gpus 4 --device h100-sxm --stack fsdp,torch",
            2,
            "stacks cannot be compared in one call: give one at a time",
        ),
        ("--gpus 4 --device h100-sxm --rank 2 -o x.json", 2, "--rank has no effect without --export"),
        ("--gpus 4 --device h100-sxm --tokens 1T --spot-hours 9", 2, "--spot-hours has no effect without --spot-price"),
        ("--gpus 1-1048576 --device h100-sxm,t4,a10,l4", 2, "84 questions, at most 64"),
    ],
)
def test_bad_input_is_one_sentence(options, code, sentence, monkeypatch, capsys):
    base = ("--model", MODEL, "--global-batch", BATCH, "--sequence-length", SEQUENCE)
    ended, _, err = run(monkeypatch, capsys, *base, *options.split())
    assert ended == code
    assert sentence in err
    assert err.count("error: ") == 1


def test_samples_and_epochs_are_tokens_of_their_size(monkeypatch, capsys):
    base = (*ASKED, "--gpus", "8", "--device", "h100-sxm", "--top", "1", "--json")
    told = [
        json.loads(run(monkeypatch, capsys, *base, *options)[1])["answers"]["cost"]
        for options in (("--samples", "1.5M", "--epochs", 4), ("--tokens", f"{6 * SEQUENCE}M"))
    ]
    assert told[0] == told[1]


def test_the_terms_of_a_purchase_are_said(found):
    file = io.StringIO()
    show_purchase(dataclasses.replace(found, deadline="2027-03-01"), Console(file=file, width=200), None)
    text = file.getvalue()
    for row in found.rows:
        if row.cost and row.cost.price_per_hour and row.cost.price_per_hour[0] == row.cost.price_per_hour[1]:
            assert f"{row.place}{' spot' if row.is_spot else ''} ${three_digits(row.cost.price_per_hour[0])}" in text
    assert "by 2027-03-01, in " in text
    assert "executor" not in text, "seconds are of the stack that was named"
    often = [row.cost.interval_seconds for row in found.rows if row.cost]
    assert f"wastes the least: {format_hours(min(often))} to {format_hours(max(often))};" in text


def test_seconds_of_this_program_are_said_to_be(found):
    (words,) = _software(dataclasses.replace(found.plans[0], stack=THIS_PROGRAM))
    assert "--stack megatron-core prices that one" in words
    assert not list(_software(found.plans[0]))
