"""The law of kernels: right about what it never saw, and lawful everywhere else."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.laws.attention import attention_seconds
from profiles.laws.fit_kernels import BOUNDS, FITTED, SHAPED_AS, fit_all, held_out_errors, rows_of
from profiles.laws.kernel_tables import DEVICES, MEASURED, errors, read_table, silicon_of
from profiles.laws.kernels import (
    ACCUMULATED_BYTES,
    Silicon,
    grouped_matmul_seconds,
    load_constants,
    matmul_seconds,
)
from profiles.laws.power import CLOCK_SHARE, powered_share
from tests.marks import slow

LAYOUTS = ("TN", "NN", "NT")
KERNELS = ("unfused", "flash", "flash1", "flash2", "flash3", "flash4", "cudnn", "flex", "mem_efficient")
PHASES = ("forward", "backward")
GENERATIONS = ("volta", "ampere", "ada", "hopper", "blackwell", "cdna3", "unheard-of")
SLACK = 1 + 1e-9
size = st.integers(1, 140_000)
small = st.integers(1, 512)
generation = st.sampled_from(GENERATIONS)
layout = st.sampled_from(LAYOUTS)
width = st.sampled_from((0.5, 1.0, 2.0, 4.0))


def silicon(generation="ampere", peak=312e12, achievable=0.81, memory=1.9e12, count=108.0, width=2.0):
    numbers = [np.atleast_1d(np.asarray(one, dtype=float)) for one in (peak, achievable, memory, count, width)]
    return Silicon(
        matmul_flops_per_second=numbers[0], achievable_fraction=numbers[1], memory_bytes_per_second=numbers[2],
        num_multiprocessors=numbers[3], element_bytes=numbers[4], generation=np.atleast_1d(generation),
    )  # fmt: skip


@cache
def held_out(generation):
    return rows_of(generation), held_out_errors(generation)


# A little above what `python -m profiles.laws.fit_kernels` prints.
@pytest.mark.parametrize(
    ("gpu", "kind", "median", "mean"),
    [
        ("A100-PCIe-80GB", "TN", 0.015, 0.036),
        ("A100-PCIe-80GB", "NN", 0.018, 0.036),
        ("A100-PCIe-80GB", "NT", 0.016, 0.036),
        ("A100-PCIe-80GB", "group_matmul", 0.030, 0.045),
        ("A100-PCIe-80GB", "forward", 0.035, 0.045),
        ("A100-PCIe-80GB", "backward", 0.035, 0.055),
        *(
            slow(*values)
            for values in (
                ("B200-SXM-180GB", "TN", 0.060, 0.105),
                ("B200-SXM-180GB", "NN", 0.050, 0.095),
                ("B200-SXM-180GB", "NT", 0.060, 0.100),
                ("B200-SXM-180GB", "group_matmul", 0.080, 0.105),
                ("B200-SXM-180GB", "forward", 0.105, 0.115),
                ("B200-SXM-180GB", "backward", 0.040, 0.052),
                ("H800-SXM", "TN", 0.095, 0.145),
                ("H800-SXM", "group_matmul", 0.085, 0.085),
                ("H100", "TN", 0.065, 0.080),
                ("H200", "forward", 0.060, 0.060),
                ("H200", "backward", 0.050, 0.060),
            )
        ),
    ],
)
def test_it_predicts_weights_and_attentions_that_it_was_not_fitted_to(gpu, kind, median, mean):
    rows, found = held_out(DEVICES[gpu][0])

    def kind_of(row):
        return row["phase"] if "phase" in row else row["layout"] if row["op"] == "matmul" else row["op"]

    part = np.abs(found[[row["gpu"] == gpu and kind_of(row) == kind for row in rows]])
    assert part.size >= 10
    assert np.median(part) < median
    assert part.mean() < mean


@pytest.mark.parametrize(
    ("gpu", "bias"),
    [("H800-SXM", 0.12), ("V100-SXM2-16GB p3", 0.10), ("L4 GCP", 0.10), ("A100-SXM4-40GB p4d", 0.15)],
)
def test_amperes_constants_carry_over_to_devices_they_were_not_fitted_to(gpu, bias):
    rows = [row for row in read_table("matmul") if row["gpu"] == gpu]
    assert abs(np.median(errors(rows, {"ampere": load_constants()["ampere"]}))) < bias


def test_committed_constants_are_what_a_fit_gives():
    committed = load_constants()
    assert set(committed) == {*FITTED, *SHAPED_AS}
    for name, values in fit_all().items():
        for field, (low, _, high) in BOUNDS.items():
            one = getattr(committed[name], field)
            assert low <= one <= high
            assert getattr(values, field) == pytest.approx(one, abs=0.02 * (high - low)), (name, field)
        assert values.kernels == committed[name].kernels
        assert values.source == committed[name].source


def test_tables_are_small_and_state_their_sources():
    assert sum((MEASURED / f"{name}.csv").stat().st_size for name in ("matmul", "attention")) < 120_000
    for name in ("matmul", "attention"):
        assert all(row["source"] and row["gpu"] in DEVICES for row in read_table(name))


@given(st.tuples(size, size, size), st.integers(0, 2), st.integers(0, 50_000), layout, generation, width, small)
def test_a_larger_product_is_never_faster(shape, axis, more, layout, generation, width, groups):
    larger = tuple(one + more * (i == axis) for i, one in enumerate(shape))
    device = silicon(generation, width=width)
    for moved in (None, ACCUMULATED_BYTES):
        first, second = (matmul_seconds(*one, layout, device, result_bytes=moved)[0] for one in (shape, larger))
        assert second * SLACK >= first
    first, second = (grouped_matmul_seconds(groups, *one, layout, device)[0] for one in (shape, larger))
    assert second * SLACK >= first
    assert grouped_matmul_seconds(groups + 1, *shape, layout, device)[0] * SLACK >= first


@given(st.tuples(size, size, size), layout, generation, width, small, st.floats(1.0, 10.0))
def test_a_better_device_is_never_slower_and_none_exceeds_its_peak(shape, layout, generation, width, groups, factor):
    m, n, k = shape
    devices = silicon(generation, [1e14, factor * 1e14, 1e14], memory=[1e12, 1e12, factor * 1e12], width=width)
    for seconds, count in (
        (matmul_seconds(*shape, layout, devices), 1),
        (grouped_matmul_seconds(groups, *shape, layout, devices), groups),
    ):
        assert np.all(seconds[1:] <= seconds[0] * SLACK)
        assert np.all(seconds * SLACK >= 2 * count * m * n * k / devices.matmul_flops_per_second)


@given(
    st.sampled_from(PHASES), st.sampled_from(KERNELS), generation, st.tuples(small, small, size, size),
    st.sampled_from((64, 80, 96, 128, 192, 256)), st.floats(0.1, 1.0), st.floats(1.0, 10.0),
)  # fmt: skip
def test_attention_is_lawful(phase, kernel, generation, sizes, head_dim, achievable, factor):
    b, h, q, s = sizes
    devices = silicon(generation, [1e14, factor * 1e14, 1e14], achievable, [1e12, 1e12, factor * 1e12])

    def seconds(b, h, q, s, causal):
        return attention_seconds(phase, kernel, b, h, q, s, head_dim, head_dim, devices, causal=causal)

    causal, full = seconds(*sizes, True), seconds(*sizes, False)
    assert np.all(causal <= full * SLACK)
    products = {"forward": 2, "backward": 4 if kernel == "unfused" else 5}[phase]
    peak_seconds = products * 2 * b * h * q * s * head_dim / devices.matmul_flops_per_second
    assert np.all(full * SLACK >= peak_seconds)
    if kernel != "unfused":
        assert np.all(causal * SLACK >= peak_seconds * (1 - min(q, s) / s / 2))
    for mask, base in ((True, causal), (False, full)):
        assert np.all(base[1:] <= base[0] * SLACK)
        for axis in range(4):
            # By a multiple of 16 bytes: rows that can be loaded in vectors are faster than shorter ones that cannot.
            larger = [one + 104 * (i == axis) for i, one in enumerate(sizes)]
            assert np.all(seconds(*larger, mask) * SLACK >= base)


def test_nothing_to_do_takes_no_time():
    device = silicon()
    for shape in ((0, 8, 8), (8, 0, 8), (8, 8, 0)):
        assert matmul_seconds(*shape, "TN", device)[0] == 0
        assert grouped_matmul_seconds(4, *shape, "NT", device)[0] == 0
    assert matmul_seconds(8, 8, 8, "TN", device, batch=0)[0] == 0
    assert grouped_matmul_seconds(0, 8, 8, 8, "NT", device)[0] == 0
    for kernel in KERNELS:
        for sizes in ((0, 8, 64, 64), (1, 0, 64, 64), (1, 8, 0, 64), (1, 8, 64, 0)):
            assert attention_seconds("backward", kernel, *sizes, 128, 128, device)[0] == 0


def test_columns_give_what_single_jobs_give():
    one, other = silicon("ampere"), silicon("blackwell", 2250e12, 0.776, 7.7e12, 148.0)
    both = silicon(["ampere", "blackwell"], [312e12, 2250e12], [0.81, 0.776], [1.9e12, 7.7e12], [108.0, 148.0])
    m = np.array([[64.0], [4096.0]])
    together = matmul_seconds(m, 512, 1024, "NN", both)
    assert together.shape == (2, 2)
    for column, device in enumerate((one, other)):
        np.testing.assert_allclose(together[:, column], matmul_seconds(m[:, 0], 512, 1024, "NN", device))
    for kernel in KERNELS:
        found = attention_seconds("forward", kernel, 2, 8, m, m, 128, 128, both, kv_heads=2)
        assert found.shape == (2, 2)
        assert found[1, 1] == attention_seconds("forward", kernel, 2, 8, 4096, 4096, 128, 128, other, kv_heads=2)[0]


@pytest.mark.parametrize("row", read_table("matmul")[:1] + read_table("matmul")[-1:], ids=lambda row: row["gpu"])
def test_extremes_are_plausible(row):
    device = silicon_of([row])
    peak = device.matmul_flops_per_second[0] * device.achievable_fraction[0]
    assert 1e-6 < matmul_seconds(64, 64, 64, "TN", device)[0] < 1e-5
    large = matmul_seconds(65536, 28672, 16384, "TN", device)[0]
    assert 0.6 < 2 * 65536 * 28672 * 16384 / large / peak < 1.1
    # One column of a weight moves at the speed of memory.
    thin = matmul_seconds(1, 16384, 16384, "TN", device)[0]
    assert 0.5 < 16384**2 * 2 / thin / device.memory_bytes_per_second[0] <= 1


def test_longer_sequences_and_larger_heads_are_attended_to_more_efficiently():
    device = silicon("hopper", 989e12, 0.80, 3.35e12, 132.0)
    lengths = (512, 2048, 8192, 131072)
    rates = [s * s / attention_seconds("forward", "flash3", 1, 16, s, s, 128, 128, device)[0] for s in lengths]
    assert all(second > first for first, second in pairwise(rates))
    heads = (64, 96, 128)
    rates = [d / attention_seconds("forward", "flash3", 4, 16, 4096, 4096, d, d, device)[0] for d in heads]
    assert all(second > first for first, second in pairwise(rates))


@given(generation, st.sampled_from(PHASES), st.sampled_from(KERNELS[1:]), st.integers(1, 256))
def test_fused_kernels_compute_heads_of_other_sizes_as_the_next_larger_and_pad_misaligned_rows(
    generation, phase, kernel, head_dim
):
    def seconds(size):
        return attention_seconds(phase, kernel, 2, 8, 4096, 4096, size, size, silicon(generation))[0]

    steps = range(16, 257, 16) if kernel == "cudnn" else (32, 64, 96, 128, 192, 256)
    next_larger = next(size for size in steps if size >= head_dim)
    assert seconds(next_larger) * SLACK >= seconds(head_dim) or head_dim % 8
    # Without the copies of padded rows, which move the more the less is computed of them.
    assert seconds(head_dim) > 0.9 * seconds(next_larger)
    if head_dim % 8:
        assert seconds(head_dim) > seconds((head_dim + 7) // 8 * 8)


def test_unfused_attention_of_misaligned_heads_is_slower_than_of_larger_ones():
    for phase in PHASES:
        odd, even = (attention_seconds(phase, "unfused", 4, 16, 2048, 2048, d, d, silicon())[0] for d in (92, 96))
        assert odd > 5 * even


@pytest.mark.parametrize("gpu", ["A100-PCIe-80GB", "H100"])
def test_misaligned_products_take_kernels_of_older_devices(gpu):
    device = silicon_of([{"gpu": gpu}])
    odd, even = (matmul_seconds(8192, 50304, 4096, "TN", device, aligned=flag)[0] for flag in (False, True))
    assert 2 < odd / even < 5
    assert (odd / even > 3) == (gpu == "H100")


@pytest.mark.parametrize(("gpu", "kernel", "bound"), [
    ("A100-PCIe-80GB", "cudnn", 0.05), ("A100-PCIe-80GB", "flash4", 0.08), ("H100-SXM5-80GB", "flash2", 0.04),
    ("H100-SXM5-80GB", "flash3", 0.04), ("H200", "flash4", 0.06), ("B200-SXM-180GB", "flash2", 0.10),
    ("B200-SXM-180GB", "flash4", 0.13),
])  # fmt: skip
def test_one_speed_of_a_kernel_against_the_fitted_one_holds_at_all_shapes(gpu, kernel, bound):
    rows = [row for row in read_table("attention") if row["gpu"] == gpu and row["kernel"] == kernel]
    assert len(rows) >= 8
    assert np.abs(errors(rows)).mean() < bound


@given(generation, width, st.floats(0.1, 3.0), st.floats(0.2, 1.0), layout)
def test_power_and_clock_only_hold_products_down(generation, width, watts, clock, layout):
    free = silicon(generation, width=width)

    def seconds(watts, clock):
        held = replace(free, watts_per_tflops=np.array([watts]), clock_fraction=np.array([clock]))
        products = matmul_seconds(8192, 8192, 8192, layout, held)[0]
        assert products * SLACK >= 2 * 8192**3 / free.matmul_flops_per_second[0]
        return products, attention_seconds("forward", "flash2", 2, 16, 4096, 4096, 128, 128, held)[0]

    assert seconds(0.0, 1.0)[0] == matmul_seconds(8192, 8192, 8192, layout, free)[0]
    for first, second in (((watts, clock), (watts * 1.2, clock)), ((watts, clock), (watts, min(clock * 1.2, 1.0)))):
        for slower, faster in zip(seconds(*first), seconds(*second), strict=True):
            assert faster <= slower * SLACK


@given(st.floats(0.05, 0.87), st.floats(0.05, 20.0), st.floats(0.05, 20.0))
def test_power_that_is_taken_and_given_back_changes_nothing_and_twice_the_power_is_at_most_twice_the_rate(
    share, power, other
):
    found = powered_share(share, power)
    assert found <= CLOCK_SHARE * SLACK
    if power <= 1:
        assert powered_share(found, 1 / power) == pytest.approx(share)
        assert share * power <= found * SLACK <= share * power ** (1 / 3) * SLACK**2
    more = powered_share(share, power * (1 + other))
    assert found <= more * SLACK <= found * (1 + other) * SLACK**2


@pytest.mark.parametrize(("card", "other", "best", "of_other"), [
    # Watts and peaks of two cards of one silicon, and the best products measured on them (ml-engineering).
    ((300, 312), (400, 312), 252.9, 271.2), ((700, 989), (900, 989), 794.5, 828.6),
    ((1000, 2250), (1200, 2500), 1745, 1822), ((1000, 2250), (1200, 2500), 3432.5 / 2, 3615.6 / 2),
])  # fmt: skip
def test_a_board_sustains_as_much_more_as_its_power_allows(card, other, best, of_other):
    power = other[0] / other[1] / (card[0] / card[1])
    predicted = other[1] * float(powered_share(best / card[1], power))
    assert predicted == pytest.approx(of_other, rel=0.1)


@given(st.tuples(size, size, size), layout, generation, width)
def test_training_has_no_bursts_and_tables_show_them_of_short_products_alone(shape, layout, generation, width):
    short = replace(silicon(generation, width=width), is_sustained=False)
    alone, training = (matmul_seconds(*shape, layout, replace(short, is_sustained=one))[0] for one in (False, True))
    assert alone <= training * SLACK
    held = load_constants().get(generation)
    if held and held.sustained_fraction == 1 and width >= 2 and alone > 100 * held.burst_us * 1e-6:
        assert training == pytest.approx(alone, rel=1e-3)
