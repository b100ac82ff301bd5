"""Do the reported intervals cover what the same suite gives when it is measured again?

    python -m tools.coverage RUN.jsonl RUN.jsonl ...

Of every two runs, case by case: the times are to differ by no more than the halves of their 95 % intervals that face
each other, as the root of the sum of squares.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import combinations

from powerbench.reports.rows import Row, rows
from powerbench.results.store import load


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN.jsonl")
    print("\n".join(table(parser.parse_args().runs)))


def table(paths: Sequence[str]) -> list[str]:
    """The lines of the table over these run files, and one that counts them all."""
    found = [{row.case_id: row for row in rows(load(path)) if row.interval_ms} for path in paths]
    lines = ["| case | ms | ± | largest difference of two runs | covered |", "|---|---:|---:|---:|---:|"]
    covered = number = 0
    for case in found[0]:
        measured = [run[case] for run in found if case in run]
        pairs = [_pair(a, b) for a, b in combinations(measured, 2)]
        good = sum(difference <= half for difference, half in pairs)
        covered, number = covered + good, number + len(pairs)
        halves = [row.spread or 0.0 for row in measured]
        lines.append(
            f"| {case} | {measured[0].median_ms:.4g} | {sum(halves) / len(halves):.1%} "
            f"| {max(difference for difference, _ in pairs):.1%} | {good} of {len(pairs)} |"
        )
    return [*lines, "", f"covered: {covered} of {number} differences, {covered / number:.1%}"]


def _pair(a: Row, b: Row) -> tuple[float, float]:
    """The difference, and what the intervals allow it; both of the smaller time."""
    low, high = sorted((a, b), key=lambda row: row.median_ms or 0.0)
    assert low.median_ms
    assert high.median_ms
    assert low.ci_high_ms
    assert high.ci_low_ms
    half = math.hypot(low.ci_high_ms - low.median_ms, high.median_ms - high.ci_low_ms)
    return high.median_ms / low.median_ms - 1, half / low.median_ms


if __name__ == "__main__":
    main()
