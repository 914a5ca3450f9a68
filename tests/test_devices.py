"""The shipped devices: every file loads, says whence its numbers are and is physically possible, and names resolve."""

from dataclasses import fields

import pytest

from planner.space.explore import explore
from planner.space.layouts import Options
from planner.space.question import setting
from profiles.errors import UnknownNameError
from profiles.library import load_sizes
from profiles.machines.devices import Device, catalogue_names, device_names, find_device, load_device, namesakes

# Under which key of `sources` the origin of each number stands.
SOURCE_OF = {
    "num_multiprocessors": "multiprocessors",
    "memory_label_gb": "memory",
    "memory_gib": "memory",
    "memory_gb_per_second": "memory",
    "peak_tflops": "peaks",
    "achievable_tflops": "achievable",
    "vector_tflops": "vector",
    "kernel_latency_us": "latencies",
    "host_launch_us": "latencies",
    "devices_per_node": "node",
    "fast_domain": "link",
    "in_switch": "link",
    "link_gb_per_second": "link",
    "peer_gb_per_second": "link",
    "reads_peers": "link",
    "link_latency_us": "latencies",
    "host_gb_per_second": "host",
    "host_memory_gb": "host_memory",
    "host_memory_gb_per_second": "host_memory_rate",
    "network_gb_per_second": "network",
    "network_latency_us": "latencies",
    "compute_slowdown_fraction": "slowdown",
    "communication_slowdown_fraction": "slowdown",
    "power_watts": "power",
    "price_per_hour": "price",
}
WORDS = {"name", "title", "aliases", "generation", "price_date", "sources"}
WITHOUT_BF16 = {"pascal", "volta", "turing"}
WITH_FP8 = {"ada", "hopper", "blackwell", "cdna3", "cdna4"}
WITH_TF32 = {"ampere", "ada", "hopper", "blackwell", "cdna3"}
REDUCING_SWITCHES = {
    "b200-sxm", "b300-sxm", "gb200-nvl72", "gb300-nvl72", "h100-sxm", "h100-sxm-96gb", "h20", "h200-sxm", "h800-sxm",
}  # fmt: skip


@pytest.fixture(scope="module", params=catalogue_names())
def device(request) -> Device:
    return load_device(request.param)


def spelling(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def test_the_file_is_called_as_its_device(device):
    assert load_device(device.name) is not None
    assert device.title
    assert device.aliases


def test_every_number_has_a_source(device):
    numbers = {field.name for field in fields(Device)} - WORDS
    assert numbers == set(SOURCE_OF)
    wanted = {SOURCE_OF[name] for name in numbers if getattr(device, name) is not None}
    assert set(device.sources) == wanted
    assert all(len(text) > 5 for text in device.sources.values())
    assert (device.price_per_hour is None) == (device.price_date == "")


def test_memory_is_what_fits_on_the_card(device):
    # Labels of some cards are GiB; what the driver keeps is never more than a tenth.
    assert 0.9 * device.memory_label_gb / 1.0737 < device.memory_gib <= device.memory_label_gb
    assert 250 < device.memory_gb_per_second <= 8000


def test_rates_are_those_of_the_generation(device):
    peaks, generation = device.peak_tflops, device.generation
    assert set(device.achievable_tflops) == set(peaks)
    assert {"fp32", "fp16"} <= set(peaks)
    assert ("bf16" in peaks) == (generation not in WITHOUT_BF16)
    assert ("fp8" in peaks) == (generation in WITH_FP8)
    assert ("tf32" in peaks) == (generation in WITH_TF32)
    assert ("mxfp8" in peaks) == (generation in ("blackwell", "cdna4"))
    assert ("nvfp4" in peaks) == (generation == "blackwell")


def test_rates_are_possible(device):
    peaks, achievable = device.peak_tflops, device.achievable_tflops
    for precision, peak in peaks.items():
        assert 0.4 * peak < achievable[precision] <= peak, precision
    assert peaks["fp16"] == peaks.get("bf16", peaks["fp16"])
    assert peaks["fp32"] == peaks.get("tf32", peaks["fp32"])
    assert device.vector_tflops <= peaks["fp32"]
    if "fp8" in peaks:
        assert peaks["fp8"] == pytest.approx(2 * peaks["bf16"], rel=0.02)
    if "mxfp8" in peaks:
        assert peaks["mxfp8"] == peaks["fp8"]
    if "nvfp4" in peaks:
        assert 2 * peaks["fp8"] <= peaks["nvfp4"] <= 4 * peaks["fp8"]


def test_links_are_possible(device):
    assert device.fast_domain >= 1
    assert (device.fast_domain > 1) == (device.link_gb_per_second > 0)
    assert 0 < device.peer_gb_per_second <= max(device.link_gb_per_second, device.host_gb_per_second)
    assert device.host_gb_per_second >= 15
    assert device.host_memory_gb >= 128
    assert device.in_switch == (device.name in REDUCING_SWITCHES)
    if device.in_switch:
        assert device.peer_gb_per_second == device.link_gb_per_second


def test_a_spelling_means_one_device_only():
    owners: dict[str, str] = {}
    for name in catalogue_names():
        device = load_device(name)
        aliases = [spelling(text) for text in device.aliases]
        assert len(set(aliases)) == len(aliases), f"{name} has an alias twice"
        for text in (spelling(name), *aliases):
            assert owners.setdefault(text, name) == name, f"{text} means {owners[text]} and {name}"


def test_every_name_and_alias_is_found(device):
    for text in (device.name, *device.aliases, device.name.upper().replace("-", "_"), f"NVIDIA {device.aliases[0]}"):
        assert find_device(text) == device


def test_spacing_never_matters_even_where_the_memory_is_given(device):
    for text in (device.name, *device.aliases):
        spaced = text.replace("-", " ").replace("GB", " GB")
        for memory_gib in (None, device.memory_label_gb, device.memory_gib):
            assert find_device(spelling(text), memory_gib) == device
            assert find_device(spaced, memory_gib) == device


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A100-SXM4-80GB", "a100-sxm-80gb"),
        ("A100-SXM4-40GB", "a100-sxm-40gb"),
        ("A100-PCIe-80GB", "a100-pcie-80gb"),
        ("H100-SXM5-80GB", "h100-sxm"),
        ("H100-SXM5-96GB", "h100-sxm-96gb"),
        ("H100-PCIe-80GB", "h100-pcie"),
        ("H200-SXM-141GB", "h200-sxm"),
        ("H800-SXM", "h800-sxm"),
        ("H20", "h20"),
        ("GH200", "gh200"),
        ("B200-SXM-180GB", "b200-sxm"),
        ("B300-SXM", "b300-sxm"),
        ("GB200-NVL72", "gb200-nvl72"),
        ("GB200", "gb200-nvl72"),
        ("GB300-NVL72", "gb300-nvl72"),
        ("V100-SXM2-16GB", "v100-sxm-16gb"),
        ("V100-SXM2-32GB", "v100-sxm-32gb"),
        ("V100-SXM3-32GB", "v100-sxm3-32gb"),
        ("MI250X", "mi250x"),
        ("MI300X", "mi300x"),
        ("MI355X", "mi355x"),
        ("RTX-3090", "rtx-3090"),
        ("RTX-4090", "rtx-4090"),
        ("RTX-5090", "rtx-5090"),
        ("L40S", "l40s"),
        ("L4", "l4"),
        ("A10", "a10"),
        ("A10G", "a10g"),
        ("A10G-24GB", "a10g"),
        # As drivers report them.
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA B300 SXM6 AC", "b300-sxm"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X OAM", "mi300x"),
    ],
)
def test_published_names_are_found(text, name):
    assert find_device(text).name == name


@pytest.mark.parametrize(
    ("text", "memory_gib", "name"),
    [
        ("A100", 40, "a100-sxm-40gb"),
        ("A100", 80, "a100-sxm-80gb"),
        ("A100", 79.2, "a100-sxm-80gb"),
        ("A100", None, "a100-sxm-80gb"),
        ("A100-SXM4", 80, "a100-sxm-80gb"),
        ("a100 sxm4", 39.4, "a100-sxm-40gb"),
        ("A100 PCIe", 40, "a100-pcie-40gb"),
        ("A100-SXM4-40GB", 80, "a100-sxm-40gb"),
        ("A100-SXM4-79GB", None, "a100-sxm-80gb"),
        ("H100", None, "h100-sxm"),
        ("H100", 80, "h100-sxm"),
        ("H100", 94, "h100-sxm-96gb"),
        ("H100 PCIe", 80, "h100-pcie"),
        ("H100 PCIe", 94, "h100-nvl"),
        ("V100", None, "v100-sxm-16gb"),
        ("V100", 32, "v100-sxm-32gb"),
        ("V100-SXM3", 32, "v100-sxm3-32gb"),
        ("GH200", 144, "gh200-144gb"),
        ("MI250X", 128, "mi250x"),
        ("B200", 192, "b200-sxm"),
    ],
)
def test_the_memory_chooses_where_the_name_does_not(text, memory_gib, name):
    assert find_device(text, memory_gib).name == name


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("H100-NVLink", "h100-nvl"), ("H100-PCI", "h100-pcie"), ("RTX-4080", "rtx-4090"), ("L4S", "l40s")],
)
def test_a_name_within_another_is_not_that_device(text, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown device '{text}': did you mean '{nearest}'"):
        find_device(text)


@pytest.mark.parametrize("text", ["", "NVIDIA", "80GB", "abacus"])
def test_what_names_no_device_is_refused(text):
    with pytest.raises(UnknownNameError):
        find_device(text, 80)


def test_devices_without_bf16_are_planned_in_fp32():
    names = set(catalogue_names()) - set(device_names())
    assert names == {name for name in catalogue_names() if load_device(name).generation in WITHOUT_BF16}
    for name in names:
        at = setting(load_sizes("gpt2-small"), load_device(name), 16, 64, 512, precision="fp32")
        assert explore(at, Options()).accepted > 0


def test_a_bridge_of_two_cards_is_no_link_of_the_node():
    at = setting(load_sizes("llama-3.1-8b"), load_device("h100-nvl"), 8, 64, 4096)
    assert at.fast_domain == 2
    assert at.devices_per_node == 8


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("a100-80gb", ("a100-pcie-80gb",)),
        ("H100", ("h100-nvl", "h100-pcie")),
        ("a100-sxm-80gb", ()),
        ("A100-SXM4", ()),
        ("RTX 4090", ()),
        ("B200", ()),
    ],
)
def test_a_name_without_its_form_is_that_of_others_too(text: str, others: tuple[str, ...]) -> None:
    assert namesakes(text, find_device(text)) == others
