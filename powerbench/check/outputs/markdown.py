"""Markdown for a pull request or a job's summary: what matters in the open, the rest folded."""

from __future__ import annotations

from collections.abc import Sequence

from powerbench.check.model import Comparison
from powerbench.check.outputs.text import (
    NEXT_STEPS,
    compared,
    demands,
    interval,
    lost,
    noise_line,
    not_compared,
    times,
    words,
)
from powerbench.check.words import change, percent
from powerbench.reports.text import printable

SIGNS = {"regression": "🔴", "invalid": "🔴", "improvement": "🟢", "inconclusive": "🟡", "ok": "⚪", "missing": "🟡"}
SHOWN_LOST = 20  # a row each; the line below the tables counts all of them
HEADINGS = ("verdict", "time", "95 % interval", "medians", "sees", "case", "why")


def markdown(comparison: Comparison) -> str:
    """GitHub-flavoured; ends with a newline."""
    against = f" against {_escaped(comparison.baseline)}" if comparison.baseline else ""
    parts = [
        f"### powerbench check: {comparison.summary}",
        f"{_escaped(comparison.new)}{against}, on {_escaped(comparison.device)}",
    ]
    parts += [f"- {_escaped(note)}" for note in comparison.notes]
    rows = [
        (
            f"{SIGNS[case.verdict]} {case.verdict}", change(case.ratio), interval(case), times(case),
            percent(case.detectable), f"`{_code(case.case_id)}`", _escaped("; ".join(words(case))),
        )
        for case in compared(comparison)
    ]  # fmt: skip
    rows += [
        (f"{SIGNS['regression']} {case.verdict}", "", "", "", "", f"`{_code(case.case_id)}`", _escaped(case.reason))
        for case in lost(comparison)[:SHOWN_LOST]
    ]
    telling = [row for row in rows if not row[0].endswith(" ok")]
    if telling:
        parts.append(_table(HEADINGS, telling))
    if len(telling) < len(rows):
        fine = [row for row in rows if row not in telling]
        parts.append(f"<details><summary>{len(fine)} ok</summary>\n\n{_table(HEADINGS, fine)}\n\n</details>")
    if comparison.demands:
        held = [
            (f"{SIGNS[one.verdict]} {one.verdict}", _escaped(one.reason), f"`{_code(one.demand)}`", _escaped(one.of))
            for one in demands(comparison)
        ]
        parts.append(_table(("verdict", "measured", "demand", "case"), held))
    parts += [f"- {_escaped(line)}" for line in not_compared(comparison)]
    parts += [_escaped(line) for line in (noise_line(comparison), NEXT_STEPS.get(comparison.exit_status, "")) if line]
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text that comes from a run file, so that it can be neither a table nor HTML nor a link."""
    for special in "\\`*_[]<>|#":
        text = text.replace(special, f"\\{special}" if special not in "<>" else {"<": "&lt;", ">": "&gt;"}[special])
    return printable(text)


def _code(text: str) -> str:
    return printable(text).replace("`", "'").replace("|", "\\|")
