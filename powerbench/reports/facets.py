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
    return {**contestant_facets(curve), **setting_facets(setting)}


def contestant_facets(curve: Curve) -> dict[str, str]:
    """Of a contestant in whatever setting."""
    return {"curve": curve.label, "kernel": curve.kernel, **degree_facets(curve.p)}


def degree_facets(p: int | None) -> dict[str, str]:
    """Of all that is of a degree; none without one."""
    return {} if p is None else {"p": str(p)}


def setting_facets(setting: Setting) -> dict[str, str]:
    """Of a setting."""
    return {"pass": setting.pass_, "dtype": setting.dtype, "d": str(setting.head_dim)}


def row_facets(about: Row | PhaseRow) -> dict[str, str]:
    """Of a case or a phase."""
    row = about.case if isinstance(about, PhaseRow) else about
    own = {"pass": row.pass_, "dtype": row.dtype, "d": str(row.head_dim)}
    return {**contestant_facets(Curve(row.kernel, row.p, row.family, {})), **own}


def choices(all_rows: Iterable[Row]) -> dict[str, list[tuple[str, str]]]:
    """selector -> (value, text) pairs in order; only the selectors that have something to choose between."""
    members = [row_facets(row) for row in all_rows]
    found: dict[str, list[tuple[str, str]]] = {}
    for key in SELECTORS:
        values = sorted({own[key] for own in members if key in own}, key=_rank)
        if len(values) > 1:
            found[key] = [(value, PASS_WORDS.get(value, value)) for value in values]
    return found


def _rank(value: str) -> tuple[int, int, str]:
    passes = list(PASS_WORDS)
    if value in passes:
        return 0, passes.index(value), ""
    return (0, int(value), "") if value.isdigit() else (1, 0, value)
