"""A run for the terminal, a spreadsheet, a script or a pull request: `powerbench show --format ...`."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from powerbench.console import Console
from powerbench.crossover import context_text, percent_text
from powerbench.printable import markdown_code, markdown_text, printable
from powerbench.reports.answers import answers
from powerbench.reports.command import stated
from powerbench.reports.curves import Curve, Group, groups, setting_names
from powerbench.reports.phase_table import (
    PHASE_LEGEND,
    phase_cases,
    phase_cells,
    phase_columns,
    phase_reasons,
)
from powerbench.reports.phases import PHASE_COLUMNS, PhasesByCase, curves_with_phases, phase_rows, phase_values
from powerbench.reports.rows import COLUMNS, Row, rows, values
from powerbench.reports.tables import csv_text, empty_table, json_text, markdown_table
from powerbench.reports.text import Column, or_empty, si, significant, telling
from powerbench.results.model import Run

FORMATS = ("table", "csv", "json", "markdown")

LEGEND = (
    "* fastest at its context. ±: 95 % interval of the time. TFLOP/s: useful work only. "
    "roof: of this machine's roofline, with the bound it meets there."
)

EMPTY = "This run holds no measurement yet."


def render(run: Run, format: str, *, width: int = 100) -> str:
    """The run as text that ends in a newline; `width` in characters is for the table only.

    csv and json hold the tidy rows (`rows.Row`), missing values empty or null; table and markdown also say the
    answers, why rows have no number, and where the time of a call goes if its phases were timed. Raises ValueError for
    an unknown format.
    """
    match format:
        case "table":
            out = io.StringIO()
            print_run(run, Console(file=out, width=width))
            return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
        case "markdown":
            return _render_markdown(run)
        case "json":
            return json_text(dict(zip(COLUMNS, values(row), strict=True)) for row in rows(run))
        case "csv":
            from powerbench.reports.frames import tidy  # noqa: PLC0415  pandas is slow to import: only csv pays

            return csv_text(tidy(run))
    raise ValueError(f"format has to be one of {', '.join(FORMATS)}, not {format!r}")


def render_phases(run: Run, format: str) -> str:
    """One row a phase (`phases.PHASE_COLUMNS`) as csv or json, ending in a newline; no rows where none was timed."""
    if format == "csv":
        from powerbench.reports.frames import tidy_phases  # noqa: PLC0415  as above

        return csv_text(tidy_phases(run))
    if format == "json":
        found = [phase for phases in phase_rows(run).values() for phase in phases]
        return json_text(dict(zip(PHASE_COLUMNS, phase_values(phase), strict=True)) for phase in found)
    raise ValueError(f"format of the phases has to be csv or json, not {format!r}")


def print_run(run: Run, console: Console) -> None:
    """What may have spoilt the times, the tables, why rows have no number, and the answers, for the terminal."""
    for warning in run.spoilers:
        console.print(Text(f"warning: {printable(warning)}"))
    found, phases = groups(rows(run)), phase_rows(run)
    for group, name in zip(found, setting_names(found), strict=True):
        console.print(Text(printable(_title(group, name)), style="bold"))
        console.print(_rich_table(group))
        for reason in reasons(ordered(group)):
            console.print(Text(f"  {printable(reason)}", style="dim"))
        console.print()
        if curves_with_phases(group, phases):
            console.print(_rich_phases(group, phases))
            for reason in phase_reasons(group, phases):
                console.print(Text(f"  {printable(reason)}", style="dim"))
            console.print()
    console.print(Text(LEGEND if found else EMPTY, style="dim"))
    if phases:
        console.print(Text(PHASE_LEGEND, style="dim"))
    for answer in answers(run):
        console.print()
        console.print(Text(printable(answer.text)))
        for text in answer.predictions:
            console.print(Text(printable(text), style="italic"))


def columns(group: Group) -> list[Column[Row]]:
    """The columns that say something about these rows; what all rows share stands in the group's title."""
    own_batches = group.workload.startswith("a ")  # asked once: it looks at all rows
    all_columns: list[Column[Row]] = [
        Column("ctx", lambda row: context_text(row.ctx)),
        Column("batch", lambda row: str(row.batch) if own_batches else ""),
        Column("kernel", lambda row: row.kernel, is_number=False),
        Column("p", lambda row: or_empty(row.p)),
        Column("d_tile", lambda row: or_empty(row.d_tile)),
        Column("chunk", lambda row: or_empty(row.chunk_size)),
        Column("window", lambda row: or_empty(row.window)),
        Column("ms", lambda row: or_empty(row.median_ms, significant) if row.valid else _state(row)),
        Column("±", lambda row: or_empty(row.spread, percent_text) if row.valid else ""),
        # no speed of a time that cannot be trusted; its share of the roof says why
        Column("tokens/s", lambda row: or_empty(row.tokens_per_s, si) if row.valid else ""),
        Column("TFLOP/s", lambda row: or_empty(row.useful_tflops, significant) if row.valid else ""),
        Column("GB/s", lambda row: or_empty(row.gb_per_s, significant) if row.valid and row.pass_ == "decode" else ""),
        Column("roof", lambda row: or_empty(row.roof_fraction, percent_text)),
        Column("bound", lambda row: row.bound or "", is_number=False),
        Column("error", lambda row: or_empty(row.error, lambda value: f"{value:.0e}")),
        Column("clock", lambda row: "throttled" if row.throttled else "", is_number=False),
    ]
    return telling(all_columns, group.rows)


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


def _rich_table(group: Group) -> Table:
    shown, best = columns(group), fastest(group)
    table = empty_table(shown)
    previous = None
    for row in ordered(group):
        if previous not in (None, row.ctx):
            table.add_section()
        previous = row.ctx
        style = "bold" if row.case_id in best else ("" if row.valid else "dim")
        table.add_row(*(_cell(column, row, best) for column in shown), style=style)
    return table


def _rich_phases(group: Group, phases: PhasesByCase) -> Table:
    shown = phase_columns(group, phases)
    table = empty_table(shown)
    for case in phase_cases(group, phases):
        table.add_section()
        for phase, cells in zip(case, phase_cells(shown, case), strict=True):
            table.add_row(*map(printable, cells), style="" if phase.valid else "dim")
    return table


def _cell(column: Column[Row], row: Row, best: set[str]) -> str:
    text = printable(column.text(row))
    return f"*{text}" if column.heading == "ms" and row.case_id in best else text


def _render_markdown(run: Run) -> str:
    found, phases = groups(rows(run)), phase_rows(run)
    machine = run.header.environment
    command = markdown_code(stated(run.header).text)
    lines = [f"**powerbench on {markdown_text(machine.device)}** (by {command}, as the file states)", ""]
    for answer in answers(run):
        lines += [f"- {markdown_text(answer.text)}", *(f"  - {markdown_text(text)}" for text in answer.predictions)]
    lines += [f"- warning: {markdown_text(warning)}" for warning in (*run.warnings, *run.spoilers)]
    for group, name in zip(found, setting_names(found), strict=True):
        shown, best = columns(group), fastest(group)
        lines += ["", f"### {markdown_text(_title(group, name))}", ""]
        cells = [[_cell(column, row, best) for column in shown] for row in ordered(group)]
        lines += [
            *markdown_table(shown, cells),
            "",
            *(f"- {markdown_text(reason)}" for reason in reasons(ordered(group))),
        ]
        if curves_with_phases(group, phases):
            parts = phase_columns(group, phases)
            cells = [line for case in phase_cases(group, phases) for line in phase_cells(parts, case)]
            lines += ["", *markdown_table(parts, cells), ""]
            lines += [f"- {markdown_text(reason)}" for reason in phase_reasons(group, phases)]
    lines += ["", LEGEND.replace("*", r"\*") if found else EMPTY, *([PHASE_LEGEND] if phases else [])]
    return "\n".join(lines) + "\n"


def _title(group: Group, name: str) -> str:
    details = "" if group.setting.details in name else f", {group.setting.details}"
    return f"{name}{details}, {group.workload}" if group.setting.batch is None else f"{name}{details}"


def _state(row: Row) -> str:
    if not row.valid:
        return "invalid" if row.status == "ok" else row.status
    return "throttled" if row.throttled else "note"
