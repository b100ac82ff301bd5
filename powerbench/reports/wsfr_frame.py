"""Weight-state ratios as tidy pandas frames, counted and measured."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pandas as pd

from powerbench.reports.wsfr_measured import MeasuredRow
from powerbench.reports.wsfr_rows import Analysis, WsfrRow


def tidy_wsfr(analyses: Sequence[Analysis]) -> pd.DataFrame:
    """One row an attention and context; the columns are `WsfrRow`'s."""
    return _frame([row for analysis in analyses for row in analysis.rows], WsfrRow, ("p", "balanced_ctx"))


def tidy_measured(rows: Sequence[MeasuredRow]) -> pd.DataFrame:
    """One row a measured case; the columns are `MeasuredRow`'s; empty where nothing was measured."""
    return _frame(rows, MeasuredRow, ("p", "d_tile", "chunk_size"))


def _frame(
    rows: Sequence[msgspec.Struct], kind: type[msgspec.Struct], integers_or_none: tuple[str, ...]
) -> pd.DataFrame:
    columns = [field.encode_name for field in msgspec.structs.fields(kind)]
    frame = pd.DataFrame([msgspec.structs.astuple(row) for row in rows], columns=columns)
    return frame.astype(dict.fromkeys(integers_or_none, "Int64"))
