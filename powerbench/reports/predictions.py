"""What the cost model says beyond the measured contexts; always apart from what was measured, always labelled."""

from __future__ import annotations

from functools import lru_cache
from itertools import takewhile

from powerbench.costmodel import CostModel, Point, Prediction, fit, predict
from powerbench.crossover import context_text, percent_text
from powerbench.reports.curves import Curve
from powerbench.reports.rows import Row
from powerbench.reports.text import si, significant

LABEL = "Predicted, not measured"


def model(curve: Curve) -> CostModel | None:
    """The model of a curve, fitted where it does what it does at its largest context: same launches, chunk and window.

    A window that is the whole of a short context is another form: its bytes grow with the context.
    """
    ordered = list(reversed(curve.points.values()))
    alike = list(takewhile(lambda row: _form(row) == _form(ordered[0]), ordered))
    return _fitted(tuple(Point(row.ctx, row.batch, row.measurement.cost, row.median_ms or 0.0) for row in alike))


@lru_cache(maxsize=4096)
def _fitted(points: tuple[Point, ...]) -> CostModel | None:
    """Once a curve: it is asked for with every other curve of its setting."""
    return fit(points)


def prediction(ahead: Curve, behind: Curve) -> Prediction | None:
    """Where the curve that leads at the largest shared context is predicted to fall behind; None: nothing to say."""
    shared = sorted(ahead.points.keys() & behind.points.keys())
    first, second = model(ahead), model(behind)
    if first is None or second is None:
        return None
    rows = [ahead.points[ctx] for ctx in shared]
    constant = len({row.batch for row in rows}) == 1
    return predict(first, second, shared[-1], None if constant else rows[-1].batch * rows[-1].ctx, rows[-1].batch)


def prediction_text(found: Prediction) -> str:
    """`at about 210k (190k..235k; model error 4 %)`; without an end where it may come after the horizon."""
    span = f"{context_text(found.low)}..{context_text(found.high) if found.high else ''}"
    return f"at about {context_text(found.at)} ({span}; model error {percent_text(found.error)})"


def model_text(found: CostModel) -> str:
    """The terms of a model as what they mean: time of a call, rate of bytes, rate of FLOPs."""
    parts = []
    if found.launch_ms:
        parts.append(f"launch {significant(found.launch_ms)} ms")
    if found.linear_ms_per_byte:
        parts.append(f"linear {si(1e3 / found.linear_ms_per_byte, ' ')}B/s")
    if found.quadratic_ms_per_flop:
        parts.append(f"quadratic {si(1e3 / found.quadratic_ms_per_flop, ' ')}FLOP/s")
    return ", ".join(parts)


def _form(row: Row) -> tuple[object, ...]:
    return (row.chunk_size, row.window, *(launch.name for launch in row.measurement.launches))
