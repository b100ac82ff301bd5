"""The weight-state FLOP ratio (WSFR) of a model shape, for each attention that could stand in it, at each context.

From "Scaling Context Requires Rethinking Attention" (arXiv 2507.04239, section 3.2): weight FLOPs multiply an
activation by a parameter, state FLOPs an activation by the state (the KV cache, or the state of a recurrence). Of a
model far from 1:1, the smaller side could be doubled at almost no cost, so a compute-optimal model is near it.
Conventions as in the ledger (`powerbench.cost`): matrix products only, a multiply-add is two FLOPs, causal pairs are
counted once, useful work. docs/wsfr.md has each formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from powerbench.crossover import context_text
from powerbench.errors import UserError
from powerbench.kernels.power.choose import choose
from powerbench.kernels.power.cost import causal_pairs, chunk_lengths
from powerbench.kernels.power.feature_map import spow_dim
from powerbench.models import Model
from powerbench.problem import ITEMSIZE

Mode = Literal["prefill", "decode"]

DEGREES = (1, 2, 3, 4)  # those of the operator
WINDOW = 4096  # Mistral 7B's
FULL_EVERY = 6  # Gemma 3's
LONGEST = 1 << 40  # tokens: no context is looked for beyond it


class Attention(Protocol):
    """An attention in the place of a model's own.

    weights: parameters that multiply an activation, of the whole model. state_flops: FLOPs a token of the whole model,
    in `prefill` the mean over a sequence of `ctx` tokens, in `decode` of the token that sees `ctx`, itself included.
    state_elements: numbers kept of a sequence after `ctx` tokens, over all layers and heads.
    """

    def weights(self, model: Model) -> int: ...
    def state_flops(self, model: Model, ctx: int, mode: Mode) -> float: ...
    def state_elements(self, model: Model, ctx: int) -> int: ...


class Softmax(msgspec.Struct, frozen=True):
    """Softmax attention, full or with a sliding window, in all layers or in all but one of each `full_every`."""

    kv_heads: int
    window: int | None = None
    full_every: int | None = None

    def weights(self, model: Model) -> int:
        """Fewer key/value heads have smaller projections."""
        return model.layers * model.attention_weights(self.kv_heads) + model.other_weights

    def state_flops(self, model: Model, ctx: int, mode: Mode) -> float:
        """2 (d + e) for each query head and key seen. Fewer key/value heads save none of them."""
        keys = sum(layers * _keys(ctx, window, mode) for layers, window in self._layers(model))
        return 2 * 2 * model.head_dim * model.heads * keys

    def state_elements(self, model: Model, ctx: int) -> int:
        """The KV cache, of windows no more than the window."""
        kept = sum(layers * min(ctx, window or ctx) for layers, window in self._layers(model))
        return 2 * model.head_dim * self.kv_heads * kept

    def _layers(self, model: Model) -> list[tuple[int, int | None]]:
        full = max(1, model.layers // self.full_every) if self.full_every else 0 if self.window else model.layers
        return [(full, None), (model.layers - full, self.window)]


class Latent(msgspec.Struct, frozen=True):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    With its proportions: a latent of 4 d that all heads share, and d / 2 rotary coordinates of the keys beside it;
    queries are not compressed, as in DeepSeek-V2-Lite.
    """

    def weights(self, model: Model) -> int:
        """Queries; down to latent and rotary key; up to keys and values; output. Absorbed or not, the FLOPs agree."""
        d, rank, rotary = self._dims(model)
        queries = model.d_model * model.heads * (d + rotary)
        down, up = model.d_model * (rank + rotary), rank * model.heads * 2 * d
        output = model.heads * d * model.d_model
        return model.layers * (queries + down + up + output) + model.other_weights

    def state_flops(self, model: Model, ctx: int, mode: Mode) -> float:
        """Prefill expands the latent to keys and values of each head; decoding attends to the latent itself."""
        d, rank, rotary = self._dims(model)
        pair = 2 * (d + rotary + d) if mode == "prefill" else 2 * (rank + rotary + rank)
        return model.layers * model.heads * pair * _keys(ctx, None, mode)

    def state_elements(self, model: Model, ctx: int) -> int:
        """Latent and rotary key: 4.5 d a token and layer."""
        _, rank, rotary = self._dims(model)
        return model.layers * (rank + rotary) * ctx

    @staticmethod
    def _dims(model: Model) -> tuple[int, int, int]:
        return model.head_dim, 4 * model.head_dim, model.head_dim // 2


class Power(msgspec.Struct, frozen=True):
    """Power attention of degree p, with the smallest state (SPOW); p = 1 is linear attention. Its weights are full
    attention's, with the model's own key/value heads; a gate's d_model x kv_heads is left out."""

    p: int
    chunk: int

    def weights(self, model: Model) -> int:
        """State expansion adds no parameter."""
        return model.weights

    def state_flops(self, model: Model, ctx: int, mode: Mode) -> float:
        """Prefill takes the cheaper of the attention form and the chunked form; decoding is the recurrence.

        The ledger's useful FLOPs (`kernels.power.cost`): 2 D e for each update, one a key/value head, and for each
        query of the state, one a query head; 2 (d + e) for each causal pair inside a chunk.
        """
        d, touch = model.head_dim, 2 * spow_dim(model.head_dim, self.p) * model.head_dim
        if mode == "decode":
            return model.layers * touch * (model.kv_heads + model.heads)
        pair = 2 * 2 * d * model.heads
        chunks = chunk_lengths(ctx, self.chunk)
        chunked = pair * chunks.total(causal_pairs) + touch * (
            model.kv_heads * chunks.past + model.heads * chunks.later
        )
        return model.layers * min(pair * causal_pairs(ctx), chunked) / ctx

    def state_elements(self, model: Model, ctx: int) -> int:
        """D x e a key/value head; for an even degree, which is normalised, one column more for the denominator."""
        columns = model.head_dim + (self.p % 2 == 0)
        return model.layers * model.kv_heads * spow_dim(model.head_dim, self.p) * columns


class Variant(msgspec.Struct, frozen=True):
    """An attention with its name; `own`: the model is published with it."""

    name: str
    kind: Literal["softmax", "window", "hybrid", "latent", "linear", "power"]
    attention: Attention
    own: bool = False
    p: int | None = None

    def ratio(self, model: Model, ctx: int, mode: Mode) -> float:
        """The WSFR: weight FLOPs over state FLOPs of a token."""
        return 2 * self.attention.weights(model) / self.attention.state_flops(model, ctx, mode)

    def balanced_at(self, model: Model, mode: Mode) -> int | None:
        """The context in tokens from which state FLOPs are no fewer than weight FLOPs; None: at none, or at all."""
        if self.ratio(model, 1, mode) <= 1 or self.ratio(model, LONGEST, mode) > 1:
            return None
        low, high = 1, LONGEST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.ratio(model, middle, mode) > 1 else (low, middle)
        return high


def variants(
    model: Model,
    degrees: Sequence[int] = DEGREES,
    window: int | None = None,
    full_every: int | None = None,
    chunk: int | None = None,
) -> list[Variant]:
    """What is compared: multi-head, grouped and multi-query attention, a window, a hybrid, latent attention, and power
    attention at each degree, p = 1 as linear attention.

    window in tokens and full_every in layers: None: the model's own, else WINDOW and FULL_EVERY. chunk: None: that of
    this project's kernels on a GPU. Raises UserError for a degree that the operator does not have.
    """
    for p in degrees:
        if p not in DEGREES:
            raise UserError(f"--p: {p} is not a degree of power attention; allowed are {', '.join(map(str, DEGREES))}")
    window, full_every = window or model.window or WINDOW, full_every or model.full_every or FULL_EVERY
    own: Attention = Softmax(model.kv_heads, model.window, model.full_every)
    groups = model.kv_heads if 1 < model.kv_heads < model.heads else _some_groups(model.heads)
    found: dict[str, Variant] = {}

    def add(name: str, kind: str, attention: Attention, p: int | None = None) -> None:
        found.setdefault(name, Variant(name, kind, attention, attention == own, p))  # type: ignore[arg-type]

    add("full, MHA" if model.heads > 1 else "full", "softmax", Softmax(model.heads))
    if groups:
        add(f"full, GQA {groups}", "softmax", Softmax(groups))
    if model.heads > 1:
        add("full, MQA", "softmax", Softmax(1))
    add(f"window {context_text(window)}", "window", Softmax(model.kv_heads, window))
    add(f"hybrid, 1 in {full_every} full", "hybrid", Softmax(model.kv_heads, window, full_every))
    add("latent (MLA)", "latent", Latent())
    for p in degrees:
        d = model.head_dim
        # a context at which only `chunk` is asked for: `streaming` never answers with the whole sequence
        size = chunk or choose(p, d, d, 1, "cuda", gradients=False, streaming=True)[0]
        name, kind = ("linear, p = 1", "linear") if p == 1 else (f"power, p = {p}", "power")
        add(name, kind, Power(p, size), p)
    return list(found.values())


def nearest(ratios: Sequence[float]) -> int:
    """Which of these is nearest to 1:1, on the scale on which 2:1 and 1:2 are equally far."""
    return min(range(len(ratios)), key=lambda i: abs(math.log(ratios[i])))


def state_bytes(elements: int, dtype: str) -> int:
    """Bytes of a state or a KV cache in this dtype (bf16, fp16, fp32, fp64)."""
    return elements * ITEMSIZE[dtype]


def ratio_text(ratio: float) -> str:
    """For people: 8.3 -> 8.3:1, 0.125 -> 1:8."""
    larger = max(ratio, 1 / ratio)
    text = f"{larger:.1f}" if larger < 9.95 else f"{larger:.0f}"
    text = text.removesuffix(".0")
    return f"{text}:1" if ratio >= 1 else f"1:{text}"


def _keys(ctx: int, window: int | None, mode: Mode) -> float:
    """Keys that a token sees: in prefill the mean of min(i, window) over i = 1 .. ctx, in decode the last one's."""
    seen = min(ctx, window or ctx)
    if mode == "decode":
        return seen
    return (causal_pairs(seen) + (ctx - seen) * seen) / ctx


def _some_groups(heads: int) -> int | None:
    """Of a model without groups: key/value heads for about eight query heads each, as most published models have."""
    allowed = [n for n in range(2, heads) if heads % n == 0]
    return min(allowed, key=lambda n: abs(math.log(8 * n / heads)), default=None)
