"""Boards without tables by shape: what they sustain, against the products that their sustained share was set by.

It is one share for both precisions, and shapes are another generation's: neither rate need come out.
"""

import numpy as np
import pytest

from planner.cost.hardware import silicon_at
from profiles.laws.kernels import matmul_seconds
from profiles.machines.devices import load_device

# Ten products of DeepSeek V3 (rows, columns, inner size), each run for 30 s on an MI325X, and their FLOPs over the sum
# of their times. Source: ROCm/rocm-blogs, taf-blog (October 2026).
ROWS = (32, 32_768)
WEIGHTS = ((2112, 7168), (3072, 1536), (7168, 2048), (4608, 7168), (7168, 256))
TYPICAL = {"bf16": 616e12, "fp8": 1143e12}


@pytest.mark.parametrize("precision", TYPICAL)
def test_typical_products_of_an_amd_board_take_what_amd_measured(precision):
    shapes = np.array([(m, n, k) for m in ROWS for n, k in WEIGHTS], dtype=float)
    seconds = matmul_seconds(*shapes.T, "TN", silicon_at(load_device("mi325x"), precision))
    rate = 2 * shapes.prod(axis=1).sum() / seconds.sum()
    assert rate == pytest.approx(TYPICAL[precision], rel=0.12)
