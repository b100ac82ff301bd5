"""The weight-state FLOP ratio for the terminal, a pull request, a spreadsheet or a script: `powerbench wsfr`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from powerbench.crossover import context_text
from powerbench.printable import markdown_text, printable
from powerbench.reports.tables import csv_text, json_text
from powerbench.reports.text import si
from powerbench.reports.wsfr_rows import Analysis, WsfrRow
from powerbench.wsfr import ratio_text

FORMATS = ("table", "csv", "json", "markdown")
LEGEND = (
    "* nearest to 1:1 at its context. balanced at: the context where both are equal, or what the ratio tends to where "
    "they never are. (own): the model's own attention. docs/wsfr.md says what is counted."
)
_MODES = {
    "prefill": "prefill and training: the mean token of a sequence",
    "decode": "decoding: the last token of a sequence",
}


def render(analysis: Analysis, format: str) -> str:
    """The analysis as text that ends in a newline; csv and json hold `WsfrRow`s.

    Raises ValueError for another format; `print_wsfr` makes the table.
    """
    match format:
        case "markdown":
            return _markdown(analysis)
        case "json":
            return json_text(map(msgspec.structs.asdict, analysis.rows))
        case "csv":
            from powerbench.reports.wsfr_frame import tidy_wsfr  # noqa: PLC0415  pandas is slow to import: only csv pays

            return csv_text(tidy_wsfr([analysis]))
    raise ValueError(f"format has to be one of {', '.join(FORMATS[1:])}, not {format!r}")


def print_wsfr(analysis: Analysis, console: Console) -> None:
    """Both tables and the sentences; contexts that do not fit side by side go into further tables."""
    console.print(Text(printable(heading(analysis)), style="bold"))
    console.print(Text(weights_text(analysis)))
    for part in tables(analysis):
        for fitting in _that_fit(part, console.width):
            console.print()
            console.print(Text(fitting.title, style="bold"))
            console.print(_rich(fitting))
    console.print()
    console.print(Text(LEGEND, style="dim"))
    for sentence in analysis.sentences:
        console.print()
        console.print(Text(printable(sentence)))


def heading(analysis: Analysis) -> str:
    """Name and shape."""
    return f"{analysis.model.name}: {analysis.model.text}"


def weights_text(analysis: Analysis) -> str:
    """How much work the weights are, of the model as it is published."""
    weights = analysis.model.weights
    return f"{weights / 1e9:.3g} B weights multiply an activation: {si(2 * weights, ' ')}FLOP a token"


def bytes_text(number: float) -> str:
    """Bytes with a binary unit: 1610612736 -> 1.5 GiB."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power:
            scaled = number / (1 << power)
            return f"{scaled:.1f} {unit}" if scaled < 9.95 else f"{scaled:.0f} {unit}"
    return f"{number:.0f} B"


class Part(NamedTuple):
    """One of the tables: its heads, the first of which is of the names, and a line of cells for each attention."""

    title: str
    head: list[str]
    lines: list[list[str]]


def tables(analysis: Analysis) -> list[Part]:
    """The ratios and the bytes, as text."""
    best = {ctx: analysis.nearest_at(ctx).attention for ctx in analysis.contexts}
    contexts = [context_text(ctx) for ctx in analysis.contexts]

    def ratio(row: WsfrRow) -> str:
        return f"{'*' if best[row.ctx] == row.attention else ''}{ratio_text(row.wsfr)}"

    ratios, sizes = [], []
    for variant in analysis.variants:
        rows = [row for row in analysis.rows if row.attention == variant.name]
        name = f"{variant.name} (own)" if variant.own else variant.name
        ratios.append([name, analysis.balance_text(variant), *map(ratio, rows)])
        sizes.append([name, *(bytes_text(row.state_bytes) for row in rows)])
    return [
        Part(f"Weight FLOPs : state FLOPs, {_MODES[analysis.mode]}", ["attention", "balanced at", *contexts], ratios),
        Part(f"State or KV cache of a sequence, {analysis.dtype}", ["attention", *contexts], sizes),
    ]


def _that_fit(part: Part, width: int) -> Iterator[Part]:
    """The table as one or several, each with its first column, that fit into `width` characters."""
    widths = [max(map(len, column)) + 2 for column in zip(part.head, *part.lines, strict=True)]
    start = 1
    while start < len(widths):
        end = start + 1
        while end < len(widths) and widths[0] + sum(widths[start : end + 1]) - 2 <= width:
            end += 1
        yield Part(part.title, [part.head[0], *part.head[start:end]], [[x[0], *x[start:end]] for x in part.lines])
        start = end


def _rich(part: Part) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for number, name in enumerate(part.head):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in part.lines:
        table.add_row(*(Text(printable(text), style="bold" if text.startswith("*") else "") for text in line))
    return table


def _markdown(analysis: Analysis) -> str:
    lines = [f"**{markdown_text(heading(analysis))}**", "", weights_text(analysis)]
    for part in tables(analysis):
        rule = [":---", *["---:"] * (len(part.head) - 1)]
        body = [part.head, rule, *([markdown_text(text) for text in line] for line in part.lines)]
        lines += ["", f"### {part.title}", "", *(f"| {' | '.join(line)} |" for line in body)]
    lines += ["", *(f"- {markdown_text(sentence)}" for sentence in analysis.sentences), "", markdown_text(LEGEND)]
    return "\n".join(lines) + "\n"
