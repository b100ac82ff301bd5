"""Power attention as contestants: what `powerbench sweep` needs to know of `power_attention` and its backends."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from powerbench._version import __version__
from powerbench.cost import Launch
from powerbench.kernels.kernel import Forward, Inputs, Kernel
from powerbench.kernels.ledger import Tile
from powerbench.kernels.packages import NEEDS_CUDA, installed_version
from powerbench.kernels.power import tiling
from powerbench.kernels.power.choose import choose
from powerbench.kernels.power.cost import Execution, backward_launches, chunk_lengths, forward_launches
from powerbench.kernels.power.feature_map import d_tiles, spow_dim, tspow_dim
from powerbench.kernels.power.op import MAX_DEGREE, normalized_by_default, power_attention
from powerbench.kernels.power.reference import attention_rows
from powerbench.kernels.power.torch_backend import ATTENTION_BLOCK
from powerbench.problem import Case, Params, Problem

Backend = Literal["torch", "triton"]


def contestant(name: str, family: str, summary: str, backend: Backend, degree: int | None = None) -> Kernel:
    """A row for one backend; `degree` fixes p, so that a sweep's --p does not vary it."""
    takes = {"d_tile", "chunk_size", "p"} if degree is None else {"chunk_size"}
    return Kernel(
        name=name,
        family=family,
        summary=summary,
        takes=frozenset(takes),
        gated=True,
        version=_triton_version if backend == "triton" else lambda: __version__,
        resolve=partial(_resolve, degree),
        unsupported=partial(_unsupported, backend),
        prepare=partial(_prepare, backend),
        reference=_reference,
        launches=partial(_launches, backend),
        workspace_bytes=partial(_workspace_bytes, backend),
    )


def _triton_version() -> str | None:
    installed = installed_version("triton")
    return f"{__version__} on triton {installed}" if installed else None


def _resolve(degree: int | None, problem: Problem, params: Params, device_type: str) -> Params:
    p = degree or params.p or 2
    if p > MAX_DEGREE or problem.head_dim % (params.d_tile or 1):
        return Params(p, params.d_tile, params.chunk_size)  # refused by `_unsupported`
    chunk_size, d_tile = choose(
        p, problem.head_dim, problem.value_dim, problem.seqlen, device_type, params.chunk_size, params.d_tile
    )
    # At p = 1 every tile gives the same d rows; and a chunk longer than the context is the context.
    return Params(p, problem.head_dim if p == 1 else d_tile, min(chunk_size, problem.seqlen))


def _unsupported(backend: Backend, case: Case, device_type: str) -> str | None:
    problem, p, d_tile = case.problem, case.params.p or 1, case.params.d_tile or 1
    d = problem.head_dim
    if p > MAX_DEGREE:
        rows = spow_dim(d, p)
        return f"p = {p} would need a state of {rows:,} x {problem.value_dim} a head; p is at most {MAX_DEGREE}"
    if d % d_tile:
        return f"d_tile {d_tile} does not divide head dimension {d}; allowed are {', '.join(map(str, d_tiles(d)))}"
    if backend == "torch":
        return None
    if device_type != "cuda":
        return NEEDS_CUDA
    if _triton_version() is None:
        return "triton is not installed (pip install powerbench[gpu])"
    if case.pass_ != "fwd":
        return "the Triton kernels have no backward pass yet; power-torch has one"
    if problem.dtype == "fp64":
        return "the Triton kernels take bf16, fp16 and fp32"
    try:
        tiling.check_sizes(p, d, problem.value_dim)
    except ValueError as error:
        return str(error)
    return None


def _prepare(backend: Backend, case: Case) -> Forward:
    params = case.params

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        return power_attention(
            q, k, v, log_g, p=params.p, chunk_size=params.chunk_size, d_tile=params.d_tile, backend=backend
        )  # fmt: skip

    return forward


def _reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    p = case.params.p or 1
    normalize = normalized_by_default(p)
    return attention_rows(inputs.q, inputs.k, inputs.v, inputs.log_g, rows, p=p, scale=None, normalize=normalize)


def _launches(backend: Backend, case: Case) -> tuple[Launch, ...]:
    execution = (_torch_execution if backend == "torch" else _triton_execution)(case)
    forward = forward_launches(case.problem, case.params, execution)
    backward = backward_launches(case.problem, case.params, execution)
    return {"fwd": forward, "bwd": backward, "fwd+bwd": forward + backward}[case.pass_]


def _torch_execution(case: Case) -> Execution:
    """As `torch_backend` runs: a column of ones beside v where there is a denominator, states carried in float32."""
    problem, (p, d_tile, _) = case.problem, _resolved(case)
    columns = problem.value_dim + normalized_by_default(p)
    elements = tspow_dim(problem.head_dim, p, d_tile) * columns
    return Execution(
        attention_tile=Tile(ATTENTION_BLOCK, 1, padded=False),
        attention_columns=columns,
        update_products=elements,
        query_products=elements,
        state_elements=elements,
        carried_bytes=8 if problem.dtype == "fp64" else 4,
        update_tokens=1,
        query_tokens=1,
    )


def _triton_execution(case: Case) -> Execution:
    """As `triton_backend` runs: the denominator from a state of degree p - 1 against k, states carried as operands."""
    problem, (p, d_tile, chunk_size) = case.problem, _resolved(case)
    d, e, itemsize = problem.head_dim, problem.value_dim, problem.itemsize
    sizes = d, e, min(chunk_size, problem.seqlen), itemsize
    attention, update, query = (
        tiles(*sizes) for tiles in (tiling.attention_tiles, tiling.update_tiles, tiling.query_tiles)
    )
    parts = [(p, e), (p - 1, d)] if normalized_by_default(p) else [(p, e)]  # (degree, width of the values)

    def products(rows: int) -> int:
        return sum(tiling.executed_rows(d, degree, d_tile, rows) * width for degree, width in parts)

    return Execution(
        attention_tile=Tile(attention.tokens, attention.rows, padded=True),
        attention_columns=e,
        update_products=products(update.rows),
        query_products=products(query.rows),
        state_elements=sum(tspow_dim(d, degree, d_tile) * width for degree, width in parts),
        carried_bytes=4 if problem.dtype == "fp32" else 2,
        update_tokens=update.tokens,
        query_tokens=query.tokens,
    )


def _resolved(case: Case) -> tuple[int, int, int]:
    params = case.params
    assert params.p
    assert params.d_tile
    assert params.chunk_size
    return params.p, params.d_tile, params.chunk_size


def _workspace_bytes(backend: Backend, case: Case) -> int:
    """Rough: chunk states and, for PyTorch, phi of one chunk; for Triton, partial results in float32."""
    problem, (p, d_tile, chunk_size) = case.problem, _resolved(case)
    execution = (_torch_execution if backend == "torch" else _triton_execution)(case)
    full, _, _ = chunk_lengths(problem.seqlen, chunk_size)
    state = problem.batch * problem.kv_heads * execution.state_elements
    if backend == "triton":
        partial = problem.tokens * problem.heads * (problem.value_dim + 1) * 4
        return full * state * (4 + execution.carried_bytes) + (partial if full else 0)
    rows = tspow_dim(problem.head_dim, p, d_tile) if full else 0
    phi = problem.batch * problem.heads * chunk_size * rows * problem.itemsize
    weights = problem.batch * problem.heads * ATTENTION_BLOCK * chunk_size * 4
    one_chunk = 2 * phi + 3 * weights + 3 * state * 4
    return one_chunk + (0 if case.pass_ == "fwd" else 3 * one_chunk + full * state * 4)


POWER_KERNELS = (
    contestant("power-triton", "power", "power attention: our Triton kernels", "triton"),
    contestant("power-torch", "power", "power attention: our PyTorch kernel, chunk by chunk", "torch"),
)
