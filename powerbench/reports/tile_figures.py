"""What d_tile and chunk cost: heat maps of the time, and of each d_tile the work that it adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from powerbench.crossover import context_text, percent_text
from powerbench.reports.chart import Axis, Chart, Point, Series
from powerbench.reports.curves import Curve, Group
from powerbench.reports.facets import facets
from powerbench.reports.rows import Row
from powerbench.reports.style import Style, tint
from powerbench.reports.text import significant
from powerbench.reports.tiles import TileMap, tile_maps


def tile_charts(group: Group, look: Mapping[str, Style]) -> list[Chart]:
    """A heat map for each contestant and context that was measured at several choices, the largest context first."""
    result = []
    for number, (_, maps) in enumerate(groupby(tile_maps(group.rows), key=lambda tiles: tiles.label), start=1):
        result += [_heat_map(number, tiles, group, look) for tiles in sorted(maps, key=lambda tiles: -tiles.ctx)]
    return result


def _heat_map(number: int, tiles: TileMap, group: Group, look: Mapping[str, Style]) -> Chart:
    best = tiles.best
    points = []
    for (d_tile, chunk), row in tiles.cells.items():
        price = tiles.price(row)
        if price is None:
            text = "invalid" if row.status == "ok" else row.status
        else:
            text = f"{significant(row.median_ms or 0)}\n{'★ best' if row is best else f'+{percent_text(price)}'}"
        place = tiles.chunks.index(chunk), tiles.d_tiles.index(d_tile)
        points.append(Point(*place, row, words=text, value=price))
    own = facets(Curve(best.kernel, best.p, best.family, {}), group.setting)
    return Chart(
        f"tiles-{number}-{tiles.ctx}",
        f"d_tile by chunk at {context_text(tiles.ctx)} tokens: {tiles.label}",
        f"Median in ms, and how much longer it takes than the best ({best.params_text}); the paler, the nearer to it.",
        Axis("chunk (tokens)", "category", _ticks(tiles.chunks)),
        Axis("d_tile", "category", _ticks(tiles.d_tiles)),
        [Series(tiles.label, points, look[tiles.label], "cell", own, key=False)],
        height=130 + 46 * len(tiles.d_tiles),
    )


def work_by_tile(group: Group, look: Mapping[str, Style]) -> list[Chart]:
    """Useful and executed FLOPs of a call by d_tile, at the largest context, each d_tile with its fastest chunk."""
    result = []
    for number, curve in enumerate(group.curves, start=1):
        own = [row for row in group.rows if (row.kernel, row.p) == (curve.kernel, curve.p) and row.d_tile is not None]
        tiles = _fastest_by_tile([row for row in own if row.valid and row.useful_tflops and row.executed_tflops])
        if len(tiles) > 1:
            result.append(_work(f"work-{number}", curve, group, look[curve.label], tiles))
    return result


def _fastest_by_tile(own: Sequence[Row]) -> list[Row]:
    """At the largest context the fastest row of each d_tile, by d_tile."""
    ctx = max((row.ctx for row in own), default=0)
    best: dict[int, Row] = {}
    for row in sorted((row for row in own if row.ctx == ctx), key=lambda row: row.median_ms or 0.0):
        best.setdefault(row.d_tile or 0, row)
    return [best[tile] for tile in sorted(best)]


def _work(name: str, curve: Curve, group: Group, style: Style, tiles: Sequence[Row]) -> Chart:
    def tflop(rate: float | None, row: Row) -> float:
        return (rate or 0.0) * (row.median_ms or 0.0) / 1e3

    useful, more = [], []
    for place, row in enumerate(tiles):
        wanted, done = tflop(row.useful_tflops, row), tflop(row.executed_tflops, row)
        text = f"{significant(wanted)} TFLOP useful, {percent_text(wanted / done)} of {significant(done)} executed"
        chunk = f"chunk {row.chunk_size}: {significant(row.median_ms or 0)} ms"
        useful.append(Point(wanted, place, row, words=text))
        more.append(Point(max(done - wanted, 0.0), place, row, words=chunk))
    own = facets(curve, group.setting)
    return Chart(
        name,
        f"Useful and executed work by d_tile at {context_text(tiles[0].ctx)} tokens: {curve.label}",
        "A larger d_tile keeps redundant products: the state grows and more is multiplied than the mathematics needs. "
        "Each with its fastest chunk and the time of that.",
        Axis("TFLOP of a call", "linear"),
        Axis("d_tile", "category", tuple((i, str(row.d_tile)) for i, row in enumerate(tiles))),
        [
            Series("useful", useful, style, "bar", own),
            Series("executed beyond it", more, style._replace(color=tint(style.color, 1)), "bar", own),
        ],
        legend=True,
        height=150 + 34 * len(tiles),
    )


def _ticks(values: Sequence[int | None]) -> tuple[tuple[float, str], ...]:
    return tuple((i, "none" if value is None else str(value)) for i, value in enumerate(values))
