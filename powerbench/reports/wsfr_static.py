"""The figures of the weight-state ratio as files, by matplotlib: for papers and slides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from powerbench.reports.static import FORMATS
from powerbench.reports.style import Style, context_ticks
from powerbench.reports.text import printable
from powerbench.reports.wsfr import WsfrSection, section
from powerbench.reports.wsfr_figures import CACHES, byte_ticks, ratio_ticks
from powerbench.reports.wsfr_measured import MeasuredSetting
from powerbench.reports.wsfr_rows import Analysis
from powerbench.results.model import Run


def write_static_wsfr(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write the figures of `wsfr.section` into `folder`, which is made, in every format; returns the files.

    Names begin with wsfr and the model. Raises OSError when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for part in section(runs):
        for kind, figure in _figures(part):
            for suffix in FORMATS:
                path = folder / f"wsfr-{_slug(part.model.name)}-{kind}.{suffix}"
                figure.savefig(path, dpi=200, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
    return written


def _figures(part: WsfrSection) -> list[tuple[str, Figure]]:
    look = dict(part.look)
    drawn = [("ratio", _ratio(part.analysis, look)), ("bytes", _bytes(part.analysis, look))]
    drawn += [(f"time-{n}", _measured(setting, look)) for n, setting in enumerate(part.measured, start=1)]
    return drawn


def _ratio(analysis: Analysis, look: Mapping[str, Style]) -> Figure:
    figure = _figure()
    axes = _axes(figure, f"{analysis.model.name}, {analysis.mode}", "context (tokens)", "weight FLOPs / state FLOPs")
    axes.axhline(1, color="0.4")
    for variant in analysis.variants:
        rows = [row for row in analysis.rows if row.attention == variant.name]
        _plot(axes, variant.name, look, [row.ctx for row in rows], [row.wsfr for row in rows])
    _context_ticks(axes, analysis.contexts)
    axes.set_yticks(*ratio_ticks(row.wsfr for row in analysis.rows))
    return _finished(figure)


def _bytes(analysis: Analysis, look: Mapping[str, Style]) -> Figure:
    """State against degree on the left, KV cache against context on the right, on one scale."""
    figure = _figure(width=9.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
    _dress(left, "state against degree", "degree p", f"bytes a sequence ({analysis.dtype})")
    _dress(right, f"{analysis.model.name}: KV cache against context", "context (tokens)", "")
    left.set_xscale("linear")
    for variant in analysis.variants:
        rows = [row for row in analysis.rows if row.attention == variant.name]
        if variant.p is not None:
            _plot(left, variant.name, look, [variant.p], [rows[0].state_bytes])
        elif variant.kind in CACHES:
            _plot(right, variant.name, look, [row.ctx for row in rows], [row.state_bytes for row in rows])
    degrees = [variant.p for variant in analysis.variants if variant.p is not None]
    left.set_xticks(degrees, [str(p) for p in degrees])
    left.margins(x=0.2)
    _context_ticks(right, analysis.contexts)
    left.set_yticks(*byte_ticks(analysis.rows))
    left.minorticks_off()
    return _finished(figure)


def _measured(setting: MeasuredSetting, look: Mapping[str, Style]) -> Figure:
    figure = _figure()
    rows = [row for found in setting.curves.values() for row in found]
    axes = _axes(
        figure, f"{rows[0].model}: {setting.name}", "context (tokens)", "time of weights (at ceiling) / of attention"
    )
    axes.axhline(1, color="0.4")
    for label, found in setting.curves.items():
        _plot(axes, label, look, [row.ctx for row in found], [row.time_ratio for row in found])
        for row in found:
            if row.low is not None and row.high is not None:
                axes.vlines(row.ctx, row.low, row.high, color=look[label].color, linewidth=1)
    _context_ticks(axes, sorted({row.ctx for row in rows}))
    axes.set_yticks(*ratio_ticks(row.time_ratio for row in rows))
    return _finished(figure)


def _plot(axes: Axes, label: str, look: Mapping[str, Style], x: Sequence[float], y: Sequence[float]) -> None:
    style = look[label]
    axes.plot(
        x, y, label=_plain(label), color=style.color, marker=style.marker[1], linestyle=style.dash[1], markersize=5
    )


def _figure(width: float = 7.2) -> Figure:
    return Figure(figsize=(width, 3.8), layout="constrained")


def _axes(figure: Figure, title: str, x_label: str, y_label: str) -> Axes:
    axes = figure.subplots()
    _dress(axes, title, x_label, y_label)
    return axes


def _dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(_plain(title), fontsize=9)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _context_ticks(axes: Axes, contexts: Sequence[int]) -> None:
    axes.set_xticks(*context_ticks(contexts))
    axes.minorticks_off()


def _finished(figure: Figure) -> Figure:
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics, without what no font can show."""
    return printable(text).replace("$", r"\$")


def _slug(text: str) -> str:
    """A file name's part: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
