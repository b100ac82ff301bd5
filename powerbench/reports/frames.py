"""A run as a tidy pandas frame: what `show --format csv` writes and notebooks read."""

from __future__ import annotations

import pandas as pd

from powerbench.reports.rows import COLUMNS, rows, values
from powerbench.results.model import Run

_INTEGERS = ("p", "d_tile", "chunk_size", "ctx", "batch", "heads", "kv_heads", "head_dim", "n", "value_dim")
_FLOATS = (
    *("median_ms", "ci_low_ms", "ci_high_ms", "tokens_per_s", "useful_tflops", "executed_tflops", "intensity"),
    *("roof_fraction", "mfu", "hfu", "peak_memory_mib", "error", "attainable_tflops"),
)
_TYPES = dict.fromkeys(_INTEGERS, "Int64") | dict.fromkeys(_FLOATS, "float64") | {"gated": "bool", "valid": "bool"}


def tidy(run: Run) -> pd.DataFrame:
    """One row a case; the columns are `rows.COLUMNS`, units as in `rows.Row`; missing numbers are NaN or <NA>."""
    frame = pd.DataFrame([values(row) for row in rows(run)], columns=list(COLUMNS))
    return frame.astype(_TYPES)
