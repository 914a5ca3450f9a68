"""Words of other tables, sizes that do not exist, and what is not said: read, assumed and told, never refused."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.factors import load_learned
from planner.cost.ingredients import ingredients_of
from planner.cost.memory.footprint import footprint
from planner.published.columns import COLUMNS, WORDS, spelled
from planner.published.learn import predict
from planner.published.predict import forecast
from planner.published.unknowns import ENOUGH_TOKENS, ROUNDS
from tests.test_jobs_reading import LEAST, job, notes, read, reason, same


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"attention_kernel": "te"}, "attention_kernel", "cudnn"),
        ({"attention_kernel": "SDPA"}, "attention_kernel", "flash2"),
        ({"attention_kernel": "fa3"}, "attention_kernel", "flash3"),
        ({"attention_kernel": "math"}, "attention_kernel", "unfused"),
        ({"schedule": "zb_v", "pp": "4"}, "schedule", "zbv"),
        ({"schedule": "V-Half", "pp": "4"}, "schedule", "v-half"),
        ({"schedule": "naive", "pp": "4"}, "schedule", "gpipe"),
        ({"schedule": "zb-v", "pp": "4", "vp": "1"}, "chunks", 2),
        ({"precision_class": "BF16"}, "precision", "bf16"),
        ({"precision_class": "mxfp8"}, "precision", "fp8"),
        ({"precision_class": "int8"}, "precision", "fp8"),
        ({"precision_class": "int8", "gpu_type": "A100-SXM4-80GB"}, "precision", "bf16"),
        ({"gpu_type": "H100 SXM5 80GB 500W"}, "board_power_watts", 500),
        ({"gpu_type": "H100 (500 W)", "board_power_watts": "450"}, "board_power_watts", 450),
        ({"gpu_clock_mhz": "1665"}, "clock_mhz", 1665),
        ({"fp8_recipe": "Blockwise"}, "fp8_recipe", "blockwise"),
        ({"fp8_recipe": "of tomorrow"}, "fp8_recipe", ""),
        ({"gradient_dtype": "fp32"}, "gradient_bytes", 4),
        ({"gradient_dtype": "bf16"}, "gradient_bytes", 2),
        ({"fp8_param_gather": "yes", "precision_class": "fp8"}, "parameter_bytes", 1),
        ({"fp8_param_gather": "yes", "precision_class": "bf16"}, "parameter_bytes", 0),
        ({"low_precision_parts": "head; linear"}, "low_precision_parts", "linear;head"),
        ({"gpu_type": "A800"}, "fast_bytes_per_second", 200e9),
        ({"master_weights": "no"}, "master_weights", "no"),
        ({"fused_loss": "liger"}, "fused_loss", "chunked"),
        ({"fused_norms": "True"}, "fused_norms", "yes"),
        ({"moe_dispatcher": "DeepEP"}, "dispatcher", "deepep"),
        ({"synchronous_launches": "yes"}, "synchronous", True),
        ({"optimizer": "adamw_in_backward"}, "optimizer", "adamw_in_backward"),
        ({"parameter_offload": "yes"}, "optimizer_offload", True),
        ({"recompute_class": "full", "recompute_layers_fraction": "0.5"}, "recompute_share", 0.5),
        ({"recompute_class": "partial", "recompute_modules": "layer"}, "recompute", "full"),
        ({"recompute_class": "partial", "recompute_layers_fraction": "0.5"}, "recompute", "full"),
        ({"recompute_class": "partial"}, "recompute", "selective"),
        ({"recompute_class": "selective", "recompute_modules": "core_attention"}, "recompute", "selective"),
        ({"pp": "4", "schedule": "interleaved"}, "chunks", 4),
        ({"tp": "0", "pp": "0", "cp": "", "ep": "0", "vp": "0"}, "pipeline", 1),
        ({"pp": "4", "pipeline_passes_per_step": "2", "global_batch_size": "32"}, "pipeline_passes", 2),
        ({"stack": "internevo"}, "optimizer", "adamw"),
    ],
)
def test_words_of_others_are_read(given, field, value):
    assert getattr(job(**given), field)[0] == value


def test_gated_networks_cost_alike():
    assert same(job(mlp_type="geglu"), job(mlp_type="swiglu"))
    assert same(job(arch="nemotron"), job(arch="nemotron4"))
    none = {"num_experts": "0", "moe_topk": "0", "moe_ffn_size": "0", "dense_ffn_size": "0", "mla_kv_lora": "0"}
    assert same(job(**none, head_dim="0"), job())


@pytest.mark.parametrize(
    ("given", "column", "words"),
    [
        ({"mlp_type": "reglu"}, "mlp_type", "swiglu assumed for 'reglu'"),
        ({"precision_class": "mxfp8"}, "precision_class", "fp8 assumed for mxfp8"),
        ({"stack": "colossalai"}, "stack", "assumed for 'colossalai'"),
        ({"optimizer": "of tomorrow"}, "optimizer", "adamw assumed"),
        ({"micro_batch_size": "", "global_batch_size": "64"}, "micro_batch_size", "the largest that fits"),
        ({"pp": "4", "schedule": "interleaved"}, "vp", "4 assumed"),
        ({"parameter_offload": "yes"}, "parameter_offload", "priced as optimizer_offload"),
        ({"recompute_class": "partial", "recompute_modules": "nothing"}, "recompute_modules", "is unknown"),
    ],
)
def test_what_was_taken_for_another_is_told(given, column, words):
    found = [text for text in read(**given).assumptions[0] if text.startswith(f"{column}: ")]
    assert any(words in text for text in found), found


def test_what_was_taken_for_another_widens_the_band():
    def width(**given: str) -> float:
        made = forecast([LEAST | given])[0]
        return made.high_seconds / made.low_seconds

    assert width(mlp_type="reglu") > width(mlp_type="swiglu") == width(mlp_type="geglu")
    assert width(precision_class="mxfp8") > width(precision_class="fp8")
    whole = {"global_batch_size": "16"}
    assert width(micro_batch_size="", **whole) > width(micro_batch_size="1", **whole)
    assert job(mlp_type="reglu", optimizer="of tomorrow").guesses[0] == 2


def test_what_has_no_price_is_refused_in_a_sentence():
    assert "Mamba" in reason(arch="hybrid_mamba_moe")
    assert "lora_rank" in reason(peft="lora", lora_rank="1e9")
    assert not read(peft="none", lora_rank="0", quantised_base="none").refused


def test_shorter_ends_make_room_for_more_stages():
    ends = {"first_stage_fewer_layers": "1", "last_stage_fewer_layers": "1", "num_layers": "30", "pp": "8", "vp": "4"}
    jobs = job(**ends)
    assert (jobs.chunks[0], jobs.first_fewer[0]) == (4, 1)
    assert "pp x vp is 8 x 4, more than num_layers (30)" in reason(**ends | {"first_stage_fewer_layers": "0"})


def test_schedules_with_less_memory_are_between_their_relatives():
    """Less is held than by 1F1B, for more of its bubble the less it is."""
    given = {"pp": "8", "global_batch_size": "128", "zero_stage": "1", "stack": "megatron-core"}
    held, idle = {}, {}
    for name in ("1f1b", "v-half", "v-min", "zbv"):
        jobs = job(**given, schedule=name)
        held[name] = float(footprint(jobs).parts["activations"][0])
        idle[name] = float(predict(ingredients_of(jobs), load_learned())["bubble"][0])
    assert held["v-min"] < held["v-half"] < held["1f1b"]
    assert idle["zbv"] < idle["v-half"] < idle["v-min"] < idle["1f1b"]


def test_every_word_of_a_column_is_one_of_its_own():
    for column in COLUMNS.values():
        if column.name in WORDS:
            own = WORDS[column.name]
            known = {spelled(word) for word in own.known}
            assert set(own.near.values()) <= set(own.known), column.name
            assert {spelled(word) for word in own.same.values()} <= known | set(own.near), column.name
            assert all(word == spelled(word) for word in (*own.same, *own.near, *own.refused)), column.name
            assert own.usual in (None, "", *own.known), column.name


def test_an_unknown_micro_batch_is_the_largest_that_fits():
    given = {"micro_batch_size": "", "global_batch_size": "512", "seq_len": "2048", "zero_stage": "3", "stack": "fsdp"}
    chosen = job(**given)
    size = chosen.micro_batch[0]
    assert chosen.global_batch[0] == 512
    assert size > 1
    held = footprint(job(**given | {"micro_batch_size": f"{size:g}"}))
    assert held.device_bytes[0] <= chosen.device_memory_bytes[0]
    larger = job(**given | {"micro_batch_size": f"{2 * size:g}"})
    too_large = footprint(larger).device_bytes[0] > larger.device_memory_bytes[0]
    assert too_large or larger.tokens[0] > ENOUGH_TOKENS
    piped = job(**given | {"pp": "4", "stack": "megatron-core", "zero_stage": "1"})
    assert piped.num_microbatches[0] >= ROUNDS * piped.pipeline[0]
    assert job(micro_batch_size="", global_batch_size="16").micro_batch[0] == 1


def test_recomputation_is_assumed_where_a_run_cannot_have_been_without():
    given = {"num_gpus": "64", "tp": "8", "pp": "8", "seq_len": "32768", "stack": "megatron-core", "num_heads": "32"}
    large = given | {"num_layers": "64", "hidden_size": "8192", "micro_batch_size": "4", "num_microbatches": "64"}
    assert job(**large).recompute[0] == "full"
    assert notes(**large)["recompute_class"].startswith("full assumed (without")
    assert job(**large, recompute_class="none").recompute[0] == "none"
    assert job(**given).recompute[0] == "none"


def test_a_pipeline_without_overlap_takes_what_its_stages_take_in_turn():
    """Against a loop: every micro-batch passes all stages before the next one starts."""
    given = {"pp": "4", "global_batch_size": "64", "num_layers": "32", "overlap_pp": "no"}
    alone, flowing = job(**given, schedule="naive"), job(**given, schedule="gpipe")
    assert alone.pipeline_passes[0] == alone.num_microbatches[0]
    found, other = (predict(ingredients_of(jobs), load_learned()) for jobs in (alone, flowing))
    # Filling and draining once idles for as long as one micro-batch takes on the other stages.
    assert found["bubble"][0] == pytest.approx(other["bubble"][0] * alone.num_microbatches[0])
    assert found["compute"][0] == pytest.approx(other["compute"][0])
    one = footprint(job(**given | {"global_batch_size": "8"}, schedule="1f1b"))
    assert footprint(alone).parts["activations"][0] <= one.parts["activations"][0] * (1 + 1e-9)
    twice = job(**given, pipeline_passes_per_step="2")
    assert predict(ingredients_of(twice), load_learned())["bubble"][0] == pytest.approx(
        2 * predict(ingredients_of(job(**given)), load_learned())["bubble"][0]
    )


def test_kept_outputs_and_repeated_modules_are_two_ways_to_say_one_thing():
    kept = job(recompute_class="partial", recompute_modules="kept:qkv_proj;kept:core_attention;kept:out_proj")
    said = job(recompute_class="partial", recompute_modules="mlp;layernorm")
    assert kept.recompute[0] == said.recompute[0] == "partial"
    assert kept.recompute_products[0] == pytest.approx(said.recompute_products[0])
    assert kept.recompute_freed[0] == pytest.approx(said.recompute_freed[0])
    everything = "kept:qkv_proj;kept:core_attention;kept:out_proj;kept:mlp_up;kept:mlp_down"
    cheap = job(recompute_class="partial", recompute_modules=everything)
    assert cheap.recompute_products[0] == pytest.approx(0)
    assert 0 < cheap.recompute_freed[0] < said.recompute_freed[0]
    assert np.isclose(job(recompute_class="full").recompute_products[0], 1)
    assert "%" in notes(recompute_class="partial", recompute_modules="mlp")["recompute_modules"]


def test_states_that_few_ranks_share_take_more_and_go_less_far():
    given = {"num_gpus": "64", "zero_stage": "1", "stack": "megatron-core", "num_layers": "16", "overlap_param": "no"}
    whole, said, few = job(**given), job(**given, dp_shard="64"), job(**given, dp_shard="8")
    assert same(whole, said)
    held = [footprint(jobs).parts["optimizer"][0] for jobs in (whole, few)]
    assert held[1] == pytest.approx(held[0] * 8)
    costs = [predict(ingredients_of(jobs), load_learned()) for jobs in (whole, few)]
    assert costs[1]["data_comm"][0] < costs[0]["data_comm"][0]
    assert costs[1]["optimizer"][0] == pytest.approx(costs[0]["optimizer"][0] * 8)
