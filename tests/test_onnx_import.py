"""`profile model FILE.onnx` counts as torch does, binds every dimension, and ends in a sentence for any broken file."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from profiles.errors import EnvironmentFailure, InputError
from profiles.library import load_model, load_sizes
from profiles.onnx_files.flops import operator_flops
from profiles.onnx_files.show import by_kind, profile_of
from tests.onnx_models import LENGTH, built, counted, export

onnx = pytest.importorskip("onnx")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@pytest.mark.parametrize("kind", ["bert", "vit", "cnn", "lstm", "gru", "rnn", "einsum"])
def test_flops_and_parameters_are_those_of_the_torch_model(kind, tmp_path):
    model, data = built(kind)
    found = profile_of(str(export(model, data, tmp_path / "m.onnx", dynamo=False)), lengths(data), ())
    assert found.flops == counted(model, data)
    own = sum(parameter.numel() for parameter in model.parameters())
    # A norm in front of nothing that it could not be folded into is part of the convolution's weights.
    folded = 32 if kind == "cnn" else 0
    assert found.num_parameters == own - folded
    assert found.weight_bytes >= 4 * found.num_parameters
    assert len(found.notes) == 1


def lengths(data):
    return None if data.is_floating_point() else LENGTH


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "tied llama"])
def test_the_newer_exporter_adds_what_it_computed_ahead(kind, tmp_path):
    model, data = built(kind)
    found = profile_of(str(export(model, data, tmp_path / "m.onnx", dynamo=True)), LENGTH, ())
    own = sum(parameter.numel() for parameter in model.parameters())
    assert found.flops == counted(model, data)
    # The frequencies of rotary positions, four of heads of eight; and the head's weights turned round, beside the tied.
    assert found.num_parameters == own + 4 + (3200 if kind == "tied llama" else 0)


def test_equal_weights_that_are_stored_once_count_at_each_use(tmp_path):
    weight = tensor("w", np.zeros((4, 4), np.float32))
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b w", "y")]
    found = profile_of(save(tmp_path, nodes, [weight]), None, ())
    assert (found.num_parameters, found.num_used_parameters, found.flops) == (16, 32, 2 * 2 * 16)
    assert [(kind, len(own), own[0].num_parameters) for kind, own in by_kind(found)] == [
        ("MatMul", 2, 16),
        ("Relu", 1, 0),
    ]


def test_a_quantised_weight_counts_where_it_is_used(tmp_path):
    weights = [tensor("w", np.zeros((4, 4), np.int8)), tensor("scale", np.float32(1))]
    nodes = [node("DequantizeLinear", "w scale", "d"), node("MatMul", "x d", "y")]
    found = profile_of(save(tmp_path, nodes, weights), None, ())
    assert [(own.kind, own.num_parameters, own.weight_bytes) for own in found.operators] == [("MatMul", 16, 20)]


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes", "expected"),
    [
        ("Attention", [(2, 4, 10, 8), (2, 4, 12, 8), (2, 4, 12, 6)], {}, 2 * 2 * 4 * 10 * 12 * (8 + 6)),
        ("Attention", [(2, 10, 32), (2, 12, 16), (2, 12, 16)], {"q_num_heads": 4, "kv_num_heads": 2}, 30720),
        ("Einsum", [(2, 3), (3, 4), (4, 5)], {"equation": b"ij,jk,kl->il"}, 2 * (2 * 3 * 4 + 2 * 4 * 5)),
        ("Einsum", [(7, 2, 3), (7, 3, 4)], {"equation": "...ij,...jk"}, 2 * 7 * 2 * 3 * 4),
        ("Einsum", [(2, 3), (2, 3)], {"equation": "ij,ij->ij"}, 0),
        ("MatMulInteger", [(5, 3), (3, 4)], {}, 120),
        ("Softmax", [(5, 3)], {}, 0),
    ],
)
def test_formulas(kind, shapes, attributes, expected):
    outputs = {"MatMulInteger": [(5, 4)], "Einsum": [(1,) * (3 if len(shapes[0]) == 3 else 2)]}.get(kind, [shapes[0]])
    assert operator_flops(kind, shapes, outputs, attributes) == expected


def test_an_equation_that_is_none_does_not_suit_it():
    for equation in (2.5, 7, b"", b"\xff", "ij", "ijk,jk"):
        with pytest.raises(ValueError, match=r"suit|argument|decode"):
            operator_flops("Einsum", [(2, 3), (3, 4)], [(2, 4)], {"equation": equation})


@pytest.mark.parametrize("name", ["functions", "rules"])
def test_what_onnx_says_of_a_model_that_is_not_sound_is_told(name, tmp_path, monkeypatch):
    """Each of its ways to fail; what it never raises is a mistake of ours, and stays one."""
    where = {"functions": "onnx.inliner.inline_local_functions", "rules": "onnx.shape_inference.infer_node_outputs"}
    functions = [own_function("F0")] if name == "functions" else []
    path = save(tmp_path, CALL if functions else PRODUCT, [] if functions else [stored()], functions=functions)
    kinds = [onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, UnicodeError, IndexError]
    for kind in kinds:
        monkeypatch.setattr(where[name], failing(kind))
        with pytest.raises(InputError, match="not so"):
            profile_of(path, None, ())
    monkeypatch.setattr(where[name], failing(ArithmeticError))
    with pytest.raises(ArithmeticError):
        profile_of(path, None, ())


def failing(kind):
    def fail(*given, **named):
        raise kind("not so")

    return fail


def test_a_branch_is_taken_where_its_condition_is_known(tmp_path):
    branches = {
        f"{name}_branch": onnx.helper.make_graph([node(kind, "x w", name)], name, [], [value(name, None)])
        for name, kind in (("then", "MatMul"), ("else", "Add"))
    }
    weight = tensor("w", np.zeros((4, 4), np.float32))
    choice = onnx.helper.make_node("If", ["c"], ["y"], **branches)
    found = profile_of(save(tmp_path, [choice], [weight, tensor("c", np.bool_(True))]), None, ())
    assert found.flops == 32
    found = profile_of(save(tmp_path, [choice], [weight], more=[value("c", [], onnx.TensorProto.BOOL)]), None, ())
    assert found.flops == 0
    assert "not counted: 1 If" in found.notes[1]


def test_every_dimension_is_bound_or_named(tmp_path):
    path = save(tmp_path, [node("Relu", "x", "y")], [], shape=["batch", 3, "height", "width"])
    with pytest.raises(InputError, match=r'dimension "height" of input "x" is unknown: give it with --dimension'):
        profile_of(path, None, ())
    found = profile_of(path, None, ("height=8", "width=4"))
    assert found.dimensions == {"batch": 1, "height": 8, "width": 4}
    assert found.operators[0].activation_bytes == 2 * 4 * 3 * 8 * 4
    for words, length, error in (
        (("height=8", "width=4", "depth=2"), None, '"depth": no input has it'),
        (("height=8", "width"), None, "give NAME=NUMBER"),
        (("height=8", "width=-1"), None, "give NAME=NUMBER"),
        (("height=8", "width=4"), 128, "no dimension of its inputs is a sequence"),
    ):
        with pytest.raises(InputError, match=error):
            profile_of(path, length, words)


def node(kind, inputs, outputs, **more):
    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), **more)


def value(name, shape, kind=FLOAT):
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def tensor(name, data):
    return onnx.numpy_helper.from_array(np.asarray(data), name)


def model_of(nodes, weights, shape=("batch", 4), more=(), functions=()):
    graph = onnx.helper.make_graph(nodes, "g", [value("x", list(shape)), *more], [value("y", None)], weights)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("own", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, functions=functions)


def save(folder, nodes, weights, **more):
    path = folder / "m.onnx"
    path.write_bytes(model_of(nodes, weights, **more).SerializeToString())
    return str(path)


def stored(**fields):
    weight = tensor("w", np.zeros((4, 4), np.float32))
    for name, value_of in fields.items():
        if name == "dims":
            del weight.dims[:]
            weight.dims.extend(value_of)
        elif name == "location":
            weight.ClearField("raw_data")
            weight.data_location = weight.EXTERNAL
            entry = weight.external_data.add()
            entry.key, entry.value = "location", value_of
        else:
            setattr(weight, name, value_of)
    return weight


def own_function(name, *called):
    nodes = [onnx.helper.make_node(one, ["a"], [f"b{place}"], domain="own") for place, one in enumerate(called)]
    nodes = nodes or [node("Relu", "a", "b0")]
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("own", 1)]
    return onnx.helper.make_function("own", name, ["a"], ["b0"], nodes, opsets)


PRODUCT = [node("MatMul", "x w", "y")]
CALL = [onnx.helper.make_node("F0", ["x"], ["y"], domain="own")]
BOMB = [own_function(f"F{place}", *[f"F{place + 1}"] * 2) for place in range(60)] + [own_function("F60")]
HUGE = [tensor("a", np.int64(0)), tensor("b", np.int64(2**62)), tensor("c", np.int64(1))]
DATA = [
    node("NonZero", "x", "n"), node("Cast", "n", "f", to=1), node("Transpose", "f", "t"), node("MatMul", "f t", "y"),
]  # fmt: skip
HOSTILE = {
    "circle": ([node("Add", "x z", "y"), node("Relu", "y", "z")], [], {}, "cycle"),
    "negative": (PRODUCT, [stored(dims=[-4, 4])], {}, "impossible sizes"),
    "large": (PRODUCT, [stored(dims=[2**40, 2**40])], {}, "impossible sizes"),
    "short": (PRODUCT, [stored(dims=[2**20, 4])], {}, "should have"),
    "outside": (PRODUCT, [stored(location="../../etc/passwd")], {}, "outside its folder"),
    "absolute": (PRODUCT, [stored(location="/etc/passwd")], {}, "outside its folder"),
    "null": (PRODUCT, [stored(location="a\0b")], {}, "outside its folder"),
    "type": (PRODUCT, [stored(data_type=99)], {}, "unknown type"),
    "twice": ([*PRODUCT, node("Relu", "x", "y")], [stored()], {}, "written by two"),
    "shape": (PRODUCT, [stored()], {"shape": [-1, 4]}, "impossible size"),
    "unlike": (PRODUCT, [tensor("w", np.zeros((5, 4), np.float32))], {}, "Incompatible"),
    "recursive": (CALL, [], {"functions": [own_function("F0", "F0")]}, "cycle"),
    "bomb": (CALL, [], {"functions": BOMB}, "more than"),
    "range": ([node("Range", "a b c", "y")], HUGE, {}, "impossible shape"),
    "data": (DATA, [], {}, "depends on"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_sentence(name, tmp_path):
    nodes, weights, more, words = HOSTILE[name]
    with pytest.raises(InputError, match=words) as caught:
        profile_of(save(tmp_path, nodes, weights, **more), None, ())
    assert "\n" not in str(caught.value)


def test_what_is_no_onnx_file_ends_in_one_sentence(tmp_path):
    good = model_of(PRODUCT, [stored()]).SerializeToString()
    for content in (b"", b"hello", good[:60], np.random.default_rng(0).bytes(5000)):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(InputError, match="not an ONNX file"):
            profile_of(str(tmp_path / "m.onnx"), None, ())
    with (tmp_path / "huge.onnx").open("wb") as stream:
        stream.truncate(3 * 2**30)
    os.symlink("/dev/zero", tmp_path / "device.onnx")
    for name, words in (("huge", "more than 2 GiB"), ("device", "not a file"), ("none", "no such file")):
        with pytest.raises(InputError, match=words):
            profile_of(str(tmp_path / f"{name}.onnx"), None, ())


def test_random_damage_never_ends_in_a_traceback(tmp_path):
    random, good = np.random.default_rng(1), bytearray(model_of(PRODUCT, [stored()]).SerializeToString())
    for _ in range(300):
        damaged = bytearray(good)
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(0, 256)
        (tmp_path / "m.onnx").write_bytes(damaged)
        with contextlib.suppress(InputError):
            profile_of(str(tmp_path / "m.onnx"), None, ())


def test_it_says_so_where_onnx_is_missing_and_where_a_model_to_train_is_wanted(tmp_path, monkeypatch):
    path = save(tmp_path, PRODUCT, [stored()])
    for wanted in (load_model, load_sizes):
        with pytest.raises(InputError, match="is for inference"):
            wanted(path)
    monkeypatch.setattr("profiles.onnx_files.reading.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailure, match=r"trainwright\[export\]"):
        profile_of(path, None, ())


def test_the_command_writes_what_it_shows(tmp_path, capsys):
    from typer.testing import CliRunner

    from profiles.command import app

    path, out = save(tmp_path, PRODUCT, [stored()]), tmp_path / "o.json"
    result = CliRunner().invoke(app, ["model", path, "--json", "-o", str(out)])
    assert result.exit_code == 0
    written = json.loads(Path(out).read_text())
    assert written["artifact"] == "onnx-profile"
    assert written["operators"][0] == {
        "name": "", "kind": "MatMul", "shape": [1, 4], "flops": 32.0, "num_parameters": 16, "weight_bytes": 64.0,
        "activation_bytes": 32.0,
    }  # fmt: skip
    refused = CliRunner().invoke(app, ["model", path, "--task", "question-answering"])
    assert "do not apply to an ONNX file" in str(refused.exception)
