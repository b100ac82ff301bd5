"""The console of every command: what it is given to print is printable when it comes out, whoever made it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.segment import Segment
from rich.text import Text

from powerbench.printable import printable, printable_lines


class Console(RichConsole):
    """rich's, without markup, emoji codes and highlighting: a name with brackets is a name.

    A `str`, printed or in a cell, is one line and made printable; the lines of a `Text` are its author's. Whatever is
    left is taken out of the finished segments, as the last thing before they are written.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(printable_lines(segment.text), segment.style) for segment in buffer
        )


def console(*, stderr: bool = False, width_of_a_pipe: int = 120) -> Console:
    """Standard output or error. A pipe has no width: rich's guess of 80 would fold the tables."""
    found = Console(stderr=stderr)
    if not found.is_terminal:
        found.width = width_of_a_pipe
    return found
