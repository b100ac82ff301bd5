"""What the page's selectors ask of a curve, a setting or a row: the names of the selectors and their values."""

from __future__ import annotations

from collections.abc import Iterable

from powerbench.reports.curves import PASS_WORDS, Curve, Setting
from powerbench.reports.phases import PhaseRow
from powerbench.reports.rows import Row

# key -> what stands before the selector
SELECTORS = {"pass": "pass", "dtype": "dtype", "d": "d", "kernel": "kernel", "p": "p"}


def facets(curve: Curve, setting: Setting) -> dict[str, str]:
    """Of a contestant in a setting. `curve`: its label, which the legend switches; without p where it has none."""
    return {"curve": curve.label, "kernel": curve.kernel, **_degree(curve.p), **setting_facets(setting)}


def setting_facets(setting: Setting) -> dict[str, str]:
    """Of a setting."""
    return {"pass": setting.pass_, "dtype": setting.dtype, "d": str(setting.head_dim)}


def row_facets(about: Row | PhaseRow) -> dict[str, str]:
    """Of a case or a phase."""
    row = about.case if isinstance(about, PhaseRow) else about
    label = Curve(row.kernel, row.p, row.family, {}).label
    own = {"pass": row.pass_, "dtype": row.dtype, "d": str(row.head_dim)}
    return {"curve": label, "kernel": row.kernel, **_degree(row.p), **own}


def choices(all_rows: Iterable[Row]) -> dict[str, list[tuple[str, str]]]:
    """selector -> (value, text) pairs in order; only the selectors that have something to choose between."""
    members = [row_facets(row) for row in all_rows]
    found: dict[str, list[tuple[str, str]]] = {}
    for key in SELECTORS:
        values = sorted({own[key] for own in members if key in own}, key=_rank)
        if len(values) > 1:
            found[key] = [(value, PASS_WORDS.get(value, value)) for value in values]
    return found


def _degree(p: int | None) -> dict[str, str]:
    return {} if p is None else {"p": str(p)}


def _rank(value: str) -> tuple[int, int, str]:
    passes = list(PASS_WORDS)
    if value in passes:
        return 0, passes.index(value), ""
    return (0, int(value), "") if value.isdigit() else (1, 0, value)
