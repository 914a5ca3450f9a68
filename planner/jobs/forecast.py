"""What rows of a table of runs would take in time and memory: the whole way from columns to a forecast per row."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one row would take, None where it is refused; `seconds` add up to the step, `bytes` to the allocated peak.

    The bands hold 90 % of runs. `reserved_bytes` is what the caching allocator holds, `device_bytes` what the driver
    shows, and `fits` whether the device has that much.
    """

    row_id: str
    refused: str | None = None
    assumptions: tuple[str, ...] = ()
    step_seconds: float | None = None
    low_seconds: float | None = None
    high_seconds: float | None = None
    allocated_bytes: float | None = None
    reserved_bytes: float | None = None
    device_bytes: float | None = None
    low_bytes: float | None = None
    high_bytes: float | None = None
    fits: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)


def forecast(rows: list[dict[str, str]]) -> list[Forecast]:
    """The forecast of every row, in order; a bad row is refused with a reason and stops no other."""
    raise NotImplementedError
