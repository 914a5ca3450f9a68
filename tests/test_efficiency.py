"""Curves against synthetic machines whose constants are known, and the properties that every curve must have."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.laws.curves import fit_kernel, fit_link, kernel_seconds, link_seconds, work_of
from profiles.machines.profile import KernelCurve, LinkCurve, Sample

LATENCY, FLOPS_PER_SECOND, BYTES_PER_SECOND = 2e-5, 9e10, 1.1e10
SHAPES = [(1.0, m, n, k) for m in (64.0, 512.0, 4096.0) for n in (256.0, 2048.0) for k in (64.0, 1024.0)]


def true_seconds(m, n, k):
    # Written out by hand: fp32 operands once each, a multiply-add is two operations.
    return LATENCY + 2 * m * n * k / FLOPS_PER_SECOND + 4 * (m * k + k * n + m * n) / BYTES_PER_SECOND


def samples_with_noise(deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, len(SHAPES))
    return [
        Sample(dims=shape, seconds=true_seconds(*shape[1:]) * np.exp(e), spread_fraction=deviation)
        for shape, e in zip(SHAPES, noise, strict=True)
    ]


def matmul_curve(**fields):
    defaults = {
        "kind": "matmul",
        "precision": "fp32",
        "latency_seconds": LATENCY,
        "flops_per_second": FLOPS_PER_SECOND,
        "bytes_per_second": BYTES_PER_SECOND,
        "error_fraction": 0.0,
        "origin": "datasheet",
    }
    return KernelCurve(**(defaults | fields))


def link_curve(*points, latency=1e-4, rate=1e9):
    return LinkCurve(
        collective="all_reduce",
        group_size=2,
        span="node",
        latency_seconds=latency,
        bytes_per_second=rate,
        error_fraction=0.0,
        origin="measured",
        samples=tuple(Sample(dims=(size,), seconds=seconds, spread_fraction=0.0) for size, seconds in points),
    )


def test_work_of_each_kind_by_hand():
    assert [float(x) for x in work_of("matmul", (2, 3, 5, 7), "bf16")] == [2 * 2 * 3 * 5 * 7, 2 * 2 * (21 + 35 + 15)]
    assert [float(x) for x in work_of("attention_forward", (2, 3, 8, 4, 16), "fp32")] == [
        4 * 2 * 3 * 8 * 4 * 16,
        4 * 2 * 3 * 16 * (8 + 4 + 4 + 8),
    ]
    assert float(work_of("optimizer", (10,), "fp32")[1]) == 280
    assert float(work_of("codec", (10,), "fp32")[1]) == 10


def test_fit_recovers_the_constants_exactly_without_noise():
    curve = fit_kernel("matmul", "nt", "fp32", samples_with_noise(0.0))
    assert curve.latency_seconds == pytest.approx(LATENCY, rel=1e-6)
    assert curve.flops_per_second == pytest.approx(FLOPS_PER_SECOND, rel=1e-6)
    assert curve.bytes_per_second == pytest.approx(BYTES_PER_SECOND, rel=1e-6)
    assert curve.error_fraction < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_fit_is_near_the_constants_with_noise_and_says_how_far(seed):
    curve = fit_kernel("matmul", "nt", "fp32", samples_with_noise(0.05, seed))
    assert curve.flops_per_second == pytest.approx(FLOPS_PER_SECOND, rel=0.15)
    assert 0.005 < curve.error_fraction < 0.1


def test_a_memory_bound_kernel_has_no_flops_term():
    points = [Sample(dims=(size,), seconds=1e-6 + size / 2e10, spread_fraction=0.0) for size in (1e4, 1e6, 1e8)]
    curve = fit_kernel("memory", "add", "fp32", points)
    assert curve.flops_per_second == 0.0
    assert curve.bytes_per_second == pytest.approx(2e10, rel=1e-6)


def test_measured_shapes_cost_what_was_measured():
    curve = fit_kernel("matmul", "nt", "fp32", samples_with_noise(0.3))
    dims = np.array([sample.dims for sample in curve.samples]).T
    measured = [sample.seconds for sample in curve.samples]
    np.testing.assert_allclose(kernel_seconds(curve, *work_of("matmul", dims, "fp32"), dims), measured, rtol=1e-9)


def test_the_correction_fades_far_from_every_sample():
    slow = Sample(dims=(1.0, 64.0, 64.0, 64.0), seconds=10 * true_seconds(64, 64, 64), spread_fraction=0.0)
    curve = matmul_curve(samples=(slow,))
    for size, low, high in ((64.0, 9.9, 10.1), (80.0, 5.0, 10.0), (1e5, 0.99, 1.05)):
        dims = (1.0, size, size, size)
        ratio = kernel_seconds(curve, *work_of("matmul", dims, "fp32"), dims) / true_seconds(size, size, size)
        assert low <= float(ratio) <= high


def test_beyond_the_largest_copy_its_rate_holds():
    # In a cache 100 GB/s, in memory 20: one fitted rate cannot tell both, the largest sample must win outside.
    points = [Sample(dims=(b,), seconds=b / r, spread_fraction=0.0) for b, r in ((1e6, 1e11), (1e7, 1e11), (1e8, 2e10))]
    curve = fit_kernel("memory", "", "fp32", points)
    assert float(kernel_seconds(curve, 0, 4e8, [4e8])) == pytest.approx(4e8 / 2e10, rel=0.01)


def test_shapes_broadcast():
    curve = fit_kernel("matmul", "nt", "fp32", samples_with_noise(0.1))
    dims = (1, np.array([[64.0], [128.0]]), np.array([256.0, 512.0, 1024.0]), 64.0)
    seconds = kernel_seconds(curve, *work_of("matmul", dims, "fp32"), dims)
    assert seconds.shape == (2, 3)
    one = (1.0, 128.0, 512.0, 64.0)
    assert seconds[1, 1] == pytest.approx(float(kernel_seconds(curve, *work_of("matmul", one, "fp32"), one)))


def test_many_queries_are_the_same_as_each_alone():
    curve = fit_kernel("matmul", "nt", "fp32", samples_with_noise(0.1))
    m = np.linspace(16, 9000, 10_000)
    dims = (1.0, m, 512.0, 512.0)
    seconds = kernel_seconds(curve, *work_of("matmul", dims, "fp32"), dims)
    for index in (0, 4095, 4096, 9999):
        one = (1.0, m[index], 512.0, 512.0)
        assert seconds[index] == pytest.approx(float(kernel_seconds(curve, *work_of("matmul", one, "fp32"), one)))


def test_link_fit_recovers_latency_and_bandwidth():
    points = [Sample(dims=(4096.0 * 4**i,), seconds=2e-4 + 4096 * 4**i / 3e9, spread_fraction=0.0) for i in range(8)]
    curve = fit_link("all_reduce", 4, "network", points)
    assert (curve.latency_seconds, curve.bytes_per_second) == (pytest.approx(2e-4), pytest.approx(3e9))


def test_a_link_without_visible_bandwidth_still_has_one():
    curve = fit_link(
        "all_reduce", 2, "node", [Sample(dims=(b,), seconds=1e-3, spread_fraction=0.0) for b in (1.0, 2.0)]
    )
    assert curve.bytes_per_second >= 2.0 / 1e-3


def test_link_goes_through_its_samples_and_straight_between_in_logarithms():
    curve = link_curve((1e4, 1e-4), (1e6, 1e-3))
    assert link_seconds(curve, [1e4, 1e5, 1e6]) == pytest.approx([1e-4, 10**-3.5, 1e-3])


def test_link_outside_its_samples_follows_the_formula_and_meets_them():
    curve = link_curve((1e6, 2.2e-3), (1e7, 20.2e-3))  # twice 1e-4 + bytes / 1e9
    assert link_seconds(curve, [0.0, 1e8]) == pytest.approx([2e-4, 2 * (1e-4 + 0.1)])
    assert link_seconds(curve, 1e6 * (1 - 1e-9)) == pytest.approx(2.2e-3)


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=8),
    st.lists(st.floats(0, 1e9), min_size=2, max_size=30),
    st.floats(0, 1e-2),
    st.floats(1e6, 1e12),
)
def test_more_bytes_over_a_link_never_take_less(seconds, sizes, latency, rate):
    curve = link_curve(*((4096.0 * 4**i, s) for i, s in enumerate(seconds)), latency=latency, rate=rate)
    result = link_seconds(curve, sorted(sizes))
    assert np.all(np.isfinite(result))
    assert np.all(result >= 0)
    assert np.all(np.diff(result) >= -1e-12 * result[1:])


@given(st.floats(0, 1e13), st.floats(1, 1e11), st.floats(1, 2), st.floats(1, 10))
def test_a_datasheet_kernel_is_positive_monotone_and_never_slower_with_more_bandwidth(flops, size, more, faster):
    curve = matmul_curve()
    seconds = float(kernel_seconds(curve, flops, size))
    assert seconds > 0
    assert float(kernel_seconds(curve, flops, size * more)) >= seconds
    quicker = replace(curve, bytes_per_second=curve.bytes_per_second * faster)
    assert float(kernel_seconds(quicker, flops, size)) <= seconds


@given(st.tuples(*(st.floats(1, 1e5) for _ in range(3))))
def test_a_correction_stays_within_what_the_samples_showed(shape):
    samples = samples_with_noise(0.2)
    curve = fit_kernel("matmul", "nt", "fp32", samples)
    bare = replace(curve, samples=())
    ratios = []
    for sample in samples:
        ratios.append(sample.seconds / float(kernel_seconds(bare, *work_of("matmul", sample.dims, "fp32"))))
    dims = (1.0, *shape)
    work = work_of("matmul", dims, "fp32")
    ratio = float(kernel_seconds(curve, *work, dims) / kernel_seconds(bare, *work))
    assert min(1.0, *ratios) - 1e-9 <= ratio <= max(1.0, *ratios) + 1e-9
