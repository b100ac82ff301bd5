"""Numbers and names as people read them, the same in the terminal, on the page and in the figures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Generic, NamedTuple, TypeVar

R = TypeVar("R")


class Column(NamedTuple, Generic[R]):
    """A column of a table: its heading and what it says of a row; empty text where there is nothing to say."""

    heading: str
    text: Callable[[R], str]
    is_number: bool = True


def telling(columns: Iterable[Column[R]], rows: Collection[R]) -> list[Column[R]]:
    """The columns that say something about at least one of the rows."""
    return [column for column in columns if any(column.text(row) for row in rows)]


def significant(value: float) -> str:
    """Three or four significant digits, never an exponent: 0.01234 -> 0.0123, 1234.5 -> 1234."""
    for limit, digits in ((0.01, 5), (0.1, 4), (1, 3), (100, 2), (1000, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def si(value: float, space: str = "") -> str:
    """Three significant digits with a decimal unit: 1234567 -> 1.23M, or 1.23 M with a space."""
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{space}{suffix}"
    return significant(value)


def or_empty(value: float | None, form: Callable[[float], str] = str) -> str:
    """A table's cell: empty where there is no number."""
    return "" if value is None else form(value)
