"""Compressed models in words, for a terminal and a page alike."""

from __future__ import annotations

from planner.compression.recipes import CompressionChoice
from profiles.units import format_bytes, format_count, format_seconds

NUMBERS = ("parameters", "stored", "step", "latency")
QUALITY = "quality risk, and limits"
FRONT = "no other is at least as good in training step, stored bytes and latency of one sample"
MISSES = "misses a target"
JUDGED_BY = "quality is measured by: execute PLAN --compress"


def marked(choice: CompressionChoice, front: str, misses: str) -> str:
    """`front` of what no other beats, `misses` of what is too large or too slow for what was asked, else nothing."""
    if choice.refusal:
        return ""
    if not choice.meets_targets:
        return misses
    return front if choice.on_front else ""


def cells(choice: CompressionChoice) -> tuple[str, ...]:
    """The numbers, then the words about quality, or why the recipe is refused."""
    if choice.refusal:
        return ("",) * len(NUMBERS) + (f"refused: {choice.refusal}",)
    return (
        format_count(choice.num_parameters),
        format_bytes(choice.stored_bytes),
        format_seconds(choice.step_seconds),
        "?" if choice.latency_seconds is None else format_seconds(choice.latency_seconds),
        "; ".join(words for words in (choice.risk, choice.note) if words),
    )
