"""The crossovers of a run for the terminal, a spreadsheet or a script: `powerbench show --crossovers`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeVar

from rich.text import Text

from powerbench.console import Console
from powerbench.printable import markdown_text, printable
from powerbench.reports.crossovers import (
    CROSSOVER_COLUMNS,
    CROSSOVER_LEGEND,
    MODEL_LEGEND,
    crossover_columns,
    crossover_records,
    crossover_table,
    model_columns,
    model_table,
)
from powerbench.reports.curves import groups, setting_names
from powerbench.reports.rows import rows
from powerbench.reports.tables import csv_text, empty_table, json_text, markdown_table
from powerbench.reports.text import Column
from powerbench.results.model import Run

R = TypeVar("R")


def render_crossovers(run: Run, format: str, *, width: int = 120) -> str:
    """One row a pair as table or markdown, with the cost models; one a crossing as csv or json. Ends in a newline."""
    records = crossover_records(run)
    match format:
        case "csv":
            import pandas as pd  # noqa: PLC0415  slow to import: only csv pays

            return csv_text(pd.DataFrame(records, columns=list(CROSSOVER_COLUMNS)))
        case "json":
            return json_text(records)
    found = groups(rows(run))
    pairs, models = crossover_table(run), model_table(found, setting_names(found))
    parts = [
        *([_part(crossover_columns(pairs), pairs, CROSSOVER_LEGEND, format, width)] if pairs else []),
        *([_part(model_columns(models), models, MODEL_LEGEND, format, width)] if models else []),
    ]
    return "\n".join(parts) or "No two contestants were measured at the same context.\n"


def _part(shown: Sequence[Column[R]], members: Sequence[R], legend: str, format: str, width: int) -> str:
    """A table with the words under it, ending in a newline."""
    cells = [[column.text(member) for column in shown] for member in members]
    if format == "markdown":
        return "\n".join([*markdown_table(shown, cells), "", markdown_text(legend)]) + "\n"
    out = io.StringIO()
    console = Console(file=out, width=width)
    table = empty_table(shown)
    for line in cells:
        table.add_row(*map(printable, line))
    console.print(table)
    console.print(Text(legend, style="dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
