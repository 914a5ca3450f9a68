"""What tracing finds agrees with torch's own counters and with a real run of the same layers."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM

from profiles import artifacts
from profiles.errors import ArtifactError, InputError
from profiles.library import load_model, model_names, trace_model
from profiles.models.operators import evaluate
from profiles.models.profile import ModelProfile, WorkloadSpec
from profiles.tracing.operator_recorder import Recorder
from profiles.tracing.trace import trace
from profiles.workloads.blocks import shrink_to_shard
from profiles.workloads.experts import holds_experts
from profiles.workloads.loading import load_workload
from tests.plan_builders import MIXTRAL
from tests.workload_builders import GPT2, LLAMA

OWN = WorkloadSpec(kind="module", name="own", factory="tests.workload_builders:own_model")
PLAIN = WorkloadSpec(kind="module", name="plain", factory="tests.workload_builders:plain_model")
TRUSTED = ("tests.workload_builders",)
# A size that no probe of the tracer has.
BATCH, SEQUENCE = 5, 80


@pytest.fixture(scope="module", params=[LLAMA, GPT2, MIXTRAL, OWN, PLAIN], ids=lambda spec: spec.name)
def traced(request) -> tuple[WorkloadSpec, ModelProfile]:
    return request.param, trace(load_workload(request.param, TRUSTED))


def _run(spec: WorkloadSpec, precision: str = "fp32"):
    """Loss of a real forward pass of all layers."""
    workload = load_workload(spec, TRUSTED)
    modules = workload.build(0, len(workload.layers), seed=1)
    tokens = workload.example_input(BATCH, SEQUENCE)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        return workload.loss(modules(tokens), tokens), modules


def _with_heads(query, shape):
    # torch 2.11 counts keys of as many heads as queries alone.
    return shape[0], query[1], *shape[2:]


def _attention_flops(*args, **kwargs):
    query, key, value = args[:3]
    return sdpa_flop_count(query, *(_with_heads(query, shape) for shape in (key, value)))


def _attention_backward_flops(*args, **kwargs):
    gradient, query, key, value = args[:4]
    return sdpa_backward_flop_count(gradient, query, *(_with_heads(query, shape) for shape in (key, value)))


def test_flops_equal_those_that_torch_counts_in_a_real_step(traced):
    spec, profile = traced
    aten = torch.ops.aten
    # torch's counter knows no CPU attention: it is told the formula it has for the CUDA one.
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        _run(spec)[0].backward()
    ours = sum(
        float(evaluate(layer.flops(phase), BATCH, SEQUENCE, 1))
        for layer in profile.each_layer("fp32")
        for phase in ("forward", "backward")
    )
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_parameters_equal_those_of_the_transformers_model(traced):
    spec, profile = traced
    if spec.kind == "module":
        count = sum(p.numel() for p in _run(spec)[1].parameters())
    else:
        config = {key: value for key, value in spec.config.items() if key != "model_type"}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(spec.config["model_type"], **config))
        count = sum(p.numel() for p in model.parameters())
    assert profile.num_parameters == count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_bytes_equal_those_of_a_real_forward_pass(traced, precision):
    spec, profile = traced
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, modules = _run(spec, precision)
    permanent = {t.untyped_storage().data_ptr() for t in (*modules.parameters(), *modules.buffers())}
    real = sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in permanent)
    ours = sum(float(evaluate(layer.saved_bytes, BATCH, SEQUENCE, 1)) for layer in profile.each_layer(precision))
    # A tensor between two layers is counted by each of the two that saves it; targets are counted in neither.
    assert ours == pytest.approx(real, rel=0.01)
    assert loss.isfinite()


def test_a_module_that_is_no_sequence_is_traced_as_one_layer():
    spec = WorkloadSpec(kind="module", name="picture", factory="tests.workload_builders:Picture")
    workload = load_workload(spec, TRUSTED)
    profile = trace(workload, ["fp32"])
    assert profile.structure == (0,)
    assert not profile.can_pipeline
    module = workload.build(0, 1, seed=0)
    with FlopCounterMode(display=False) as counter:
        output = module(workload.example_input(BATCH, SEQUENCE))
        workload.loss(output, output).backward()
    layer = profile.layers["fp32"][0]
    ours = [float(evaluate(layer.flops(phase), BATCH, SEQUENCE, 1)) for phase in ("forward", "backward")]
    assert sum(ours) == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_repeated_layers_are_recognised_once(traced):
    spec, profile = traced
    if spec == PLAIN:
        # The second block's input is bf16 where the first's is fp32.
        assert profile.structure == (0, 1, 2, 2, 3)
        return
    blocks = {"module": 2}.get(spec.kind, spec.config.get("num_hidden_layers", 3))
    assert profile.structure == (0, *[1] * blocks, 2)
    assert [len(layers) for layers in profile.layers.values()] == [3, 3]


def test_fused_attention_saves_no_score_matrix(traced):
    spec, profile = traced
    quadratic = [
        op.name
        for layer in profile.layers["fp32"]
        for op in layer.operators
        for _, _, sequence_exponent, _ in op.saved_bytes
        if sequence_exponent > 1
    ]
    assert quadratic == []
    attentions = [op for op in profile.layers["fp32"][1].operators if op.kind == "attention"]
    assert len(attentions) == (0 if spec.kind == "module" else 2)


@pytest.mark.parametrize("spec", [LLAMA, GPT2], ids=lambda spec: spec.name)
def test_a_shard_has_the_parameters_and_flops_that_a_real_one_has(spec):
    profile, workload = trace(load_workload(spec), ["fp32"]), load_workload(spec)
    block = shrink_to_shard(workload.layers[1].build(), workload.layers[1].styles, 2)
    traced_block = profile.layers["fp32"][1]
    assert float(evaluate(traced_block.num_parameters, 1, 1, 2)) == sum(p.numel() for p in block.parameters())
    aten = torch.ops.aten
    mapping = {aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        block(torch.randn(BATCH, SEQUENCE, workload.hidden_size))
    assert float(evaluate(traced_block.flops("forward"), BATCH, SEQUENCE, 2)) == counter.get_total_flops()


def test_graph_and_frame_hold_every_operator(traced):
    _, profile = traced
    count = sum(len(layer.operators) for layer in profile.layers["fp32"])
    graph, frame = profile.graph(), profile.to_frame(BATCH, SEQUENCE)
    assert graph.number_of_nodes() == count == len(frame)
    assert all(source[1] < target[1] for source, target in graph.edges)
    assert frame["flops"].sum() == pytest.approx(
        sum(
            float(evaluate(layer.flops(phase), BATCH, SEQUENCE, 1))
            for layer in profile.layers["fp32"]
            for phase in ("forward", "backward")
        )
    )


def test_peaks_hold_at_least_what_is_saved(traced):
    _, profile = traced
    for layer in profile.layers["fp32"]:
        saved = float(evaluate(layer.saved_bytes, BATCH, SEQUENCE, 1))
        assert float(evaluate(layer.forward_peak_bytes, BATCH, SEQUENCE, 1)) >= saved
        # Backward starts with what was saved and the gradient of the output; the last layer's is a scalar.
        gradient = float(evaluate(layer.output_bytes, BATCH, SEQUENCE, 1)) if layer != profile.layers["fp32"][-1] else 0
        assert float(evaluate(layer.backward_peak_bytes, BATCH, SEQUENCE, 1)) >= gradient


@pytest.mark.parametrize("alias", ["llama-26m", "gpt2-small"])
def test_a_shipped_profile_is_what_tracing_gives(alias):
    shipped, fresh = load_model(alias), trace_model(alias)
    assert shipped.layers == fresh.layers
    assert shipped.structure == fresh.structure


# Published: GPT-2 124M and 1.56B (Radford et al.), Llama 3.1 8B and 70B, 3.2 1B, Mistral 7B, Qwen3 8B model cards.
PUBLISHED_BILLIONS = {
    "gpt2-small": 0.124,
    "gpt2-xl": 1.56,
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "llama-3.2-1b": 1.24,
    "mistral-7b": 7.25,
    "qwen3-8b": 8.19,
    "llama-26m": 0.026,
}


@pytest.mark.parametrize("alias", model_names())
def test_shipped_models_have_their_published_number_of_parameters(alias):
    assert load_model(alias).num_parameters / 1e9 == pytest.approx(PUBLISHED_BILLIONS[alias], rel=0.005)


def test_unsupported_family_is_named():
    with pytest.raises(InputError, match="unknown model_type 'bloom'"):
        load_workload(WorkloadSpec(kind="transformers", name="x", config={"model_type": "bloom"}))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lama-3.1-8b", "did you mean 'llama-3.1-8b'"),
        ("nowhere/config.json", "no such file"),
        ("tests.workload_builders:missing", "cannot import"),
        ("tests.workload_builders:LLAMA", "not callable"),
    ],
)
def test_models_that_cannot_be_found(name, sentence):
    with pytest.raises(InputError, match=sentence):
        load_model(name)


def test_a_storage_in_the_place_of_a_dead_one_has_no_part_in_its_producer():
    recorder = Recorder(torch.nn.Identity())
    ones = torch.ones(8)
    with recorder.watch():
        for _ in range(50):  # the allocator hands the address of the product, dead at once, to the new tensor
            ones.mul(2)
            torch.empty(8).add(1)
    assert len({index for op in recorder.recording.operators for index in op.outputs}) == 100
    assert all(op.inputs == () for op in recorder.recording.operators)


def test_experts_give_what_those_of_transformers_give():
    workload = load_workload(MIXTRAL)
    layers = workload.build(0, len(workload.layers), seed=1)
    tokens = workload.example_input(BATCH, SEQUENCE)

    def run():
        layers.zero_grad()
        loss = workload.loss(layers(tokens), tokens)
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in layers.parameters())]

    ours = run()
    owners = [module for module in layers.modules() if holds_experts(module)]
    for module in owners:
        module.config._experts_implementation = "eager"
    assert len(owners) == 4
    for own, wanted in zip(ours, run(), strict=True):
        torch.testing.assert_close(own, wanted)


def test_an_expert_without_tokens_has_a_gradient_of_zero():
    workload = load_workload(MIXTRAL)
    layer = workload.build(1, 2, seed=1)
    (owner,) = (module for module in layer.modules() if holds_experts(module))
    hidden = torch.randn(6, workload.hidden_size)
    owner(hidden, torch.zeros(6, 1, dtype=torch.long), torch.ones(6, 1)).sum().backward()
    norms = owner.down_proj.grad.flatten(1).norm(dim=1)
    assert norms[0] > 0
    assert norms[1:].tolist() == [0.0] * 3


def test_a_precision_that_tells_layers_apart_has_them_told_apart_in_all(tmp_path):
    path = tmp_path / "plain.json"
    artifacts.write(path, "model-profile", trace(load_workload(PLAIN, TRUSTED), ("fp32",)))
    assert load_model(str(path)).structure == (0, 1, 1, 1, 2)
    both = load_model(str(path), ("bf16",), TRUSTED)
    assert both.structure == (0, 1, 2, 2, 3)
    assert {precision: len(layers) for precision, layers in both.layers.items()} == {"fp32": 4, "bf16": 4}


def test_a_kernel_has_as_many_sizes_as_any_of_its_kind(tmp_path):
    path = tmp_path / "own.json"
    artifacts.write(path, "model-profile", trace(load_workload(OWN, TRUSTED), ("fp32",)))
    document = json.loads(path.read_text())
    index, product = next(
        (index, operator)
        for index, operator in enumerate(document["layers"]["fp32"][1]["operators"])
        if operator["kind"] == "matmul"
    )
    product["dims"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=f"operator {index} should have 4 dims, as any matmul"):
        load_model(str(path))
