"""`execute --train`: a training of ours is the one that plain torch and transformers make of the same settings."""

import multiprocessing
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

from executor.measured_steps import MeasuredSteps
from executor.rank_model import RankModel
from executor.train.hf_weights import load_weights
from executor.train.job import TrainedPlan
from executor.train.order import sample_at
from executor.train.rates import rate_factor
from executor.train.samples import OfReplica, Share, Source, read_ahead, sources_of
from executor.train.settings import DataSettings, ScheduleSettings, read_settings
from executor.train.tokens import _lengths, token_windows
from planner.plans import Plan
from profiles.errors import InputError
from profiles.ranks.launcher import launch
from profiles.ranks.rank import Rank, own_cores, pin
from profiles.workloads.loading import load_workload
from profiles.workloads.vision import patches_of
from tests.marks import slow
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, VIT, make_plan_file

SEED, LENGTH, GLOBAL, STEPS, WARMUP, RATE, MOST = 3, 32, 8, 6, 2, 3e-3, 0.7
CPU = torch.device("cpu")
HALVES = {"micro_batch_size": 2, "num_microbatches": 2, "data_parallel": 2}
WHOLE = {"micro_batch_size": 2, "num_microbatches": 4}
STAGES = {**WHOLE, "pipeline_parallel": 2, "schedule": "1f1b", "stage_bounds": (0, 3)}
LAYOUTS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    # Half of each training in one layout, the other half in another.
    "llama": [({**HALVES, "zero_stage": 3}, {**WHOLE, "tensor_parallel": 2}), ({**HALVES, "zero_stage": 1}, STAGES)],
    "gpt2": [({**WHOLE, "tensor_parallel": 2}, HALVES)],
    "mixtral": [({**HALVES, "expert_parallel": 2}, {**HALVES, "zero_stage": 2})],
}
SPECS = {"llama": LLAMA, "gpt2": GPT2, "mixtral": MIXTRAL}


def tokens_of(path: Path) -> np.ndarray:
    """Tokens that follow one another by a rule, so that there is something to learn."""
    found = (np.cumsum(np.arange(1, 4001) % 7) % 251).astype(np.uint16)
    found.tofile(path)
    return found


def pretrained(name: str, folder: Path) -> Any:
    """A model of transformers with weights of its own, as one downloads it."""
    torch.manual_seed(7)
    fields = dict(SPECS[name].config)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **DROPS[name], **fields))
    module.save_pretrained(folder)
    return module.train()


DROPS: dict[str, dict[str, float]] = {
    "llama": {}, "mixtral": {}, "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}  # fmt: skip


def by_hand(module: Any, tokens: np.ndarray) -> tuple[list[float], list[float]]:
    """Losses of every step, and on the last tenth at the ends: plain torch, its schedulers, the samples in order."""
    count = (len(tokens) - 1) // LENGTH
    held = round(count * 0.1)
    windows = torch.stack(
        [torch.from_numpy(tokens[i * LENGTH : (i + 1) * LENGTH + 1].astype(np.int64)) for i in range(count)]
    )
    small = [own for own in module.parameters() if own.dim() < 2]
    large = [own for own in module.parameters() if own.dim() > 1]
    optimizer = torch.optim.AdamW(
        [{"params": large}, {"params": small, "weight_decay": 0.0}], lr=RATE, weight_decay=0.1, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - WARMUP, 0.1 * RATE),
        ],
        [WARMUP],
    )
    losses, evaluations = [], []
    for step in range(STEPS):
        batch = windows[step * GLOBAL : (step + 1) * GLOBAL]
        loss = loss_of(module, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), MOST)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 3 == 0:
            with torch.no_grad():
                evaluations.append(float(loss_of(module, windows[count - held :][:GLOBAL])))
    return losses, evaluations


def loss_of(module: Any, windows: torch.Tensor) -> torch.Tensor:
    logits = module(input_ids=windows[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def settings_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "max_steps": STEPS,
        "optimizer": {
            "lr": RATE, "weight_decay": 0.1, "clip_norm": MOST, "options": {"betas": [0.9, 0.95]},
            "groups": [{"dims": 1, "weight_decay": 0.0}],
        },
        "schedule": {"name": "cosine", "warmup_steps": WARMUP, "final_fraction": 0.1},
        "data": {"train": str(folder / "tokens.bin"), "held_out": 0.1, "shuffle": False},
        "evaluation": {"every": 3, "batches": 1},
        **more,
    }  # fmt: skip


def case(name: str, layout: dict[str, Any], settings: dict[str, Any], folder: str) -> dict[str, Any]:
    file = make_plan_file(Plan(**layout), spec=SPECS[name], sequence=LENGTH)
    return {"file": asdict(file), "settings": settings, "folder": folder, "every": 3, "seed": SEED}


@pytest.mark.gloo
@pytest.mark.usefixtures("warm_ranks")
@pytest.mark.parametrize("name", [name if name == "llama" else slow(name) for name in LAYOUTS])
def test_a_training_is_what_plain_torch_makes_of_it_in_two_layouts(name: str, tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path / "tokens.bin")
    module = pretrained(name, tmp_path / "start")
    cases = []
    for number, (first, second) in enumerate(LAYOUTS[name]):
        folder = str(tmp_path / f"kept-{number}")
        begun = settings_of(tmp_path, weights=str(tmp_path / "start"))
        # As if it had been stopped: the schedule is that of the whole training.
        cases.append(case(name, first, begun, folder) | {"stops": 3})
        cases.append(case(name, second, begun | {"export": str(tmp_path / f"out-{number}")}, folder))
    found = launch("tests.train_entries:trainings", {"cases": cases}, 2, "cpu")
    assert [each.get("error") for each in found] == [None] * len(found)
    losses, evaluations = by_hand(module, tokens)
    assert abs(losses[-1] / losses[0] - 1) > 1e-3
    for number, (one, other) in enumerate(zip(found[::2], found[1::2], strict=True)):
        assert other["first_step"] == 3
        assert [*one["losses"], *other["losses"]] == pytest.approx(losses, rel=2e-5)
        said = [each["loss"] for each in (*one["evaluations"], *other["evaluations"])]
        assert said == pytest.approx(evaluations, rel=2e-5)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"out-{number}")
        for path, tensor in again.state_dict().items():
            torch.testing.assert_close(tensor, module.state_dict()[path], rtol=2e-3, atol=2e-5)


def test_weights_of_images_are_read_as_transformers_lays_them_out(tmp_path: Path) -> None:
    torch.manual_seed(7)
    fields = dict(VIT.config)
    theirs = AutoModelForImageClassification.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    theirs.save_pretrained(tmp_path / "start")
    workload, plan = load_workload(VIT), Plan()
    rank = Rank(rank=0, local_rank=0, num_ranks=1, device=torch.device("cpu"))
    model = RankModel(plan, workload, rank, SEED, None)
    job = TrainedPlan(make_plan_file(plan, spec=VIT).candidates[0], workload, model, rank, SEED)
    job.optimizer(torch.optim.SGD, lr=0.1)
    assert load_weights(tmp_path / "start", job) == 0
    images = torch.rand(3, 1, 8, 8)
    (module,) = model.modules.values()
    torch.testing.assert_close(module(patches_of(images, 2)), theirs(pixel_values=images).logits)


def test_what_is_done_between_steps_is_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 10.0, 13.0, 13.0, 18.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    window = MeasuredSteps(num_steps=3, device=torch.device("cpu"))
    window.begin()
    window.end()
    window.begin()
    window.begin()
    window.begin()
    window.begin()
    assert window.seconds == [2.0, 3.0, 5.0]


@given(count=st.integers(1, 300), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
def test_every_epoch_reads_every_sample_once(count: int, seed: int, epoch: int) -> None:
    first = epoch * count
    read = [sample_at(first + place, count, seed, shuffle=True) for place in range(count)]
    assert sorted(read) == list(range(count))
    assert [sample_at(first + place, count, seed, shuffle=False) for place in range(count)] == list(range(count))


def test_orders_differ_by_epoch_and_seed_and_mix_near_and_far() -> None:
    orders = [
        [sample_at(e * 1000 + i, 1000, s, shuffle=True) for i in range(1000)] for e, s in ((0, 0), (1, 0), (0, 1))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for order in orders:
        # What a random permutation has: neighbours a third of all apart, hardly any correlation with the place.
        gaps = np.abs(np.diff(order))
        assert 250 < gaps.mean() < 420
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_rates_go_as_those_of_torch() -> None:
    for name, make in (
        ("cosine", lambda own: torch.optim.lr_scheduler.CosineAnnealingLR(own, 16, 0.2)),
        ("linear", lambda own: torch.optim.lr_scheduler.LinearLR(own, 1.0, 0.2, 16)),
        ("constant", lambda own: torch.optim.lr_scheduler.ConstantLR(own, 1.0)),
    ):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer, [torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, 1.0, 3), make(optimizer)], [4]
        )
        for step in range(20):
            ours = rate_factor(ScheduleSettings(name=name, warmup_steps=4, final_fraction=0.2), step, 20)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"]), (name, step)
            optimizer.step()
            schedule.step()
    stable = ScheduleSettings(name="wsd", warmup_steps=4, decay_steps=8)
    factors = [rate_factor(stable, step, 20) for step in range(20)]
    assert factors[3:13] == [1.0] * 10
    assert factors[16] == 0.5
    assert factors[19] == pytest.approx(1 / 8)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_read_shares_of_the_same_batches(replicas: int, tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path / "tokens.bin")
    np.save(tmp_path / "tokens.npy", tokens)
    workload = load_workload(LLAMA)
    read = {}
    for end in ("bin", "npy"):
        settings = DataSettings(train=str(tmp_path / f"tokens.{end}"))
        source, _ = sources_of(settings, workload, LENGTH, SEED, 10)
        own = GLOBAL // replicas
        parts = [OfReplica(source, Share(size=GLOBAL, first=index * own, count=own))[2][0] for index in range(replicas)]
        read[end] = torch.cat(parts)
    whole = OfReplica(source, Share(size=GLOBAL, first=0, count=GLOBAL))[2][0]
    assert torch.equal(read["bin"], whole)
    assert torch.equal(read["npy"], whole)


def test_workers_run_on_any_core_outlast_one_sigterm_and_say_what_is_wrong() -> None:
    def of_step(step: int, first: int, count: int, size: int) -> tuple[Any, ...]:
        if step == 4:
            raise InputError("step 4 has no samples")
        return step, sorted(os.sched_getaffinity(0))

    cores = own_cores()
    pin(0)
    try:
        read = read_ahead(OfReplica(Source(of_step=of_step), Share(size=1, first=0, count=1)), range(6), 1, CPU)
        assert next(read) == (0, list(cores))
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGTERM)
        time.sleep(0.3)
        assert [next(read)[0] for _ in range(3)] == [1, 2, 3]
        with pytest.raises(InputError, match=r"^step 4 has no samples$"):
            next(read)
    finally:
        os.sched_setaffinity(0, cores)


class Column(list):
    """Rows as a dataset gives them."""

    column_names = ("input_ids", "text")

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row["input_ids"]) for row in self], dtype=np.int64)


@given(lengths=st.lists(st.integers(0, 9), min_size=6, max_size=30), end=st.sampled_from([None, 99]))
def test_rows_are_packed_without_a_gap(lengths: list[int], end: int | None, tmp_path_factory: Any) -> None:
    rows = Column({"input_ids": list(range(10 * n, 10 * n + length))} for n, length in enumerate(lengths))
    laid = [token for row in rows for token in (*row["input_ids"], *([] if end is None else [end]))]
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("executor.train.tokens.load_rows", lambda path: rows)
        patch.setattr("executor.train.tokens._lengths", lambda path, rows, column: rows.lengths)
        settings = DataSettings(train=str(folder), end_of_text=end)
        if len(laid) < 6:
            with pytest.raises(InputError, match="tokens: a sample of 5 needs 6"):
                token_windows(str(folder), settings, 5, 1000)
            return
        windows = token_windows(str(folder), settings, 5, 1000)
        for index in range(len(windows)):
            inputs, targets = windows.batch([index])
            assert inputs[0].tolist() == laid[index * 5 : index * 5 + 5]
            assert targets[0].tolist() == laid[index * 5 + 1 : index * 5 + 6]


def test_lengths_of_rows_are_counted_by_arrow(tmp_path: Path) -> None:
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    told = {"input_ids": [[1, 2, 3], [], None, [4]], "text": ["a", "b", "c", "d"]}
    rows = datasets.Dataset(datasets.table.InMemoryTable(arrow.table(told)), fingerprint="rows")
    assert _lengths(tmp_path, rows, "input_ids").tolist() == [3, 0, 0, 1]
    assert _lengths(tmp_path, rows.select([3, 0]), "input_ids").tolist() == [1, 3]
    assert _lengths(tmp_path, rows.select([]), "input_ids").tolist() == []
    with pytest.raises(InputError, match="its column text holds string, not lists of tokens"):
        _lengths(tmp_path, rows, "text")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_steps = 3\nmax_tokens = 9", "give either max_steps or max_tokens"),
        ("", "give either max_steps or max_tokens"),
        ("max_steps = 3\nsteps = 3", "steps"),
        ("max_steps = 3\n[optimizer]\nname = 'adam'", "'adamw', 'sgd', 'adafactor' or 'adamw8bit'"),
        ("max_steps = 3\n[optimizer]\nlr = 0.0", "greater than 0"),
        ("max_steps = 3\n[optimizer]\ngroups = [{lr = 0.1}]", "neither match nor dims"),
        ("max_steps = 3\n[optimizer]\ngroups = [{match = '('}]", "not a regular expression"),
        ("max_steps = 3\nweights = 'a'\nexport = 'a'", "which it would overwrite"),
        ("max_steps = 3\n[schedule]\ndecay_steps = 1", 'name = "wsd"'),
        ("max_steps = 3\n[data]\nheld_out = 1", "nothing to train on"),
        ("max_steps = 3\n[data]\nheld_out = 0.1\nevaluation = 'a.bin'", "give one of them"),
    ],
)
def test_settings_that_do_not_go_together_are_said(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
        read_settings(path)
    assert "train.toml" in str(error.value)


def test_paths_of_settings_are_of_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text("max_steps = 3\nweights = 'a'\n[data]\ntrain = 'b.bin'\nevaluation = 'pkg.data:batches'\n")
    settings = read_settings(path)
    assert (settings.weights, settings.data.train) == (str(tmp_path / "a"), str(tmp_path / "b.bin"))
    assert settings.data.evaluation == "pkg.data:batches"


@pytest.mark.parametrize(
    ("content", "settings", "words"),
    [
        (b"\0\1\2", {}, "has 3 bytes: tokens of uint16 have 2 each"),
        (b"\0\1" * 5, {}, "has 5 tokens: a sample of 32 needs 33"),
        (b"\xff\xff" * 50, {}, "has token 65535, the model has tokens 0 to 255"),
        (None, {}, "No such file"),
    ],
)
def test_tokens_that_do_not_fit_are_said(content: bytes | None, settings: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        token_windows(str(path), DataSettings(train=str(path), **settings), 32, 256)
