"""Values of other software's files that nobody is shown, nor a plan file stores: passwords, tokens, keys."""

from __future__ import annotations

import re

HIDDEN = "(hidden)"
# By the last word of a name: a number of tokens is none.
WORDS = r"(?:token|secret|password|passwd|credentials?|(?:api|access|secret|private|auth)[-_]?key)"
NAME = re.compile(rf"(?:.*[-_.])?{WORDS}", re.IGNORECASE)
WITHIN = re.compile(rf"((?:\b|[\w-]*[-_]){WORDS}(?:=|\s+))(\"[^\"]*\"|'[^']*'|[^\s\"']+)", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a setting of such a name may hold a secret."""
    return bool(NAME.fullmatch(name))


def without_secrets(text: str) -> str:
    """A command with the values of such settings left out."""
    return WITHIN.sub(rf"\1{HIDDEN}", text)
