"""The figures as SVG on the page: what paper shows, and a reader whose scripts are off."""

from __future__ import annotations

from dataclasses import replace

from markupsafe import Markup

from powerbench.reports.chart import Chart
from powerbench.reports.matplotlib_chart import inline_svg

MOST_FIGURES = 24  # each takes about 0.1 s to draw
MOST_BYTES = 700_000  # of all together: the page has to stay under 4 MB
MOST_FAINT = 300  # slower choices in one figure: more are a cloud, and 100 bytes each


class Stills:
    """Draws the figures in the order in which they are taken, until there are as many as a page can bear."""

    def __init__(self) -> None:
        self._figures = 0
        self._bytes = 0

    def take(self, id: str, chart: Chart) -> Markup | None:
        """The chart as an `svg` element whose ids begin with `id`; None where there are too many already."""
        if self._figures >= MOST_FIGURES or self._bytes >= MOST_BYTES:
            return None
        faint = sum(len(series.points) for series in chart.series if series.draw == "faint")
        if faint > MOST_FAINT:
            chart = replace(chart, series=[series for series in chart.series if series.draw != "faint"])
        text = inline_svg(chart, id)
        self._figures += 1
        self._bytes += len(text)
        return Markup(text)
