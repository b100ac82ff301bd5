"""The cost model of a curve: fitted to the contexts at which a contestant does the same."""

from __future__ import annotations

from powerbench.problem import Params
from powerbench.reports.curves import curves
from powerbench.reports.predictions import model
from powerbench.reports.rows import rows
from tests import runs

CONTEXTS = (1024, 4096, 16384, 65536, 262144)


def test_a_window_that_is_the_whole_context_is_another_form():
    """Decoding with windows of 2112 keys: from 4k on a call moves the same bytes in the same time."""
    sizes = {ctx: min(ctx, 2112) for ctx in CONTEXTS}
    measured = [
        runs.measurement(
            "window-torch",
            ctx,
            size / 20,
            params=Params(2, window=size),
            flops=1e6 * size,
            moved=4096 * size,
            noise=0.0,
        )
        for ctx, size in sizes.items()
    ]
    (curve,) = curves(rows(runs.run(measured)))
    assert list(curve.points) == list(CONTEXTS)
    fitted = model(curve)
    assert set(fitted.residuals) == set(CONTEXTS[1:])
    assert fitted.error < 1e-6
    assert (fitted.launch_ms, fitted.quadratic_ms_per_flop) == (0, 0)
