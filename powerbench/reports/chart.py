"""A figure as data: what is drawn where, without a drawing library.

The functions that make figures return a `Chart`; `plotly_chart` turns it into the page's interactive figure and
`matplotlib_chart` into the same figure as SVG, PNG or PDF, so that all of them show the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from powerbench.reports.phases import PhaseRow
from powerbench.reports.rows import Row
from powerbench.reports.style import Style

# line: markers joined over the x axis; points: markers; faint: small pale ones; hollow: outlines; dotted: with a dot in
# the middle; cross: red, not to be trusted; crossing: a large outline, its error bar along x; links: thin lines from
# each even point to the odd one after it; bar: horizontal, stacked, from the category y; mark: a short upright stroke
# across a bar; cell: of a heat map
Draw = Literal["line", "points", "faint", "hollow", "dotted", "cross", "crossing", "links", "bar", "mark", "cell"]


@dataclass(frozen=True)
class Point:
    """A place in a chart. On an axis of categories x or y is the category's number."""

    x: float
    y: float
    about: Row | PhaseRow | None = None  # what it says of itself when pointed at
    low: float | None = None  # of its error bar, along y; of a crossing, along x
    high: float | None = None
    words: str = ""  # said beside `about`; in a bar or a cell, written into it
    value: float | None = None  # of a cell: its shade, 0 for the best
    says: str = ""  # what it says of itself where it is no case of a run: HTML, escaped


@dataclass(frozen=True)
class Series:
    """Points that look alike and are shown or hidden together."""

    name: str
    points: list[Point]
    style: Style
    draw: Draw = "line"
    facets: Mapping[str, str] = field(default_factory=dict)  # what the page's selectors ask: kernel, p, pass ...
    key: bool = True  # does it stand in a legend
    run: str = ""  # where a figure is of several runs: which


@dataclass(frozen=True)
class Axis:
    """One axis. Ticks are (position, text); without any the drawing library chooses."""

    title: str
    kind: Literal["log", "linear", "category"] = "log"
    ticks: tuple[tuple[float, str], ...] = ()
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Rule:
    """A reference line through (x, y) places, such as a ceiling, with its name at one of them."""

    places: tuple[tuple[float, float], ...]
    text: str = ""
    named: int = -1  # the place where the name stands
    below: bool = False  # the name: right of its place and under the line; else left of it and over the line
    dashed: bool = False
    facets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """One figure with the words that stand over it."""

    name: str  # unique within its setting: lower case letters, digits and dashes, nothing that comes from a run
    title: str
    caption: str
    x: Axis
    y: Axis
    series: list[Series]
    rules: tuple[Rule, ...] = ()
    legend: bool = False  # a legend of its own: its series are not contestants, which the page's legend names
    wide: bool = False
    height: int = 340  # pixels on the page

    @property
    def drawn_as(self) -> Literal["xy", "bars", "cells"]:
        """Which of the three kinds of figure this is."""
        kinds = {series.draw for series in self.series}
        return "cells" if "cell" in kinds else "bars" if "bar" in kinds else "xy"
