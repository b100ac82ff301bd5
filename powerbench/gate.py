"""The gate: no speed without correctness. A case's results on the timed inputs against float64, and how far off.

At long contexts the reference is computed on sampled query rows only, so that it stays linear in memory:

* y at the sampled rows depends on nothing else, so it is compared as it is;
* dq at the sampled rows likewise, from the dense dy that is timed;
* dk, dv and dlog_g sum over all rows, so they are compared for a dy that is zero elsewhere. A backward pass is linear
  in dy, so this checks the same map on a subspace, in full.

The error is relative, ||got - want|| / ||want||: for y the largest over the sampled positions (norm over batch, heads
and value dimension, so that one wrong row cannot hide among many right ones); for gradients over all that is compared,
because single rows may be exactly zero (the first query of normalised attention sees one key: its dq is).

Before the gated calls the memory that results are likely to get is filled with NaN (`poison`), so that a kernel that
writes nothing cannot pass with what another left there. After timing, what a timed call returned, and what comes out
when it runs once more on changed inputs, is compared (`off`) with what the gated results have to become, and with the
reference at rows that nobody knew before (`drawn_rows`). A result that was cached, that a CUDA graph did not capture,
or that is computed only where the gate looks, shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from powerbench.kernels.kernel import Decoder, Forward, Inputs, Kernel
from powerbench.problem import Case, Problem

# Largest relative error that passes at p <= 2; a p-th power multiplies relative errors by p, so p / 2 scales it.
# Two to ten times what correct kernels show (docs/measuring.md); a wrong mask, gate or tile shows 0.1 and more.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2}
REFERENCE_ELEMENTS = 2**24  # B * H * R * T of one float64 intermediate: 128 MiB
DECODING_BYTES = 2**32  # of the reference of a decoding step, whose sequences and heads are taken some at a time
MIN_ROWS = 8
DRAWN_SHARE = 8  # of the rows that the gate looks at one in so many is drawn anew after timing
WIDEST = 0.1  # a wrong mask shows that much, whatever the degree
POISON_COPIES, POISON_BYTES = 16, 2**26  # of each tensor at most, and together
POISON_PIECES = (2, 4, 8, 16, 32)  # fractions of a tensor

# Float64 copies of q, k, v, dy and, where gradients are compared, as many gradients; and the row-by-row intermediates.
REFERENCE_INTERMEDIATES = 6

Gradients = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def tolerance(case: Case) -> float:
    """The largest relative error with which the case passes."""
    return min(WIDEST, TOLERANCE[case.problem.dtype] * max(1.0, case.params.degree / 2))


def memory_bytes(case: Case) -> int:
    """Predicted device memory of the gate's reference, beside the case itself."""
    problem = case.problem
    if case.pass_ == "decode":
        return math.prod(_decoding_pieces(problem)) * _decoding_bytes(problem)
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


def drawn_rows(problem: Problem, seed: int) -> torch.Tensor:
    """Query positions [R], ascending, all drawn at random; all when T is short."""
    T = problem.seqlen
    number = min(T, max(MIN_ROWS, REFERENCE_ELEMENTS // DRAWN_SHARE // (problem.batch * problem.heads * T)))
    return torch.randperm(T, generator=torch.Generator().manual_seed(seed))[:number].sort().values


class RefusedError(Exception):
    """What a contestant returned is no result that can be checked; the message says why."""


def plain(x: object, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """x, a plain dense tensor in memory: nothing that is computed when it is looked at. Raises RefusedError."""
    if type(x) is not torch.Tensor:
        raise RefusedError(f"it returned a {type(x).__name__[:100]}, not a plain torch.Tensor")
    if x.layout is not torch.strided or x.is_neg() or not x.is_floating_point():
        raise RefusedError(f"it returned a tensor of layout {x.layout} and dtype {x.dtype}, not dense floating point")
    if x.device.type != device.type or tuple(x.shape) != shape:
        raise RefusedError(f"it returned {list(x.shape)} on {x.device}, not {list(shape)} on {device}")
    return x


def plain_results(returned: object, case: Case, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """What a timed call returned: y, or dq, dk, dv[, dlog_g]. Raises RefusedError."""
    if "bwd" not in case.pass_:
        return (plain(returned, tuple(inputs.dy.shape), inputs.q.device),)
    assert isinstance(returned, tuple)
    likes = (inputs.q, inputs.k, inputs.v, inputs.log_g)
    return tuple(
        plain(x, tuple(like.shape), like.device) for x, like in zip(returned, likes, strict=False) if like is not None
    )


@dataclass(frozen=True)
class Gated:
    """A gated case: its largest relative error (nan or inf where a result is not finite), and what it returned.

    `results` are the rows `rows` of what the timed call returns: y, or for backward passes the gradients from dense dy.
    """

    error: float
    rows: torch.Tensor
    results: tuple[torch.Tensor, ...]


def check(kernel: Kernel, case: Case, inputs: Inputs, forward: Forward, seed: int) -> Gated:
    """Run the case on `inputs` and compare it with the reference."""
    rows = sample_rows(case.problem, seed).to(inputs.q.device)
    exact = Inputs(**{k: t if t is None else t.detach().double() for k, t in vars(inputs).items()})
    poison(inputs)
    if case.pass_ == "fwd":
        with torch.no_grad():
            (y,) = plain_results(forward(inputs.q, inputs.k, inputs.v, inputs.log_g), case, inputs)
            y = y[:, rows]
            return Gated(_row_error(y, kernel.reference(case, exact, rows)), rows, (y,))
    y, gradients = differentiable(kernel, inputs, forward)
    want_y, want_gradients = differentiable(
        kernel, exact, lambda q, k, v, g: kernel.reference(case, Inputs(q, k, v, g, exact.dy), rows)
    )
    errors = [_row_error(y[:, rows].detach(), want_y.detach())]
    want_q, *want_rest = want_gradients(exact.dy[:, rows])
    masked = torch.zeros_like(inputs.dy).index_copy_(1, rows, inputs.dy[:, rows])
    poison(inputs)
    results = tuple(gradient[:, rows] for gradient in plain_results(gradients(inputs.dy), case, inputs))
    errors.append(_error(results[0], want_q[:, rows]))
    errors += [_error(got, want) for got, want in zip(gradients(masked)[1:], want_rest, strict=True)]
    return Gated(max(errors, key=lambda error: (math.isnan(error), error)), rows, results)  # a nan is the worst of all


def decoding_reference(kernel: Kernel, case: Case, inputs: Inputs) -> torch.Tensor:
    """y [B, 1, H, e] of the context's last token in float64, sequence by sequence."""
    T, rows = inputs.k.shape[1], torch.tensor([inputs.k.shape[1] - 1], device=inputs.k.device)
    sequences, heads = _decoding_pieces(case.problem)
    wanted = torch.empty_like(inputs.dy, dtype=torch.float64)
    for i in range(0, len(inputs.k), sequences):
        for j in range(0, inputs.k.shape[2], heads):
            part = {name: x if x is None else _heads(x[i : i + sequences], case, j, heads).double()
                    for name, x in vars(inputs).items()}  # fmt: skip
            queries = part["q"].expand(-1, T, -1, -1)  # the reference looks at the last row alone
            want = kernel.reference(case, Inputs(**(part | {"q": queries})), rows)
            _heads(wanted[i : i + sequences], case, j, heads).copy_(want)
    return wanted


def check_decoding(inputs: Inputs, decoder: Decoder, wanted: torch.Tensor) -> Gated:
    """Take the step for the context's last token and compare it with `decoding_reference`, all sequences."""
    poison(token(inputs))
    y = plain(decoder.step(), tuple(inputs.dy.shape), inputs.q.device).clone()
    return Gated(_row_error(y, wanted), torch.zeros(1, dtype=torch.int64, device=y.device), (y,))


def _heads(x: torch.Tensor, case: Case, first: int, number: int) -> torch.Tensor:
    """Of a tensor [B, T, heads, ...] what belongs to so many key/value heads; query heads are grouped over theirs."""
    group = x.shape[2] // case.problem.kv_heads
    return x[:, :, first * group : (first + number) * group]


def _decoding_bytes(problem: Problem) -> int:
    """Of a decoding step's reference, for one sequence and key/value head: float64 copies and intermediates."""
    queries = problem.heads // problem.kv_heads * (problem.head_dim + REFERENCE_INTERMEDIATES)
    return 8 * problem.seqlen * (queries + problem.head_dim + problem.value_dim)


def _decoding_pieces(problem: Problem) -> tuple[int, int]:
    """How many sequences and key/value heads a decoding step's reference takes at once: all heads, if they fit."""
    fit = max(1, DECODING_BYTES // _decoding_bytes(problem))
    heads = min(problem.kv_heads, fit)
    return min(problem.batch, max(1, fit // problem.kv_heads)), heads


def token(inputs: Inputs) -> Inputs:
    """What is as large as a step's results, for `poison`: a context's copies would not fit."""
    return Inputs(inputs.q, inputs.q, inputs.dy, None, inputs.dy)


def truth(kernel: Kernel, case: Case, inputs: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In float64, y at `rows`; for backward passes dq, dk, dv[, dlog_g] of a dy that is zero elsewhere."""
    exact = Inputs(**{k: t if t is None else t.detach().double() for k, t in vars(inputs).items()})
    if case.pass_ == "fwd":
        with torch.no_grad():
            return (kernel.reference(case, exact, rows),)
    _, gradients = differentiable(
        kernel, exact, lambda q, k, v, g: kernel.reference(case, Inputs(q, k, v, g, exact.dy), rows)
    )
    return gradients(exact.dy[:, rows])


def off(
    case: Case,
    results: tuple[torch.Tensor, ...],
    factors: tuple[torch.Tensor, ...],
    gated: Gated | None = None,
    rows: torch.Tensor | None = None,
    wanted: tuple[torch.Tensor, ...] = (),
) -> float:
    """The largest relative error of results on changed inputs: each has to be its factor times what it was.

    That is what the gate has seen (`gated`), and `wanted`, the `truth` at `rows`. Without `gated` the results of a
    backward pass are those of a dy that is zero but in these rows.
    """
    errors = []
    if wanted and "bwd" not in case.pass_:
        errors.append(_row_error(results[0][:, rows], factors[0] * wanted[0]))
    elif wanted and gated:
        errors.append(_error(results[0][:, rows], factors[0] * wanted[0][:, rows]))
    elif wanted:
        errors += [_error(*of) for of in _pairs(results, factors, wanted)]
    if gated:
        seen = tuple(result[:, gated.rows] for result in results)
        errors += [_error(*of) for of in _pairs(seen, factors, gated.results)]
    return max(errors, key=lambda error: (math.isnan(error), error))


def decoding_off(y: torch.Tensor, factor: torch.Tensor, gated: Gated) -> float:
    """As `off`, of a decoding step: all sequences."""
    return _error(y, factor * gated.results[0].double())


def _pairs(
    got: tuple[torch.Tensor, ...], factors: tuple[torch.Tensor, ...], was: tuple[torch.Tensor, ...]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x, factor * y.double()) for x, factor, y in zip(got, factors, was, strict=False)]


def poison(inputs: Inputs) -> None:
    """Leave NaN in the free memory that results (y and gradients) are likely to get.

    Of small tensors as many as it takes to fill the holes of their size, and smaller pieces for the holes between them,
    which would join with their neighbours once those are free; large ones get fresh memory from the system, or on a
    GPU, where what torch keeps is given back first, what was freed last. No allocator promises this; what slips
    through is stale, and is seen after timing.
    """
    if inputs.q.is_cuda:
        torch.cuda.empty_cache()
    held = []
    for tensor in vars(inputs).values():
        if tensor is not None:
            copies = min(POISON_COPIES, max(1, POISON_BYTES // tensor.nbytes))
            held += [torch.full_like(tensor, math.nan) for _ in range(copies)]
            for share in POISON_PIECES if copies > 1 else ():
                held += [tensor.new_full((max(1, tensor.numel() // share),), math.nan) for _ in range(copies)]
    held.clear()


def differentiable(kernel: Kernel, inputs: Inputs, forward: Forward) -> tuple[torch.Tensor, Gradients]:
    """y with its graph, and dy -> (dq, dk, dv[, dlog_g]) through it, which may be called again and again."""
    leaves = {
        name: tensor.detach().requires_grad_(name != "log_g" or kernel.gated)
        for name, tensor in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v), ("log_g", inputs.log_g))
        if tensor is not None
    }
    y = forward(leaves["q"], leaves["k"], leaves["v"], leaves.get("log_g"))
    if type(y) is not torch.Tensor:
        raise RefusedError(f"it returned a {type(y).__name__[:100]}, not a plain torch.Tensor")
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return y, lambda dy: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    off = torch.linalg.vector_norm(got.double() - want)
    return 0.0 if off == 0 else float(off / torch.linalg.vector_norm(want))


def _row_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest relative error over the positions (dimension 1)."""
    dims = (0, 2, 3)
    errors = torch.linalg.vector_norm(got.double() - want, dim=dims) / torch.linalg.vector_norm(want, dim=dims)
    return float(errors.max()) if bool(errors.isfinite().all()) else float("nan")
