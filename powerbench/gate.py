"""The gate: no speed without correctness. A case's results on the timed inputs against float64, and how far off.

At long contexts the reference is computed on sampled query rows only, so that it stays linear in memory:

* y at the sampled rows depends on nothing else, so it is compared as it is;
* dq at the sampled rows likewise, from the dense dy that is timed;
* dk, dv and dlog_g sum over all rows, so they are compared for a dy that is zero elsewhere. A backward pass is linear
  in dy, so this checks the same map on a subspace, in full.

The error is relative, ||got - want|| / ||want||: for y the largest over the sampled positions (norm over batch, heads
and value dimension, so that one wrong row cannot hide among many right ones); for gradients over all that is compared,
because single rows may be exactly zero (the first query of normalised attention sees one key: its dq is).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from powerbench.kernels.kernel import Forward, Inputs, Kernel
from powerbench.problem import Case, Problem

# Largest relative error that passes at p <= 2; a p-th power multiplies relative errors by p, so p / 2 scales it.
# Two to ten times what correct kernels show (docs/measuring.md); a wrong mask, gate or tile shows 0.1 and more.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}
REFERENCE_ELEMENTS = 2**24  # B * H * R * T of one float64 intermediate: 128 MiB
MIN_ROWS = 8

# Float64 copies of q, k, v, dy and, where gradients are compared, as many gradients; and the row-by-row intermediates.
REFERENCE_INTERMEDIATES = 6

Gradients = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def tolerance(case: Case) -> float:
    """The largest relative error with which the case passes."""
    return TOLERANCE[case.problem.dtype] * max(1.0, (case.params.p or 1) / 2)


def memory_bytes(case: Case) -> int:
    """Predicted device memory of the gate's reference, beside the case itself."""
    problem = case.problem
    elements = (problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.y_bytes) // problem.itemsize
    rows = len(sample_rows(problem, 0))
    intermediates = REFERENCE_INTERMEDIATES * rows * problem.batch * problem.heads * problem.seqlen
    return 8 * (elements * (1 if case.pass_ == "fwd" else 2) + intermediates)


def sample_rows(problem: Problem, seed: int) -> torch.Tensor:
    """Query positions [R], ascending: both ends, block boundaries, the rest drawn at random; all when T is short."""
    T = problem.seqlen
    per_row = problem.batch * problem.heads * T
    number = min(T, max(MIN_ROWS, REFERENCE_ELEMENTS // per_row))
    if number == T:
        return torch.arange(T)
    fixed = [row for row in (0, T - 1, T // 2, T // 2 - 1, 63, 64, 127, 128) if row < T][:number]
    drawn = torch.randperm(T, generator=torch.Generator().manual_seed(seed))[:number].tolist()
    return torch.tensor(sorted(dict.fromkeys(fixed + drawn))[:T])


def worst_error(kernel: Kernel, case: Case, inputs: Inputs, forward: Forward, seed: int) -> float:
    """Run the case once on `inputs` and return its largest relative error; nan or inf where a result is not finite."""
    rows = sample_rows(case.problem, seed).to(inputs.q.device)
    exact = Inputs(**{k: t if t is None else t.detach().double() for k, t in vars(inputs).items()})
    if case.pass_ == "fwd":
        with torch.no_grad():
            y = forward(inputs.q, inputs.k, inputs.v, inputs.log_g)
            return _row_error(y[:, rows], kernel.reference(case, exact, rows))
    y, gradients = differentiable(kernel, inputs, forward)
    want_y, want_gradients = differentiable(
        kernel, exact, lambda q, k, v, g: kernel.reference(case, Inputs(q, k, v, g, exact.dy), rows)
    )
    errors = [_row_error(y[:, rows].detach(), want_y.detach())]
    want_q, *want_rest = want_gradients(exact.dy[:, rows])
    masked = torch.zeros_like(inputs.dy).index_copy_(1, rows, inputs.dy[:, rows])
    errors.append(_error(gradients(inputs.dy)[0][:, rows], want_q[:, rows]))
    errors += [_error(got, want) for got, want in zip(gradients(masked)[1:], want_rest, strict=True)]
    return max(errors, key=lambda error: (math.isnan(error), error))  # a nan is the worst of all


def differentiable(kernel: Kernel, inputs: Inputs, forward: Forward) -> tuple[torch.Tensor, Gradients]:
    """y with its graph, and dy -> (dq, dk, dv[, dlog_g]) through it, which may be called again and again."""
    leaves = {
        name: tensor.detach().requires_grad_(name != "log_g" or kernel.gated)
        for name, tensor in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v), ("log_g", inputs.log_g))
        if tensor is not None
    }
    y = forward(leaves["q"], leaves["k"], leaves["v"], leaves.get("log_g"))
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return y, lambda dy: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(got.double() - want) / torch.linalg.vector_norm(want))


def _row_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest relative error over the positions (dimension 1)."""
    dims = (0, 2, 3)
    errors = torch.linalg.vector_norm(got.double() - want, dim=dims) / torch.linalg.vector_norm(want, dim=dims)
    return float(errors.max()) if bool(errors.isfinite().all()) else float("nan")
