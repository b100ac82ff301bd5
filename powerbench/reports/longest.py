"""Power attention beside its rivals at the longest context that a setting shares with softmax attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from powerbench.crossover import context_text, percent_text, ratio_text
from powerbench.reports.curves import LINEAR, PASS_WORDS, SOFTMAX, Curve, Group, best_of, compare
from powerbench.reports.rows import Row
from powerbench.reports.text import Column, or_empty, significant
from powerbench.results.model import Run

OTHERS = ("retention", "flex")  # families of other people's power attention


@dataclass(frozen=True)
class Rival:
    """The fastest contestant of a kind, and how much faster than it power attention is at one context.

    sure: beyond the noise of all contexts that both share, as in `crossover`, so that tables and sentences agree.
    """

    row: Row
    speedup: float
    sure: bool

    @property
    def stands(self) -> str:
        """`8.0x faster than`, `1.2x slower than` or `as fast as`; power attention is the subject."""
        ratio = ratio_text(self.speedup)
        return "as fast as" if ratio == "as fast" else f"{ratio} than"

    @property
    def text(self) -> str:
        """`8.0x faster than flash-4 (7.92 ms)`."""
        doubt = "" if self.sure or self.stands == "as fast as" else ", within the noise"
        return f"{self.stands} {self.row.kernel} ({significant(self.row.median_ms or 0.0)} ms){doubt}"


@dataclass(frozen=True)
class Longest:
    """One degree in one setting at one context. A rival is the fastest of its kind; None: not measured."""

    name: str  # of the setting
    run: Run
    p: int
    power: Row
    softmax: Rival | None
    linear: Rival | None
    window: Rival | None  # a sliding window that keeps as many bytes as this degree's state
    others: Rival | None  # other people's power attention of this degree
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
    """The rows of one setting at one of power attention's contexts."""

    def fastest(families: tuple[str, ...], degree: int | None = None) -> Rival | None:
        return rival(power, best_of(group.curves, families, degree), ctx)

    return Longest(
        name=name,
        run=run,
        p=p,
        power=power[ctx],
        softmax=fastest(SOFTMAX),
        linear=fastest(LINEAR),
        window=fastest(("window",), p),
        others=fastest(OTHERS, p),
        flash=fastest_flash(group.curves, ctx),
    )


def rival(ours: dict[int, Row], theirs: dict[int, Row], ctx: int) -> Rival | None:
    """The other side at a context of ours; None where it was not measured there."""
    if ctx not in theirs:
        return None
    between = compare(ours, theirs)
    place = between.contexts.index(ctx)
    return Rival(theirs[ctx], between.speedups[place], between.leads[place] != 0)


def fastest_flash(curves: Sequence[Curve], ctx: int) -> Row | None:
    """FlashAttention at a context, by the package where one was measured, else torch's own copy of version 2."""
    of_torch = [curve for curve in curves if curve.kernel == "sdpa-flash"]
    return best_of(curves, ("flash",)).get(ctx) or best_of(of_torch, SOFTMAX).get(ctx)


def label(row: Row) -> str:
    """The contestant's name in a sentence, for example `power-triton, p = 2`."""
    return Curve(row.kernel, row.p, row.family, {}).label


def _text(rival: Rival | None) -> str:
    return rival.text if rival else ""


COLUMNS: tuple[Column[Longest], ...] = (
    Column("setting", lambda line: line.name, is_number=False),
    Column("p", lambda line: str(line.p)),
    Column("context", lambda line: context_text(line.power.ctx)),
    Column("ms", lambda line: significant(line.power.median_ms or 0.0)),
    Column("softmax attention", lambda line: _text(line.softmax), is_number=False),
    Column("linear attention", lambda line: _text(line.linear), is_number=False),
    Column("window of equal state", lambda line: _text(line.window), is_number=False),
    Column("others' power attention", lambda line: _text(line.others), is_number=False),
    Column("MFU", lambda line: or_empty(line.power.mfu, percent_text)),
    Column("over FlashAttention's", lambda line: or_empty(line.of_flash, lambda share: f"{share:.2f}")),
)
