"""Python's own help as text to learn from: it comes with every Python, half a megabyte in 79 topics."""

from __future__ import annotations

import functools
import importlib
import re

from profiles.errors import InputError

# Of each so many topics one is held out.
HELD_OUT = 8


@functools.cache
def topics(held_out: bool) -> tuple[str, ...]:
    """Texts of the topics, in the order of their names. What is for training has no paragraph of those held out.

    Raises: InputError where this Python has none.
    """
    try:
        found: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise InputError("this Python has no pydoc_data.topics, the text of this example") from None
    texts = [found[name] for name in sorted(found)]
    unseen = texts[::HELD_OUT]
    if held_out:
        return tuple(unseen)
    hidden = {paragraph for text in unseen for paragraph in text.split("\n\n")}
    return tuple(
        "\n\n".join(paragraph for paragraph in text.split("\n\n") if paragraph not in hidden)
        for place, text in enumerate(texts)
        if place % HELD_OUT
    )


@functools.cache
def words(held_out: bool) -> tuple[str, ...]:
    """Words and marks of the topics, one after another."""
    return tuple(re.findall(r"\w+|[^\w\s]", "\n".join(topics(held_out))))
