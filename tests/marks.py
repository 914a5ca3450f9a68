"""Marks of cases."""

import pytest
from _pytest.mark import ParameterSet


def slow(*values: object) -> ParameterSet:
    """A case for `make test-all` alone, where another one says nearly as much in less time."""
    return pytest.param(*values, marks=pytest.mark.slow)
