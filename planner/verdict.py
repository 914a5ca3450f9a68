"""Why a plan won or lost against the best one, in a few words."""

from __future__ import annotations

import numpy as np

from planner.parts import PART_TITLES
from planner.plans import Plan
from planner.prediction import Prediction
from profiles.codecs.codec import codec
from profiles.units import format_bytes, format_percent, format_seconds

CLOSE_FRACTION = 0.01


def verdict(memory_bytes: float, best: Prediction, other: Prediction, plan: Plan, is_best: bool) -> str:
    """Why this plan won or lost, in a few words."""
    if not other.fits:
        over = other.peak_bytes - memory_bytes
        stage = int(np.argmax(other.stage_peak_bytes))
        return f"{format_bytes(over)} over memory on stage {stage}"
    if is_best:
        largest = max(other.seconds, key=lambda part: other.seconds[part] if part != "compute" else -1.0)
        return f"fastest; most lost to {PART_TITLES[largest]}" if other.seconds[largest] > 0 else "fastest"
    lost = {part: other.seconds[part] - best.seconds[part] for part in other.seconds}
    worst, least = max(lost, key=lambda part: lost[part]), min(lost, key=lambda part: lost[part])
    behind = other.step_seconds / best.step_seconds - 1
    words = f"+{format_seconds(lost[worst])} {PART_TITLES[worst]}" if lost[worst] > 0 else "equal parts"
    if behind < -CLOSE_FRACTION:
        # The best of those that may be chosen: this one may not.
        words = f"{format_percent(-behind)} faster than the best; -{format_seconds(-lost[least])} {PART_TITLES[least]}"
    elif behind <= CLOSE_FRACTION:
        words = f"as fast within {CLOSE_FRACTION:.0%}; {words}"
    return words + (" (lossy gradients)" if codec(plan.codec).lossy else "")
