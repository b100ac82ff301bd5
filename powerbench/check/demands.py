"""Absolute demands on one run: a share of the roof, a time, a speedup. Each is held against every case it names.

`[WHAT=]NUMBER`, where WHAT is a kernel or a family, `@CONTEXT` behind it or alone: power@64k=3. A speedup names two:
power:sdpa@64k=6 wants the fastest power kernel six times as fast as the fastest of sdpa.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from powerbench.check.model import Demand
from powerbench.crossover import context_text, percent_text
from powerbench.errors import UserError
from powerbench.reports.rows import Row, invalid, rows, trusted
from powerbench.reports.text import significant
from powerbench.results.model import Run
from powerbench.suites.grammar import count

Kind = Literal["min-roof", "max-ms", "min-speedup"]
EXAMPLES: dict[Kind, str] = {
    "min-roof": "0.5 or power@64k=0.5",
    "max-ms": "20 or power-triton@64k=1.2",
    "min-speedup": "power:sdpa@64k=6",
}


@dataclass(frozen=True)
class Wanted:
    """A demand as parsed. `of`: kernels or families, two for a speedup, none for all; `ctx` None: every context."""

    kind: Kind
    text: str
    of: tuple[str, ...]
    ctx: int | None
    limit: float


def parse(kind: Kind, text: str) -> Wanted:
    """Raises UserError that names the option and shows what is allowed."""
    what, _, number = text.rpartition("=")
    names, at, ctx = what.partition("@")
    of = tuple(name.strip() for name in names.split(":")) if names else ()
    try:
        limit = float(number)
    except ValueError:
        limit = 0.0
    number_named = len(of) == 2 if kind == "min-speedup" else len(of) <= 1
    if limit <= 0 or not number_named or not all(of):
        raise UserError(f"--{kind}: {text!r} is not a demand such as {EXAMPLES[kind]}")
    return Wanted(kind, f"--{kind} {text}", of, count(ctx, f"--{kind}") if at else None, limit)


def hold(wanted: Sequence[Wanted], run: Run) -> tuple[Demand, ...]:
    """Hold each demand against what the run measured; one that names nothing there is `missing`.

    No impossible time meets a demand: where one is named (of a speedup, as what is to be fast), the demand fails.
    """
    all_rows = rows(run)
    measured = trusted(all_rows)
    found: list[Demand] = []
    for one in wanted:
        held = _speedups(one, measured) if one.kind == "min-speedup" else _each(one, measured)
        held += [
            Demand(one.text, row.case_id, "regression", row.reason or "")
            for row in _named(one, one.of[:1], invalid(all_rows))
        ]
        found += held or [Demand(one.text, "", "missing", "the run holds no valid time that it could be held against")]
    return tuple(found)


def _each(wanted: Wanted, measured: Sequence[Row]) -> list[Demand]:
    found = []
    for row in _named(wanted, wanted.of, measured):
        if row.median_ms is None:
            continue
        low, high = row.interval_ms or (None, None)
        if wanted.kind == "max-ms":
            verdict = _judge(row.median_ms, low, high, wanted.limit)
            found.append(Demand(wanted.text, row.case_id, verdict, f"{significant(row.median_ms)} ms"))
        elif row.roof_fraction is not None:
            at_roof_ms = row.roof_fraction * row.median_ms
            verdict = _judge(row.median_ms, low, high, at_roof_ms / wanted.limit)
            found.append(Demand(wanted.text, row.case_id, verdict, f"{percent_text(row.roof_fraction)} of the roof"))
    return found


def _speedups(wanted: Wanted, measured: Sequence[Row]) -> list[Demand]:
    """In each problem and pass that both measured, the fastest of the one against the fastest of the other."""
    found = []
    mine, theirs = (_fastest(_named(wanted, (name,), measured)) for name in wanted.of)
    for problem, fast in mine.items():
        slow = theirs.get(problem)
        if slow is None or not fast.median_ms or not slow.median_ms:
            continue
        ratio = slow.median_ms / fast.median_ms
        low = high = None
        if fast.interval_ms and slow.interval_ms:
            low, high = fast.interval_ms[0] / slow.interval_ms[1], fast.interval_ms[1] / slow.interval_ms[0]
        verdict = _judge(1 / ratio, low, high, 1 / wanted.limit)
        of = f"{fast.case_id} against {slow.case_id}"
        found.append(Demand(wanted.text, of, verdict, f"{ratio:.2f}x at {context_text(fast.ctx)}"))
    return found


def _judge(
    value: float, low: float | None, high: float | None, most: float
) -> Literal["ok", "regression", "inconclusive"]:
    """`value` may be at most `most`; its interval decides, and where that holds both answers, or is unknown, none."""
    if low is None or high is None or low <= most < high:
        return "inconclusive"
    return "ok" if value <= most else "regression"


def _named(wanted: Wanted, names: Sequence[str], measured: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in measured
        if wanted.ctx in (None, row.ctx) and (not names or row.kernel in names or row.family in names)
    ]


def _fastest(measured: Sequence[Row]) -> dict[tuple[object, ...], Row]:
    """Of each problem and pass."""
    found: dict[tuple[object, ...], Row] = {}
    for row in sorted((row for row in measured if row.median_ms), key=lambda row: row.median_ms or 0.0, reverse=True):
        sizes = (row.batch, row.heads, row.kv_heads, row.head_dim, row.value_dim)
        found[(row.ctx, *sizes, row.dtype, row.pass_, row.gated)] = row
    return found
