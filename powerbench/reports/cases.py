"""The page's tables of all cases and of all phases: every number, without the columns that say the same in all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from powerbench.crossover import context_text, percent_text
from powerbench.reports.curves import Group
from powerbench.reports.phases import PhaseRow, PhasesByCase
from powerbench.reports.rows import Row
from powerbench.reports.show import fastest, ordered
from powerbench.reports.text import or_empty, si, significant


@dataclass(frozen=True)
class CaseColumn:
    """A heading with its meaning, and whether it holds numbers; k: what a `k` in it stands for."""

    heading: str
    meaning: str
    is_number: bool
    k: int


@dataclass(frozen=True)
class CaseLine:
    """One case or phase: a text for each column, and how it is to be marked.

    A row without numbers has the cells up to its status only: its reason spans the other columns.
    """

    cells: list[str]
    mark: str  # fastest, bad or nothing
    reason: str
    span: int  # columns that the reason takes
    about: Row | PhaseRow


@dataclass(frozen=True)
class CaseTable:
    """What all rows share, and the rest as a table."""

    shared: str
    columns: list[CaseColumn]
    lines: list[CaseLine]


R = TypeVar("R", Row, PhaseRow)


def _status(row: Row) -> str:
    """In one word."""
    if row.status != "ok":
        return row.status
    return ("throttled" if row.throttled else "ok") if row.valid else "invalid"


def _of_case(text: Callable[[Row], str]) -> Callable[[PhaseRow], str]:
    return lambda phase: text(phase.case)


# heading, meaning, is it a number, its text
_NAMES: tuple[tuple[str, str, bool, Callable[[Row], str]], ...] = (
    ("kernel", "", False, lambda row: row.kernel),
    ("p", "degree", True, lambda row: or_empty(row.p)),
    ("d_tile", "tile of the feature map", True, lambda row: or_empty(row.d_tile)),
    ("chunk", "tokens a chunk", True, lambda row: or_empty(row.chunk_size)),
    ("window", "keys that a query of a sliding window sees", True, lambda row: or_empty(row.window)),
    ("ctx", "context in tokens", True, lambda row: context_text(row.ctx)),
    ("batch", "", True, lambda row: str(row.batch)),
    ("pass", "", False, lambda row: row.pass_),
    ("dtype", "", False, lambda row: row.dtype),
    ("heads", "", True, lambda row: str(row.heads)),
    ("kv heads", "", True, lambda row: str(row.kv_heads)),
    ("d", "head dimension of q and k", True, lambda row: str(row.head_dim)),
    ("value d", "head dimension of v", True, lambda row: str(row.value_dim)),
    ("gates", "", False, lambda row: "gated" if row.gated else "ungated"),
)
_COLUMNS: tuple[tuple[str, str, bool, Callable[[Row], str]], ...] = (
    *_NAMES,
    ("status", "", False, _status),
    ("ms", "median time", True, lambda row: or_empty(row.median_ms, significant)),
    ("±", "larger half of the time's 95 % interval", True, lambda row: or_empty(row.spread, percent_text)),
    ("tokens/s", "", True, lambda row: or_empty(row.tokens_per_s, si)),
    ("useful TF/s", "useful TFLOP/s", True, lambda row: or_empty(row.useful_tflops, significant)),
    ("exec. TF/s", "executed TFLOP/s", True, lambda row: or_empty(row.executed_tflops, significant)),
    ("FLOP/B", "executed FLOP per byte", True, lambda row: or_empty(row.intensity, significant)),
    ("roof", "roofline time over measured time", True, lambda row: or_empty(row.roof_fraction, percent_text)),
    ("bound", "", False, lambda row: row.bound or ""),
    ("MFU", "useful FLOP/s over the matmul ceiling", True, lambda row: or_empty(row.mfu, percent_text)),
    ("HFU", "executed FLOP/s over the matmul ceiling", True, lambda row: or_empty(row.hfu, percent_text)),
    ("error", "largest relative error against float64", True, lambda row: or_empty(row.error, "{:.1e}".format)),
    ("MiB", "peak memory", True, lambda row: or_empty(row.peak_memory_mib, "{:.0f}".format)),
    ("n", "samples", True, lambda row: str(row.n) if row.n else ""),
    ("timer", "", False, lambda row: row.timer or ""),
    ("Mcycles", "median time in millions of SM cycles", True, lambda row: or_empty(row.median_mcycles, significant)),
    ("MHz", "SM clock under load", True, lambda row: or_empty(row.sm_mhz, "{:.0f}".format)),
    ("W", "power of the board", True, lambda row: or_empty(row.power_w, "{:.0f}".format)),
    ("°C", "highest temperature", True, lambda row: or_empty(row.temperature_c, "{:.0f}".format)),
    ("clock held by", "clocks event reasons, as NVML names them", False, lambda row: row.throttle or ""),
    ("config", "chosen by tuning", False, lambda row: row.config or ""),
)
_PHASE_COLUMNS: tuple[tuple[str, str, bool, Callable[[PhaseRow], str]], ...] = (
    *((name, meaning, is_number, _of_case(text)) for name, meaning, is_number, text in _NAMES),
    ("phase", "", False, lambda phase: phase.phase),
    ("status", "", False, lambda phase: "ok" if phase.valid else phase.state),
    ("ms", "median time, alone", True, lambda phase: or_empty(phase.median_ms, significant)),
    ("±", "larger half of the median's 95 % interval", True, lambda phase: or_empty(phase.spread, percent_text)),
    ("share", "of the time of the whole call", True, lambda phase: or_empty(phase.share, percent_text)),
    ("useful TF/s", "useful TFLOP/s", True, lambda phase: or_empty(phase.useful_tflops or None, significant)),
    ("exec. TF/s", "executed TFLOP/s", True, lambda phase: or_empty(phase.executed_tflops or None, significant)),
    ("GB/s", "compulsory bytes over the time", True, lambda phase: or_empty(phase.gb_per_s, significant)),
    ("FLOP/B", "executed FLOP per byte", True, lambda phase: or_empty(phase.intensity or None, significant)),
    ("roof", "roofline time over measured time", True, lambda phase: or_empty(phase.roof_fraction, percent_text)),
    ("bound", "", False, lambda phase: phase.bound or ""),
    ("n", "samples", True, lambda phase: str(phase.n) if phase.n else ""),
)


def case_table(found: Sequence[Group]) -> CaseTable:
    """All rows of all settings, ordered by setting, context and time; empty cells where a number does not apply."""
    rows = [row for group in found for row in ordered(group)]
    best = {case_id for group in found for case_id in fastest(group)}
    return _table(_COLUMNS, rows, lambda row: "fastest" if row.case_id in best else "" if row.valid else "bad")


def phase_table(found: Sequence[Group], phases: PhasesByCase) -> CaseTable:
    """All phases of all settings, those of a case together, in the order of its launches; cases as in `case_table`."""
    rows = [phase for group in found for row in ordered(group) for phase in phases.get(row.case_id, ())]
    return _table(_PHASE_COLUMNS, rows, lambda phase: "" if phase.valid else "bad")


def _table(
    all_columns: Sequence[tuple[str, str, bool, Callable[[R], str]]], rows: Sequence[R], mark: Callable[[R], str]
) -> CaseTable:
    status = next(i for i, column in enumerate(all_columns) if column[0] == "status")
    texts = [[text(row) for row in rows] for _, _, _, text in all_columns]
    timed = [row.median_ms is not None for row in rows]
    seen = [
        {text for text, has_time in zip(column, timed, strict=True) if has_time or i <= status}
        for i, column in enumerate(texts)
    ]
    keep = [i for i, found_texts in enumerate(seen) if len(found_texts) > 1 or (rows and i in (0, status))]
    shared = [
        f"{all_columns[i][0]} {text}"
        for i, found_texts in enumerate(seen)
        if i not in keep
        for text in found_texts
        if text
    ]
    columns = [all_columns[i] for i in keep]
    heads = [
        CaseColumn(name, meaning, is_number, 1024 if name == "ctx" else 1000) for name, meaning, is_number, _ in columns
    ]
    last_is_status = bool(keep) and keep[-1] == status
    if last_is_status or any(row.reason and row.median_ms is not None for row in rows):
        heads.append(CaseColumn("remark", "", False, 1000))
    lines = []
    for j, row in enumerate(rows):
        cells = [texts[i][j] for i in keep if row.median_ms is not None or i <= status]
        lines.append(CaseLine(cells, mark(row), row.reason or "", len(heads) - len(cells), row))
    return CaseTable(", ".join(shared), heads, lines)
