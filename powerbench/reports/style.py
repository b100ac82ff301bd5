"""How a contestant looks, the same in every figure of a page: colour, marker and dash. And how axes are ticked.

Colours are those of Okabe and Ito that can be read on white and on black, told apart by the colour-blind, and a violet
and a brown for the eighth and ninth contestant; marker and dash say the same again for a print in grey.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from powerbench.crossover import context_text
from powerbench.reports.curves import Group

COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#7D4F9E", "#8A5A2B")
# plotly's name, matplotlib's marker, and the outline for the page's legend in a box of 12 by 12
MARKERS = (
    ("circle", "o", "M6 2a4 4 0 1 0 .01 0z"),
    ("square", "s", "M2.5 2.5h7v7h-7z"),
    ("diamond", "D", "M6 1l5 5-5 5-5-5z"),
    ("triangle-up", "^", "M6 1.5l5 9H1z"),
    ("triangle-down", "v", "M6 10.5l5-9H1z"),
    ("hexagon", "h", "M6 1l4.3 2.5v5L6 11 1.7 8.5v-5z"),
    ("star", "*", "M6 .5l1.5 3.8 4 .3-3.1 2.6 1 4L6 9l-3.4 2.2 1-4L.5 4.6l4-.3z"),
    ("cross", "P", "M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z"),
)
# plotly's name, matplotlib's, and SVG's
DASHES = (("solid", "-", ""), ("dash", "--", "5 3"), ("dot", ":", "1.5 2.5"), ("dashdot", "-.", "5 2 1.5 2"))


class Style(NamedTuple):
    """One contestant's look."""

    color: str
    marker: tuple[str, str, str]
    dash: tuple[str, str, str]


def styles(found: Sequence[Group]) -> dict[str, Style]:
    """A style for each curve's label over all settings of a run, in the order of the curves; no two alike up to 72."""
    labels = dict.fromkeys(curve.label for group in found for curve in group.curves)
    return {
        label: Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], DASHES[(i // len(COLORS)) % len(DASHES)])
        for i, label in enumerate(labels)
    }


# How much of a contestant's colour its first, second ... phase has: neighbours differ, in a print in grey too.
_STRENGTHS = (1.0, 0.4, 0.75, 0.2, 0.9, 0.3, 0.6, 0.12)


def tint(color: str, number: int) -> str:
    """A contestant's colour (#rrggbb) for the phase of this number, mixed with white."""
    strength = _STRENGTHS[number % len(_STRENGTHS)]
    parts = (round(255 - strength * (255 - int(color[i : i + 2], 16))) for i in (1, 3, 5))
    return f"#{''.join(f'{part:02x}' for part in parts)}"


def is_dark(color: str) -> bool:
    """Whether white is easier to read on this colour (#rrggbb) than black."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


TICKS = 9  # as many labels of contexts fit under a figure on a phone


def context_ticks(contexts: Iterable[int]) -> tuple[list[int], list[str]]:
    """Ticks for a logarithmic context axis: the measured contexts, less those too near to others to be written.

    Powers of two are kept before others, as `--refine` measures them in between; the ends before all.
    """
    measured = sorted(set(contexts))
    room = math.log(measured[-1] / measured[0]) / TICKS if measured else 0.0
    ticks: list[int] = []
    for tick in sorted(measured, key=lambda one: (one not in (measured[0], measured[-1]), one & (one - 1) != 0, one)):
        if all(abs(math.log(tick / other)) >= room * 0.999 for other in ticks):
            ticks.append(tick)
    ticks.sort()
    return ticks, [context_text(tick) for tick in ticks]


class RoofAxes(NamedTuple):
    """The roofline's axes: whole decades around the ridge, so that pages of one machine lay over each other."""

    intensity: tuple[float, float]  # FLOP/byte
    tflops: tuple[float, float]
    ridge: float  # intensity where the two ceilings meet


def roof_axes(peak_tflops: float, memory_bytes_per_s: float, points: Iterable[tuple[float, float]]) -> RoofAxes:
    """Fixed by the ceilings, widened by whole decades only where a point (intensity, TFLOP/s) lies outside."""
    ridge = peak_tflops * 1e12 / memory_bytes_per_s
    x = [math.floor(math.log10(ridge)) - 1, math.floor(math.log10(ridge)) + 3]
    decade = 10.0 ** math.floor(math.log10(1.3 * peak_tflops))
    top = next(step * decade for step in (2, 5, 10) if step * decade > 1.3 * peak_tflops)
    y = [top / 200, top]
    for intensity, tflops in points:
        x = [min(x[0], math.floor(math.log10(intensity))), max(x[1], math.ceil(math.log10(intensity)))]
        while tflops < y[0]:
            y[0] /= 10
        while tflops > y[1]:
            y[1] *= 10
    return RoofAxes((10.0 ** x[0], 10.0 ** x[1]), (y[0], y[1]), ridge)
