"""Tables as the terminal, a pull request and a script want them, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from rich import box
from rich.table import Table

from powerbench.printable import csv_cell, markdown_text, printable_json
from powerbench.reports.long_table import LongTable
from powerbench.reports.text import Column

if TYPE_CHECKING:
    import pandas as pd


def json_text(records: Iterable[dict[str, object]]) -> str:
    """Records as indented JSON, ending in a newline."""
    return printable_json(msgspec.json.format(msgspec.json.encode(list(records)), indent=2).decode()) + "\n"


def csv_text(frame: pd.DataFrame, **options: Any) -> str:
    """A frame as CSV, ending in a newline: its texts fit for a spreadsheet, its numbers as they are."""
    safe = {str(name): _csv_column(column) for name, column in frame.items() if column.dtype.kind in "OUT"}
    text: str = frame.assign(**safe).to_csv(index=False, lineterminator="\n", **options)
    return text


def _csv_column(column: pd.Series[Any]) -> list[Any]:
    known = {value: csv_cell(value) for value in {one for one in column if isinstance(one, str)}}
    return [known[value] if isinstance(value, str) else value for value in column]


def empty_table(shown: Iterable[Column[Any]]) -> Table:
    """For the terminal: the headings, no rows yet."""
    table = LongTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in shown:
        table.add_column(column.heading, justify="right" if column.is_number else "left", no_wrap=column.is_number)
    return table


def markdown_table(shown: Sequence[Column[Any]], cells: Iterable[Sequence[str]]) -> list[str]:
    """For a pull request: the lines of a table."""
    return [
        _markdown_row([column.heading for column in shown]),
        _markdown_row(["---:" if column.is_number else ":---" for column in shown]),
        *(_markdown_row([markdown_text(cell) for cell in line]) for line in cells),
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
