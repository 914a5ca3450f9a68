"""Sentences that people translated: the interface of Django, from the locale files in its wheel (BSD licence)."""

from __future__ import annotations

import functools
import importlib.util
import struct
import zlib
from pathlib import Path

from profiles.errors import EnvironmentFailure

LONGEST = 31
HELD_OUT = 8


@functools.cache
def pairs(language: str, held_out: bool) -> tuple[tuple[str, str], ...]:
    """English sentences of one line and what they are in another language; every eighth is held out.

    Raises: EnvironmentFailure where Django is missing.
    """
    spec = importlib.util.find_spec("django")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFailure("the pairs come from Django: pip install 'trainwright[examples]'")
    found: dict[str, str] = {}
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).rglob(f"locale/{language}/LC_MESSAGES/*.mo")):
            found |= messages(path.read_bytes())
    return tuple(
        (english, other)
        for english, other in sorted(found.items())
        if english != other
        and max(len(english), len(other)) <= LONGEST
        and "\n" not in english + other
        and (zlib.crc32(english.encode()) % HELD_OUT == 0) == held_out
    )


def messages(content: bytes) -> dict[str, str]:
    """What a compiled message file of gettext holds: two tables of lengths and places, singular and plural apart."""
    count, originals, translations = struct.unpack_from("<3I", content, 8)
    found: dict[str, str] = {}
    for index in range(count):
        pair = []
        for table in (originals, translations):
            length, place = struct.unpack_from("<2I", content, table + 8 * index)
            pair.append(content[place : place + length].decode().split("\0"))
        # The first message is the file's header; a context stands before its sentence.
        found |= {english.split("\4")[-1]: other for english, other in zip(*pair, strict=False) if english}
    return found
