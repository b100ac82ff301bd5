"""Texts with generated parts: `<!-- begin: NAME -->` ... `<!-- end: NAME -->`; and what such parts are made of.

A part whose begin stands alone on its line has its lines to itself, any other lies within its line.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 120  # of a line, as everywhere in this repository

_PART = re.compile(r"<!-- begin: ([a-z0-9 -]+) -->(\n?)(.*?)<!-- end: \1 -->", re.DOTALL)


class PartError(Exception):
    """A text and what is to be filled into it do not fit together."""


def fill(text: str, parts: Mapping[str, str]) -> str:
    """The text with its parts replaced. Raises PartError where one has no text, or a text no place."""
    places = [match[1] for match in _PART.finditer(text)]
    marks = re.findall(r"<!-- (?:begin|end): .*? -->", text)
    if len(marks) != 2 * len(places) or len(set(places)) != len(places):
        raise PartError(f"marks do not pair up: {', '.join(marks)}")
    if set(places) != set(parts):
        odd = ", ".join(sorted(set(places) ^ set(parts)))
        raise PartError(f"in the text or among what is to be filled in, but not in both: {odd}")

    def replaced(match: re.Match[str]) -> str:
        name, newline = match[1], match[2]
        inside = f"{parts[name].strip()}\n" if newline and parts[name].strip() else parts[name].strip()
        return f"<!-- begin: {name} -->{newline}{inside}<!-- end: {name} -->"

    return _PART.sub(replaced, text)


def differing(text: str, parts: Mapping[str, str]) -> list[str]:
    """The names of the parts that say something else than they should. Raises PartError as `fill` does."""
    filled = {match[1]: match[3] for match in _PART.finditer(fill(text, parts))}
    return [match[1] for match in _PART.finditer(text) if match[3] != filled[match[1]]]


def paragraph(text: str, first: str = "", indent: str = "") -> str:
    """Text in lines of at most WIDTH: the first begins with `first`, the others with `indent`."""
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def quote(text: str) -> str:
    """A paragraph as a quotation."""
    return paragraph(text, "> ", "> ")


def item(text: str) -> str:
    """A paragraph as an item of a list."""
    return paragraph(text, "* ", "  ")


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of markdown; a column of numbers is set flush right."""
    columns = [[cell for cell in column if cell] for column in zip(*lines, strict=True)]
    marks = ["---:" if column and all(cell[0].isdigit() for cell in column) else "---" for column in columns]
    return "\n".join([_line(heads), f"|{'|'.join(marks)}|", *(_line(cells) for cells in lines)])


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"
