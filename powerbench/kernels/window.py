"""Sliding-window softmax attention: what a state as small as power attention's buys when it is spent on recent keys.

The window is no free choice: the keys and values it keeps are as many bytes as the state of power attention of degree
p, so that each row stands beside a row of power attention that remembers as much (the comparison of arXiv 2507.04239).
None of these kernels has gates. Scores are scaled by 1/sqrt(d).
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from powerbench.cost import Launch
from powerbench.kernels.flex import flex_support, flex_unsupported, flex_workspace_bytes, prepare_window
from powerbench.kernels.kernel import Forward, Kernel, Support
from powerbench.kernels.ledger import Tile, cpu_workspace_bytes, flash_workspace_bytes, softmax_launches
from powerbench.kernels.packages import installed_version
from powerbench.kernels.power.op import MAX_DEGREE
from powerbench.kernels.power.state_size import state_bytes
from powerbench.kernels.softmax import (
    FLASH_2,
    FLASH_3,
    FLASH_4,
    Provider,
    flash_module,
    flash_prepare,
    flash_support,
    flash_unsupported,
    softmax_reference,
)
from powerbench.kernels.softmax_decode import flash_decoding, sdpa_decoding
from powerbench.problem import Case, Params, Pass, Problem

MIN_BLOCK = 128  # queries at once in `window-torch`, where the window is narrower


def equal_state_window(p: int, problem: Problem) -> int:
    """Keys whose k and v, in the problem's dtype, are as many bytes as power attention's smallest state of degree p."""
    state = state_bytes(p, problem.head_dim, problem.value_dim, problem.dtype)
    return max(1, round(state / ((problem.head_dim + problem.value_dim) * problem.itemsize)))


def _window(case: Case) -> int:
    assert case.params.window
    return case.params.window


def _resolve(problem: Problem, params: Params, pass_: Pass, device_type: str) -> Params:
    p = params.p or 2
    if p > MAX_DEGREE:
        return Params(p)  # refused by `_refusal`
    window = equal_state_window(p, problem)
    return Params(p, window=min(window, problem.seqlen))  # a window longer than the context is the context


def _refusal(case: Case, reason: str | None) -> str | None:
    if case.params.window is None:
        return f"p = {case.params.p}: power attention has p of at most {MAX_DEGREE}, whose state the window would equal"
    return reason


def _block(case: Case) -> int:
    return min(max(_window(case), MIN_BLOCK), case.problem.seqlen)


def _torch_unsupported(case: Case, device_type: str) -> str | None:
    return _refusal(case, None)


def _torch_prepare(case: Case) -> Forward:
    """Block by block, against its own keys and those of the block before: T times two blocks of pairs."""
    window, block = _window(case), _block(case)
    grouped = case.problem.heads != case.problem.kv_heads

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        steps = torch.arange(block, device=q.device)
        after = (steps[:, None] + block) - torch.arange(2 * block, device=q.device)  # keys between key and query
        seen = (after >= 0) & (after < window)
        # Split, not sliced: the gradient of a split is one concatenation, that of each slice as long as the sequence.
        queries, keys, values = (t.transpose(1, 2).split(block, dim=2) for t in (q, k, v))
        outputs = []
        for i, query in enumerate(queries):
            first, last = max(0, i - 1), i + 1
            mask = seen[: query.shape[2], block * (i == 0) : block + query.shape[2]]
            pair = torch.cat(keys[first:last], 2), torch.cat(values[first:last], 2)
            outputs.append(scaled_dot_product_attention(query, *pair, attn_mask=mask, enable_gqa=grouped))
        return torch.cat(outputs, 2).transpose(1, 2)

    return forward


def _torch_launches(case: Case) -> tuple[Launch, ...]:
    """The pairs of each block with itself and the block before, whichever of torch's kernels multiplies them."""
    return softmax_launches(case, Tile(_block(case), _block(case), padded=False))


def _torch_workspace_bytes(case: Case) -> int:
    """Rough: as attention on the CPU, with copies of k and v, twice; and the mask."""
    problem, block = case.problem, _block(case)
    return cpu_workspace_bytes(case) + 2 * (problem.k_bytes + problem.v_bytes) + 2 * block * block


def _flash_unsupported(providers: tuple[Provider, ...], case: Case, device_type: str) -> str | None:
    return _refusal(case, flash_unsupported(providers, case, device_type))


def _flex_unsupported(case: Case, device_type: str) -> str | None:
    return _refusal(case, flex_unsupported(case, device_type))


def _kernel(name: str, summary: str, **fields: object) -> Kernel:
    return Kernel(
        name=name,
        family="window",
        summary=f"sliding window as large as power attention's state, by {summary}",
        takes=frozenset({"p"}),
        gated=False,
        resolve=_resolve,
        reference=softmax_reference,
        **fields,  # type: ignore[arg-type]
    )


def _flash(name: str, summary: str, providers: tuple[Provider, ...]) -> Kernel:
    return _kernel(
        name,
        summary,
        version=lambda: installed_version(*(provider.distribution for provider in providers)),
        unsupported=partial(_flash_unsupported, providers),
        prepare=partial(flash_prepare, providers),
        launches=softmax_launches,
        workspace_bytes=flash_workspace_bytes,
        decoding=flash_decoding(partial(flash_module, providers)),
        support=flash_support(providers),
    )


WINDOW_KERNELS = (
    _kernel(
        "window-torch",
        "torch's attention, block by block",
        version=lambda: str(torch.__version__),
        unsupported=_torch_unsupported,
        prepare=_torch_prepare,
        launches=_torch_launches,
        workspace_bytes=_torch_workspace_bytes,
        decoding=sdpa_decoding(None),
        support=Support("with torch"),
    ),
    _kernel(
        "window-flex",
        "torch's FlexAttention",
        version=lambda: str(torch.__version__),
        unsupported=_flex_unsupported,
        prepare=prepare_window,
        launches=softmax_launches,
        workspace_bytes=flex_workspace_bytes,
        support=flex_support(),
    ),
    _flash("window-flash-2", "FlashAttention-2", FLASH_2),
    _flash("window-flash-3", "FlashAttention-3 (Hopper)", FLASH_3),
    _flash("window-flash-4", "FlashAttention-4 (Hopper, Blackwell)", FLASH_4),
)
