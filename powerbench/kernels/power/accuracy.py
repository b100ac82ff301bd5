"""What the operator promises of its accuracy beyond `powerbench.gate.tolerance`: bounds that fuzzing holds it to."""

from __future__ import annotations

import math

ROUNDING = 2.0**-9  # of a bfloat16 operand, which the kernels take for float16 inputs too
DLOG_G_BASE = 0.03  # as verify allows bfloat16
DLOG_G_STEPS = 2.5  # an H200 needed 1.9 at most in 1,100 random problems, with fast gates (docs/kernel-notes.md)


def dlog_g_bound(chunk: int, forgotten: float) -> float:
    """Bound on the relative error of dlog_g of 16-bit inputs by the Triton backend.

    dlog_g sums over the rest of a chunk terms that are rounded apart, as a random walk does, while dlog_g itself holds
    what few tokens add where gates forget fast. chunk: tokens of a chunk; forgotten: mean of 1 - exp(log_g).
    """
    return DLOG_G_BASE + DLOG_G_STEPS * ROUNDING * math.sqrt(chunk * forgotten)
