"""Polynomials behave like the functions they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from profiles.models.operators import add, constant, evaluate, multiply
from profiles.models.polynomials import fit

terms = st.tuples(st.integers(-50, 50).map(float), st.integers(0, 2), st.integers(0, 2), st.integers(-1, 0))
polynomials = st.lists(terms, max_size=4).map(tuple)
points = st.tuples(st.integers(1, 8), st.integers(1, 64), st.sampled_from([1, 2, 4]))


@given(polynomials, polynomials, points)
def test_sum_and_product_are_those_of_the_values(p, q, point):
    p_value, q_value = float(evaluate(p, *point)), float(evaluate(q, *point))
    scale = 1e-9 * (1 + abs(p_value)) * (1 + abs(q_value)) * 1e3
    assert abs(float(evaluate(add(p, q), *point)) - (p_value + q_value)) <= scale
    assert abs(float(evaluate(multiply(p, q), *point)) - p_value * q_value) <= scale


def test_evaluation_broadcasts():
    assert evaluate(constant(3), [[1], [2]], 5, [1, 2, 4]).shape == (2, 3)


SIZES = ((2, 128, 1), (3, 128, 1), (2, 192, 1), (2, 128, 2))


@given(st.integers(1, 1000), st.integers(0, 2), st.integers(0, 2), st.integers(-1, 0), points)
def test_a_product_of_powers_is_recovered_and_extrapolates(coefficient, i, j, k, point):
    coefficient *= 2  # so that half of it is whole, as a shard is
    values = [round(coefficient * b**i * s**j * float(t) ** k) for b, s, t in SIZES]
    b, s, t = point
    assert abs(float(evaluate(fit(SIZES, values), *point)) / (coefficient * b**i * s**j * float(t) ** k) - 1) < 1e-6


def test_a_sum_of_different_powers_is_recovered():
    values = [7 + 5 * b + 3 * s for b, s, _ in SIZES]
    assert abs(float(evaluate(fit(SIZES, values), 9, 1000, 4)) - (7 + 45 + 3000)) < 1e-6


@given(st.integers(1, 1000), st.integers(1, 1000), st.booleans(), st.booleans(), points)
def test_what_stands_beside_the_tokens_is_told_from_them(per_token, beside, tokens_split, beside_split, point):
    """A weight or a scale beside activations, either of them split over the tensor axis."""
    per_token, beside = 2 * per_token, 2 * beside

    def at(b, s, t):
        return per_token * b * s / (t if tokens_split else 1) + beside / (t if beside_split else 1)

    assert abs(float(evaluate(fit(SIZES, [round(at(*size)) for size in SIZES]), *point)) / at(*point) - 1) < 1e-6
