"""Shipped devices: data-sheet numbers with their sources, as a machine of any number of devices. Torch-free."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from profiles.artifacts import STRICT, read_toml
from profiles.catalog import CATALOG
from profiles.errors import UnknownNameError

FOLDER = CATALOG / "devices"
MICROSECOND = 1e-6
# Assumed where nothing is known of the host: less than DGX systems have, 1 to 2 TB for 8 devices.
HOST_MEMORY_GB = 128.0
# Assumed of a node's hosts: two sockets that reach half of what their sixteen channels of DDR4-3200 have on paper.
HOST_MEMORY_GB_PER_SECOND = 200.0
Generation = Literal["pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell", "cdna2", "cdna3", "cdna4"]
VENDOR_WORDS = frozenset({"nvidia", "geforce", "tesla", "amd", "instinct"})
# Forms that one device is sold in.
FORMS = ("sxm", "pcie", "nvl")
MEMORY_WORD = re.compile(r"(\d+(?:\.\d+)?)(?:gib|gb|g)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator. Bandwidth is uni-directional per device, peaks are dense; `sources` says whence each is.

    `aliases` are spellings in published tables. `memory_gib` is what the driver lets a process use of the
    `memory_label_gb` in the name. Rates by precision: fp32 is the TF32 rate of the matrix units where they have it,
    else the plain one; `vector_tflops` is plain fp32 outside of them. `fast_domain` devices are joined by
    `link_gb_per_second` each, of which one pair sees `peer_gb_per_second`; `in_switch` links reduce on their way.
    Cards that `reads_peers` are let read each other's memory over PCIe, without a copy in the host's.
    `host_gb_per_second` joins the device to its processor, whose memory has `host_memory_gb` for it;
    `host_memory_gb_per_second` is that of all hosts of a node.
    `num_multiprocessors` counts streaming multiprocessors or compute units.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str
    aliases: tuple[str, ...]
    generation: Generation
    num_multiprocessors: int
    memory_label_gb: float
    memory_gib: float
    memory_gb_per_second: float
    peak_tflops: dict[str, float]
    achievable_tflops: dict[str, float]
    kernel_latency_us: float
    host_launch_us: float
    vector_tflops: float
    devices_per_node: int
    fast_domain: int
    in_switch: bool
    link_gb_per_second: float
    peer_gb_per_second: float
    reads_peers: bool = False
    link_latency_us: float
    host_gb_per_second: float
    host_memory_gb: float = HOST_MEMORY_GB
    host_memory_gb_per_second: float | None = None
    network_gb_per_second: float
    network_latency_us: float
    compute_slowdown_fraction: float
    communication_slowdown_fraction: float
    power_watts: float
    price_per_hour: tuple[float, float] | None = None
    price_date: str = ""
    sources: dict[str, str]


def catalogue_names() -> list[str]:
    """The names of all shipped devices."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def device_names() -> list[str]:
    """The names of the shipped devices that train in bf16, which is what plans are made for unless told otherwise."""
    return [device.name for device in _catalogue() if "bf16" in device.peak_tflops]


def load_device(name: str) -> Device:
    """The shipped device called `name`.

    Raises: UnknownNameError with the nearest name.
    """
    if name not in catalogue_names():
        raise UnknownNameError("device", name, catalogue_names())
    return read_toml(FOLDER / f"{name}.toml", Device)


def find_device(text: str, memory_gib: float | None = None) -> Device:
    """The shipped device that `text` means: a name or an alias, whatever its case, spaces, hyphens and maker's name.

    Where the text states no memory, `memory_gib` (as on the label or as usable) chooses among the cards of that name.
    A name is never found within another: "H100" is the SXM card, "H100 PCIe" another.

    Raises: UnknownNameError with the nearest name.
    """
    if memory_gib is None and text in catalogue_names():
        return load_device(text)
    key, family, stated = _read_spelling(text)
    exact = _spellings().get(key)
    wanted = stated if stated is not None else memory_gib
    if exact is not None and (stated is not None or memory_gib is None):
        return exact
    candidates = _families().get(family, ())
    if not candidates and exact is not None:
        # The memory stands in the name, but not as a word: "A100SXM480GB", "A100 80 GB".
        return exact
    if not candidates:
        raise UnknownNameError("device", text, catalogue_names())
    return min(candidates, key=lambda device: _memory_distance(device, wanted))


def namesakes(text: str, device: Device) -> tuple[str, ...]:
    """Names of other shipped devices that `text`, read as `device`, may mean as well; none where it is a whole name."""
    forms = [form for form in FORMS if f"-{form}" in device.name]
    if not forms or any(form in text.lower() for form in FORMS):
        return ()
    first = device.name.partition("-")[0]
    _, _, stated = _read_spelling(text)
    return tuple(
        other.name
        for other in _catalogue()
        if other.name != device.name
        and other.name.partition("-")[0] == first
        and (stated is None or other.memory_label_gb == device.memory_label_gb)
        and any(f"-{form}" in other.name and form not in forms for form in FORMS)
    )


def _memory_distance(device: Device, wanted: float | None) -> float:
    """How far the device's memory, on the label or usable, is from what is wanted."""
    return 0.0 if wanted is None else min(abs(device.memory_label_gb - wanted), abs(device.memory_gib - wanted))


def _read_spelling(text: str) -> tuple[str, str, float | None]:
    """Key of the spelling, key without its memory, and the memory it states."""
    words = [word for word in re.split(r"[\s_\-/]+", text.lower()) if word and word not in VENDOR_WORDS]
    sizes = [match.group(1) for word in words if (match := MEMORY_WORD.fullmatch(word))]
    family = "".join(word for word in words if not MEMORY_WORD.fullmatch(word))
    return "".join(words), family, float(sizes[0]) if sizes else None


@functools.cache
def _catalogue() -> tuple[Device, ...]:
    return tuple(load_device(name) for name in catalogue_names())


@functools.cache
def _spellings() -> Mapping[str, Device]:
    return MappingProxyType(
        {_read_spelling(text)[0]: device for device in _catalogue() for text in (device.name, *device.aliases)}
    )


@functools.cache
def _families() -> Mapping[str, tuple[Device, ...]]:
    """The devices that share a spelling but for the memory in it."""
    families: dict[str, dict[str, Device]] = {}
    for device in _catalogue():
        for text in (device.name, *device.aliases):
            families.setdefault(_read_spelling(text)[1], {})[device.name] = device
    return MappingProxyType({family: tuple(devices.values()) for family, devices in families.items()})
