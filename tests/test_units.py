"""Numbers for people are never a power of ten and keep three digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.units import format_batch, format_bytes, format_count, format_percent, format_seconds, rate_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(1020 * 2**20), "1020 MiB"),
        (format_bytes(1.5 * 2**30), "1.5 GiB"),
        (format_bytes(17), "17 B"),
        (format_seconds(1500), "1500 s"),
        (format_seconds(0.01844), "18.4 ms"),
        (format_seconds(0), "0 s"),
        (format_seconds(2.5e-8), "25 ns"),
        (format_count(8030261248), "8.03 B"),
        (format_percent(-0.0312, signed=True), "-3.1 %"),
    ],
)
def test_examples(text, expected):
    assert text == expected


@given(st.floats(1e-9, 1e6))
def test_seconds_stay_within_half_a_percent_and_readable(seconds):
    number, unit = format_seconds(seconds).split()
    assert "e" not in number
    assert float(number) * {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit] == pytest.approx(seconds, rel=6e-3)


@pytest.mark.parametrize(
    ("size", "unit", "batch", "rate"),
    [
        (512, "tokens", "8 x 512 tokens", ("tok/s", 1024.0)),
        (224, "pixels", "8 images of 224 x 224 pixels", ("images/s", 1024 / 224)),
        (1, "", "8 samples", ("samples/s", 1024.0)),
    ],
)
def test_batches_and_rates_are_in_what_samples_count(size, unit, batch, rate):
    assert format_batch(8, size, unit) == batch
    assert rate_of(1024.0, size, unit) == rate
