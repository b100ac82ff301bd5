"""The terminal's table."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from powerbench.check.model import Comparison, Policy
from powerbench.check.noise import Calibration
from powerbench.check.outputs.text import (
    NEXT_STEPS,
    compared,
    demands,
    interval,
    noise_line,
    not_compared,
    times,
    words,
)
from powerbench.check.words import change, percent
from powerbench.printable import printable

STYLES = {"regression": "bold red", "improvement": "green", "inconclusive": "yellow", "missing": "yellow"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Every compared case with its words below it, then what could not be compared, and the outcome."""
    against = f" against {comparison.baseline}" if comparison.baseline else ""
    _line(console, f"{comparison.new}{against}, on {comparison.device}")
    for note in comparison.notes:
        _line(console, note)
    cases = compared(comparison)
    if cases:
        table = _table("verdict", "time", "95 % interval", "medians", "sees", "case")
        for case in cases:
            name, *said = map(printable, (case.case_id, *words(case)))
            what = Text("\n".join([name, *(f"  {word}" for word in said)]))
            what.stylize("dim", len(name))
            numbers = (change(case.ratio), interval(case), times(case), percent(case.detectable))
            table.add_row(Text(case.verdict, STYLES.get(case.verdict, "")), *numbers, what)
        console.print(table)
    if comparison.demands:
        table = _table("verdict", "measured", "demand", "case")
        for demand in demands(comparison):
            texts = map(printable, (demand.reason, demand.demand, demand.of))
            table.add_row(Text(demand.verdict, STYLES.get(demand.verdict, "")), *map(Text, texts))
        console.print(table)
    for line in (*not_compared(comparison), noise_line(comparison), NEXT_STEPS.get(comparison.exit_status, "")):
        if line:
            _line(console, line)
    _line(console, comparison.summary)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        long = heading in ("case", "demand", "measured")
        table.add_column(heading, overflow="fold" if long else "ellipsis", no_wrap=not long)
    return table


def _line(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=True)


def print_calibration(calibration: Calibration, path: Path, policy: Policy, console: Console) -> None:
    """Each case's noise floor, and the smallest slowdown that two runs on this machine can show."""
    table = _table("noise", "sees", "case")
    for case_id, noise in calibration.cases.items():
        table.add_row(percent(noise.sd), percent(noise.detectable), Text(printable(case_id)))
    _line(console, f"{calibration.device}: {calibration.runs} runs of one code")
    console.print(table)
    _line(
        console,
        "noise: standard deviation of the ratio of two runs, beyond their samples; sees: the smallest slowdown that "
        f"two runs would show in 95 % of trials, at a threshold of {percent(policy.threshold)}",
    )
    _line(console, f"calibration: {path}")
