"""Tables as the terminal, a pull request and a script want them, whatever they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import msgspec
from rich import box
from rich.table import Table

from powerbench.reports.text import Column, printable

NAMES_AND_TIMES = frozenset({
    "ctx", "batch", "kernel", "p", "phase", "ms", "contestant", "against", "is faster", "cost model", "case", "verdict",
    "time", "version", "family", "ceiling", "best", "result", "demand", "measured",
})  # fmt: skip
FOLDED = 24  # characters of a column of words that need no folding; what is longer may fold


def json_text(records: Iterable[dict[str, object]]) -> str:
    """Records as indented JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(list(records)), indent=2).decode() + "\n"


def table_for(
    width: int, shown: Sequence[Column[Any]], cells: Sequence[Sequence[str]], others: str
) -> tuple[Table, list[int], str]:
    """An empty table that fits `width` characters, which of the columns are in it, and a line on those that are not.

    `cells` are the texts of all rows; `others` says how to see the columns that are left out.
    """
    texts = [[column.heading, *(line[i] for line in cells)] for i, column in enumerate(shown)]
    needs = [_need(column, of) for column, of in zip(shown, texts, strict=True)]
    kept = fitting([column.heading for column in shown], needs, width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for i in kept:
        side: Literal["left", "right"] = "right" if shown[i].is_number else "left"
        table.add_column(
            shown[i].heading, justify=side, no_wrap=shown[i].is_number, min_width=needs[i], overflow="fold"
        )
    return table, kept, left_out([column.heading for column in shown], kept, others)


def _need(column: Column[Any], texts: Sequence[str]) -> int:
    longest = max(map(len, texts))
    return longest if column.is_number else max(len(column.heading), min(longest, FOLDED))


def fitting(headings: Sequence[str], needs: Sequence[int], width: int, gap: int = 2) -> list[int]:
    """Which columns stay where all do not fit: names and times to the last, of the others those on the left."""
    kept = list(range(len(headings)))
    optional = [i for i in kept if headings[i] not in NAMES_AND_TIMES]
    while optional and sum(needs[i] + gap for i in kept) - gap > width:
        kept.remove(optional.pop())
    return kept


def left_out(headings: Sequence[str], kept: Collection[int], others: str) -> str:
    """The line on the columns that are left out; empty where none is."""
    gone = [heading for i, heading in enumerate(headings) if i not in kept]
    return f"left out, for want of width: {', '.join(gone)} ({others})" if gone else ""


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
