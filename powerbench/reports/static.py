"""The page's figures as files: PNG and SVG by matplotlib, for papers and slides. No pyplot, so no global state."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from powerbench.crossover import context_text
from powerbench.reports.curves import SOFTMAX, Curve, Group, best_of, by_time, compare, groups, setting_names
from powerbench.reports.phases import (
    PhaseRow,
    PhasesByCase,
    curves_with_phases,
    phase_names,
    phase_rows,
    placed_phases,
)
from powerbench.reports.rows import Row, rows
from powerbench.reports.style import Style, context_ticks, roof_axes, styles, tint
from powerbench.reports.text import printable, si, significant
from powerbench.reports.tiles import TileMap, tile_maps
from powerbench.results.model import Run
from powerbench.roofline import Ceilings

FORMATS = ("png", "svg")


def write_static(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write every figure of every run, each as PNG and SVG, into `folder`, which is made; returns the files.

    Names begin with the setting, with several runs with the run's number. A run without a time to trust gives no
    figures. Raises OSError when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, run in enumerate(runs, start=1):
        prefix = f"run{number}-" if len(runs) > 1 else ""
        written += _write_run(run, folder, prefix)
    return written


def _write_run(run: Run, folder: Path, prefix: str) -> list[Path]:
    found = groups(rows(run))
    look, phases = styles(found), phase_rows(run)
    written = []
    for group, name in zip(found, setting_names(found), strict=True):
        for kind, figure in _figures(group, name, run.ceilings, look, phases):
            for suffix in FORMATS:
                path = folder / f"{prefix}{_slug(name)}-{kind}.{suffix}"
                figure.savefig(path, dpi=200, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
    return written


def _figures(
    group: Group, name: str, ceilings: Ceilings, look: Mapping[str, Style], phases: PhasesByCase
) -> list[tuple[str, Figure]]:
    if not group.curves:
        return []
    best = best_of(group.curves, SOFTMAX)

    def ratio(row: Row) -> float | None:
        softmax = best.get(row.ctx)
        return softmax.median_ms / row.median_ms if softmax and softmax.median_ms and row.median_ms else None

    if len({row.ctx for curve in group.curves for row in curve.points.values()}) == 1:
        drawn = [("ranking", _ranking(group, name, look))]
    else:
        drawn = [
            ("latency", _over_context(group, name, "time (ms)", lambda row: row.median_ms, look)),
            ("throughput", _over_context(group, name, "tokens/s", lambda row: row.tokens_per_s, look)),
        ]
    if len(best) > 1:
        figure = _over_context(group, name, "times as fast as the best softmax", ratio, look)
        _add_crossings(figure.axes[0], group, best, look)
        drawn.append(("speedup", figure))
    if any(row.roof_fraction is not None for row in group.rows):
        drawn.append(("roofline", _roofline(group, name, ceilings, look, phases)))
    for curve, members in curves_with_phases(group, phases):
        drawn.append((f"phases-{_slug(curve.label)}", _phase_bars(curve, members, name, look[curve.label])))
    for label, maps in groupby(tile_maps(group.rows), key=lambda tiles: tiles.label):
        drawn.append((f"tiles-{_slug(label)}", _tiles(list(maps), f"{label}: {name}")))
    return drawn


def _ranking(group: Group, name: str, look: Mapping[str, Style]) -> Figure:
    figure, axes = _log_log(name, "time (ms)", "")
    axes.set_xscale("linear")
    axes.set_yscale("linear")
    found = by_time(group)
    times = [next(iter(curve.points.values())).median_ms or 0.0 for curve in found]
    bars = axes.barh(
        [_plain(curve.label) for curve in found], times, color=[look[curve.label].color for curve in found]
    )
    axes.bar_label(bars, [f"{significant(time)} ms" for time in times], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return figure


def _over_context(
    group: Group, name: str, y_label: str, value: Callable[[Row], float | None], look: Mapping[str, Style]
) -> Figure:
    figure, axes = _log_log(name, "context (tokens)", y_label)
    for curve in group.curves:
        points = [(row, value(row)) for row in curve.points.values()]
        known = [(row, y) for row, y in points if y is not None]
        style = look[curve.label]
        axes.plot(
            [row.ctx for row, _ in known],
            [y for _, y in known],
            label=_plain(curve.label),
            color=style.color,
            marker=style.marker[1],
            linestyle=style.dash[1],
            markersize=5,
        )
        if y_label == "time (ms)":
            _add_intervals(axes, curve, style)
    ticks, texts = context_ticks(row.ctx for row in group.rows)
    axes.set_xticks(ticks, texts)
    axes.minorticks_off()
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def _add_intervals(axes: Axes, curve: Curve, style: Style) -> None:
    for row in curve.points.values():
        if row.interval_ms:
            axes.vlines(row.ctx, *row.interval_ms, color=style.color, linewidth=1)


def _add_crossings(axes: Axes, group: Group, best: dict[int, Row], look: Mapping[str, Style]) -> None:
    """On the line of equal speed: where a curve crosses it, with the interval."""
    axes.axhline(1, color="0.5", linewidth=0.8)
    for curve in group.curves:
        style = look[curve.label]
        for crossing in compare(curve.points, best).crossings if curve.family not in SOFTMAX else ():
            axes.plot(crossing.at, 1, style.marker[1], color=style.color, markerfacecolor="none", markersize=8)
            axes.hlines(1, crossing.low or crossing.at, crossing.high or crossing.at, color=style.color, linewidth=3)


def _roofline(group: Group, name: str, ceilings: Ceilings, look: Mapping[str, Style], phases: PhasesByCase) -> Figure:
    peak = ceilings.matmul_flops_per_s[group.setting.dtype] / 1e12
    placed = [(row, row.intensity, row.executed_tflops) for row in group.rows]
    points = [(row, x, y) for row, x, y in placed if x and y]
    apart = [(curve, placed_phases(members)) for curve, members in curves_with_phases(group, phases)]
    parts = [(phase.intensity or 1, phase.executed_tflops or 1) for _, members in apart for phase in members]
    limits = roof_axes(peak, ceilings.copy_bytes_per_s, [*((x, y) for _, x, y in points), *parts])
    figure, axes = _log_log(name, "executed FLOP per byte", "executed TFLOP/s")
    low, high = limits.intensity
    axes.plot([low, limits.ridge, high], [low * ceilings.copy_bytes_per_s / 1e12, peak, peak], color="0.4")
    axes.text(high, peak * 1.15, f"{group.setting.dtype} matmul {significant(peak)} TFLOP/s ", ha="right", fontsize=8)
    axes.text(limits.ridge / 1.4, peak, f"copy {si(ceilings.copy_bytes_per_s, ' ')}B/s", ha="right", fontsize=8)
    for curve in group.curves:
        style = look[curve.label]
        own = [(x, y) for row, x, y in points if row.valid and (row.kernel, row.p) == (curve.kernel, curve.p)]
        if own:
            axes.plot(
                *zip(*own, strict=True), style.marker[1], color=style.color, label=_plain(curve.label), markersize=4
            )
    for curve, members in apart:
        _add_phases(axes, curve, members, look[curve.label])
    invalid = [(x, y) for row, x, y in points if not row.valid]
    if invalid:
        axes.plot(*zip(*invalid, strict=True), "x", color="#D00000", label="above the roof: invalid")
    axes.set_xlim(*limits.intensity)
    axes.set_ylim(*limits.tflops)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def _add_phases(axes: Axes, curve: Curve, members: Sequence[PhaseRow], style: Style) -> None:
    """Hollow points, those of the longest context with their names."""
    longest = max((phase.case.ctx for phase in members), default=0)
    for phase in members:
        x, y = phase.intensity or 1, phase.executed_tflops or 1
        axes.plot(x, y, style.marker[1], color=style.color, markerfacecolor="none", markersize=3, markeredgewidth=0.7)
        if phase.case.ctx == longest:
            axes.annotate(_plain(phase.phase), (x, y), xytext=(4, -2), textcoords="offset points", fontsize=6)


def _phase_bars(curve: Curve, points: Sequence[Sequence[PhaseRow]], name: str, style: Style) -> Figure:
    """A bar for each context, made of the phases' shares of the whole call's time."""
    figure, axes = _log_log(f"{curve.label}: {name}", "share of the whole call's time (%)", "")
    axes.set_xscale("linear")
    axes.set_yscale("linear")
    ends = [0.0] * len(points)
    for number, phase in enumerate(phase_names(points)):
        shares = [next((100 * (m.share or 0) for m in members if m.phase == phase), 0.0) for members in points]
        color = tint(style.color, number)
        axes.barh(range(len(points)), shares, left=ends, label=_plain(phase), color=color, edgecolor="white")
        ends = [end + share for end, share in zip(ends, shares, strict=True)]
    axes.axvline(100, color="0.4")
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(points)), [context_text(members[0].case.ctx) for members in points])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def _tiles(maps: Sequence[TileMap], title: str) -> Figure:
    """One heat map a context, four in a line: the brighter, the nearer to the best, which has a star."""
    across = min(len(maps), 4)
    down = math.ceil(len(maps) / across)
    figure = Figure(figsize=(0.6 + 2.2 * across, 0.6 + 2.2 * down), layout="constrained")
    figure.suptitle(_plain(title), fontsize=9)
    places = figure.subplots(down, across, squeeze=False).ravel()
    for unused in places[len(maps) :]:
        unused.set_axis_off()
    for axes, tiles in zip(places, maps, strict=False):
        prices = [
            [_price_percent(tiles, tiles.cells.get((d_tile, chunk))) for chunk in tiles.chunks]
            for d_tile in tiles.d_tiles
        ]
        axes.imshow(prices, cmap="cividis_r", aspect="auto", vmin=0)
        axes.set_title(f"{context_text(tiles.ctx)} tokens", fontsize=9)
        axes.set_xticks(range(len(tiles.chunks)), [str(chunk or "-") for chunk in tiles.chunks], fontsize=8)
        axes.set_yticks(range(len(tiles.d_tiles)), [str(d_tile or "-") for d_tile in tiles.d_tiles], fontsize=8)
        axes.set_xlabel("chunk", fontsize=8)
        axes.set_ylabel("d_tile", fontsize=8)
        best = (tiles.chunks.index(tiles.best.chunk_size), tiles.d_tiles.index(tiles.best.d_tile))
        axes.plot(*best, marker="*", color="#D55E00", markersize=12)
    return figure


def _price_percent(tiles: TileMap, row: Row | None) -> float:
    """NaN, which is drawn as a blank, where there is no time."""
    price = tiles.price(row) if row is not None else None
    return float("nan") if price is None else 100 * price


def _log_log(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_plain(title), fontsize=9)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics, without what no font can show."""
    return printable(text).replace("$", r"\$")


def _slug(text: str) -> str:
    """A file name's part: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("+", " plus ")).strip("-") or "figure"
