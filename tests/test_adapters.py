"""Laws of adapters beside frozen weights: what is trained, computed, kept, sent and stored, counted independently."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import plan
from planner.cost import adapter_work, kernel_work
from planner.cost.adapted import adapter_parameters
from planner.cost.ingredients import ingredients_of
from planner.cost.job import Each, Jobs
from planner.cost.memory.footprint import footprint
from planner.cost.once import optimizer_parameters
from planner.published.calibrate import RUNS
from planner.published.predict import forecast
from planner.published.reading import read_jobs
from profiles.errors import InputError
from profiles.models.adapters import EVERYTHING, FORMAT_BYTES, TARGETS, Adapters, adapters, parse_adapters
from tests.run_rows import SMALL_LLAMA
from tests.test_jobs_reading import read

GPT2 = SMALL_LLAMA | {"arch": "gpt", "mlp_type": "gelu", "num_kv_heads": "32", "attention": "mha"}
EACH_TARGET = st.lists(st.sampled_from(TARGETS), min_size=1, unique=True).map(tuple)


def jobs(trained: Adapters = EVERYTHING, base: dict[str, str] = SMALL_LLAMA, **changes: object) -> Jobs:
    reading = read_jobs([base | {name: str(value) for name, value in changes.items()}])
    assert not reading.refused, reading.refused
    return replace(reading.jobs, adapters=Each.same(trained, 1))


@pytest.fixture
def counted(monkeypatch):
    """FLOPs of a layer of some jobs by phase, where every product takes as many seconds as it has FLOPs."""
    for module in (kernel_work, adapter_work):
        monkeypatch.setattr(module, "matmul_seconds", lambda m, n, k, *_, **__: 2.0 * m * n * k)

    def count(own: Jobs) -> dict[str, float]:
        return {phase: load.matmul_seconds[0] for phase, load in kernel_work.work_of(own).layers["dense"].items()}

    return count


@settings(max_examples=20)
@given(rank=st.integers(1, 512), targets=EACH_TARGET, heads=st.sampled_from((1, 2, 8, 32)))
def test_parameters_are_those_of_low_rank_beside_each_linear_of_torch(rank, targets, heads):
    from torch import device
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=heads, head_dim=128
    )
    with device("meta"):
        layer = LlamaDecoderLayer(config, 0)
    wanted = sum(
        rank * (module.in_features + module.out_features)
        for name, module in layer.named_modules()
        if name.rpartition(".")[2].removesuffix("_proj") in targets
    )
    assert adapter_parameters(jobs(adapters(rank, targets), num_kv_heads=heads), "dense")[0] == wanted


def test_packed_linears_have_one_adapter():
    one, three = (adapter_parameters(jobs(adapters(8, which), GPT2), "dense")[0] for which in (("q",), ("q", "k", "v")))
    assert one == three == 8 * (4096 + 3 * 4096)


@pytest.mark.parametrize("base", [SMALL_LLAMA, GPT2])
def test_frozen_layers_compute_two_thirds_and_what_adapters_add_is_three_times_theirs(counted, base):
    whole = counted(jobs(base=base))
    assert whole["backward"] == pytest.approx(2 * whole["forward"])
    for rank, targets in ((1, ("q",)), (16, ("q", "v")), (64, TARGETS)):
        own = jobs(adapters(rank, targets), base)
        found, beside = counted(own), 2 * own.tokens[0] * adapter_parameters(own, "dense")[0]
        assert found["forward"] == pytest.approx(whole["forward"] + beside)
        # Frozen linears give a gradient to their inputs alone, adapters to their weights too.
        assert found["backward"] == pytest.approx(whole["forward"] + 2 * beside)
    tiny = counted(jobs(adapters(1, ("k",)), base))
    assert sum(tiny.values()) == pytest.approx(2 / 3 * sum(whole.values()), rel=1e-3)


@settings(max_examples=20)
@given(
    rank=st.integers(1, 256), targets=EACH_TARGET, zero=st.sampled_from((0, 1, 2, 3)),
    stack=st.sampled_from(("fsdp2", "megatron-core", "torch", "trainwright")),
)  # fmt: skip
def test_states_gradients_and_exchange_are_of_adapters_alone(rank, targets, zero, stack):
    own = jobs(adapters(rank, targets), zero_stage=zero, stack=stack)
    made, count = ingredients_of(own), 8 * adapter_parameters(own, "dense")[0]
    assert made.held.total[0] == count
    shared = 1 if zero == 0 else 8
    assert optimizer_parameters(made)[0] == pytest.approx(count / shared)
    everything = jobs(zero_stage=zero, stack=stack)
    whole, held, all_held = ingredients_of(everything), footprint(own).parts, footprint(everything).parts
    # As many bytes of each as of a parameter of a model that is trained whole.
    each = all_held["optimizer"][0] / everything.model.num_parameters[0]
    assert held["optimizer"][0] == pytest.approx(count * each)
    assert made.exchange.gradients[0] <= whole.exchange.gradients[0]
    for kind, seconds in made.sharded.layer_scatter.items():
        assert seconds[0] <= whole.sharded.layer_scatter[kind][0]


@settings(max_examples=20)
@given(base=st.sampled_from(tuple(FORMAT_BYTES)), zero=st.sampled_from((0, 3)), rank=st.integers(1, 64))
def test_a_base_in_few_bits_holds_and_sends_as_many_bytes_and_takes_longer_to_compute(base, zero, rank):
    wide, narrow = (jobs(adapters(rank, base=name), zero_stage=zero, stack="fsdp2") for name in ("none", base))
    inside = 8 * wide.model.dense_layer_parameters[0] / (8 if zero == 3 else 1)
    saved = footprint(wide).parts["parameters"][0] - footprint(narrow).parts["parameters"][0]
    assert saved == pytest.approx(inside * (2 - FORMAT_BYTES[base]))
    work = [kernel_work.work_of(one).layers["dense"] for one in (wide, narrow)]
    model = wide.model
    linears = model.attention_parameters[0] + model.feed_forward_parameters(model.ffn_size)[0]
    for phase in ("forward", "backward"):
        moved = work[1][phase].converted_bytes[0] - work[0][phase].converted_bytes[0]
        assert moved == pytest.approx(linears * (2 + FORMAT_BYTES[base]))
    sent = [ingredients_of(one).sharded.layer_gather["dense"][0] for one in (wide, narrow)]
    assert sent[1] < sent[0] if zero == 3 else sent[0] == sent[1] == 0


def test_inputs_are_kept_for_weight_gradients_alone():
    kept = {
        name: footprint(jobs(adapters(16, targets), stack="fsdp2", zero_stage=3, micro_batch_size=4)).parts
        for name, targets in (("q", ("q",)), ("down", ("down",)), ("all", TARGETS))
    }
    whole = footprint(jobs(stack="fsdp2", zero_stage=3, micro_batch_size=4)).parts["activations"][0]
    assert kept["q"]["activations"][0] < kept["down"]["activations"][0] < kept["all"]["activations"][0]
    tokens, ranks = 4 * 4096, 16 * len(TARGETS)
    assert kept["all"]["activations"][0] <= whole + 9 * tokens * ranks * 2


def test_the_first_layer_gives_no_gradient_to_a_frozen_embedding(counted):
    own = jobs(adapters(16))
    load = kernel_work.work_of(own).embedding["backward"]
    assert load.element_bytes[0] == 0
    assert load.matmul_seconds[0] == -2 * own.tokens[0] * 4096 * (4096 + 2 * 1024)


def test_every_published_run_of_adapters_is_read():
    with RUNS.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["peft"] not in ("", "none")]
    reading = read_jobs(rows)
    assert len(rows) == 186
    assert not reading.refused
    assert np.all(reading.jobs.adapters.read(lambda one: one.rank) > 0)
    # Peaks of one card by its allocator, of models that are not Mixtures and whose linears stand apart.
    plain = [
        row for row in rows
        if row["family"] == "fms_accel" and row["num_gpus"] == "1" and row["arch"] == "llama" and row["peak_mem_gib"]
    ]  # fmt: skip
    assert len(plain) >= 20
    held = [each.allocated_bytes for each in forecast(plain)]
    errors = np.abs(np.array(held) / 2**30 / [float(row["peak_mem_gib"]) for row in plain] - 1)
    assert np.median(errors) < 0.03
    assert np.quantile(errors, 0.75) < 0.06


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"peft": "lora", "lora_rank": "8", "lora_targets": "q;v"}, "lora:8:q,v"),
        ({"peft": "LoRA", "lora_rank": "8", "lora_targets": "q_proj, v_proj"}, "lora:8:q,v"),
        ({"peft": "qlora", "quantised_base": "nf4", "lora_rank": "4", "lora_targets": "all_linear"},
         f"lora:4:{','.join(TARGETS)} nf4"),
        ({"quantised_base": "int4-gptq"}, "lora:16:q,k,v,o int4"),
        ({"lora_rank": "32"}, "lora:32:q,k,v,o"),
        ({"peft": "none", "lora_rank": "0", "quantised_base": "none"}, ""),
    ],
)  # fmt: skip
def test_words_of_rows(given, words):
    reading = read(**given)
    assert not reading.refused
    (found,) = {value.words for value in reading.jobs.adapters.values}
    assert found == words


def test_samples_that_are_padded_are_said_to_take_less():
    assert any("shorter" in note for note in read(packed="no").assumptions[0])
    assert read(packed="no").jobs.guesses[0] == read().jobs.guesses[0] + 1


@pytest.mark.parametrize(
    ("peft", "base", "words"),
    [
        ("lora", None, "lora:16:q,k,v,o"), ("lora:8", "nf4", "lora:8:q,k,v,o nf4"), (None, None, ""),
        ("lora:8:v,q", "none", "lora:8:q,v"), ("lora:8:mlp", None, "lora:8:gate,up,down"),
    ],
)  # fmt: skip
def test_options(peft, base, words):
    assert parse_adapters(peft, base).words == words


@pytest.mark.parametrize(
    ("peft", "base", "words"),
    [
        ("dora:8", None, "lora:16"), ("lora:0", None, "at least 1"), ("lora:8:", None, "lora:16"),
        ("lora:x", None, "lora:16"), ("lora:8:w", None, "unknown linear"), (None, "nf4", "give --peft lora:16 too"),
        ("lora", "nf5", "did you mean 'nf4'"),
    ],
)  # fmt: skip
def test_options_that_are_none(peft, base, words):
    with pytest.raises(InputError, match=words):
        parse_adapters(peft, base)


def planned(peft="lora:16", base=None, **changes):
    fields = {"device": "h100-sxm", "global_batch": 16, "sequence_length": 2048, "top": 3} | changes
    return plan("llama-3.2-1b", 2, peft=peft, quantised_base=base, **fields)


def test_plans_say_what_is_trained_and_need_less_than_whole_ones():
    whole, thin, few = planned(None), planned(), planned(base="nf4", simulate=True)
    assert thin.file.workload.adapters == adapters(16)
    # Queries and projection of 2,048 by 2,048, keys and values of 2,048 by 512, in each of 16 layers.
    count = 16 * 16 * (2 * 4096 + 2 * 2560)
    assert any(f"{count / 1e6:.3g} M parameters, adapters of rank 16 beside q, k, v, o" in note for note in thin.notes)
    by_id = {candidate.plan.id: candidate.prediction for candidate in whole.file.candidates}
    shared = [candidate for candidate in thin.file.candidates if candidate.plan.id in by_id]
    assert shared
    for candidate in shared:
        own, other = candidate.prediction, by_id[candidate.plan.id]
        assert own.step_seconds < other.step_seconds
        assert own.bytes_per_rank["optimizer"] < 0.02 * other.bytes_per_rank["optimizer"]
        assert own.seconds["optimizer"] < 0.02 * other.seconds["optimizer"]
    assert not any(candidate.executable for candidate in few.file.candidates)
    assert all("tp" not in candidate.plan.id for candidate in thin.file.candidates if candidate.executable)
    # Useful work counts no gradient of a frozen weight.
    useful = [found.best.prediction.mfu * found.best.prediction.step_seconds for found in (thin, whole)]
    assert 2 / 3 < useful[0] / useful[1] < 0.75


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        ("mixtral-8x7b", {"peft": "lora:8:all"}, "routed experts"),
        ("gpt2-small", {"peft": "lora:8:gate"}, "no linear called gate"),
        ("llama-3.1-8b", {"peft": "lora:8", "quantised_base": "nf4"}, "--simulate"),
        ("llama-3.1-8b", {"peft": "lora:8", "codecs": "auto"}, "--codecs"),
        ("gpt2-small", {"peft": "lora", "quantised_base": "nf4", "simulate": True, "precision": "fp8"}, "16 bits"),
        ("gpt2-small", {"peft": "lora", "quantised_base": "nf4", "simulate": True, "precision": ["tf32"]}, "16 bits"),
        ("a.b:c", {"peft": "lora:8"}, "linears of a.b:c"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_a_sentence(model, fields, words):
    with pytest.raises(InputError, match=words):
        plan(model, 2, **({"device": "h100-sxm"} | fields))
