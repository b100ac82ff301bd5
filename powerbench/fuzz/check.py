"""Whether a random problem is right: finite, the same bits twice, and each tensor near enough to float64.

The error of a tensor is ||x - want|| / ||want||, and it may be `tolerance` (as in `powerbench verify`). Where it is
more, the rounding of the inputs' dtype may ask for it, and then it may also be

* for the Triton backend, three times the error of the PyTorch backend, in that dtype and on the same inputs;
* for dlog_g of 16-bit inputs by the Triton backend, the bound that the operator states (`dlog_g_bound`);
* `tolerance` times CANCELLED of the norm of the terms of which the tensor is a sum (`terms`): a result that is little
  but the rest of terms that cancel (zero is the gradient of a query that sees one key) has nothing of its own to be
  relative to.

One wrong row among thousands would hide in the norm: so rows (of a token and head) have an error too, against the norm
of the row itself or the root mean square of all, whichever is larger, and may have ROW times as much as the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from powerbench.fuzz.calls import Results, class_sums, d_tile_of, doubled, results, wanted
from powerbench.fuzz.inputs import Values, make_values
from powerbench.fuzz.problem import FuzzProblem
from powerbench.fuzz.terms import term_norms
from powerbench.gate import TOLERANCE
from powerbench.kernels.power.accuracy import dlog_g_bound
from powerbench.kernels.power.op import Backend, use_triton

TORCH_FACTOR = 3.0  # times the error of the PyTorch backend
CANCELLED = 0.25
ROW = 8.0
NOTHING = 1e-30  # an error below it is none: a gate of -inf is as good as zero, and exact zeros are not promised
BY_ROW = ("y", "dq", "dk", "dv")
ONE_IN = 4  # problems is called twice on a CPU, where calls are slow and differ by what they read of free memory alone
POISON = (math.nan, 1e4)  # what lies in free memory before the first call and the second: nobody may read it


@dataclass
class Judged:
    """One tensor: its error, what it may be, and why it may. error None: not finite."""

    error: float | None
    allowed: float
    by: str = "tolerance"

    @property
    def right(self) -> bool:
        """Whether it passes."""
        return self.error is not None and self.error <= self.allowed


def tolerance(problem: FuzzProblem) -> float:
    """The relative error with which every tensor passes: `powerbench.gate.tolerance`, of a state's dtype if lower."""
    return TOLERANCE["bf16" if problem.low else problem.dtype] * max(1.0, problem.p / 2)


def check(problem: FuzzProblem, device: torch.device, backend: Backend) -> dict[str, Any]:
    """A line of the log: status right or wrong, a message, and `Judged` for each tensor (with `.row`, for rows)."""
    d_tile = d_tile_of(problem, device)
    values = make_values(problem, d_tile, device)
    poison(values, POISON[0])
    got = results(problem, values, d_tile, backend)
    again = got
    if device.type == "cuda" or problem.seed % ONE_IN == 0:
        poison(values, POISON[1])
        again = results(problem, values, d_tile, backend)
    want = wanted(problem, values, d_tile)
    triton = use_triton(backend, values.q, values.v)
    judged = judge(
        problem, values, d_tile, got, want, lambda: results(problem, values, d_tile, "torch") if triton else None
    )
    messages = [_told(name, x) for name, x in judged.items() if not x.right]
    messages += [f"{name}: not the same bits twice" for name in got if not _same(got[name], again[name])]
    return {
        "status": "wrong" if messages else "right",
        "message": "; ".join(messages),
        "backend": "triton" if triton else "torch",
        "tensors": {name: asdict(x) for name, x in judged.items()},
    }


def _told(name: str, judged: Judged) -> str:
    if judged.error is None:
        return f"{name}: not finite"
    return f"{name}: error {judged.error:.2g}, allowed {judged.allowed:.2g} ({judged.by})"


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or torch.equal(x.nan_to_num(), y.nan_to_num())  # nan is told of elsewhere


def judge(
    problem: FuzzProblem, values: Values, d_tile: int, got: Results, want: Results,
    by_torch: Callable[[], Results | None],
) -> dict[str, Judged]:  # fmt: skip
    """`Judged` for each tensor. by_torch: what the PyTorch backend makes of it, asked only where it matters."""

    def comparable(found: Results | None) -> Results | None:
        of_states = {"ds", "dz"} & (found or {}).keys()
        return found and found | {name: class_sums(found[name], problem, d_tile) for name in of_states}

    for name, reference in want.items():
        if got[name].shape != reference.shape:
            raise AssertionError(f"{name} is {list(got[name].shape)}; it must be {list(reference.shape)}")
    judged: dict[str, Judged] = {}
    other = cache(lambda: comparable(by_torch()))
    norms = cache(lambda: terms(problem, values, d_tile))
    got, want = comparable(got) or {}, comparable(want) or {}
    for name, reference in want.items():
        x = got[name]
        if beyond(reference, x.dtype):
            continue
        bound = gate_bound(problem, values) if name == "dlog_g" else 0.0
        judged[name] = _judge(name, measure, x, reference, (tolerance(problem), bound), other, norms)
        if name in BY_ROW:
            allowed = ROW * tolerance(problem)
            judged[f"{name}.row"] = _judge(name, measure_rows, x, reference, (allowed, 0.0), other, norms)
    return judged


def terms(problem: FuzzProblem, values: Values, d_tile: int) -> Results:
    """`term_norms` of the problem."""
    exact = doubled(values)
    dy = exact.dy if problem.loss in ("y", "both") else torch.zeros_like(exact.dy)
    return term_norms(problem, exact.q, exact.k, exact.v, exact.log_g, exact.state, dy, exact.dstate, d_tile)


def gate_bound(problem: FuzzProblem, values: Values) -> float:
    """`dlog_g_bound` of a problem; 0 where there is none."""
    if values.log_g is None or problem.dtype not in ("bf16", "fp16"):
        return 0.0
    longest = max(problem.T - problem.split, problem.split)
    chunk = min(longest, problem.chunk or longest)
    return dlog_g_bound(chunk, float((1 - values.log_g.double().exp()).mean()))


def _judge(
    name: str, error_of: Callable[..., float | None], x: Tensor, reference: Tensor,
    limits: tuple[float, float], other: Callable[[], Results | None], norms: Callable[[], Results],
) -> Judged:  # fmt: skip
    allowed, bound = limits
    found = Judged(error_of(x, reference), allowed)
    if found.right or found.error is None:
        return found
    by_torch = other()
    if by_torch is not None:
        theirs = error_of(by_torch[name], reference)
        if theirs is not None and TORCH_FACTOR * theirs > found.allowed:
            found = Judged(found.error, TORCH_FACTOR * theirs, "torch")
        if bound > found.allowed:
            found = Judged(found.error, bound, "bound")
    if not found.right and name in norms():
        found = Judged(error_of(x, reference, CANCELLED * norms()[name]), found.allowed, f"{found.by}, of terms")
    return found


def beyond(reference: Tensor, dtype: torch.dtype) -> bool:
    """Whether the right result is beyond the range of its dtype."""
    return float(reference.abs().max()) > torch.finfo(dtype).max / 2


def measure(x: Tensor, want: Tensor, least: Tensor | None = None) -> float | None:
    """||x - want|| / ||want||, or / ||least|| where that is larger; None where x is not finite."""
    off, norm = torch.linalg.vector_norm(_off(x, want)), torch.linalg.vector_norm(want)
    if least is not None:
        norm = torch.maximum(norm, torch.linalg.vector_norm(least))
    return _ratio(off, norm, x)


def measure_rows(x: Tensor, want: Tensor, least: Tensor | None = None) -> float | None:
    """The largest error of a row [.., width], relative to it or to the root mean square of all rows, or of `least`.

    `least` [...]: a norm for each row, likewise.
    """
    off, norm = (torch.linalg.vector_norm(r, dim=-1) for r in (_off(x, want), want))
    if least is not None:
        norm = torch.maximum(norm, least)
    return _ratio(off, torch.maximum(norm, norm.square().mean().sqrt()), x)


def _off(x: Tensor, want: Tensor) -> Tensor:
    off = x.double() - want
    return torch.where(off.abs() < NOTHING, 0.0, off)


def _ratio(off: Tensor, norm: Tensor, x: Tensor) -> float | None:
    if not bool(x.isfinite().all()):
        return None
    ratio = torch.where(off == 0, 0.0, off / norm).max()
    return float(ratio) if bool(ratio.isfinite()) else math.inf


def poison(values: Values, number: float) -> None:
    """Leave a number in the free memory that the results of the next call are likely to get."""
    held = []
    for x in (values.q, values.v, values.dy, *(values.state or ()), values.log_g):
        for share in () if x is None else (1, 2, 4, 16):
            held += [torch.full((max(1, x.numel() // share),), number, dtype=x.dtype, device=x.device) for _ in "1234"]
    held.clear()
