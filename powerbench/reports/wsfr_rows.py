"""The weight-state FLOP ratio as rows: a model, an attention in it, a context. Needs neither a run nor pandas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import msgspec

from powerbench.crossover import context_text
from powerbench.models import Model
from powerbench.wsfr import LONGEST, Mode, Softmax, Variant, nearest, ratio_text, state_bytes


class WsfrRow(msgspec.Struct, frozen=True):
    """One attention at one context. FLOPs are of the whole model, a token; bytes are of one sequence.

    The field names are the columns of `powerbench wsfr --format csv|json` and a contract; new ones go to the end.
    """

    model: str
    attention: str
    kind: str  # softmax, window, hybrid, latent, linear, power
    own: bool  # the model is published with this attention
    p: int | None
    ctx: int
    mode: str  # prefill: the mean token of ctx; decode: the one that sees ctx
    weight_flops: int
    state_flops: float
    wsfr: float  # weight FLOPs over state FLOPs
    balanced_ctx: int | None  # the context from which WSFR is at most 1; None: none, or all
    dtype: str  # of the state's numbers
    state_bytes: int
    kv_cache_bytes: int  # of full attention with the model's own key/value heads
    size_ratio: float  # weights over numbers of the state


@dataclass(frozen=True)
class Analysis:
    """One model with the attentions and the contexts that are asked for."""

    model: Model
    variants: Sequence[Variant]
    contexts: Sequence[int]
    mode: Mode = "prefill"
    dtype: str = "bf16"

    @cached_property
    def rows(self) -> list[WsfrRow]:
        """By attention, then by context, both in the order asked for."""
        return [self._row(variant, balanced, ctx) for variant, balanced in self._balanced for ctx in self.contexts]

    @cached_property
    def _balanced(self) -> list[tuple[Variant, int | None]]:
        return [(variant, variant.balanced_at(self.model, self.mode)) for variant in self.variants]

    def _row(self, variant: Variant, balanced: int | None, ctx: int) -> WsfrRow:
        model, attention = self.model, variant.attention
        weights, elements = attention.weights(model), attention.state_elements(model, ctx)
        return WsfrRow(
            model=model.name,
            attention=variant.name,
            kind=variant.kind,
            own=variant.own,
            p=variant.p,
            ctx=ctx,
            mode=self.mode,
            weight_flops=2 * weights,
            state_flops=attention.state_flops(model, ctx, self.mode),
            wsfr=variant.ratio(model, ctx, self.mode),
            balanced_ctx=balanced,
            dtype=self.dtype,
            state_bytes=state_bytes(elements, self.dtype),
            kv_cache_bytes=state_bytes(Softmax(model.kv_heads).state_elements(model, ctx), self.dtype),
            size_ratio=weights / elements,
        )

    def balance_text(self, variant: Variant) -> str:
        """From which context on its state's FLOPs are the larger part, for a table's cell."""
        balanced = next(at for one, at in self._balanced if one == variant)
        if balanced is not None:
            return context_text(balanced + 0.5)  # half a token: not all its digits, 55.9k
        return f"never, {ratio_text(variant.ratio(self.model, LONGEST, self.mode))}"

    def nearest_at(self, ctx: int, *, power: bool = False) -> WsfrRow:
        """The row nearest to 1:1, of all attentions or of power attention's degrees; the first of equals."""
        found = [row for row in self.rows if row.ctx == ctx and (row.p is not None or not power)]
        return found[nearest([row.wsfr for row in found])]

    @property
    def sentences(self) -> list[str]:
        """What the ratios say: the model's own attention, and which degree comes nearest to balance where."""
        return [*self._own_sentence(), *self._degree_sentence()]

    def _own_sentence(self) -> list[str]:
        own = next(((variant, at) for variant, at in self._balanced if variant.own), None)
        if own is None:
            return []
        variant, at = own
        if at is None:
            side = "weights" if variant.ratio(self.model, LONGEST, self.mode) > 1 else "state"
            return [f"With its own attention ({variant.name}) the {side} take more FLOPs at every context."]
        text = self.balance_text(variant)
        return [f"With its own attention ({variant.name}) weights and state take equal FLOPs at a context of {text}."]

    def _degree_sentence(self) -> list[str]:
        if all(variant.p is None for variant in self.variants):
            return []
        best = [self.nearest_at(ctx, power=True) for ctx in sorted(self.contexts)]
        parts = []
        for p, members in groupby(best, key=lambda row: row.p):
            rows = list(members)
            ends = dict.fromkeys((rows[0].ctx, rows[-1].ctx))
            ratios = dict.fromkeys((ratio_text(rows[0].wsfr), ratio_text(rows[-1].wsfr)))
            parts.append(f"p = {p} at {'..'.join(map(context_text, ends))} ({' to '.join(ratios)})")
        return [f"Power attention is nearest to 1:1 with {', '.join(parts)}."]
