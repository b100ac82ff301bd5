"""A run for the terminal, a spreadsheet, a script or a pull request: `powerbench show --format ...`."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from powerbench.crossover import context_text, percent_text
from powerbench.reports.answers import answers, setting_names
from powerbench.reports.curves import Curve, Group, groups
from powerbench.reports.rows import Row, rows
from powerbench.results.model import Run

FORMATS = ("table", "csv", "json", "markdown")

LEGEND = (
    "* fastest at its context. ±: 95 % bootstrap interval of the median. TFLOP/s: useful work only. "
    "roof: of this machine's roofline, with the bound it meets there."
)

EMPTY = "This run holds no measurement yet."


def render(run: Run, format: str, *, width: int = 100) -> str:
    """The run as text that ends in a newline; `width` in characters is for the table only.

    csv and json hold the tidy rows (`rows.Row`), missing values empty or null; table and markdown also say the
    answers and why rows have no number. Raises ValueError for an unknown format.
    """
    match format:
        case "table":
            out = io.StringIO()
            print_run(run, Console(file=out, width=width, highlight=False))
            return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
        case "markdown":
            return _render_markdown(run)
        case "json":
            return msgspec.json.format(msgspec.json.encode(rows(run)), indent=2).decode() + "\n"
        case "csv":
            from powerbench.reports.frames import tidy  # noqa: PLC0415  pandas is slow to import: only csv pays

            return tidy(run).to_csv(index=False)
    raise ValueError(f"format has to be one of {', '.join(FORMATS)}, not {format!r}")


def print_run(run: Run, console: Console) -> None:
    """The tables, why rows have no number, and the answers, for the terminal."""
    found = groups(rows(run))
    for group, name in zip(found, setting_names(found), strict=True):
        console.print(Text(printable(_title(group, name)), style="bold"))
        console.print(_rich_table(group))
        for reason in reasons(ordered(group)):
            console.print(Text(f"  {printable(reason)}", style="dim"))
        console.print()
    console.print(Text(LEGEND if found else EMPTY, style="dim"))
    for answer in answers(run):
        console.print()
        console.print(Text(printable(answer.text)))


class Column(NamedTuple):
    """A column of the tables: its heading and what it says of a row; empty text where there is nothing to say."""

    heading: str
    text: Callable[[Row], str]
    is_number: bool = True


def columns(group: Group) -> list[Column]:
    """The columns that say something about these rows; what all rows share stands in the group's title."""
    all_columns = [
        Column("ctx", lambda row: context_text(row.ctx)),
        Column("batch", lambda row: str(row.batch) if group.workload.startswith("a ") else ""),
        Column("kernel", lambda row: row.kernel, is_number=False),
        Column("p", lambda row: _text(row.p)),
        Column("d_tile", lambda row: _text(row.d_tile)),
        Column("chunk", lambda row: _text(row.chunk_size)),
        Column("ms", lambda row: _text(row.median_ms, significant) if row.valid else _state(row)),
        Column("±", lambda row: _text(row.spread, percent_text)),
        Column("tokens/s", lambda row: _text(row.tokens_per_s, si)),
        Column("TFLOP/s", lambda row: _text(row.useful_tflops, significant)),
        Column("roof", lambda row: _text(row.roof_fraction, percent_text)),
        Column("bound", lambda row: row.bound or "", is_number=False),
        Column("error", lambda row: _text(row.error, lambda value: f"{value:.0e}")),
    ]
    return [column for column in all_columns if any(column.text(row) for row in group.rows)]


def ordered(group: Group) -> list[Row]:
    """By context, then by time; rows without a time to trust last."""
    return sorted(group.rows, key=lambda row: (row.ctx, not row.valid, row.median_ms or 0.0, row.kernel, row.p or 0))


def fastest(group: Group) -> set[str]:
    """The case_id of the fastest trusted row at each context."""
    best: dict[int, str] = {}
    for row in ordered(group):
        if row.valid:
            best.setdefault(row.ctx, row.case_id)
    return set(best.values())


def reasons(all_rows: Iterable[Row]) -> list[str]:
    """Why rows have no number or carry a remark, once for each kernel and reason, with the contexts it holds for."""
    where: dict[tuple[str, str, str], dict[int, None]] = defaultdict(dict)
    for row in all_rows:
        if row.reason is not None:
            label = Curve(row.kernel, row.p, row.family, {}).label
            where[_state(row), label, row.reason][row.ctx] = None
    return [
        f"{state}: {label} at {', '.join(context_text(ctx) for ctx in sorted(contexts))}: {reason}"
        for (state, label, reason), contexts in where.items()
    ]


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


def _rich_table(group: Group) -> Table:
    shown, best = columns(group), fastest(group)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in shown:
        table.add_column(column.heading, justify="right" if column.is_number else "left", no_wrap=column.is_number)
    previous = None
    for row in ordered(group):
        if previous not in (None, row.ctx):
            table.add_section()
        previous = row.ctx
        style = "bold" if row.case_id in best else ("" if row.valid else "dim")
        table.add_row(*(Text(_cell(column, row, best)) for column in shown), style=style)
    return table


def _cell(column: Column, row: Row, best: set[str]) -> str:
    text = printable(column.text(row))
    return f"*{text}" if column.heading == "ms" and row.case_id in best else text


def _render_markdown(run: Run) -> str:
    found = groups(rows(run))
    machine = run.header.environment
    lines = [f"**powerbench on {_markdown(machine.device)}** (`{printable(run.header.command).replace('`', '')}`)", ""]
    lines += [f"- {_markdown(answer.text)}" for answer in answers(run)]
    lines += [f"- warning: {_markdown(warning)}" for warning in run.warnings]
    for group, name in zip(found, setting_names(found), strict=True):
        shown, best = columns(group), fastest(group)
        lines += ["", f"### {_markdown(_title(group, name))}", ""]
        lines.append(_markdown_row([column.heading for column in shown]))
        lines.append(_markdown_row(["---:" if column.is_number else ":---" for column in shown]))
        for row in ordered(group):
            lines.append(_markdown_row([_markdown(_cell(column, row, best)) for column in shown]))
        lines += ["", *(f"- {_markdown(reason)}" for reason in reasons(ordered(group)))]
    lines += ["", LEGEND.replace("*", r"\*") if found else EMPTY]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Text that shows as itself: no markup, no HTML, no cell or line breaks."""
    text = printable(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*`[]":
        text = text.replace(mark, f"\\{mark}")
    return text


def _title(group: Group, name: str) -> str:
    details = "" if group.setting.details in name else f", {group.setting.details}"
    return f"{name}{details}, {group.workload}" if group.setting.batch is None else f"{name}{details}"


def _state(row: Row) -> str:
    return "invalid" if row.status == "ok" and not row.valid else ("note" if row.valid else row.status)


def _text(value: float | None, form: Callable[[float], str] = str) -> str:
    return "" if value is None else form(value)


def printable(text: str) -> str:
    """Text without control characters: a run file from elsewhere must not move the cursor."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
