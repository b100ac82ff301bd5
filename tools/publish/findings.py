"""The generated parts of docs/findings.md: what is measured beside what was claimed."""

from __future__ import annotations

from collections.abc import Sequence

from powerbench.crossover import context_text, percent_text
from powerbench.reports.curves import PASS_WORDS, SOFTMAX, Group, best_of
from powerbench.reports.headlines import headlines
from powerbench.reports.longest import OTHERS, Longest
from powerbench.reports.rows import Row
from powerbench.reports.text import si, significant
from tools.publish import others
from tools.publish.others import missing, percent, sources
from tools.publish.parts import item, paragraph, table
from tools.publish.readme import GIVEN, PASSES, answer
from tools.publish.runs import LONG, Published

# Claims, each with its source in docs/findings.md.
UTILIZATION = 0.70  # of FlashAttention's
SPEEDUPS = {64: 3.3, 32: 8.6}  # at 64k, p = 2, over FlashAttention, by head dimension
AUTHORS_MS, AUTHORS_FLASH_MS = 16.8, 49.7  # an H100; forward + backward, d = 64, 64k

HEAD_DIMS = (32, 64, 128)
FLASH_2 = ("sdpa-flash", "flash-2")  # torch's own copy of version 2, and the package


def parts(published: Published) -> dict[str, str]:
    """Every generated part by name; what was not measured says so, with the command that does."""
    return {
        "utilization": _utilization(published),
        "speedups": _speedups(published),
        "crossings": _crossings(published),
        "authors": _authors(published),
        "fla": others.fla(published),
        "windows": others.windows(published),
        "wrong": others.wrong_rows(published),
    }


def _longest(published: Published) -> list[tuple[str, Longest]]:
    """What the index says of the longest contexts of every setting on the H200, with the name of the run."""
    names = {id(run): name for name, run in published.runs.items()}
    runs = [run for name, run in published.runs.items() if name.startswith("h200/")]
    return [(names[id(line.run)], line) for found in headlines(runs) for line in found.longest]


def _plain(row: Row) -> bool:
    """Eight heads, as many of k and v, 64k tokens."""
    return (row.heads, row.kv_heads, row.ctx) == (8, 8, LONG)


def _utilization(published: Published) -> str:
    found = [(name, line) for name, line in _longest(published)
             if line.flash is not None and line.p == 2 and _plain(line.power)
             and line.power.head_dim in HEAD_DIMS]  # fmt: skip
    if not found:
        return missing("paper")
    lines = []
    for name, line in found:
        group = published.group(name, line.power.pass_, line.power.head_dim)
        second = fastest(group, FLASH_2, LONG)
        for row in (line.power, line.others.row if line.others else None):
            if row:
                words = PASS_WORDS[row.pass_].lower()
                own = [f"`{row.kernel}`", words, str(row.head_dim), significant(row.useful_tflops or 0.0)]
                lines.append([*own, percent(row.mfu), percent(row.hfu), _share(row, second), _share(row, line.flash)])
    heads = ["p = 2", "pass", "d", "useful TFLOP/s", "MFU", "HFU", "over FlashAttention 2's", "over the fastest one's"]
    return f"{table(heads, lines)}\n\n{sources(published, [name for name, _ in found])}"


def _share(row: Row, rival: Row | None) -> str:
    """One's MFU over the other's, and whether that is what the authors' have."""
    if rival is None or not rival.mfu or row.mfu is None:
        return ""
    share = row.mfu / rival.mfu
    return f"{share:.2f} ({percent_text(rival.mfu)}, `{rival.kernel}`){': reached' if share >= UTILIZATION else ''}"


def fastest(group: Group | None, kernels: Sequence[str], ctx: int) -> Row | None:
    """The fastest trusted row of some kernels at a context; None without one."""
    found = [curve.points[ctx] for curve in (group.curves if group else []) if curve.kernel in kernels
             and ctx in curve.points]  # fmt: skip
    return min(found, key=lambda row: row.median_ms or 0.0, default=None)


def _settings(published: Published, topic: str, pass_: str, head_dim: int) -> tuple[str, Group, Row] | None:
    """The first run of a topic with power attention, p = 2, and some softmax attention at 64k in this setting."""
    for name in published.have(topic):
        group = published.group(name, pass_, head_dim)
        if group is None:
            continue
        power, softmax = best_of(group.curves, ("power",), 2), best_of(group.curves, SOFTMAX)
        if LONG in power and LONG in softmax:
            return name, group, power[LONG]
    return None


def _speedups(published: Published) -> str:
    lines, names = [], []
    for head_dim, claimed in SPEEDUPS.items():
        for words, pass_ in PASSES.items():
            found = _settings(published, "sizes", pass_, head_dim)
            if found is None:
                lines.append([str(head_dim), words, f"{claimed}x", "not measured yet", "", "", "", ""])
                continue
            name, group, ours = found
            names.append(name)
            cells = [_over(ours, group, kernels) for kernels in (FLASH_2, ("flash-3",), ("flash-4",), ("sdpa-cudnn",))]
            lines.append([str(head_dim), words, f"{claimed}x", significant(ours.median_ms or 0.0), *cells])
    heads = ["d", "pass", "claimed", "`power-triton`, ms", "over FlashAttention 2", "over 3", "over 4", "over cuDNN's"]
    return f"{table(heads, lines)}\n\n{sources(published, names)}"


def _over(ours: Row, group: Group, kernels: Sequence[str]) -> str:
    """How many times as fast as the fastest of these kernels; empty where none was measured."""
    theirs = fastest(group, kernels, ours.ctx)
    return _ratio(ours, theirs) if theirs else ""


def _ratio(ours: Row, theirs: Row) -> str:
    ms = theirs.median_ms or 0.0
    return f"{ms / (ours.median_ms or 1.0):.1f}x ({significant(ms)} ms)"


def _crossings(published: Published) -> str:
    names: list[str] = []
    said = []
    for head_dim in HEAD_DIMS:
        for pass_ in PASSES.values():
            known = [(len(best_of(group.curves, ("power",), 2)), name) for name in published.have("crossings")
                     if (group := published.group(name, pass_, head_dim))]  # fmt: skip
            if not known:
                continue
            name = max(known, key=lambda one: one[0])[1]
            found = answer(published, name, pass_, head_dim)
            if found:
                names.append(name)
                said.append(item(f"{found.setting}: {found.sentences[0]}"))
    if not said:
        return missing("crossover")
    implied = ", ".join(f"{LONG / ratio / 1024:.0f}k at d = {d}" for d, ratio in SPEEDUPS.items())
    return "\n\n".join(
        [
            paragraph(f"The paper's figures imply a crossing at about {implied} (64k over the speed-up). Measured:"),
            "\n".join(said),
            *_constant(published),
            sources(published, names),
        ]
    )


def _constant(published: Published) -> list[str]:
    """How constant the throughput of power attention is, from 8k on."""
    for name in published.have("crossings"):
        group = published.group(name, "fwd", 64)
        power = best_of(group.curves, ("power",), 2) if group else {}
        rates = {ctx: row.tokens_per_s for ctx, row in power.items() if ctx >= 8192 and row.tokens_per_s}
        if len(rates) > 1:
            low, high = min(rates.values()), max(rates.values())
            ends = f"{context_text(min(rates))} to {context_text(max(rates))}"
            text = (
                f"Throughput of `power-triton`, p = 2, forward, d = 64, from {ends}: {si(low)} to {si(high)} tokens/s."
            )
            return [paragraph(text)]
    return []


def _authors(published: Published) -> str:
    flash = f"{AUTHORS_FLASH_MS / AUTHORS_MS:.1f}x ({AUTHORS_FLASH_MS} ms)"
    lines = [["the authors' figures, H100", f"{AUTHORS_MS}", flash, ""]]
    names, theirs = [], None
    found = _settings(published, "sizes", "fwd+bwd", 64)
    if found:
        name, group, ours = found
        names.append(name)
        softmax = best_of(group.curves, SOFTMAX)[LONG]
        theirs = best_of(group.curves, OTHERS, 2).get(LONG)
        for row in (ours, theirs):
            if row:
                ratios = [_over(row, group, FLASH_2), f"{_ratio(row, softmax)}, `{softmax.kernel}`"]
                lines.append([f"`{row.kernel}`, H200", significant(row.median_ms or 0.0), *ratios])
    else:
        lines.append(["here, H200", "not measured yet", "", ""])
    who, _, ms = GIVEN["retention-triton"]
    note = f"Not measured yet in a published run: {who} on an H200; as given to this project they take {ms} ms there."
    heads = ["", "power attention, ms", "over FlashAttention 2", "over the fastest softmax attention"]
    said = [table(heads, lines), *([] if theirs else [paragraph(note)]), sources(published, names)]
    return "\n\n".join(one for one in said if one)
