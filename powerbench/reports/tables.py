"""Tables as the terminal, a pull request and a script want them, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich import box
from rich.table import Table

from powerbench.reports.text import Column, printable


def json_text(records: Iterable[dict[str, object]]) -> str:
    """Records as indented JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(list(records)), indent=2).decode() + "\n"


def empty_table(shown: Iterable[Column[Any]]) -> Table:
    """For the terminal: the headings, no rows yet."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
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


def markdown_text(text: str) -> str:
    """Text that shows as itself: no markup, no HTML, no cell or line breaks."""
    text = printable(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*`[]":
        text = text.replace(mark, f"\\{mark}")
    return text
