"""A run as a tidy pandas frame: what `show --format csv` writes and notebooks read."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from powerbench.reports.phases import PHASE_COLUMNS, phase_rows, phase_values
from powerbench.reports.rows import COLUMNS, Row, rows, values
from powerbench.results.model import Run

_INTEGERS = (
    *("p", "d_tile", "chunk_size", "ctx", "batch", "heads", "kv_heads", "head_dim", "n", "value_dim", "retakes"),
    *("window", "sequence_bytes"),
)
_FLOATS = (
    *("median_ms", "ci_low_ms", "ci_high_ms", "tokens_per_s", "useful_tflops", "executed_tflops", "intensity"),
    *("roof_fraction", "mfu", "hfu", "peak_memory_mib", "error", "attainable_tflops", "share", "gb_per_s"),
    *("median_mcycles", "sm_mhz", "power_w", "temperature_c"),
)
_BOOLS = ("gated", "valid", "throttled")
_TYPES = dict.fromkeys(_INTEGERS, "Int64") | dict.fromkeys(_FLOATS, "float64") | dict.fromkeys(_BOOLS, "bool")


def tidy(run: Run) -> pd.DataFrame:
    """One row a case; the columns are `rows.COLUMNS`, units as in `rows.Row`; missing numbers are NaN or <NA>."""
    return tidy_rows(rows(run))


def tidy_rows(all_rows: Iterable[Row]) -> pd.DataFrame:
    """The same of rows that are there already."""
    return _typed(pd.DataFrame([values(row) for row in all_rows], columns=list(COLUMNS)))


def tidy_phases(run: Run) -> pd.DataFrame:
    """One row a phase; the columns are `phases.PHASE_COLUMNS`; empty where the run timed no phases."""
    found = [phase_values(phase) for phases in phase_rows(run).values() for phase in phases]
    return _typed(pd.DataFrame(found, columns=list(PHASE_COLUMNS)))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: kind for name, kind in _TYPES.items() if name in frame.columns})
