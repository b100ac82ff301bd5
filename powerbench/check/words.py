"""Ratios and shares as people read them."""

from __future__ import annotations

import math


def change(ratio: float | None) -> str:
    """+4.9 % for a ratio of 1.049, 2.31x for one of 2.31; empty where there is none."""
    if ratio is None:
        return ""
    return f"{100 * (ratio - 1):+.1f} %" if ratio < 2 else f"{ratio:.3g}x" if ratio < 1e4 else "over 10000x"


def percent(fraction: float | None) -> str:
    """2.4 % for 0.024; empty where there is none, `nothing` for infinity: there is nothing that could be seen."""
    if fraction is None:
        return ""
    return (
        "nothing" if math.isinf(fraction) else f"{100 * fraction:.1f} %" if fraction < 1 else f"{100 * fraction:.0f} %"
    )
