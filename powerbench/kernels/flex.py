"""torch's FlexAttention: softmax attention whose scores and mask are Python functions, compiled into its kernel.

It can express power attention of an even degree, and that exactly. With a score s = <q, k> / sqrt(d) replaced by
p log|s| + G_i - G_j its softmax is

    exp(p log|s_ij| + G_i - G_j) / sum_j exp(...) = exp(G_i - G_j) |s_ij|^p / sum_j ...,

and |s|^p = s^p for even p, normalised by default. It cannot express an odd p: a softmax has no negative weights, and
always divides. Nor has it a state: this is the attention form, O(T^2), in the place of the chunked one.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from powerbench.kernels.kernel import Forward, Inputs, Kernel, Support
from powerbench.kernels.ledger import flash_workspace_bytes, softmax_launches
from powerbench.kernels.packages import NEEDS_CUDA, compiled
from powerbench.kernels.power.op import MAX_DEGREE
from powerbench.kernels.power.reference import attention_rows
from powerbench.problem import Case, Params, Pass, Problem

LEAST_WIDTH = 16  # of q, k and v: torch/_inductor/kernel/flex refuses narrower heads
BLOCK = 128  # queries and keys of a block of the mask: FlexAttention's default
LEAST_SCORE = 1e-20  # in the place of a score of 0, whose logarithm has no gradient; its p-th power is 0 in float32


def flex_support() -> Support:
    """What FlexAttention can do on a GPU."""
    return Support("with torch for CUDA", ("bf16", "fp16", "fp32"), f"{LEAST_WIDTH} and more")


def flex_unsupported(case: Case, device_type: str) -> str | None:
    """Why FlexAttention cannot run the case; None: nothing is known against it. Compiling it for CPUs, torch has no
    backward pass."""
    if device_type != "cuda" or not torch.cuda.is_available():
        return NEEDS_CUDA
    if find_spec("triton") is None:
        return "triton is not installed (pip install powerbench[gpu]); torch compiles FlexAttention with it"
    narrowest = min(case.problem.head_dim, case.problem.value_dim)
    if narrowest < LEAST_WIDTH:
        return f"head dimension {narrowest}: FlexAttention takes {LEAST_WIDTH} and more"
    return flex_support().refusal(case)


def flex_workspace_bytes(case: Case) -> int:
    """Rough: as flash attention, and the mask: an int32 a pair of blocks, full and partial, by row and by column."""
    blocks = -(-case.problem.seqlen // BLOCK)
    return flash_workspace_bytes(case) + 4 * 4 * blocks * blocks


def block_mask(seqlen: int, window: int | None, device: torch.device) -> BlockMask:
    """FlexAttention's mask of causal attention, of the last `window` keys if given: which blocks it has to look at.

    What torch's create_block_mask returns, which would evaluate the mask at all T x T pairs.
    """
    reach = window or seqlen
    number = -(-seqlen // BLOCK)
    query, key = (torch.arange(number, device=device) * BLOCK).unsqueeze(1), torch.arange(number, device=device) * BLOCK
    last_query, last_key = query + BLOCK - 1, key + BLOCK - 1
    some = (key <= query) & (query - last_key < reach)
    every = (last_key <= query) & (last_query - key < reach) & (last_query < seqlen)

    def ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For each row of blocks how many, and their columns; [1, 1, rows] and [1, 1, rows, columns]."""
        columns = blocks.int().argsort(dim=1, descending=True, stable=True)
        return blocks.sum(1, dtype=torch.int32)[None, None], columns.int()[None, None].contiguous()

    def visible(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (j <= i) & (i - j < reach)

    return BlockMask.from_kv_blocks(
        *ordered(some & ~every), *ordered(every), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(seqlen, seqlen)
    )  # fmt: skip


def prepare_window(case: Case) -> Forward:
    """Softmax attention with the sliding window of the case. The mask is made at the first call, and kept."""
    attention, masks = compiled(_windowed), _Masks(case)

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = attention(q, k, v, masks.on(q.device))
        return y

    return forward


def _windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> torch.Tensor:
    grouped = q.shape[2] != k.shape[2]
    return _flex(q, k, v, block_mask=mask, enable_gqa=grouped)


def _prepare_power(case: Case) -> Forward:
    attention, masks, p = compiled(_power), _Masks(case), case.params.degree

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        gates = None
        if log_g is not None:  # G [B, Hk, T], twice: FlexAttention differentiates a tensor that is indexed once
            gate = log_g.cumsum(1).transpose(1, 2).contiguous()
            gates = gate, gate.clone()
        y: torch.Tensor = attention(q, k, v, gates, masks.on(q.device), p)
        return y

    return forward


def _power(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gates: tuple[torch.Tensor, torch.Tensor] | None,
    mask: BlockMask,
    p: int,
) -> torch.Tensor:
    group = q.shape[2] // k.shape[2]

    def logarithm(s: torch.Tensor) -> torch.Tensor:
        return p * s.abs().clamp(min=LEAST_SCORE).log()

    def ungated(s: torch.Tensor, b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
        return logarithm(s)

    if gates is None:
        return _flex(q, k, v, score_mod=ungated, block_mask=mask, enable_gqa=group > 1)
    of_query, of_key = gates

    def gated(s: torch.Tensor, b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
        return logarithm(s) + of_query[b, h // group, i] - of_key[b, h // group, j]

    return _flex(q, k, v, score_mod=gated, block_mask=mask, enable_gqa=group > 1)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    y: torch.Tensor = flex_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options)
    return y.transpose(1, 2)


class _Masks:
    """The mask of a case, made where it is first needed."""

    def __init__(self, case: Case) -> None:
        self._sizes = case.problem.seqlen, case.params.window
        self._mask: BlockMask | None = None

    def on(self, device: torch.device) -> BlockMask:
        """On the device of the first call, which is that of all."""
        if self._mask is None:
            self._mask = block_mask(*self._sizes, device)
        return self._mask


def _resolve(problem: Problem, params: Params, pass_: Pass, device_type: str) -> Params:
    return Params(params.p or 2)


def _unsupported(case: Case, device_type: str) -> str | None:
    p = case.params.degree
    if p % 2:
        return f"p = {p}: a softmax has no negative weights, so FlexAttention can express even degrees only"
    if p > MAX_DEGREE:
        return f"p = {p}: p is at most {MAX_DEGREE}, as in power attention's other rows"
    return flex_unsupported(case, device_type)


def _reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    p = case.params.degree
    return attention_rows(inputs.q, inputs.k, inputs.v, inputs.log_g, rows, p=p, scale=None, normalize=True)


FLEX_KERNELS = (
    Kernel(
        name="flex-power",
        family="flex",
        summary="torch's FlexAttention as power attention of even p: softmax of p log|s| + G_i - G_j, O(T^2)",
        takes=frozenset({"p"}),
        gated=True,
        version=lambda: str(torch.__version__),
        resolve=_resolve,
        unsupported=_unsupported,
        prepare=_prepare_power,
        reference=_reference,
        launches=softmax_launches,
        workspace_bytes=flex_workspace_bytes,
        support=flex_support(),
    ),
)
