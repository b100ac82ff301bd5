"""The measured ceilings as people read them: best, median, spread, and what the datasheet promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from powerbench.datasheet import DATASHEETS
from powerbench.reports.text import significant
from powerbench.roofline import Ceiling, Ceilings

NAMES = {
    "matmul": "matmul {dtype}",
    "copy": "copy (read + written)",
    "read": "read",
    "l2_read": "L2 read",
    "launch_device": "launch, on the device",
    "launch_host": "launch, on the host",
}
LEGEND = (
    "best: the fastest sample, which the roofline uses; spread: interquartile range over the median. "
    "docs/measuring.md says what each is."
)


class CeilingRow(NamedTuple):
    """One ceiling in words; `datasheet` is empty where there is no figure for it."""

    name: str
    best: str
    median: str
    spread: str
    samples: str
    datasheet: str
    of: str


def ceiling_rows(ceilings: Ceilings, device: str) -> list[CeilingRow]:
    """A row for each ceiling that is stored with its samples. `device` is its name as CUDA reports it."""
    return [_row(ceiling, device) for ceiling in ceilings.measured]


def _row(ceiling: Ceiling, device: str) -> CeilingRow:
    form = _form(ceiling)
    promised = DATASHEETS[device].rate(ceiling) if device in DATASHEETS else None
    return CeilingRow(
        name=ceiling_name(ceiling),
        best=form(ceiling.best_rate),
        median=form(ceiling.median_rate),
        spread="" if ceiling.spread is None else f"{100 * ceiling.spread:.1f} %",
        samples=str(len(ceiling.samples_ms)),
        datasheet="" if promised is None else f"{form(promised)} ({100 * ceiling.best_rate / promised:.0f} % reached)",
        of=ceiling.of,
    )


def ceiling_name(ceiling: Ceiling) -> str:
    """For example: matmul fp32, 1 thread."""
    name = NAMES[ceiling.kind].format(dtype=ceiling.dtype)
    return name if ceiling.threads is None else f"{name}, {ceiling.threads} thread{'s' * (ceiling.threads > 1)}"


def _form(ceiling: Ceiling) -> Callable[[float], str]:
    """How a rate of this kind is written; of launches, the time of one."""
    if ceiling.kind == "matmul":
        return lambda rate: f"{significant(rate / 1e12)} TFLOP/s"
    if ceiling.kind.startswith("launch"):
        return lambda rate: f"{significant(1e6 / rate)} us"
    return lambda rate: f"{significant(rate / 1e9)} GB/s"
