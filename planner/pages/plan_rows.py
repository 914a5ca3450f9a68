"""The plans of a page as records: what its filters choose from, what its table says, and which no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from planner.pages.content import Content
from planner.prediction import Candidate, Prediction
from planner.terminal.show_answers import like_it
from planner.terminal.show_cost import dollars_words
from profiles.units import format_bytes, format_count, format_days, format_percent, format_seconds, rate_of

# What can be chosen by: the name in records, and what the reader sees.
FILTERS: Final = {
    "data": "data", "tensor": "tensor", "context": "context", "expert": "expert", "pipeline": "pipeline",
    "zero": "ZeRO", "recompute": "recomputation", "schedule": "schedule", "precision": "precision",
    "codec": "gradient codec", "offload": "offloading",
}  # fmt: skip
RISING: Final = ("none", "no pipeline", "selective", "some layers", "full")
AXES: Final = ("data", "tensor", "context", "expert", "pipeline")


def records(content: Content) -> list[dict[str, Any]]:
    """One record per plan, those of the table first, in JSON types."""
    plans = content.plans
    beaten = on_front([(own.prediction.step_seconds, own.prediction.peak_bytes) for own in plans])
    in_table = len(content.file.candidates)
    return [
        {
            "rank": own.rank,
            "id": own.plan.id,
            **_choices(own),
            "step_seconds": own.prediction.step_seconds,
            "low_seconds": own.prediction.low_seconds,
            "high_seconds": own.prediction.high_seconds,
            "peak_bytes": own.prediction.peak_bytes,
            "fits": own.prediction.fits,
            "tokens_per_second": own.prediction.tokens_per_second,
            "mfu": own.prediction.mfu,
            "why": own.verdict + like_it(own),
            "in_table": index < in_table,
            "folded_into": own.folded_into,
            "executable": own.executable,
            "on_front": beaten[index] and own.prediction.fits,
            **money(content, own.prediction),
        }
        for index, own in enumerate(plans)
    ]


def _choices(candidate: Candidate) -> dict[str, Any]:
    plan = candidate.plan
    return {
        "data": plan.data_parallel,
        "tensor": plan.tensor_parallel,
        "context": plan.context_parallel,
        "expert": plan.expert_parallel,
        "pipeline": plan.pipeline_parallel,
        "zero": plan.zero_stage,
        "recompute": "some layers" if plan.recompute == "full" and plan.recompute_layers else plan.recompute,
        "schedule": plan.schedule if plan.pipeline_parallel > 1 else "no pipeline",
        "precision": plan.precision,
        "codec": plan.codec,
        "offload": plan.offload,
        "micro_batch": plan.micro_batch_size,
    }


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other plan is better in one of time and memory and at least as good in the other."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    result, least, same = [False] * len(points), float("inf"), None
    for index in order:
        result[index] = points[index][1] < least or points[index] == same
        if result[index]:
            least, same = points[index][1], points[index]
    return result


def money(content: Content, own: Prediction) -> dict[str, float]:
    """Days and the lowest and highest dollars of a plan for the tokens asked about; all plans take all devices."""
    cost, best = content.file.answers.cost, content.best.prediction
    if cost is None:
        return {}
    longer = best.tokens_per_second / own.tokens_per_second
    found = {"days": cost.days * longer}
    if cost.dollars is not None:
        found |= {"dollars": cost.dollars[0] * longer, "most_dollars": cost.dollars[1] * longer}
    return found


def filters(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[Any]]]:
    """What can be chosen: name, title and values; what is the same for all plans is no choice."""
    found = []
    for name, title in FILTERS.items():
        values = sorted({row[name] for row in rows}, key=lambda value: (_place(value), value))
        if len(values) > 1:
            found.append((name, title, values))
    return found


def _place(value: Any) -> int:
    """Words that mean more of a thing follow those that mean less; numbers stand by their size."""
    return RISING.index(value) if value in RISING else len(RISING)


def band_words(own: Prediction) -> str:
    """Half of the band, as a share of the step."""
    return f"±{(own.high_seconds - own.low_seconds) / 2 / own.step_seconds:.0%}".replace("%", " %")


def cells(content: Content, own: Candidate) -> list[str]:
    """The cells of a plan in the page's table, beside its rank and name."""
    file, prediction = content.file, own.prediction
    _, rate = rate_of(prediction.tokens_per_second, file.sequence_length, file.size_unit)
    result = [
        format_seconds(prediction.step_seconds), format_count(rate), format_percent(prediction.mfu),
        format_bytes(prediction.peak_bytes),
    ]  # fmt: skip
    spent = money(content, prediction)
    if "days" in spent:
        result.append(format_days(spent["days"]))
    if "dollars" in spent:
        result.append(dollars_words(spent["dollars"], spent["most_dollars"]))
    return result


def header(content: Content) -> list[str]:
    """The names of those cells."""
    file, cost = content.file, content.file.answers.cost
    names = ["step", rate_of(0.0, file.sequence_length, file.size_unit)[0], "MFU", "memory"]
    if cost is not None:
        names.append("training")
        names += ["money"] if cost.dollars is not None else []
    return names
