"""How far a long answer is: called with the share that is done and a few words, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

OnProgress = Callable[[float, str], None]
# Hears a sentence that cannot wait for the answer.
OnNote = Callable[[str], None]


def silent(fraction: float, words: str) -> None:
    """Say nothing."""


def unheard(words: str) -> None:
    """Say nothing either."""


def pieces(on_progress: OnProgress, weights: Sequence[float]) -> Iterator[OnProgress]:
    """Shares of one progress for pieces of work that come one after the other and take as long as their weights say."""
    total, before = sum(weights), 0.0
    for weight in weights:
        yield _piece(on_progress, before / total, weight / total)
        before += weight


def _piece(on_progress: OnProgress, start: float, share: float) -> OnProgress:
    return lambda fraction, words: on_progress(start + share * fraction, words)
