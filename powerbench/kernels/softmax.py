"""Softmax attention by others: torch's scaled_dot_product_attention, a row a backend, and the FlashAttention packages.

None of them has gates: their rows compute the same problem without log_g. Scores are scaled by 1/sqrt(d).
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from powerbench.cost import Launch
from powerbench.kernels.kernel import TORCH_DTYPES, Forward, Inputs, Kernel, Support, no_params
from powerbench.kernels.ledger import (
    GPU_TILE,
    cpu_tile,
    cpu_workspace_bytes,
    flash_workspace_bytes,
    softmax_launches,
)
from powerbench.kernels.packages import NEEDS_CUDA, import_problem, installed_version
from powerbench.kernels.softmax_decode import flash_decoding, sdpa_decoding
from powerbench.problem import DTYPES, Case

PROBE_TOKENS = 128  # whether a backend takes a problem depends on its length only where that is a single token


def softmax_reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    """Causal softmax attention in float64 at the query rows [R] alone: [B, R, H, e], differentiable in q, k and v.

    With `case.params.window`, over no more than that many last keys of each query. Query heads are grouped over their
    key head, so k and v are never repeated; memory is a few [B, H, R, T].
    """
    q, k, v = (t.double() for t in (inputs.q, inputs.k, inputs.v))
    B, T, Hk, d = k.shape
    queries = q[:, rows].reshape(B, len(rows), Hk, -1, d)
    scores = torch.einsum("brhgd,bthd->bhgrt", queries, k) * d**-0.5
    back = rows.to(q.device)[:, None] - torch.arange(T, device=q.device)  # from a query to a key
    hidden = (back < 0) | (back >= (case.params.window or T))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bhgrt,bthe->brhge", weights, v).reshape(B, len(rows), -1, v.shape[-1])


def _sdpa_unsupported(backend: SDPBackend, home: str, case: Case, device_type: str) -> str | None:
    if device_type != home:
        return NEEDS_CUDA if home == "cuda" else "runs on the CPU only"
    if home == "cuda" and not torch.cuda.is_available():
        return NEEDS_CUDA
    return _torch_refusal(backend, case, device_type)


def _math_unsupported(case: Case, device_type: str) -> str | None:
    if device_type == "cuda" and case.pass_ != "decode":
        return "keeps all scores in memory, T x T a head: decoding only"
    return _sdpa_unsupported(SDPBackend.MATH, "cuda", case, device_type)


def _torch_refusal(backend: SDPBackend, case: Case, device_type: str) -> str | None:
    """Why torch would not choose this backend for the case, in torch's own words; None: it would, or does not say.

    Asks the selection that scaled_dot_product_attention itself asks, on few tokens and running nothing, so that the
    answer is right for the torch, the cuDNN and the GPU at hand. With one backend allowed and that one unfit,
    torch raises "No available kernel" and gives its reason as a warning.
    """
    problem, decoding = case.problem, case.pass_ == "decode"
    tokens = min(problem.seqlen, PROBE_TOKENS)

    def operand(tokens: int, heads: int, width: int) -> torch.Tensor:
        empty = torch.empty((1, tokens, heads, width), dtype=TORCH_DTYPES[problem.dtype], device=device_type)
        return empty.requires_grad_("bwd" in case.pass_).transpose(1, 2)

    q = operand(1 if decoding else tokens, problem.heads, problem.head_dim)
    k = operand(tokens, problem.kv_heads, problem.head_dim)
    v = operand(tokens, problem.kv_heads, problem.value_dim)
    with warnings.catch_warnings(record=True) as caught, sdpa_kernel(backend):
        warnings.simplefilter("always")
        try:
            torch._fused_sdp_choice(q, k, v, is_causal=not decoding, enable_gqa=problem.heads != problem.kv_heads)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                return None  # not a refusal: let it run, so that its row shows the real message
            return _own_words([str(warning.message) for warning in caught]) or "torch has no such kernel for this case"
    return None


def _own_words(messages: list[str]) -> str:
    """Torch's reasons without their source lines, its headings, and its remarks on the backends that we turned off."""
    reasons = (message.split(" (Triggered internally")[0].strip() for message in messages)
    kept = [r for r in reasons if not r.endswith("not used because:") and "runtime disabled" not in r]
    return "; ".join(" ".join(reason.split()) for reason in dict.fromkeys(kept))


def _sdpa_prepare(backend: SDPBackend, case: Case) -> Forward:
    gqa = case.problem.heads != case.problem.kv_heads

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        with sdpa_kernel(backend):
            y = scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=gqa
            )
        return y.transpose(1, 2)

    return forward


def _sdpa_launches(home: str, case: Case) -> tuple[Launch, ...]:
    return softmax_launches(case, cpu_tile(case.problem.seqlen) if home == "cpu" else GPU_TILE)


def _sdpa(
    name: str,
    summary: str,
    backend: SDPBackend,
    dtypes: tuple[str, ...],
    head_dims: str,
    home: str = "cuda",
    grouped: bool = True,
) -> Kernel:
    """A row of torch's attention: this backend and no other, on the device type `home`."""
    return Kernel(
        name=name,
        family="sdpa",
        summary=summary,
        takes=frozenset(),
        gated=False,
        version=lambda: str(torch.__version__),
        resolve=no_params,
        unsupported=partial(_sdpa_unsupported, backend, home),
        prepare=partial(_sdpa_prepare, backend),
        reference=softmax_reference,
        launches=partial(_sdpa_launches, home),
        workspace_bytes=cpu_workspace_bytes if home == "cpu" else flash_workspace_bytes,
        decoding=sdpa_decoding(backend),
        support=Support("with torch" if home == "cpu" else "with torch for CUDA", dtypes, head_dims, grouped=grouped),
    )


@dataclass(frozen=True)
class Provider:
    """A package with a `flash_attn_func(q, k, v, causal=True)` in our layout. Limits are the sure ones: what its
    sources refuse whatever the GPU. The rest it refuses itself when it runs, and the row shows its words."""

    distribution: str  # as pip knows it
    module: str
    dtypes: tuple[str, ...] = ("bf16", "fp16")
    backward: bool = True
    windows: bool = True  # sliding ones, in prefill: a cache of a window's keys needs none
    max_head_dim: int | None = None
    one_width: bool = False  # v must be as wide as q and k
    install: str = "pip install powerbench[flash]"  # the command that gets it

    def refusal(self, case: Case) -> str | None:
        """Why this package cannot run the case; None: nothing is known against it."""
        problem = case.problem
        if problem.dtype not in self.dtypes:
            return f"{problem.dtype} is not supported by {self.distribution} ({' or '.join(self.dtypes)})"
        if self.max_head_dim is not None and problem.head_dim > self.max_head_dim:
            return f"head dimension {problem.head_dim} > {self.max_head_dim}"
        if self.one_width and problem.value_dim != problem.head_dim:
            return f"value dimension {problem.value_dim} must equal head dimension {problem.head_dim}"
        if "bwd" in case.pass_ and not self.backward:
            return f"backward is not in {self.distribution} (forward only)"
        if case.params.window and case.pass_ != "decode" and not self.windows:
            return f"sliding windows are not in {self.distribution} (built without them)"
        return import_problem(self.distribution, self.module)


BUILD_2 = "pip install flash-attn --no-build-isolation"  # compiles, for long, so it is in no extra
# flash_attn 2: csrc/flash_attn/flash_api.cpp checks the dtype, d <= 256 and v's shape against k's.
FLASH_2 = (Provider("flash-attn", "flash_attn", max_head_dim=256, one_width=True, install=BUILD_2),)
# flash_attn 3: built from its hopper folder it is complete; fa3-fwd's wheel has no backward, no fp16 and no
# sliding windows (fa3_fwd_config.py in it).
FLASH_3 = (
    Provider("flash-attn-3", "flash_attn_interface", max_head_dim=256, install="build flash-attention's folder hopper"),
    Provider("fa3-fwd", "fa3_fwd_interface", dtypes=("bf16",), backward=False, windows=False, max_head_dim=256),
)
# flash_attn 4: interface.py's widths depend on the GPU. Installed alone, it leaves an importable, empty `flash_attn`.
FLASH_4 = (Provider("flash-attn-4", "flash_attn.cute"),)


def installed(providers: tuple[Provider, ...]) -> Provider | None:
    """The first of them that is installed."""
    return next((p for p in providers if installed_version(p.distribution) is not None), None)


def flash_unsupported(providers: tuple[Provider, ...], case: Case, device_type: str) -> str | None:
    """Why the first provider that is installed cannot run the case, or that none is; None: it can."""
    if device_type != "cuda":
        return NEEDS_CUDA
    provider = installed(providers)
    if provider is None:
        return f"{providers[-1].distribution} is not installed ({providers[-1].install})"
    return provider.refusal(case)


def flash_support(providers: tuple[Provider, ...]) -> Support:
    """What the provider that is installed can do, else the one that pip finds."""
    provider = installed(providers) or providers[-1]
    widest = f"up to {provider.max_head_dim}" if provider.max_head_dim else "by GPU"
    return Support(provider.install, provider.dtypes, widest, ("fwd", "bwd") if provider.backward else ("fwd",))


def flash_module(providers: tuple[Provider, ...]) -> str:
    """What to import of the provider that is installed, else of the first."""
    return (installed(providers) or providers[0]).module


def flash_prepare(providers: tuple[Provider, ...], case: Case) -> Forward:
    """Causal attention, with the sliding window of the case if it has one. Raises ImportError without a provider."""
    attention = importlib.import_module(flash_module(providers)).flash_attn_func
    # The packages count the keys to the left of a query's own.
    options = {} if case.params.window is None else {"window_size": (case.params.window - 1, 0)}

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        result = attention(q, k, v, causal=True, **options)
        # flash-attn-4 and early flash-attn-3 return (y, log-sum-exp), the others y.
        y: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return y

    return forward


def _flash(name: str, summary: str, providers: tuple[Provider, ...]) -> Kernel:
    """A row of the FlashAttention packages: the first provider installed; the last is the one that pip finds."""
    return Kernel(
        name=name,
        family="flash",
        summary=summary,
        takes=frozenset(),
        gated=False,
        version=lambda: installed_version(*(provider.distribution for provider in providers)),
        resolve=no_params,
        unsupported=partial(flash_unsupported, providers),
        prepare=partial(flash_prepare, providers),
        reference=softmax_reference,
        launches=softmax_launches,
        workspace_bytes=flash_workspace_bytes,
        decoding=flash_decoding(partial(flash_module, providers)),
        support=flash_support(providers),
    )


HALF = ("bf16", "fp16")

SOFTMAX_KERNELS = (
    _sdpa("sdpa-cpu", "torch's fused attention on the CPU", SDPBackend.FLASH_ATTENTION, DTYPES, "any", home="cpu"),
    _sdpa("sdpa-flash", "torch's FlashAttention-2", SDPBackend.FLASH_ATTENTION, HALF, "up to 256"),
    _sdpa("sdpa-cudnn", "cuDNN's attention, through torch", SDPBackend.CUDNN_ATTENTION, HALF, "by GPU"),
    _sdpa(
        "sdpa-efficient", "torch's memory-efficient attention", SDPBackend.EFFICIENT_ATTENTION,
        ("bf16", "fp16", "fp32"), "any", grouped=False,
    ),
    replace(
        _sdpa("sdpa-math", "torch's attention in separate products, decoding only", SDPBackend.MATH, DTYPES, "any"),
        unsupported=_math_unsupported,
        support=Support("with torch for CUDA", passes=()),
    ),
    _flash("flash-2", "FlashAttention-2", FLASH_2),
    _flash("flash-3", "FlashAttention-3 (Hopper)", FLASH_3),
    _flash("flash-4", "FlashAttention-4 (Hopper, Blackwell)", FLASH_4),
)  # fmt: skip
