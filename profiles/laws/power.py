"""What power leaves of a chip's peak: how clock, voltage and rate follow the watts of a board."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Products whose clock nothing holds down reach this share of the peak at that clock. Source: the best product of an
# A100 SXM at full clock, 271 of 312 TFLOP/s (stas00/ml-engineering, 2026).
CLOCK_SHARE = 0.87
# Of the voltage at the highest clock, what chips need at least: assumed, 0.7 of 1 V. It was 0.65, and was raised in
# view of boards of less power per FLOP, which sustain less.
SLOWEST_VOLTAGE = 0.7
# Held by power, 8 bits have at most so much of their peak over what 16 bits have of theirs: an H100's best products are
# 1.77 to 1.83 times as fast (ml-engineering, DeepGEMM), typical ones of an MI325X 1.86 times (AMD, October 2026).
LOW_SHARE = 0.92


def powered_share(share: ArrayLike, power: ArrayLike) -> NDArray[np.float64]:
    """Share of the peak that products sustain with `power` times the watts with which they sustain `share`.

    Model: power goes with clock x voltage^2; voltage follows the clock down to SLOWEST_VOLTAGE of that at CLOCK_SHARE
    and stays there. So deep below the peak the rate goes with the power, near it with its cube root.
    """
    clock = np.asarray(share, dtype=np.float64) / CLOCK_SHARE
    drawn = np.asarray(power) * clock * np.maximum(clock, SLOWEST_VOLTAGE) ** 2
    slow, fast = drawn / SLOWEST_VOLTAGE**2, np.cbrt(drawn)
    return np.asarray(CLOCK_SHARE * np.minimum(np.where(drawn < SLOWEST_VOLTAGE**3, slow, fast), 1.0))
