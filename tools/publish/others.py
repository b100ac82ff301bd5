"""The parts of docs/findings.md on other people's kernels: FLA's shapes, windows, what the gate found wrong."""

from __future__ import annotations

from collections.abc import Sequence

from powerbench.crossover import context_text, percent_text, ratio_text
from powerbench.reports.curves import PASS_WORDS, SOFTMAX, best_of
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


def fla(published: Published) -> str:
    """FLA's shapes, a line each and pass: the fastest of each kind."""
    for name in published.have("fla"):
        lines = []
        for group in published.groups(name):
            for ctx in sorted({row.ctx for row in group.rows}):
                rivals = [best_of(group.curves, families, p).get(ctx) for families, p in KINDS]
                if any(rivals):
                    batch = next(row.batch for row in group.rows if row.ctx == ctx)
                    one = group.setting
                    shape = f"B = {batch}, T = {context_text(ctx)}, H = {one.heads}, d = {one.head_dim}"
                    lines.append([shape, PASS_WORDS[one.pass_].lower(), *map(_ms, rivals)])
        if not lines:
            continue
        heads = ["shape", "pass", "FLA, p = 1", "ours, p = 1", "ours, p = 2", "softmax attention"]
        return f"{table(heads, lines)}\n\n{sources(published, [name])}"
    return missing("fla-shapes")


def _ms(row: Row | None) -> str:
    return f"{significant(row.median_ms or 0.0)} (`{row.kernel}`)" if row else "none"


def windows(published: Published) -> str:
    """Windows beside power attention of p = 2, at the longest context of each setting."""
    names: list[str] = []
    lines, times = [], []
    seen = set()
    for name in published.have("windows"):
        for group in published.groups(name):
            power, window = best_of(group.curves, ("power",), 2), best_of(group.curves, ("window",), 2)
            shared = [ctx for ctx in power.keys() & window.keys() if (window[ctx].window or ctx) < ctx]
            if shared and group.setting not in seen:
                seen.add(group.setting)
                ours, theirs, one = power[max(shared)], window[max(shared)], group.setting
                ratio = (theirs.median_ms or 0.0) / (ours.median_ms or 1.0)
                names.append(name)
                times.append(1 / ratio)
                lines.append([
                    f"{PASS_WORDS[one.pass_].lower()}, d = {one.head_dim}, {one.heads} heads over {one.kv_heads}",
                    context_text(ours.ctx), f"{theirs.window}", significant(theirs.median_ms or 0.0),
                    significant(ours.median_ms or 0.0), ratio_text(ratio), percent(ours.mfu), percent(theirs.mfu),
                ])  # fmt: skip
    if not lines:
        return missing("degree")
    heads = ["setting", "context", "keys", "window, ms", "power, ms", "power attention is", "its MFU", "window's"]
    said = f"Power attention takes {min(times):.2f} to {max(times):.2f} times as long as the window of equal state."
    return "\n\n".join([table(heads, lines), paragraph(said), sources(published, names)])


def wrong_rows(published: Published) -> str:
    """What the gate refused in any run."""
    found = [(name, one) for name, run in published.runs.items() for one in wrong(run)]
    if not found:
        return "No row of a published run is wrong."
    said = [item(f"{one.about}: {one.text}") for _, one in found]
    return "\n".join(said) + f"\n\n{sources(published, [name for name, _ in found])}"
