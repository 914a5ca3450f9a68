"""Is a recipe worth it? What it saves and what it costs, in words. Torch-free."""

from __future__ import annotations

from executor.compress.results import CompressionFile, CompressionResult
from profiles.units import format_percent

# Less than this is no saving; a loss within this of the uncompressed model's is as good.
SAVING, AS_GOOD = 0.05, 0.01


def worth(file: CompressionFile, result: CompressionResult) -> tuple[str, str]:
    """A tone (good, fair, bad) and a sentence: size and latency against the model as it is, loss at equal time.

    Where times are not judged, size alone.
    """
    whole = file.results[0]
    name = result.recipe.name
    if result is whole:
        return "fair", f"{name}: the unchanged model, which the others are compared with"
    smaller = 1 - result.stored_bytes / whole.stored_bytes
    faster = 1 - result.latency_seconds / whole.latency_seconds
    if reason := file.environment.why_not_judged(file.load):
        saved = f", {format_percent(smaller)} smaller" if smaller >= SAVING else ""
        return "fair", f"{name}: not judged ({reason}){saved}"
    gains = [
        f"{format_percent(saved)} {word}"
        for saved, word in ((smaller, "smaller"), (faster, "faster"))
        if saved >= SAVING
    ]
    more = result.loss / result.equal_time_loss - 1
    quality = (
        "as good at equal training time" if abs(more) <= AS_GOOD
        else f"{format_percent(abs(more))} {'more' if more > 0 else 'less'} loss at equal training time"
    )  # fmt: skip
    if not gains:
        return "bad", f"{name}: no, it saves nothing here, {quality}"
    saved = " and ".join(gains)
    if faster <= -SAVING:
        return "fair", f"{name}: a trade, {saved} for {format_percent(-faster)} more latency, {quality}"
    if more <= AS_GOOD:
        return "good", f"{name}: yes, {saved}, {quality}"
    return "fair", f"{name}: a trade, {saved} for {quality}"
