"""Linear attention by others: Flash Linear Attention's chunked kernels, without and with a gate a head, and Based.

The first two compute y_i = sum_{j <= i} exp(G_i - G_j) <q_i, k_j> v_j / sqrt(d), power attention at p = 1 without a
denominator; fla-linear has no gates. Based (arXiv 2402.18668) is softmax attention with exp(s) in its second Taylor
polynomial 1 + s + s^2 / 2, s = <q_i, k_j> / sqrt(d), normalised and without gates: near power attention of p = 2 in
what it costs, and a function of its own, with its own reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch

from powerbench.cost import Launch
from powerbench.kernels.fla_decode import MODULES, fla_decoding
from powerbench.kernels.kernel import Forward, Inputs, Kernel, Support, no_params
from powerbench.kernels.ledger import based_launches, linear_launches, linear_workspace_bytes
from powerbench.kernels.packages import NEEDS_CUDA, import_problem, installed_version, load
from powerbench.kernels.power.reference import attention_rows
from powerbench.kernels.tuning import tuned_for
from powerbench.problem import Case, Params, Pass, Problem

PACKAGE = "flash-linear-attention"
# No GQA: chunk_fwd_o takes k's heads from q and lets only v have more (grouped values, not grouped queries).
INSTALL = "pip install powerbench[fla]"
SUPPORT = Support(INSTALL, ("bf16", "fp16", "fp32"), grouped=False)
CHUNK = 64  # what both kernels take when not told otherwise (fla/ops/simple_gla/chunk.py)


def _version() -> str | None:
    # The kernels are in fla-core; flash-linear-attention adds layers and models, and once held the kernels too.
    return installed_version("fla-core", PACKAGE)


def _resolve(problem: Problem, params: Params, pass_: Pass, device_type: str) -> Params:
    return Params(p=1)


def _unsupported(gated: bool, case: Case, device_type: str) -> str | None:
    problem = case.problem
    if device_type != "cuda":
        return NEEDS_CUDA
    if _version() is None:
        return f"{PACKAGE} is not installed ({SUPPORT.install})"
    refused = SUPPORT.refusal(case)
    if refused:
        return refused
    if gated and problem.gated and "bwd" in case.pass_:
        return _backward_refusal() or _import_problem()
    return _import_problem()


def _import_problem() -> str | None:
    return import_problem(PACKAGE, "fla.ops.simple_gla") or import_problem(PACKAGE, "fla.ops.linear_attn")


def _backward_refusal() -> str | None:
    """FLA's chunk_bwd_dqkwg raises where Triton compiled it wrongly (fla/ops/common/chunk_o.py, FLA's issue 640):
    with gates, on Hopper, Triton 3.4.0 to 3.7.0, unless tilelang takes over; with tilelang, it answers itself."""
    if find_spec("tilelang") is not None or not torch.cuda.is_available():
        return None
    triton = installed_version("triton") or ""
    release = re.match(r"(\d+)\.(\d+)\.(\d+)", triton)
    if release is None or torch.cuda.get_device_capability()[0] != 9:
        return None
    if (3, 4, 0) <= tuple(map(int, release.groups())) < (3, 7, 1):
        return f"gated backward refuses Triton 3.4.0 to 3.7.0 on Hopper (here {triton})"
    return None


def _prepare_linear(case: Case) -> Forward:
    """Raises ImportError where FLA is not installed."""
    attention = load("fla.ops.linear_attn").chunk_linear_attn
    scale = case.problem.head_dim**-0.5

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        tuned_for(MODULES, case.problem)
        y: torch.Tensor = attention(q, k, v, scale=scale, normalize=False)[0]  # its default is normalize=True
        return y

    return forward


def _prepare_simple_gla(case: Case) -> Forward:
    """Raises ImportError where FLA is not installed."""
    attention = load("fla.ops.simple_gla").chunk_simple_gla
    scale = case.problem.head_dim**-0.5

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        tuned_for(MODULES, case.problem)
        y: torch.Tensor = attention(q, k, v, g=log_g, scale=scale)[0]
        return y

    return forward


def _reference(gated: bool, case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    log_g = inputs.log_g if gated else None
    return attention_rows(inputs.q, inputs.k, inputs.v, log_g, rows, p=1, scale=None, normalize=False)


def _launches(gated: bool, case: Case) -> tuple[Launch, ...]:
    return linear_launches(case, CHUNK, gated)


def _workspace_bytes(gated: bool, case: Case) -> int:
    return linear_workspace_bytes(case, CHUNK, gated)


BASED_WIDEST = 16  # d of fused_chunk_based, which holds a state of 1 + d + d^2 rows on chip
BASED = Support(INSTALL, ("bf16", "fp16", "fp32"), f"up to {BASED_WIDEST}", grouped=False)


def _based_unsupported(case: Case, device_type: str) -> str | None:
    if device_type != "cuda":
        return NEEDS_CUDA
    if _version() is None:
        return f"{PACKAGE} is not installed ({BASED.install})"
    if case.problem.head_dim > BASED_WIDEST:
        return f"head dimension {case.problem.head_dim} > {BASED_WIDEST}, the widest of FLA's chunked Based"
    return BASED.refusal(case) or import_problem(PACKAGE, "fla.ops.based")


def _prepare_based(case: Case) -> Forward:
    """Raises ImportError where FLA is not installed."""
    attention = load("fla.ops.based").fused_chunk_based

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        tuned_for(MODULES, case.problem)
        y: torch.Tensor = attention(q, k, v)  # scaled by 1/sqrt(d) and normalised by default
        return y

    return forward


def _based_reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    q, k, v = (tensor.double() for tensor in (inputs.q, inputs.k, inputs.v))
    rows = rows.to(q.device)
    s = torch.einsum("brhd,bthd->bhrt", q[:, rows], k) * q.shape[-1] ** -0.5
    future = torch.arange(k.shape[1], device=q.device) > rows[:, None]
    weights = (1 + s + s * s / 2).masked_fill(future, 0.0)
    return torch.einsum("bhrt,bthe->brhe", weights / weights.sum(-1, keepdim=True), v)


def _based_workspace_bytes(case: Case) -> int:
    """Rough: y and its denominators in float32; copies of q, k, v with heads first; backward those of the gradients."""
    problem = case.problem
    copies = problem.q_bytes + problem.k_bytes + problem.v_bytes
    forward = problem.tokens * problem.heads * (problem.value_dim + 1) * 4 + copies
    return forward if case.pass_ == "fwd" else 2 * forward


def _fla(name: str, summary: str, gated: bool, prepare: Callable[[Case], Forward]) -> Kernel:
    return Kernel(
        name=name,
        family="fla",
        summary=summary,
        takes=frozenset(),
        gated=gated,
        version=_version,
        resolve=_resolve,
        unsupported=partial(_unsupported, gated),
        prepare=prepare,
        reference=partial(_reference, gated),
        launches=partial(_launches, gated),
        workspace_bytes=partial(_workspace_bytes, gated),
        decoding=fla_decoding(gated),
        support=SUPPORT,
    )


FLA_KERNELS = (
    _fla("fla-linear", "FLA's chunk_linear_attn: linear attention, no gates", False, _prepare_linear),
    _fla("fla-simple-gla", "FLA's chunk_simple_gla: linear attention, gated", True, _prepare_simple_gla),
    Kernel(
        name="based-fla",
        family="based",
        summary="FLA's fused_chunk_based: exp(s) as 1 + s + s^2 / 2, no gates",
        takes=frozenset(),
        gated=False,
        version=_version,
        resolve=no_params,
        unsupported=_based_unsupported,
        prepare=_prepare_based,
        reference=_based_reference,
        launches=based_launches,
        workspace_bytes=_based_workspace_bytes,
        support=BASED,
    ),
)
