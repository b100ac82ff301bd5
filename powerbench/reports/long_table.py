"""A table of the terminal that is fast with many rows: rich takes a millisecond for each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

FEW = 100  # rows that rich itself draws


class LongTable(Table):
    """rich's table of plain texts, a line each; where many rows fit, the same lines without its machinery."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths() if self.row_count > FEW else None
        if widths is None or self._total(widths) > options.max_width:
            for column in self.columns:  # a `str` may be markup to the console, a Text is none
                column._cells = [Text(cell) if isinstance(cell, str) else cell for cell in column.cells]
            yield from super().__rich_console__(console, options)
        else:
            yield from self._lines(console, widths)

    def _widths(self) -> list[int] | None:
        """What each column needs; None where a cell is anything but a text of one line, or the table another kind."""
        other = self.title or self.caption or self.show_edge or self.show_lines or self.expand or self.pad_edge
        if other or not (self.box and self.show_header and self.padding == (0, 1, 0, 0)):
            return None
        widths = []
        for column in self.columns:
            texts = [column.header, *column.cells]
            if not all(isinstance(text, str) and "\n" not in text for text in texts):
                return None
            widths.append(max(map(_width, map(str, texts))))
        return widths

    @staticmethod
    def _total(widths: list[int]) -> int:
        return sum(widths) + 2 * (len(widths) - 1)  # one of padding and one between columns

    def _lines(self, console: Console, widths: list[int]) -> Iterator[Segment]:
        assert self.box
        newline, padded = Segment.line(), [width + 1 for width in widths[:-1]] + widths[-1:]
        box = self.box.substitute(console.options, safe=True)
        heads = [str(column.header) for column in self.columns]
        yield Segment(self._line(heads, widths), console.get_style(self.header_style or ""))
        yield newline
        yield Segment(box.get_row(padded, "head", edge=False))
        yield newline
        between = box.get_row(padded, "row", edge=False)
        rows = zip_longest(*(column.cells for column in self.columns))
        for row, cells in zip(self.rows, rows, strict=True):
            style = console.get_style(row.style) if row.style else None
            yield Segment(self._line([str(cell) for cell in cells], widths), style)
            yield newline
            if row.end_section and row is not self.rows[-1]:
                yield Segment(between)
                yield newline

    def _line(self, texts: list[str], widths: list[int]) -> str:
        return "  ".join(
            _padded(text, width, right=column.justify == "right")
            for text, width, column in zip(texts, widths, self.columns, strict=True)
        )


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)
