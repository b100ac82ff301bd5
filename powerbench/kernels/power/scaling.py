"""`scale`, cut in two: a power of two, which scores and phi(q) meet before they are raised to p, and the rest.

Raised first, scores of large q and k would leave the range of float32, although what becomes of them does not. A power
of two rounds nothing. The rest, between 1 / sqrt(2) and sqrt(2), is left to the results, and cancels where they are
normalised. No torch.
"""

from __future__ import annotations

import math

LARGEST_EXPONENT = 120  # of factor^p: float32 and bfloat16 hold it, with room for what it meets


def split_scale(scale: float, p: int) -> tuple[float, float]:
    """(factor, rest), factor * rest = scale: factor a power of two, with factor^p from 2^-120 to 2^120."""
    bound = LARGEST_EXPONENT // p
    factor = 2.0 ** max(-bound, min(bound, round(math.log2(scale))))
    return factor, scale / factor
