"""What the operator promises of its accuracy beyond `powerbench.gate.tolerance`: bounds that fuzzing holds it to."""

from __future__ import annotations

# Of bfloat16, relative (Frobenius norm). dlog_g sums over the rest of its chunk differences of terms that the Hopper
# kernels round apart (`power_attention`, Accuracy); 9.2e-2 is the worst seen: p = 3, d = 32, e = 128, not normalised,
# chunks of 256, gates logsigmoid(randn).
DLOG_G_BOUND = 0.1


def dlog_g_bound(dtype: str, d: int, e: int) -> float:
    """Bound on the relative error of dlog_g by the Hopper kernels; 0 where others serve, which need none of their own.

    dtype as in `powerbench.problem.DType`; d and e: head dimensions of q and v.
    """
    hopper = dtype == "bf16" and min(d, e) >= 32
    return DLOG_G_BOUND if hopper else 0.0
