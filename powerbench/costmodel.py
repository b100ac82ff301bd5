"""A model of a contestant's time beyond the measured contexts: launch + linear + quadratic, the terms from the ledger.

Per sequence, what the ledger counts is a polynomial of the context T: its bytes are a + b T, its executed FLOPs
a + b T + c T^2, where c is zero for a linear operator. The time of a call on B sequences is then

    launch + linear B (a + b T of the bytes) + quadratic B c T^2 of the FLOPs

with coefficients of at least zero, fitted to the medians in relative error. A term that the ledger lacks is not fitted:
noise cannot make a linear operator quadratic. Results are predictions, and are called so wherever they show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from powerbench.cost import Cost

LARGEST_ERROR = 0.25  # a model that misses a measured time by more predicts nothing
HORIZON = 16  # times the largest measured context; no prediction beyond
_MATERIAL = 0.02  # a quadratic term below this share of the FLOPs at the largest context is rounding of the ledger
_SAME_BYTES = 2.0  # a call's largest over smallest; below, launch and linear terms cannot be told apart

Array = NDArray[np.float64]
N = TypeVar("N", float, Array)


class Point(NamedTuple):
    """One measured context: tokens a sequence, sequences, the call's ledger and median time."""

    ctx: int
    batch: int
    cost: Cost
    ms: float


class CostModel(msgspec.Struct, frozen=True):
    """A fitted model of one contestant. `residuals`: predicted over measured time less 1, by context."""

    launch_ms: float
    linear_ms_per_byte: float
    quadratic_ms_per_flop: float
    bytes_per_sequence: tuple[float, float]  # a, b of a + b T
    flops_per_square: float  # c of c T^2, a sequence
    residuals: dict[int, float]

    @property
    def error(self) -> float:
        """The largest residual, of 1."""
        return max(abs(residual) for residual in self.residuals.values())

    def time_ms(self, ctx: N, batch: N) -> N:
        """Predicted milliseconds of a call on `batch` sequences of `ctx` tokens, each a number or an array."""
        constant, slope = self.bytes_per_sequence
        linear = self.linear_ms_per_byte * (constant + slope * ctx)
        return self.launch_ms + batch * (linear + self.quadratic_ms_per_flop * self.flops_per_square * ctx**2)


class Prediction(msgspec.Struct, frozen=True):
    """Where a lead is predicted to change, in tokens, beyond the measured contexts.

    `low` and `high` are where it would, were the models off by their error; `high` None: not before the horizon.
    """

    at: float
    low: float
    high: float | None
    error: float  # of both models together, of 1


def fit(points: Sequence[Point]) -> CostModel | None:
    """The model of a contestant that did the same at each of these contexts.

    None where there are no more points than terms, at least three, or where the ledger counts no bytes.
    """
    ctx, batch, ms = (np.array([getattr(point, name) for point in points], float) for name in ("ctx", "batch", "ms"))
    if len(points) < 3 or any(point.cost.bytes <= 0 for point in points):
        return None
    moved = _polynomial(ctx, np.array([point.cost.bytes for point in points]) / batch, 1)
    flops = np.array([max(point.cost.executed_flops, 1) for point in points]) / batch
    square = float(_polynomial(ctx, flops, 2)[2])
    end = int(np.argmax(ctx))
    if square * ctx[end] ** 2 < _MATERIAL * flops[end]:
        square = 0.0
    columns = np.stack([np.ones_like(ctx), batch * (moved[0] + moved[1] * ctx), batch * square * ctx**2], axis=1)
    call_bytes = columns[:, 1]
    terms = [1] if max(call_bytes) < _SAME_BYTES * min(call_bytes) else [0, 1]
    terms += [2] if square else []
    if len(points) <= len(terms):
        return None
    coefficients = np.zeros(3)
    coefficients[terms] = nonnegative_fit(columns[:, terms] / ms[:, None])
    residuals = columns @ coefficients / ms - 1
    by_context = {point.ctx: float(residual) for point, residual in zip(points, residuals, strict=True)}
    launch, linear, quadratic = map(float, coefficients)
    return CostModel(launch, linear, quadratic, (float(moved[0]), float(moved[1])), square, by_context)


def nonnegative_fit(columns: Array) -> Array:
    """The x >= 0 that brings `columns` [points, terms] @ x nearest to 1 everywhere, by least squares.

    Terms are few, so every choice of those that are not zero is tried: the best one without a negative is the answer.
    """
    scale = np.linalg.norm(columns, axis=0)
    number = columns.shape[1]
    best, smallest = np.zeros(number), math.inf
    for kept in (list(chosen) for size in range(1, number + 1) for chosen in combinations(range(number), size)):
        part, *_ = np.linalg.lstsq(columns[:, kept] / scale[kept], np.ones(len(columns)), rcond=None)
        x = np.zeros(number)
        x[kept] = part / scale[kept]
        miss = float(np.sum((columns @ x - 1) ** 2))
        if (part >= 0).all() and miss < smallest:
            best, smallest = x, miss
    return best


def predict(ahead: CostModel, behind: CostModel, end: int, tokens: int | None, batch: int) -> Prediction | None:
    """Where the contestant that leads at the largest measured context `end` is predicted to fall behind.

    The batch goes with the context as it was measured: it keeps batch times context at `tokens`, else it is `batch`.
    None where the models are off by more than LARGEST_ERROR, where they contradict the measured lead at `end`, or where
    nothing changes within HORIZON.
    """
    error = math.hypot(ahead.error, behind.error)
    if error > LARGEST_ERROR:
        return None
    grid = end * 2 ** np.arange(0, math.log2(HORIZON) + 1e-9, 1 / 64)
    sequences = np.maximum(1.0, tokens / grid) if tokens else np.full(len(grid), float(batch))
    lead = np.log(behind.time_ms(grid, sequences) / ahead.time_ms(grid, sequences))
    if lead[0] <= 0:
        return None
    at, low, high = (_first_below(grid, lead, bound) for bound in (0.0, error, -error))
    return None if at is None or low is None else Prediction(at, low, high, error)


def _first_below(grid: Array, lead: Array, bound: float) -> float | None:
    below = np.flatnonzero(lead <= bound)
    return float(grid[below[0]]) if len(below) else None


def _polynomial(x: Array, y: Array, degree: int) -> Array:
    """Coefficients, ascending, of the polynomial nearest to y in relative error."""
    scale = float(max(x))
    powers = np.vander(x / scale, degree + 1, increasing=True)
    coefficients, *_ = np.linalg.lstsq(powers / y[:, None], np.ones(len(x)), rcond=None)
    found: Array = coefficients / scale ** np.arange(degree + 1)
    return found
