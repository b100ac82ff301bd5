"""Power attention as contestants: what `powerbench sweep` needs to know of `power_attention` and its backends."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch

from powerbench._version import __version__
from powerbench.cost import Launch
from powerbench.kernels.kernel import Forward, Inputs, Kernel, Phases, Support
from powerbench.kernels.packages import NEEDS_CUDA, installed_version
from powerbench.kernels.power import cost, tiling, triton_cost
from powerbench.kernels.power.choose import choose
from powerbench.kernels.power.decode_contestants import decoding
from powerbench.kernels.power.decode_cost import best_window
from powerbench.kernels.power.feature_map import d_tiles, spow_dim
from powerbench.kernels.power.op import MAX_DEGREE, power_attention
from powerbench.kernels.power.reference import attention_rows
from powerbench.kernels.power.state_size import normalized_by_default
from powerbench.kernels.power.torch_backend import ATTENTION_BLOCK
from powerbench.problem import Case, Params, Pass, Problem

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
        resolve=partial(resolve, degree),
        unsupported=partial(_unsupported, backend),
        prepare=partial(_prepare, backend),
        reference=reference,
        launches=partial(_launches, backend),
        workspace_bytes=partial(_workspace_bytes, backend),
        phases=_triton_phases if backend == "triton" else None,
        decoding=decoding(backend),
        support=_triton_support() if backend == "triton" else Support("with powerbench"),
    )


def _triton_version() -> str | None:
    installed = installed_version("triton")
    return f"{__version__} on triton {installed}" if installed else None


def _triton_support() -> Support:
    widths = ", ".join(map(str, tiling.HEAD_DIMS))
    return Support("pip install powerbench[gpu]", ("bf16", "fp16", "fp32"), widths)


def resolve(degree: int | None, problem: Problem, params: Params, pass_: Pass, device_type: str) -> Params:
    """The parameters as powerbench's kernels choose them where they are None; `degree` fixes p."""
    p, d = degree or params.p or 2, problem.head_dim
    if p > MAX_DEGREE or d % (params.d_tile or 1):
        return Params(p, params.d_tile, params.chunk_size)  # refused by `_unsupported`
    chunk_size, d_tile = choose(
        p, d, problem.value_dim, problem.seqlen, device_type, params.chunk_size, params.d_tile,
        gradients="bwd" in pass_,
    )  # fmt: skip
    d_tile = d if p == 1 else d_tile  # at p = 1 every tile gives the same d rows
    if pass_ == "decode":
        return Params(p, d_tile, params.chunk_size or best_window(p, d_tile, problem))
    return Params(p, d_tile, min(chunk_size, problem.seqlen))  # a chunk longer than the context is the context


def refusal(case: Case) -> str | None:
    """Why power attention has no such degree or tile; None: it has."""
    problem, p, d_tile = case.problem, case.params.p or 1, case.params.d_tile or 1
    d = problem.head_dim
    if p > MAX_DEGREE:
        rows = spow_dim(d, p)
        return f"p = {p} would need a state of {rows:,} x {problem.value_dim} a head; p is at most {MAX_DEGREE}"
    if d % d_tile:
        return f"d_tile {d_tile} does not divide head dimension {d}; allowed are {', '.join(map(str, d_tiles(d)))}"
    return None


def _unsupported(backend: Backend, case: Case, device_type: str) -> str | None:
    refused = refusal(case)
    if refused or backend == "torch":
        return refused
    if device_type != "cuda":
        return NEEDS_CUDA
    if _triton_version() is None:
        return "triton is not installed (pip install powerbench[gpu])"
    if case.problem.dtype == "fp64":
        return "the Triton kernels take bf16, fp16 and fp32"
    try:
        tiling.check_sizes(case.params.p or 1, case.problem.head_dim, case.problem.value_dim)
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


def reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    """Power attention in float64 at the query rows [R] alone: [B, R, H, e]."""
    p = case.params.p or 1
    normalize = normalized_by_default(p)
    return attention_rows(inputs.q, inputs.k, inputs.v, inputs.log_g, rows, p=p, scale=None, normalize=normalize)


def _launches(backend: Backend, case: Case) -> tuple[Launch, ...]:
    normalize = normalized_by_default(case.params.p or 1)
    if backend == "triton":
        return triton_cost.launches(case, normalize)
    return cost.launches(case, ATTENTION_BLOCK, normalize)


def _workspace_bytes(backend: Backend, case: Case) -> int:
    normalize = normalized_by_default(case.params.p or 1)
    if backend == "triton":
        return triton_cost.workspace_bytes(case, normalize)
    return cost.workspace_bytes(case, ATTENTION_BLOCK, normalize)


def _triton_phases(case: Case, inputs: Inputs) -> Phases:
    from powerbench.kernels.power.phases import triton_phases  # noqa: PLC0415  triton is optional

    return triton_phases(case, inputs, normalized_by_default(case.params.p or 1))


POWER_KERNELS = (
    contestant("power-triton", "power", "power attention: our Triton kernels", "triton"),
    contestant("power-torch", "power", "power attention: our PyTorch kernel, chunk by chunk", "torch"),
)
