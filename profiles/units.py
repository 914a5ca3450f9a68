"""Units: constants, and the only place where a number is scaled for people to read."""

from __future__ import annotations

MB, GB = 1e6, 1e9
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40


def three_digits(value: float) -> str:
    """A number with three significant digits, never as a power of ten: `0.12`, `1.25`, `18.4`, `1020`."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:.{digits}f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_seconds(seconds: float) -> str:
    """Seconds as text with three significant digits: `1.25 s`, `18.4 ms`, `3.2 us`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= scale:
            return f"{three_digits(seconds / scale)} {unit}"
    return "0 s" if seconds == 0 else f"{three_digits(seconds / 1e-9)} ns"


def format_bytes(num_bytes: float) -> str:
    """Bytes as text in binary units: `1.50 GiB`, `320 MiB`."""
    for scale, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(num_bytes) >= scale:
            return f"{three_digits(num_bytes / scale)} {unit}"
    return f"{num_bytes:.0f} B"


def format_count(count: float) -> str:
    """A count as text: `25.4 M`, `8.03 B`."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= scale:
            return f"{three_digits(count / scale)} {unit}"
    return three_digits(count)


def format_hours(seconds: float) -> str:
    """A span of up to some hours: `3.6 h`, `12 min`."""
    if seconds >= 3600:
        return f"{three_digits(seconds / 3600)} h"
    return f"{three_digits(seconds / 60)} min" if seconds >= 60 else format_seconds(seconds)


def format_days(days: float) -> str:
    """A span that may be of days: `254 days`, `1,020 days`, and of less than one `3.6 h`."""
    if days < 1:
        return format_hours(days * 86400)
    return f"{three_digits(days) if days < 1000 else format(round(days), ',')} days"


def format_energy(kwh: float) -> str:
    """Energy: `279 MWh`, `6.25 GWh`."""
    for scale, unit in ((1e6, "GWh"), (1e3, "MWh")):
        if kwh >= scale:
            return f"{three_digits(kwh / scale)} {unit}"
    return f"{three_digits(kwh)} kWh"


def format_percent(fraction: float, signed: bool = False) -> str:
    """A fraction as percent with one decimal: `12.3 %`."""
    return f"{fraction * 100:+.1f} %" if signed else f"{fraction * 100:.1f} %"


def format_batch(samples: int, size: int, unit: str) -> str:
    """A batch: `8 x 512 tokens`, `8 images of 224 x 224 pixels`, `8 samples`."""
    if unit == "pixels":
        return f"{samples} images of {size} x {size} pixels"
    return f"{samples} x {size} {unit}" if unit else f"{samples} samples"


def rate_of(tokens_per_second: float, size: int, unit: str) -> tuple[str, float]:
    """What is counted per second, and how many: tokens where samples have them, else samples."""
    if unit == "tokens":
        return "tok/s", tokens_per_second
    return "images/s" if unit == "pixels" else "samples/s", tokens_per_second / size
