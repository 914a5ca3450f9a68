"""How each part of a step and each kind of memory is drawn, in the figures of plans and of runs."""

from __future__ import annotations

from typing import Final

from planner.parts import PARTS
from profiles.pages.figures import Style

# What could not be split further, and what was measured as a whole.
NOT_SPLIT: Final = "not_split"
MEASURED_PEAK: Final = "measured_peak"

# Colour and pattern of each part of a step.
PART_FILLS: Final = {
    "compute": ("#0072B2", ""),
    "recompute": ("#56B4E9", ""),
    "bubble": ("#BDBDBD", "."),
    "tensor_comm": ("#D55E00", ""),
    "context_comm": ("#F0B08A", "/"),
    "expert_comm": ("#A33F00", "\\"),
    "data_comm": ("#E69F00", "/"),
    "pipeline_comm": ("#C9B400", "\\"),
    "codec": ("#CC79A7", ""),
    "offload": ("#117733", "x"),
    "optimizer": ("#009E73", ""),
    "host": ("#7B4FA3", ""),
    "stragglers": ("#8C8C8C", "/"),
}
PART_STYLES: Final[dict[str, Style]] = {
    **{part.name: Style(part.title, *PART_FILLS[part.name]) for part in PARTS},
    NOT_SPLIT: Style("not split further", "#9E9E9E", "x"),
}
KIND_STYLES: Final[dict[str, Style]] = {
    "parameters": Style("parameters", "#0072B2"),
    "gradients": Style("gradients", "#E69F00"),
    "optimizer": Style("optimizer state", "#009E73"),
    "activations": Style("activations", "#D55E00"),
    "buffers": Style("buffers", "#CC79A7"),
    "slack": Style("slack", "#BDBDBD", "."),
    "outside": Style("outside torch", "#8C8C8C", "/"),
    NOT_SPLIT: Style("not split further", "#9E9E9E", "x"),
    MEASURED_PEAK: Style("measured peak", "#7B4FA3"),
}
