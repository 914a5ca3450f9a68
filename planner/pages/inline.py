"""A page as a value, for notebooks and programs."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from profiles.files import write_text
from profiles.units import format_bytes

# Of a page in a notebook, in pixels.
FRAME_HEIGHT = 800


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Page:
    """A page as HTML text, which a notebook shows in a frame of its own, called `title`."""

    html: str
    title: str = "plan"

    def __repr__(self) -> str:
        return f"<page of {self.title!r}, {format_bytes(len(self.html.encode()))}>"

    def __str__(self) -> str:
        return self.html

    def _repr_html_(self) -> str:
        size = f'width="100%" height="{FRAME_HEIGHT}"'
        title, text = html.escape(self.title), html.escape(self.html)
        return f'<iframe title="{title}" sandbox="allow-scripts" {size} srcdoc="{text}"></iframe>'

    def save(self, path: str | Path) -> None:
        """Write the page as a file that works offline.

        Raises: EnvironmentFailure where it cannot be written.
        """
        write_text(Path(path), self.html)
