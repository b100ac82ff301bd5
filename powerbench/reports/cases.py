"""The page's table of all cases: every number of every row, without the columns that say the same in all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from powerbench.crossover import context_text, percent_text
from powerbench.reports.curves import Group
from powerbench.reports.rows import Row
from powerbench.reports.show import fastest, ordered, si, significant


@dataclass(frozen=True)
class CaseColumn:
    """A heading with its meaning, and whether it holds numbers; k: what a `k` in it stands for."""

    heading: str
    meaning: str
    is_number: bool
    k: int


@dataclass(frozen=True)
class CaseLine:
    """One case: a text for each column, and how it is to be marked.

    A row without numbers has the cells up to its status only: its reason spans the other columns.
    """

    cells: list[str]
    mark: str  # fastest, bad or nothing
    reason: str
    span: int  # columns that the reason takes


@dataclass(frozen=True)
class CaseTable:
    """What all rows share, and the rest as a table."""

    shared: str
    columns: list[CaseColumn]
    lines: list[CaseLine]


_Text = Callable[[Row], str]


def _number(value: float | None, form: Callable[[float], str] = str) -> str:
    return "" if value is None else form(value)


# heading, meaning, is it a number, its text
_COLUMNS: tuple[tuple[str, str, bool, _Text], ...] = (
    ("kernel", "", False, lambda row: row.kernel),
    ("p", "degree", True, lambda row: _number(row.p)),
    ("d_tile", "tile of the feature map", True, lambda row: _number(row.d_tile)),
    ("chunk", "tokens a chunk", True, lambda row: _number(row.chunk_size)),
    ("ctx", "context in tokens", True, lambda row: context_text(row.ctx)),
    ("batch", "", True, lambda row: str(row.batch)),
    ("pass", "", False, lambda row: row.pass_),
    ("dtype", "", False, lambda row: row.dtype),
    ("heads", "", True, lambda row: str(row.heads)),
    ("kv heads", "", True, lambda row: str(row.kv_heads)),
    ("d", "head dimension of q and k", True, lambda row: str(row.head_dim)),
    ("value d", "head dimension of v", True, lambda row: str(row.value_dim)),
    ("gates", "", False, lambda row: "gated" if row.gated else "ungated"),
    ("status", "", False, lambda row: "invalid" if row.status == "ok" and not row.valid else row.status),
    ("ms", "median time", True, lambda row: _number(row.median_ms, significant)),
    ("±", "larger half of the median's 95 % interval", True, lambda row: _number(row.spread, percent_text)),
    ("tokens/s", "", True, lambda row: _number(row.tokens_per_s, si)),
    ("useful TF/s", "useful TFLOP/s", True, lambda row: _number(row.useful_tflops, significant)),
    ("exec. TF/s", "executed TFLOP/s", True, lambda row: _number(row.executed_tflops, significant)),
    ("FLOP/B", "executed FLOP per byte", True, lambda row: _number(row.intensity, significant)),
    ("roof", "roofline time over measured time", True, lambda row: _number(row.roof_fraction, percent_text)),
    ("bound", "", False, lambda row: row.bound or ""),
    ("MFU", "useful FLOP/s over the matmul ceiling", True, lambda row: _number(row.mfu, percent_text)),
    ("HFU", "executed FLOP/s over the matmul ceiling", True, lambda row: _number(row.hfu, percent_text)),
    ("error", "largest relative error against float64", True, lambda row: _number(row.error, "{:.1e}".format)),
    ("MiB", "peak memory", True, lambda row: _number(row.peak_memory_mib, "{:.0f}".format)),
    ("n", "samples", True, lambda row: str(row.n) if row.n else ""),
    ("timer", "", False, lambda row: row.timer or ""),
    ("config", "chosen by tuning", False, lambda row: row.config or ""),
)
_STATUS = next(i for i, column in enumerate(_COLUMNS) if column[0] == "status")


def case_table(found: Sequence[Group]) -> CaseTable:
    """All rows of all settings, ordered by setting, context and time; empty cells where a number does not apply."""
    rows = [row for group in found for row in ordered(group)]
    best = {case_id for group in found for case_id in fastest(group)}
    texts = [[text(row) for row in rows] for _, _, _, text in _COLUMNS]
    timed = [row.median_ms is not None for row in rows]
    seen = [
        {text for text, has_time in zip(column, timed, strict=True) if has_time or i <= _STATUS}
        for i, column in enumerate(texts)
    ]
    keep = [i for i, found_texts in enumerate(seen) if len(found_texts) > 1 or (rows and i in (0, _STATUS))]
    shared = [
        f"{_COLUMNS[i][0]} {text}"
        for i, found_texts in enumerate(seen)
        if i not in keep
        for text in found_texts
        if text
    ]
    columns = [_COLUMNS[i] for i in keep]
    heads = [
        CaseColumn(name, meaning, is_number, 1024 if name == "ctx" else 1000) for name, meaning, is_number, _ in columns
    ]
    last_is_status = bool(keep) and keep[-1] == _STATUS
    if last_is_status or any(row.reason and row.median_ms is not None for row in rows):
        heads.append(CaseColumn("remark", "", False, 1000))
    lines = []
    for j, row in enumerate(rows):
        cells = [texts[i][j] for i in keep if row.median_ms is not None or i <= _STATUS]
        mark = "fastest" if row.case_id in best else "" if row.valid else "bad"
        lines.append(CaseLine(cells, mark, row.reason or "", len(heads) - len(cells)))
    return CaseTable(", ".join(shared), heads, lines)
