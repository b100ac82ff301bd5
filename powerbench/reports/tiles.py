"""What d_tile and chunk cost: for each kernel, degree and context that was measured at several of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from powerbench.reports.curves import Curve
from powerbench.reports.rows import Row


@dataclass(frozen=True)
class TileMap:
    """One kernel at one degree and context, over d_tile (down) and chunk (across); None stands for `has none`."""

    label: str
    ctx: int
    d_tiles: list[int | None]
    chunks: list[int | None]
    cells: dict[tuple[int | None, int | None], Row]
    best: Row  # the fastest that can be trusted

    def price(self, row: Row) -> float | None:
        """How much longer than the best this choice takes, as a fraction: 0.06 is 6 % longer; None without a time."""
        if not row.valid or row.median_ms is None or self.best.median_ms is None:
            return None
        return row.median_ms / self.best.median_ms - 1


def tile_maps(members: Iterable[Row]) -> list[TileMap]:
    """The maps of one setting, by kernel, degree and context; only where at least two choices were tried, and ran."""
    tried: dict[tuple[str, int | None, int], list[Row]] = defaultdict(list)
    for row in members:
        tried[row.kernel, row.p, row.ctx].append(row)
    maps = []
    for (kernel, p, ctx), choices in sorted(tried.items(), key=lambda item: (item[0][0], item[0][1] or 0, item[0][2])):
        d_tiles, chunks = _values(row.d_tile for row in choices), _values(row.chunk_size for row in choices)
        good = [row for row in choices if row.valid and row.median_ms is not None]
        cells = {(row.d_tile, row.chunk_size): row for row in choices}
        if not good or sum(row.status != "unsupported" for row in cells.values()) < 2:
            continue
        best = min(good, key=lambda row: row.median_ms or 0.0)
        maps.append(TileMap(Curve(kernel, p, best.family, {}).label, ctx, d_tiles, chunks, cells, best))
    return maps


def _values(found: Iterable[int | None]) -> list[int | None]:
    return sorted(set(found), key=lambda value: -1 if value is None else value)
