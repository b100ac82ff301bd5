"""Markdown for a pull request or a job's summary: what matters in the open, the rest folded."""

from __future__ import annotations

from collections.abc import Sequence

from powerbench.check.model import Comparison
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
from powerbench.printable import markdown_code, markdown_text

SIGNS = {"regression": "🔴", "improvement": "🟢", "inconclusive": "🟡", "ok": "⚪", "missing": "🟡"}
HEADINGS = ("verdict", "time", "95 % interval", "medians", "sees", "case", "why")


def markdown(comparison: Comparison) -> str:
    """GitHub-flavoured; ends with a newline."""
    against = f" against {markdown_text(comparison.baseline)}" if comparison.baseline else ""
    parts = [
        f"### powerbench check: {comparison.summary}",
        f"{markdown_text(comparison.new)}{against}, on {markdown_text(comparison.device)}",
    ]
    parts += [f"- {markdown_text(note)}" for note in comparison.notes]
    rows = [
        (
            f"{SIGNS[case.verdict]} {case.verdict}", change(case.ratio), interval(case), times(case),
            percent(case.detectable), markdown_code(case.case_id), markdown_text("; ".join(words(case))),
        )
        for case in compared(comparison)
    ]  # fmt: skip
    telling = [row for row in rows if not row[0].endswith(" ok")]
    if telling:
        parts.append(_table(HEADINGS, telling))
    if len(telling) < len(rows):
        fine = [row for row in rows if row not in telling]
        parts.append(f"<details><summary>{len(fine)} ok</summary>\n\n{_table(HEADINGS, fine)}\n\n</details>")
    if comparison.demands:
        held = [
            (
                f"{SIGNS[one.verdict]} {one.verdict}",
                markdown_text(one.reason),
                markdown_code(one.demand),
                markdown_text(one.of),
            )
            for one in demands(comparison)
        ]
        parts.append(_table(("verdict", "measured", "demand", "case"), held))
    parts += [f"- {markdown_text(line)}" for line in not_compared(comparison)]
    parts += [
        markdown_text(line) for line in (noise_line(comparison), NEXT_STEPS.get(comparison.exit_status, "")) if line
    ]
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
