"""Whatever a file from elsewhere holds, it is read, or refused in one sentence that names it and what is wrong."""

import json
from pathlib import Path

import pytest

from planner.plans import Plan
from planner.prediction import PlanFile
from profiles import artifacts
from profiles.errors import ArtifactError
from profiles.inputs import foreign
from profiles.library import CONFIGS, MODELS, load_model, read_machine
from profiles.machines.clusters import FOLDER as CLUSTERS
from profiles.machines.profile import MachineProfile
from tests.commands import outcome
from tests.machine_builders import machine
from tests.plan_builders import write_plan_file

GOLDEN = Path(__file__).parent / "golden"
DEEP = 100_000
# What may be wrong with any text, and words of the sentence.
TEXTS = {
    "binary": (b"\xff\xfe\x00\x01", "is not UTF-8 text"),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, "nested deeper than 64 levels"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested deeper than 64 levels"),
    "deep enough for Python": (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper than 64 levels"),
    "half": (b'{"artifact": "run", ', "is not JSON"),
    "a key twice": (b'{"artifact": "run", "schema": 1, "schema": 2}', 'the key "schema" twice'),
    "no number": (b'{"a": {"b": [1, NaN]}}', "at a.b.1: NaN should be a finite number"),
    "infinite": (b'{"a": -Infinity}', "at a: -Infinity should be"),
    "too large": (b'{"a": 1e999}', "at a: Infinity should be"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "(Exceeds the limit (4300 digits))"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_json_that_is_none_is_refused_with_what_is_wrong(name, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(TEXTS[name][0])
    with pytest.raises(ArtifactError) as caught:
        foreign.read_json(path, "give another")
    assert str(caught.value).endswith("; give another")
    assert TEXTS[name][1] in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["binary", "deep lists", "deep objects"])
@pytest.mark.parametrize(
    "command",
    [
        ("plan", "--gpus", 2, "--device", "h100-sxm", "--model"),
        ("plan", "--gpus", 2, "--model", "llama-26m", "--machine"),
        ("profile", "model"),
        ("execute",),
        ("compare",),
        ("compare", GOLDEN / "llama-26m_epyc_2_2026-11-26.run.json", "--machine"),
    ],
    ids=lambda words: " ".join(word for word in words if isinstance(word, str)),
)
def test_every_command_says_it_of_every_kind_of_file(command, name, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(TEXTS[name][0])
    code, sentence = outcome(*command, path)
    assert code == 2
    assert TEXTS[name][1] in sentence


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    loop, folder = tmp_path / "loop.json", tmp_path / "folder.json"
    loop.symlink_to(loop)
    folder.mkdir()
    for path, words in (
        (loop, "Too many levels of symbolic links"), (folder, "it is a folder"), (tmp_path / "none", "does not exist"),
        (tmp_path / ("a" * 300), "File name too long"), (tmp_path / ("a/" * 50_000), "File name too long"),
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match=words) as caught:
            foreign.read_text(path, "")
        assert len(str(caught.value)) < 500
    for command in (("compare", loop), ("execute", loop), ("profile", "model", loop), ("compare", "a" * 5000)):
        code, sentence = outcome(*command)
        assert code == 2
        assert "cannot read" in sentence
    monkeypatch.setattr(foreign, "LARGEST_BYTES", 2**20)
    with pytest.raises(ArtifactError, match="/dev/zero has more than 1 MiB"):
        foreign.read_text(Path("/dev/zero"), "")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": ["\xc3\xa9", true, null, 1.5]}')
    assert foreign.read_json(path, "") == {"a": ["é", True, None, 1.5]}


@pytest.mark.parametrize("artifact", ["rehearsal", "compression", "run"])
def test_another_schema_is_named(artifact, tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"artifact": artifact, "schema": 2}))
    code, sentence = outcome("compare", path)
    assert code == 2
    assert "has schema 2, this version reads 1: make one with `execute" in sentence


def test_a_file_of_no_known_kind_is_none_of_ours(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"artifact": ["plan"], "schema": 1}')
    assert outcome("execute", path)[0] == 2
    assert outcome("compare", path)[0] == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("network_gb_per_second = -1.0", "at network_gb_per_second: -1.0 should be"),
        ("network_gb_per_second = 0.0", "at network_gb_per_second: 0.0 should be"),
        ("network_gb_per_second = nan", "at network_gb_per_second: NaN should be"),
        ("network_gb_per_second = inf", "at network_gb_per_second: Infinity should be"),
        ("network_gb_per_second = 1e300", "at network_gb_per_second: 1e+300 should be"),
        ('network_gb_per_second = "50"', 'at network_gb_per_second: "50" should be'),
        ("network_gb_per_second = 1979-05-27", 'at network_gb_per_second: "1979-05-27" should be'),
        ("devices_per_node = 0", "at devices_per_node: 0 should be"),
        ("devices_per_node = 8.0", "at devices_per_node: 8.0 should be"),
        ("devices_per_node = true", "at devices_per_node: true should be"),
        ("devices_per_node = 10_000_000_000_000_000_000_000", "at devices_per_node: 1000"),
        ("fast_domain = 0", "at fast_domain: 0 should be"),
        ("nics_per_node = -1", "at nics_per_node: -1 should be"),
        ("network_latency_us = -3.0", "at network_latency_us: -3.0 should be"),
        ('device = "h1000"', "unknown device 'h1000'"),
        ("speed = 1", "at speed: unexpected keyword"),
        ("title = 'a'\ntitle = 'b'", "is not TOML"),
        ("x = " + "[" * DEEP + "]" * DEEP, "nested deeper than 64 levels"),
        ("x = " + "9" * 5000, "(Exceeds the limit (4300 digits))"),
    ],
    ids=lambda text: text[:40],
)
def test_a_cluster_of_impossible_numbers_is_refused(changed, words, tmp_path):
    path = tmp_path / "own.toml"
    key = changed.partition(" =")[0]
    lines = (CLUSTERS / "dgx-h100.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"{key} =")]
    path.write_text("\n".join([changed, *kept]))
    code, sentence = outcome("plan", "--model", "llama-3.1-8b", "--gpus", 16, "--cluster", path)
    assert code == 2
    assert words in sentence
    table = tmp_path / "runs.csv"
    table.write_text("num_layers,hidden_size,num_gpus,micro_batch_size\n32,4096,16,2\n")
    assert outcome("compare", table, "--cluster", path)[0] == 2


@pytest.mark.parametrize(
    ("network", "counts", "words"),
    [
        ("", (0, 8), "at pools.0.num_devices: 0 should be"),
        ("", (4, -4), "at pools.1.num_devices: -4 should be"),
        ("", (4, 10**22), "at pools.1.num_devices: 1000"),
        ("network_gb_per_second = 0.0", (4, 4), "at network_gb_per_second: 0.0 should be"),
        ("network_gb_per_second = nan", (4, 4), "at network_gb_per_second: NaN should be"),
    ],
)
def test_pools_of_impossible_numbers_are_refused(network, counts, words, tmp_path):
    path = tmp_path / "pools.toml"
    pools = zip(("dgx-h100", "dgx-a100"), counts, strict=True)
    entries = [f'[[pools]]\nof = "{name}"\nnum_devices = {count}' for name, count in pools]
    path.write_text("\n".join(['name = "own"\ntitle = "own"', network, *entries]))
    code, sentence = outcome("plan", "--model", "llama-3.1-8b", "--gpus", 8, "--cluster", path)
    assert code == 2
    assert words in sentence


def _put(content, place, value):
    """The content with a value put in a place: keys and indices with dots between."""
    *before, last = [int(word) if word.isdigit() else word for word in place.split(".")]
    part = content
    for word in before:
        part = part[word]
    part[last] = value
    return content


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("num_devices", 0), ("devices_per_node", -8), ("memory_bytes", 0.0), ("memory_bytes_per_second", 0.0),
        ("memory_bytes_per_second", -1e9), ("peak_flops_per_second.fp32", 0.0), ("launch_seconds", -1.0),
        ("kernels.0.flops_per_second", -1e9), ("kernels.0.flops_per_second", 1e-9), ("kernels.0.latency_seconds", -1.0),
        ("links.0.bytes_per_second", 0.0), ("links.0.bytes_per_second", 1e300), ("links.0.group_size", 0),
        ("links.0.latency_seconds", -1e-6), ("overlap.compute_slowdown_fraction", -0.5), ("num_devices", 2**60),
        ("oversubscription_factor", 1e308), ("device_kind", "nonsense"), ("num_devices", "2"), ("num_devices", True),
    ],
    ids=str,
)  # fmt: skip
def test_a_machine_of_impossible_numbers_is_refused(place, value, tmp_path):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(_put(json.loads(artifacts.dump("machine-profile", machine())), place, value)))
    code, sentence = outcome("plan", "--model", "llama-26m", "--gpus", 2, "--machine", path)
    assert code == 2
    assert f"at {place}: " in sentence
    assert json.dumps(value) in sentence or "rate" in sentence


def test_a_machine_of_nothing_but_zeros_is_refused(tmp_path):
    def zeros(value):
        if isinstance(value, dict):
            return {key: zeros(below) for key, below in value.items()}
        if isinstance(value, list):
            return [zeros(below) for below in value]
        return type(value)() if isinstance(value, int | float) else value

    content = json.loads(artifacts.dump("machine-profile", machine()))
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(zeros(content) | {"schema": 1}))
    assert outcome("plan", "--model", "llama-26m", "--gpus", 2, "--machine", path)[0] == 2


@pytest.mark.parametrize("dims", [[], [1.0, 2.0], [0.0]])
def test_samples_have_the_dims_of_their_curve(dims, tmp_path):
    path = tmp_path / "machine.json"
    content = json.loads(artifacts.dump("machine-profile", machine()))
    content["links"][0]["samples"] = [{"dims": dims, "seconds": 1.0, "spread_fraction": 0.0}]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError):
        read_machine(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("candidates.0.plan.data_parallel", 0), ("candidates.0.plan.data_parallel", -2),
        ("candidates.0.plan.micro_batch_size", 10**18), ("candidates.0.plan.stage_bounds", [-1]),
        ("candidates.0.plan.zero_stage", 4), ("candidates.0.prediction.step_seconds", 0.0),
        ("candidates.0.prediction.peak_bytes", -1.0), ("candidates.0.rank", 0), ("num_devices", 0),
        ("global_batch_size", -8), ("sequence_length", 10**12), ("machine_device_kind", "nonsense"), ("baseline", -2),
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_of_impossible_numbers_is_refused(place, value, tmp_path):
    path = write_plan_file(tmp_path / "plan.json", Plan(data_parallel=2, micro_batch_size=4))
    path.write_text(json.dumps(_put(json.loads(path.read_text()), place, value)))
    with pytest.raises(ArtifactError, match=place.replace(".", r"\.")):
        artifacts.read(path, "plan", PlanFile)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("num_heads", 0), ("hidden_size", -512), ("structure", [0, 1, 9]), ("structure", []), ("layers", {}),
        ("layers.fp32.0.saved_bytes", [[1e300, 1, 1, 0]]), ("layers.fp32.0.saved_bytes", [[1.0, 10**6, 1, 0]]),
        ("layers.fp32.1.operators.0.inputs", [5]), ("workload.config.num_attention_heads", 7),
        ("workload.config.hidden_size", -512), ("workload.config.vocab_size", "256"),
    ],
    ids=str,
)  # fmt: skip
def test_a_model_profile_of_impossible_numbers_is_refused(place, value, tmp_path):
    path, own = tmp_path / "model.json", tmp_path / "machine.json"
    path.write_text(json.dumps(_put(json.loads((MODELS / "llama-26m.json").read_text()), place, value)))
    artifacts.write(own, "machine-profile", machine())
    code, _ = outcome("plan", "--model", path, "--gpus", 2, "--machine", own)
    assert code == 2


def test_what_this_program_ships_and_writes_is_read(tmp_path):
    for path in CONFIGS.glob("*.json"):
        foreign.read_json(path, "")
    for path in MODELS.glob("*.json"):
        load_model(path.stem).check()
    artifacts.write(tmp_path / "machine.json", "machine-profile", machine())
    assert read_machine(tmp_path / "machine.json") == machine()
    for path in GOLDEN.glob("*.machine.json"):
        assert isinstance(read_machine(path), MachineProfile)
