"""Where a curve through a few points changes its sign, and how far that may be off. numpy only.

The place is that of a monotone cubic through the points. Its interval joins two errors that have nothing to do with
each other, as the root of the sum of their squares on either side: the points are noisy (95 % of resampled curves
change their sign within), and between them the curve may bend (`_bounds`).

Many curves are treated at once: rows of `y` [curves, points] over one `x` [points], ascending.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COVERED = 0.95  # how many intervals hold the true place, of 1


def change_of_sign(x: Array, y: Array, resampled: Array, first: int, last: int) -> tuple[float, float, float]:
    """Where the curve `y` [points] changes its sign between the points `first` and `last`; the interval's ends.

    `resampled` [resamples, points] are curves as they might have been measured. Where the noise makes `y` change its
    sign several times, the place is the middle one.
    """
    segments = _changes(y[None], first, last)
    places = [float(_cubic_root(x, y[None], _monotone_slopes(x, y[None]), i)[0]) for i in segments]
    place = places[len(places) // 2]
    low, high = _noise(x, resampled, first, last)
    bounds = [_bounds(x, y, i) for i in segments]
    below = np.hypot(max(0.0, place - low), max(0.0, place - min(low for low, _ in bounds)))
    above = np.hypot(max(0.0, high - place), max(0.0, max(high for _, high in bounds) - place))
    return place, float(max(x[first], place - below)), float(min(x[last], place + above))


def _noise(x: Array, resampled: Array, first: int, last: int) -> tuple[float, float]:
    """Within these places 95 % of the resampled curves have all their changes of sign."""
    slopes = _monotone_slopes(x, resampled)
    lowest, highest = np.full(len(resampled), np.inf), np.full(len(resampled), -np.inf)
    for i in _changes(resampled, first, last):
        rows = (resampled[:, i] > 0) != (resampled[:, i + 1] > 0)
        root = _cubic_root(x, resampled[rows], slopes[rows], i)
        lowest[rows], highest[rows] = np.minimum(lowest[rows], root), np.maximum(highest[rows], root)
    crossed = np.isfinite(lowest)
    tail = (1 - COVERED) / 2
    return float(np.quantile(lowest[crossed], tail)), float(np.quantile(highest[crossed], 1 - tail))


def _changes(y: Array, first: int, last: int) -> list[int]:
    """The segments between two points in which at least one of the curves changes its sign; zero counts as below."""
    above = y[:, first : last + 1] > 0
    return [first + int(i) for i in np.flatnonzero((above[:, 1:] != above[:, :-1]).any(axis=0))]


def _monotone_slopes(x: Array, y: Array) -> Array:
    """Slopes [curves, points] of the cubic that is monotone wherever the points are (Fritsch and Butland 1984)."""
    if len(x) < 3:
        return np.repeat(np.diff(y) / np.diff(x), 2, axis=1)
    width = np.diff(x)
    chord = np.diff(y) / width
    left, right = chord[:, :-1], chord[:, 1:]
    one, two = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = (one + two) / (one / left + two / right)
    slopes = np.empty_like(y)
    slopes[:, 1:-1] = np.where(left * right > 0, inner, 0.0)
    slopes[:, 0] = _end_slope(width[0], width[1], chord[:, 0], chord[:, 1])
    slopes[:, -1] = _end_slope(width[-1], width[-2], chord[:, -1], chord[:, -2])
    return slopes


def _end_slope(near: float, far: float, chord: Array, next_chord: Array) -> Array:
    """Of the parabola through the outermost three points, held where the cubic stays monotone."""
    slope = ((2 * near + far) * chord - near * next_chord) / (near + far)
    slope = np.where(slope * chord <= 0, 0.0, slope)
    return np.where((chord * next_chord < 0) & (np.abs(slope) > 3 * np.abs(chord)), 3 * chord, slope)


def _cubic_root(x: Array, y: Array, slopes: Array, segment: int) -> Array:
    """Where each curve is zero between the points `segment` and `segment` + 1, at which its signs differ.

    By bisection, [curves]. A curve without a change of sign gives an end of the segment.
    """
    x0, width = x[segment], x[segment + 1] - x[segment]
    y0, y1 = y[:, segment], y[:, segment + 1]
    m0, m1 = slopes[:, segment] * width, slopes[:, segment + 1] * width
    square, cube, sign = 3 * (y1 - y0) - 2 * m0 - m1, m0 + m1 - 2 * (y1 - y0), np.sign(y0)
    t, step = np.full(len(y), 0.5), 0.25
    for _ in range(32):
        value = y0 + t * (m0 + t * (square + t * cube))
        t += np.where(value * sign > 0, step, -step)
        step /= 2
    return x0 + width * t


def _bounds(x: Array, y: Array, segment: int) -> tuple[float, float]:
    """Between which places a curve through `y` [points] that bends one way can be zero within a segment.

    A convex or a concave curve lies between its chord and the lines through the points on either side, prolonged. So
    its root lies between that of the chord and the nearer of those of the lines. Where one line's lies before and the
    other's after it (the curve turns from convex to concave), both count. With two points in all, nothing but the
    segment bounds it.
    """
    start, end, y0, y1 = x[segment], x[segment + 1], y[segment], y[segment + 1]
    if len(x) == 2:
        return float(start), float(end)
    chord = start + (end - start) * y0 / (y0 - y1)
    roots = []
    if segment > 0:
        slope = (y0 - y[segment - 1]) / (start - x[segment - 1])
        roots.append(start - y0 / slope if slope * (y1 - y0) > 0 else end)
    if segment + 2 < len(x):
        slope = (y[segment + 2] - y1) / (x[segment + 2] - end)
        roots.append(end - y1 / slope if slope * (y1 - y0) > 0 else start)
    before = [max(root, start) for root in roots if root <= chord]
    after = [min(root, end) for root in roots if root >= chord]
    return float(max(before, default=chord)), float(min(after, default=chord))
