"""The parts of docs/findings.md on other people's kernels: FLA's shapes, windows, what the gate found wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from powerbench.crossover import context_text, percent_text, ratio_text
from powerbench.problem import PASSES
from powerbench.reports.curves import PASS_WORDS, SOFTMAX, Setting, best_of
from powerbench.reports.headlines import wrong
from powerbench.reports.rows import Row
from powerbench.reports.text import significant
from tools.publish.parts import item, paragraph, table
from tools.publish.runs import Published, command

KINDS: tuple[tuple[tuple[str, ...], int | None], ...] = (
    (("fla",), None),
    (("power",), 1),
    (("power",), 2),
    (SOFTMAX, None),
)


def missing(suite: str) -> str:
    """What stands where a run is missing."""
    return f"Not measured yet (`powerbench sweep --suite {suite}`)."


def sources(published: Published, names: Sequence[str]) -> str:
    """Run file, page and command of what a part was read from."""
    return "\n".join(
        item(
            f"[{published.runs[name].path}](../{published.runs[name].path}) ([page](../{published.page(name)})): "
            f"`{command(published.runs[name])}`"
        )
        for name in dict.fromkeys(names)
    )


def percent(share: float | None) -> str:
    """A table's cell; empty where there is no number."""
    return "" if share is None else percent_text(share)


@dataclass(frozen=True)
class Shape:
    """One of FLA's shapes in one pass: the fastest row of each of KINDS, None where there is none."""

    batch: int
    ctx: int
    heads: int
    head_dim: int
    pass_: str
    rivals: tuple[Row | None, ...]

    @property
    def name(self) -> str:
        return f"B = {self.batch}, T = {context_text(self.ctx)}, H = {self.heads}, d = {self.head_dim}"

    @property
    def fla_over_softmax(self) -> float | None:
        """How many times as fast FLA's fastest is as the fastest softmax attention."""
        ours, theirs = self.rivals[0], self.rivals[-1]
        return (theirs.median_ms or 0.0) / (ours.median_ms or 1.0) if ours and theirs else None


def fla(published: Published) -> str:
    """FLA's shapes, a line each and pass: the fastest of each kind; then FLA over softmax at the longest context."""
    for name in published.have("fla"):
        shapes = sorted(_shapes(published, name), key=lambda one: (-one.ctx, one.batch, PASSES.index(one.pass_)))
        if not shapes:
            continue
        lines = [[one.name, PASS_WORDS[one.pass_].lower(), *map(_ms, one.rivals)] for one in shapes]
        heads = ["shape", "pass", "FLA, p = 1", "ours, p = 1", "ours, p = 2", "softmax attention"]
        ratios = [f"{PASS_WORDS[one.pass_].lower()} {one.fla_over_softmax:.1f}" for one in shapes
                  if one.ctx == shapes[0].ctx and one.fla_over_softmax is not None]  # fmt: skip
        said = [paragraph(f"Softmax attention takes so many times as long as FLA at T = {context_text(shapes[0].ctx)}: "
                          f"{', '.join(ratios)}.")] if ratios else []  # fmt: skip
        return "\n\n".join([table(heads, lines), *said, sources(published, [name])])
    return missing("fla-shapes")


def _shapes(published: Published, name: str) -> Iterator[Shape]:
    for group in published.groups(name):
        for ctx in sorted({row.ctx for row in group.rows}):
            rivals = tuple(best_of(group.curves, families, p).get(ctx) for families, p in KINDS)
            if any(rivals):
                batch = next(row.batch for row in group.rows if row.ctx == ctx)
                one = group.setting
                yield Shape(batch, ctx, one.heads, one.head_dim, one.pass_, rivals)


def _ms(row: Row | None) -> str:
    return f"{significant(row.median_ms or 0.0)} (`{row.kernel}`)" if row else "none"


@dataclass(frozen=True)
class Beside:
    """Power attention of p = 2 and the window of equal state, in one setting at one context."""

    run: str
    setting: Setting
    power: Row
    window: Row

    @property
    def ratio(self) -> float:
        """How many times as fast power attention is."""
        return (self.window.median_ms or 0.0) / (self.power.median_ms or 1.0)

    @property
    def cells(self) -> list[str]:
        """Its line of the table."""
        one, power, window = self.setting, self.power, self.window
        return [
            f"{PASS_WORDS[one.pass_].lower()}, d = {one.head_dim}, {one.heads} heads over {one.kv_heads}",
            context_text(power.ctx), f"{window.window}", significant(window.median_ms or 0.0),
            significant(power.median_ms or 0.0), ratio_text(self.ratio), percent(power.mfu), percent(window.mfu),
        ]  # fmt: skip


def windows(published: Published) -> str:
    """Windows beside power attention of p = 2, in each setting at the longest context that any run has."""
    longest: dict[Setting, Beside] = {}
    for name in published.have("windows"):
        for one in _windows(published, name):
            known = longest.get(one.setting)
            if known is None or one.power.ctx > known.power.ctx:
                longest[one.setting] = one
    if not longest:
        return missing("degree")
    lines = [one.cells for one in longest.values()]
    heads = ["setting", "context", "keys", "window, ms", "power, ms", "power attention is", "its MFU", "window's"]
    times = [1 / one.ratio for one in longest.values()]
    said = f"Power attention takes {min(times):.2f} to {max(times):.2f} times as long as the window of equal state."
    return "\n\n".join(
        [table(heads, lines), paragraph(said), sources(published, [one.run for one in longest.values()])]
    )


def _windows(published: Published, name: str) -> Iterator[Beside]:
    for group in published.groups(name):
        power, window = best_of(group.curves, ("power",), 2), best_of(group.curves, ("window",), 2)
        shared = [ctx for ctx in power.keys() & window.keys() if (window[ctx].window or ctx) < ctx]
        if shared:
            yield Beside(name, replace(group.setting, batch=None), power[max(shared)], window[max(shared)])


def wrong_rows(published: Published) -> str:
    """What the gate refused in any run."""
    found = [(name, one) for name, run in published.runs.items() for one in wrong(run)]
    if not found:
        return "No row of a published run is wrong."
    said = [item(f"{one.about}: {one.text}") for _, one in found]
    return "\n".join(said) + f"\n\n{sources(published, [name for name, _ in found])}"
