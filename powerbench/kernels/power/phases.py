"""The launches of a call of the Triton backend, each as a call of its own. Imports triton."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from powerbench.kernels.kernel import Inputs, Phases
from powerbench.kernels.power.cost import resolved
from powerbench.kernels.power.triton_backend import call, forward_launches
from powerbench.kernels.power.triton_backward import triton_backward
from powerbench.problem import Case


@torch.no_grad()
def triton_phases(case: Case, inputs: Inputs, normalize: bool) -> Phases:
    """Makes one call of the case's pass; returns each of its launches, by the name in the ledger, on the same operands.

    Results are written to new tensors each time, so that repeating a launch does the same work. The operands of all
    launches stay in memory: with a backward pass four arrays of states.
    """
    found: Phases = {}

    def record(name: str, function: Callable[..., Any], *args: object, **options: object) -> Any:
        found[name] = partial(function, *args, **options)
        return function(*args, **options)

    p, d_tile, chunk_size = resolved(case)
    q, k, v, log_g = (None if x is None else x.detach() for x in (inputs.q, inputs.k, inputs.v, inputs.log_g))
    options = {"p": p, "chunk_size": chunk_size, "d_tile": d_tile, "scale": q.shape[-1] ** -0.5, "normalize": normalize}
    done = forward_launches(
        q, k, v, log_g, initial_state=None, return_state=False, save=case.pass_ != "fwd",
        launch=call if case.pass_ == "bwd" else record, **options,
    )  # fmt: skip
    if case.pass_ != "fwd":
        triton_backward(
            inputs.dy, None, q, k, v, log_g, done.y, done.den, done.r, done.a, None,
            initial=False, return_state=False, launch=record, **options,
        )  # fmt: skip
    return found
