"""A configuration is traced once: the same again is answered from what is kept, any other is not."""

import json
from dataclasses import replace

import pytest

from profiles import library, stored_traces
from profiles.artifacts import dump
from profiles.library import load_model, trace_model
from tests.matrix.architectures import ARCHITECTURES


@pytest.fixture
def traces(tmp_path, monkeypatch):
    """What is traced, in a home of its own."""
    monkeypatch.setenv("TRAINWRIGHT_HOME", str(tmp_path / "home"))
    made = []

    def trace(model, spec, trusted, precisions, device_kind, needed):
        made.append((model, needed or precisions, device_kind))
        profile = library.read(library.MODELS / "gpt2-small.json", "model-profile", library.ModelProfile)
        return replace(profile, workload=spec)

    monkeypatch.setattr(library, "_trace", trace)
    return made


@pytest.fixture
def config(tmp_path):
    (model,) = (model for model in ARCHITECTURES if model.name == "opt")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model.config))
    return path


def test_the_same_configuration_is_traced_once(traces, config):
    first = trace_model(str(config))
    assert trace_model(str(config)) == first
    # What a plan asks for is among what was traced.
    assert load_model(str(config), ("bf16",)) == first
    assert len(traces) == 1


def test_any_other_is_traced_anew(traces, config, monkeypatch):
    trace_model(str(config))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 5}))
    trace_model(str(config))
    load_model(str(config), ("fp32", "bf16"), asked=library.Asked(device_kind="cpu"))
    monkeypatch.setattr(stored_traces, "version", lambda name: "another")
    trace_model(str(config))
    assert len(traces) == 4


def test_what_is_damaged_or_cannot_be_kept_is_traced_anew(traces, config, tmp_path, monkeypatch):
    trace_model(str(config))
    (kept,) = (tmp_path / "home" / "traces").iterdir()
    kept.write_text(kept.read_text()[:500])
    trace_model(str(config))
    assert len(traces) == 2
    monkeypatch.setenv("TRAINWRIGHT_HOME", str(config))
    trace_model(str(config))
    trace_model(str(config))
    assert len(traces) == 4


def test_what_is_of_something_else_is_not_taken(traces, config, tmp_path):
    first = trace_model(str(config))
    (kept,) = (tmp_path / "home" / "traces").iterdir()
    others = [
        replace(first, workload=replace(first.workload, name="other")),
        replace(first, workload=library.load_spec("tests.matrix.user_modules:gpt")),
        replace(first, layers={"fp32": first.layers["fp32"]}),
    ]
    for number, other in enumerate(others, 2):
        kept.write_text(dump("model-profile", other))
        assert trace_model(str(config)) == first
        assert len(traces) == number
    kept.write_text(dump("model-profile", replace(first, workload=replace(first.workload, task="causal-lm"))))
    assert trace_model(str(config)).workload.task == "causal-lm"
    assert len(traces) == len(others) + 1


def test_users_modules_are_traced_each_time(traces, tmp_path):
    for _ in range(2):
        trace_model("tests.matrix.user_modules:gpt")
    assert len(traces) == 2
    assert not (tmp_path / "home" / "traces").exists()


def test_the_oldest_make_room(traces, config, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_traces, "MOST", 2)
    for layers in range(1, 5):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": layers}))
        trace_model(str(config))
    assert len(list((tmp_path / "home" / "traces").iterdir())) == 2
