"""Power attention by the paper's authors: their package `retention`, on Triton, and on vidrial's CUDA kernels.

Both normalise, and so have even degrees only. Three things of retention 1.0.7 and vidrial 0.2.1 shape these adapters:

* Where vidrial is installed, importing retention imports it, and vidrial clones a repository at import when it finds no
  CUTLASS headers beside itself. That is refused here, before anything is imported.
* The CUDA path keeps the denominator in the first column of v, which it overwrites, and of y, where it leaves ones. Of
  the rest it computes what is asked; that column is zero in this adapter's y and in its reference.
* vidrial tunes anew at every call unless told to keep the best: told once, for the life of the process.
"""

from __future__ import annotations

import importlib
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch
from torch.nn.functional import pad

from powerbench.cost import Cost, Launch, total
from powerbench.kernels.kernel import Forward, Inputs, Kernel, Support
from powerbench.kernels.ledger import Tile, covered_pairs, of_pass
from powerbench.kernels.packages import NEEDS_CUDA, import_problem, installed_version
from powerbench.kernels.power import cost
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.reference import attention_rows
from powerbench.kernels.retention_decode import DECODE_CHUNK, decoding_refusal, retention_decoding
from powerbench.problem import Case, Params, Pass, Problem

CHUNK = 1024  # where the user leaves it open; the package has no default but the whole sequence
HEAD_DIMS = (16, 32, 64, 128, 256)  # retention/_attention/triton.py
DTYPES = ("bf16", "fp16", "fp32")
TILE = Tile(128, 64, padded=True)  # assumed: they tune theirs between 16 and 128
TUNING_SECONDS = 1800.0  # hundreds of configurations, compiled one after the other
TRITON = Support("pip install powerbench[peers]", DTYPES, "16, 32, 64, 128, 256")
CUDA = Support("pip install 'retention[experimental]'; nvcc; CUTLASS headers", DTYPES, "16, 32, 64, 128, 256")


def _resolve(problem: Problem, params: Params, pass_: Pass, device_type: str) -> Params:
    p = params.p or 2
    if pass_ == "decode":
        return Params(p, chunk_size=params.chunk_size or DECODE_CHUNK)
    return Params(p, chunk_size=min(params.chunk_size or CHUNK, problem.seqlen))


def _common_refusal(support: Support, case: Case, device_type: str) -> str | None:
    problem, p = case.problem, case.params.degree
    if device_type != "cuda":
        return NEEDS_CUDA
    if installed_version("retention") is None:
        return f"retention is not installed ({support.install})"
    if p % 2:
        return f"p = {p}: the package always normalises, so it has even degrees only"
    if problem.head_dim not in HEAD_DIMS:
        return f"head dimension {problem.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
    if problem.value_dim != problem.head_dim:
        return f"value dimension {problem.value_dim} must equal head dimension {problem.head_dim}"
    return support.refusal(case) or _would_clone()


def _would_clone() -> str | None:
    """Why vidrial must not be imported: it would fetch CUTLASS (vidrial/jit/compiler.py, cutlass_include_dirs)."""
    spec = find_spec("vidrial")
    if spec is None or not spec.submodule_search_locations:
        return None
    home = Path(spec.submodule_search_locations[0])
    if (home.parent / "cutlass").exists() or (home / "cutlass").exists():
        return None
    return f"vidrial would clone CUTLASS at import: put its headers at {home / 'cutlass' / 'include'}"


def _triton_unsupported(case: Case, device_type: str) -> str | None:
    refused = _common_refusal(TRITON, case, device_type)
    if refused:
        return refused
    whole = case.pass_ != "decode" and case.params.chunk_size == case.problem.seqlen
    if case.params.degree != 2 and not whole:
        return f"p = {case.params.degree}: its Triton kernels have states of degree 2 only"
    return (decoding_refusal(case) if case.pass_ == "decode" else None) or import_problem("retention", "retention")


def _cuda_unsupported(case: Case, device_type: str) -> str | None:
    refused = _common_refusal(CUDA, case, device_type)
    if refused:
        return refused
    if installed_version("vidrial") is None:
        return "vidrial is not installed (pip install vidrial)"
    if not _nvcc():
        return "vidrial compiles its kernels with nvcc, and finds none: CUDA_HOME or NVCC_COMPILER"
    return import_problem("vidrial", "retention.vidrial")


def _nvcc() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME  # noqa: PLC0415  looks for the toolkit when imported

    places = (os.environ.get("NVCC_COMPILER"), f"{CUDA_HOME}/bin/nvcc")
    return any(place and which(place) for place in places)


def _prepare_triton(case: Case) -> Forward:
    """Raises ImportError where retention is not installed."""
    retention, p, chunk = importlib.import_module("retention").power_retention, case.params.p, case.params.chunk_size

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = retention(q, k, v, log_g, deg=p, chunk_size=chunk)  # scaled by 1/sqrt(d) by default
        return y

    return forward


def _prepare_cuda(case: Case) -> Forward:
    """Raises ImportError where retention or vidrial is not installed."""
    settings = importlib.import_module("vidrial.jit.settings")
    settings.settings.policy = settings.PickBest
    retention = importlib.import_module("retention.vidrial").power_retention
    p, chunk = case.params.p, case.params.chunk_size

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = retention(q, k, v, log_g, deg=p, chunk_size=chunk)
        # A copy, and with it a gradient of its own: the package overwrites the first column of the one it is given.
        return pad(y[..., 1:], (1, 0))

    return forward


def _reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    p = case.params.degree
    return attention_rows(inputs.q, inputs.k, inputs.v, inputs.log_g, rows, p=p, scale=None, normalize=True)


def _cuda_reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    """The same, but for the first column of v and y."""
    return pad(_reference(case, inputs, rows)[..., 1:], (1, 0))


def _d_tile(name: str, problem: Problem, p: int) -> int:
    """How each path tiles its feature map: compute_expanded_dim in retention/_utils.py pairs blocks of 8 with blocks of
    16, as many rows as TSPOW(16) has; vidrial's default_d_tile in py_utils/common.py."""
    if name == "retention-triton":
        return 16
    return {(16, 2): 4, (16, 4): 2, (32, 2): 8, (32, 4): 2, (64, 2): 8, (64, 4): 2}.get((problem.head_dim, p), 1)


def _launches(case: Case) -> tuple[Launch, ...]:
    """Useful: as powerbench's own rows of power attention (`power.cost`), with this row's chunk. Executed: every chunk
    makes a state, the last too, and reads one, the first too; chunks are filled up; `TILE`s of pairs. Backward: two
    gradients for each product, and the scores twice more (two kernels, one for dq, one for dk and dv). Bytes: operands;
    states written, scanned and read in the inputs' dtype; numerators of the chunks' own attention, written and read."""
    problem, p, chunk = case.problem, case.params.degree, case.params.chunk_size or case.problem.seqlen
    d, e = problem.head_dim, problem.value_dim
    number = -(-problem.seqlen // chunk)
    tokens = problem.batch * number * chunk
    pairs = problem.batch * problem.heads * number * covered_pairs(chunk, TILE)
    rows = tspow_dim(d, p, _d_tile(case.kernel, problem, p)) if number > 1 else 0
    states = problem.batch * number * problem.kv_heads * rows * e
    executed = 2 * (d + e) * pairs + 2 * rows * e * tokens * (problem.heads + problem.kv_heads)
    operands = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.gate_bytes
    through = (4 * states * problem.itemsize + 2 * problem.y_bytes) if number > 1 else 0
    useful = {
        pass_: total(cost.launches(Case(problem, case.kernel, Params(p, 1, chunk), pass_), 1, True)).useful_flops
        for pass_ in ("fwd", "bwd")
    }
    forward = Launch("forward", Cost(useful["fwd"], executed, operands + problem.y_bytes + through))
    backward = Cost(useful["bwd"], 2 * executed + 4 * d * pairs, 2 * operands + 2 * problem.y_bytes + 2 * through)
    return of_pass(case, (forward,), (Launch("backward", backward),))


def _workspace_bytes(case: Case) -> int:
    """Rough: what goes through memory, twice: before and after the scan, in chunks and in one piece."""
    return 2 * sum(launch.cost.bytes for launch in _launches(case))


def _kernel(name: str, summary: str, support: Support, **fields: object) -> Kernel:
    return Kernel(
        name=name,
        family="retention",
        summary=summary,
        takes=frozenset({"p", "chunk_size"}),
        gated=True,
        resolve=_resolve,
        launches=_launches,
        workspace_bytes=_workspace_bytes,
        support=support,
        tuning_seconds=TUNING_SECONDS,
        **fields,  # type: ignore[arg-type]
    )


def _cuda_version() -> str | None:
    retention, vidrial = installed_version("retention"), installed_version("vidrial")
    return f"{retention} on vidrial {vidrial}" if retention and vidrial else None


RETENTION_KERNELS = (
    _kernel(
        "retention-triton",
        "power attention by the paper's authors: retention's Triton kernels (tunes for minutes)",
        TRITON,
        version=partial(installed_version, "retention"),
        unsupported=_triton_unsupported,
        prepare=_prepare_triton,
        decoding=retention_decoding(),
        reference=_reference,
    ),
    _kernel(
        "retention-cuda",
        "power attention by the paper's authors: retention on vidrial's CUDA kernels (compiles and tunes for minutes)",
        CUDA,
        version=_cuda_version,
        unsupported=_cuda_unsupported,
        prepare=_prepare_cuda,
        reference=_cuda_reference,
    ),
)
