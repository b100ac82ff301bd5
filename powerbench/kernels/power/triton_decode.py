"""Decoding in Triton: the two launches of a step (`step_kernel`). Deterministic; never waits for the device.

With M = T * H / Hk queries a key/value head, and the programs of a state (`decode_tiling.split`), or the most that meet
it where a plain bfloat16 state is walked over (`decode_tiling.walks`; `walk_kernel` is the first launch then):

    step       reads   q, k, v, log_g of the new tokens; S, and z where normalised or moved on (a lazy state that moves
                       on a second time, from the L2); the window's k, v, a
               writes  fp32 partial sums [B, Hk, programs + 1, M, e + 1] and the decay since the state [B, Hk, M], or,
                       of a walk, sums that are decayed [B, Hk, programs, M, e + 1]; S and z, of a lazy state only where
                       the window is full, else its new slots
    combine    reads   the partial sums, and the decay
               writes  y [B, T, H, e] in q's dtype; of a lazy state count

The first programs of a lazy `step` may take places of others (`decode_tiling.front_sequences`): the same bits.

On devices of compute capability 9.0 and up `combine` is a programmatic dependent launch: its programs take their places
while the last ones of `step` still run, and wait there for what those leave.

A single query a head meets the state in float32. Several (GQA, more than one token) meet it in products of bfloat16
operands (float32 for float32 inputs), as in prefill; so do the tokens of a window when they are moved into the state.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from powerbench.kernels.power import tables
from powerbench.kernels.power.decode_tiling import (
    FOLD_TOKENS,
    WALK_LANES,
    WALK_REGISTERS,
    WALK_ROWS,
    WALK_STAGES,
    WINDOW_TOKENS,
    Split,
    Walk,
    front_sequences,
    most_registers,
    packed_indices,
    piece,
    split,
    walk,
    walks,
    window_stages,
)
from powerbench.kernels.power.gates import LOG_GATE_MIN
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.state import LazyState, PowerState
from powerbench.kernels.power.step_kernel import combine_kernel, step_kernel
from powerbench.kernels.power.tiling import check_sizes
from powerbench.kernels.power.triton_backend import contiguous_rows, operand_dtypes
from powerbench.kernels.power.walk_kernel import walk_kernel

NUM_WARPS = 4
MAX_PARTS = 64  # partial sums that `combine` adds at once
TMA_ALIGNMENT = 16  # bytes


@torch.no_grad()
def triton_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    state: PowerState | LazyState,
    *,
    p: int,
    d_tile: int,
    scale: float,
    normalize: bool,
) -> Tensor:
    """y [B, T, H, e] in q's dtype; `state` is moved on in place. Arguments as `power_attention_step` has checked them.

    Raises ValueError for sizes and dtypes that the kernels lack.
    """
    B, T, H, d = q.shape
    heads, e = v.shape[2:]
    check_sizes(p, d, e)
    if q.dtype is torch.float64:
        raise ValueError("q is torch.float64; the Triton backend has bfloat16, float16 and float32")
    lazy = state if isinstance(state, LazyState) else None
    s, z = (x.flatten(0, 1) for x in (state if lazy is None else lazy.state))
    q, k, v = (contiguous_rows(x) for x in (q, k, v))
    M = T * H // heads
    way = _walk_over(s, M, lazy is not None)
    cut = split(s.shape[1], e, B * heads, M, lazy is not None, s.element_size())
    places = cut.programs + 1 if way is None else way.slots
    y = torch.empty(B, T, H, e, dtype=q.dtype, device=q.device)
    num = torch.empty(B * heads, places, M, e, dtype=torch.float32, device=q.device)
    den = torch.empty(B * heads, places, M, dtype=torch.float32, device=q.device) if normalize else None
    early = starts_early(q.device)
    read = (q, k, v, log_g, s, z, _rows_on(q.device, d, p, d_tile))
    factor, rest = split_scale(scale, p)
    constants = {
        "heads": heads, "P": p, "HEAD": d, "E": e, "W": d_tile, "GATED": log_g is not None, "NORMALIZE": normalize,
        "MIN": LOG_GATE_MIN, "EARLY": early, "num_warps": NUM_WARPS,
    }  # fmt: skip
    with torch.cuda.device_of(q):
        if way is None:
            since = _launch_step(*read, lazy, num, den, factor, cut, constants)
        else:
            since = None
            _launch_walk(*read, num, den, factor, way, constants)
        combine_kernel[(B * heads * M,)](
            num, den, since, y, None if lazy is None else lazy.count, rest**p, places,
            0 if lazy is None else lazy.window, *((0, 0) if way is None else (B * heads * way.tiles, way.walkers)),
            heads=heads, GROUP=H // heads, T=T, M=M, E=e, TILES=0 if way is None else way.tiles, NORMALIZE=normalize,
            LAZY=lazy is not None, BP=min(MAX_PARTS, triton.next_power_of_2(places)), EARLY=early,
            num_warps=NUM_WARPS, launch_pdl=early,
        )  # fmt: skip
    return y


def _walk_over(s: Tensor, queries: int, lazy: bool) -> Walk | None:
    """How a step walks over the states s [B * Hk, D, e]; None where it does not (`walks`)."""
    states, dim, e = s.shape
    dense = s.is_contiguous() and s.data_ptr() % TMA_ALIGNMENT == 0
    processors = walking_processors(s.device)
    if not walks(dim, e, states, queries, s.element_size(), lazy=lazy, dense=dense, processors=processors):
        return None
    return walk(dim, states, processors)


def _launch_step(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor, z: Tensor, rows: Tensor, lazy: LazyState | None,
    num: Tensor, den: Tensor | None, factor: float, cut: Split, constants: dict[str, Any],
) -> Tensor:  # fmt: skip
    """`step_kernel` on states s [B * Hk, D, e] and z [B * Hk, D], cut by `cut`; the decay since them [B * Hk, M]."""
    B, T, H, d = q.shape
    heads, e = v.shape[2:]
    M = T * H // heads
    window = 0 if lazy is None else lazy.window
    since = torch.empty(B * heads, M, dtype=torch.float32, device=q.device)
    front = 0 if lazy is None else front_sequences(B, heads * (cut.programs + M), window)
    step_kernel[(front * heads * cut.programs + B * heads * (cut.programs + M),)](
        q, k, v, log_g, s, z, rows, *((None,) * 4 if lazy is None else (lazy.k, lazy.v, lazy.a, lazy.count)),
        num, den, since, B, s.shape[1], cut.tiles, cut.programs, window, factor,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *((0, 0, 0) if log_g is None else log_g.stride()),
        s.stride(0), z.stride(0),
        GROUP=H // heads, T=T, TP=triton.next_power_of_2(T), M=M,
        MP=1 if M == 1 else max(16, triton.next_power_of_2(M)), LAZY=lazy is not None, ROWS=cut.rows,
        PIECE=piece(cut.rows, e), FOLD=FOLD_TOKENS, BT=WINDOW_TOKENS, STAGES=window_stages(d, e, q.element_size()),
        OP=operand_dtypes(q.dtype)[1], FRONT=front, BP=triton.next_power_of_2(B) if front else 1,
        maxnreg=most_registers(e, M, lazy is not None, s.element_size(), q.element_size()), **constants,
    )  # fmt: skip
    return since


def _launch_walk(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor, z: Tensor, rows: Tensor,
    num: Tensor, den: Tensor | None, factor: float, way: Walk, constants: dict[str, Any],
) -> None:  # fmt: skip
    """`walk_kernel` on the states s [B * Hk, D, e], bfloat16 and contiguous, and z [B * Hk, D]."""
    pairs = s.view(torch.int32).flatten(0, 1)  # [B * Hk * D, e / 2]
    tile = TensorDescriptor.from_tensor(pairs, [WALK_ROWS, pairs.shape[1]])
    strides = (x.stride(i) for x in (q, k, v) for i in (0, 2))
    walk_kernel[(way.walkers,)](
        q, k, v, log_g, tile, z, rows, num, den, len(s) * way.tiles, way.walkers, way.slots, factor,
        *strides, *((0, 0) if log_g is None else (log_g.stride(0), log_g.stride(2))), z.stride(0),
        ROWS=WALK_ROWS, TILES=way.tiles, LANES=WALK_LANES, STAGES=WALK_STAGES, maxnreg=WALK_REGISTERS, **constants,
    )  # fmt: skip


@lru_cache(maxsize=16)
def walking_processors(device: torch.device) -> int:
    """Multiprocessors of a device that has TMA, else 0; of the interpreter one, so that runs are long there."""
    if triton.knobs.runtime.interpret:
        return 1
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=16)
def starts_early(device: torch.device) -> bool:
    """Whether the device has programmatic dependent launches."""
    if device.type != "cuda" or triton.knobs.runtime.interpret:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _rows_on(device: torch.device, d: int, p: int, d_tile: int) -> Tensor:
    """The packed index tuples on the device: copied once, so that later calls and CUDA graphs need no host."""
    return tables.on_device(device, packed_indices, d, p, d_tile)
