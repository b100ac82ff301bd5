"""Power attention beside its rivals at the longest context that a setting shares with softmax attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from powerbench.crossover import context_text, percent_text, ratio_text
from powerbench.reports.curves import LINEAR, PASS_WORDS, SOFTMAX, Curve, Group, best_of, compare
from powerbench.reports.rows import Row
from powerbench.reports.text import Column, or_empty, significant
from powerbench.results.model import Run


@dataclass(frozen=True)
class Longest:
    """One degree in one setting at one context. The rivals are the fastest of their kind; None: not measured."""

    name: str  # of the setting
    run: Run
    p: int
    power: Row
    softmax: Row
    linear: Row | None
    window: Row | None  # a sliding window that keeps as many bytes as this degree's state
    others: Row | None  # other people's power attention of this degree
    flash: Row | None  # the fastest FlashAttention

    @property
    def pass_words(self) -> str:
        """The pass, as settings are named."""
        return PASS_WORDS.get(self.power.pass_, self.power.pass_)

    @property
    def of_flash(self) -> float | None:
        """Useful FLOP/s over the matmul ceiling (MFU), as a fraction of FlashAttention's own."""
        ours, theirs = self.power.mfu, self.flash.mfu if self.flash else None
        return ours / theirs if ours and theirs else None

    @property
    def utilization(self) -> str:
        """The same in words, with where and who."""
        assert self.flash is not None
        return (
            f"at d = {self.power.head_dim} and {context_text(self.power.ctx)} {label(self.power)} reaches "
            f"{percent_text(self.power.mfu or 0.0)}, {label(self.flash)} {percent_text(self.flash.mfu or 0.0)}"
        )


def longest(name: str, p: int, run: Run, group: Group, power: dict[int, Row], ctx: int) -> Longest:
    """The rows of one setting at a context that power attention and softmax attention share."""
    return Longest(
        name=name,
        run=run,
        p=p,
        power=power[ctx],
        softmax=best_of(group.curves, SOFTMAX)[ctx],
        linear=best_of(group.curves, LINEAR).get(ctx),
        window=best_of(group.curves, ("window",), p).get(ctx),
        others=best_of(group.curves, ("retention", "flex"), p).get(ctx),
        flash=fastest_flash(group.curves, ctx),
    )


def fastest_flash(curves: Sequence[Curve], ctx: int) -> Row | None:
    """FlashAttention at a context, by the package where one was measured, else torch's own copy of version 2."""
    of_torch = [curve for curve in curves if curve.kernel == "sdpa-flash"]
    return best_of(curves, ("flash",)).get(ctx) or best_of(of_torch, SOFTMAX).get(ctx)


def label(row: Row) -> str:
    """The contestant's name in a sentence, for example `power-triton, p = 2`."""
    return Curve(row.kernel, row.p, row.family, {}).label


def against(ours: Row, theirs: Row) -> str:
    """`8.0x faster than`, or `as fast as` where the difference is within the noise; ours is the subject."""
    between = compare({ours.ctx: ours}, {theirs.ctx: theirs})
    assert between.speedup is not None
    ratio = ratio_text(between.speedup)
    return "as fast as" if between.leads[-1] == 0 or ratio == "as fast" else f"{ratio} than"


def _rival(pick: Callable[[Longest], Row | None]) -> Callable[[Longest], str]:
    def text(line: Longest) -> str:
        row = pick(line)
        return f"{against(line.power, row)} {row.kernel} ({significant(row.median_ms or 0.0)} ms)" if row else ""

    return text


COLUMNS: tuple[Column[Longest], ...] = (
    Column("setting", lambda line: line.name, is_number=False),
    Column("p", lambda line: str(line.p)),
    Column("context", lambda line: context_text(line.power.ctx)),
    Column("ms", lambda line: significant(line.power.median_ms or 0.0)),
    Column("softmax attention", _rival(lambda line: line.softmax), is_number=False),
    Column("linear attention", _rival(lambda line: line.linear), is_number=False),
    Column("window of equal state", _rival(lambda line: line.window), is_number=False),
    Column("others' power attention", _rival(lambda line: line.others), is_number=False),
    Column("MFU", lambda line: or_empty(line.power.mfu, percent_text)),
    Column("over FlashAttention's", lambda line: or_empty(line.of_flash, lambda share: f"{share:.2f}")),
)
