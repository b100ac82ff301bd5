"""What the page's scripts work on, as one compressed text: figures, what their points say, and the data as CSV."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from powerbench.printable import plotly_text, printable
from powerbench.reports.chart import Chart, Point, Series
from powerbench.reports.command import command
from powerbench.reports.hover import hover
from powerbench.reports.phases import PhaseRow
from powerbench.reports.plotly_chart import plotly_figure
from powerbench.reports.rows import Row
from powerbench.results.model import Header


class Payload:
    """Collects while the page is made; page.js reads it by the names that `text` gives."""

    def __init__(self) -> None:
        self._figures: dict[str, Any] = {}
        self._csv: dict[str, str] = {}
        self._about: list[dict[str, str]] = []
        self._facets: list[dict[str, str]] = []
        self._numbers: dict[Any, int] = {}

    def add_figure(self, id: str, chart: Chart, headers: Mapping[str, Header]) -> None:
        """A figure by its place's id on the page. `headers`: of the runs it is of, by the `run` of the series."""

        def about(point: Point, series: Series) -> int | None:
            if point.about is None:
                return self._number({"says": point.says, "case": "", "command": ""}) if point.says else None
            header = headers[series.run]
            # in a bar or a cell the words are written into it
            return self.about(point.about, header, point.words if series.draw not in ("bar", "cell") else "")

        figure = plotly_figure(chart, about)
        self._figures[id] = {**figure, "columns": ["series", chart.x.title or "category", chart.y.title or "category"]}

    def add_csv(self, id: str, text: str) -> None:
        """A file to download, by the id of its button's place."""
        self._csv[id] = text

    def about(self, of: Row | PhaseRow, header: Header, words: str = "") -> int:
        """The number of what a case or a phase says of itself, with the command that measures it again."""
        case, is_phase = (of.case, True) if isinstance(of, PhaseRow) else (of, False)
        # of two runs that measured the same case, each has its own: the headers are other objects
        key = (id(header), case.case_id, of.phase if isinstance(of, PhaseRow) else "", words)
        if key not in self._numbers:
            self._numbers[key] = len(self._about)
            said = hover(of) + (f"<br>{plotly_text(words)}" if words else "")
            again = command(case, header, phases=is_phase)
            self._about.append({"says": said, "case": printable(case.case_id), "command": again})
        return self._numbers[key]

    def _number(self, entry: dict[str, str]) -> int:
        key = ("entry", entry["says"])
        if key not in self._numbers:
            self._numbers[key] = len(self._about)
            self._about.append(entry)
        return self._numbers[key]

    def facets(self, own: Mapping[str, str]) -> int:
        """The number of what the selectors ask of a row, of a setting ..."""
        key = tuple(sorted(own.items()))
        if key not in self._numbers:
            self._numbers[key] = len(self._facets)
            self._facets.append({name: printable(value) for name, value in own.items()})
        return self._numbers[key]

    def text(self) -> str:
        """Base64 of zlib of JSON: no character of it means anything to HTML."""
        found = {"figures": self._figures, "csv": self._csv, "about": self._about, "facets": self._facets}
        return base64.b64encode(zlib.compress(msgspec.json.encode(found), 9)).decode()
