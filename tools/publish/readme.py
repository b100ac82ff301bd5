"""The generated parts of README.md."""

from __future__ import annotations

import re
from collections.abc import Sequence

from powerbench.crossover import context_text
from powerbench.reports.answers import Answer, answers
from powerbench.reports.curves import Curve, groups, pairs
from powerbench.reports.decoding import decode_tables
from powerbench.reports.rows import rows
from powerbench.reports.text import significant
from powerbench.results.model import Run
from tools.publish.parts import paragraph, quote, table
from tools.publish.runs import LONG, Published, command

# The rows of the tables over contexts and the curves of the picture, as far as they were measured: kernel, p.
CONTESTANTS: tuple[tuple[str, int | None], ...] = (
    ("power-triton", 2),
    ("power-triton", 1),
    ("linear-triton", 1),
    ("fla-simple-gla", 1),
    ("fla-linear", 1),
    ("window-flash-4", 2),
    ("retention-triton", 2),
    ("sdpa-cudnn", None),
    ("flash-3", None),
    ("flash-4", None),
)
# In the place of the sentence that names them, which is long over many contexts.
HOST_BOUND = "Where a user waits over 10 % longer than these device times say, the page says host bound."
PASSES = {"forward": "fwd", "forward + backward": "fwd+bwd"}

# The rows of the table at 64k: kernel, p, head dimension.
SIZES: tuple[tuple[str, int | None, int], ...] = (
    ("power-triton", 2, 64),
    ("sdpa-cudnn", None, 64),
    ("flash-4", None, 64),
    ("retention-triton", 2, 64),
    ("retention-cuda", 2, 64),
    ("power-triton", 2, 32),
    ("flash-4", None, 32),
    ("power-triton", 2, 128),
    ("sdpa-cudnn", None, 128),
    ("flash-4", None, 128),
    ("power-triton", 3, 32),
    ("power-triton", 3, 64),
)
# The authors' kernels on an H200, where they were not measured here.
AS_GIVEN = "as given to this project"
GIVEN = {
    "retention-triton": ("the authors' Triton kernels", "5.8", "16.4"),
    "retention-cuda": ("the authors' CUDA kernels", "2.7", "10.8"),
}


def parts(published: Published) -> dict[str, str]:
    """Every generated part by name; empty text for what was not measured."""
    return {
        "cpu": "\n>\n".join(quote(one.text) for name in published.have("cpu")[:1]
                            for one in answers(published.runs[name])),
        "cpu at 64k": _cpu_at_64k(published),
        "contexts": _contexts(published),
        "sizes": _sizes(published),
        "wide heads": _wide_heads(published),
        "decoding": _decoding(published),
        "visits": _visits(published),
    }  # fmt: skip


def of_contestants(run: Run) -> Run:
    """The run with no contestants but those of the tables."""
    kept = [one for one in run.measurements if (one.case.kernel, one.case.params.p) in CONTESTANTS]
    return Run(run.path, run.header, tuple(kept), run.warnings, run.again, run.more)


def _cpu_at_64k(published: Published) -> str:
    for name in published.have("cpu at 64k"):
        faster = {}
        for one in answers(published.runs[name]):
            found = re.search(r"is (\S+x faster) than softmax", one.sentences[0])
            if found:
                faster[one.setting.split(", ")[1]] = found[1]
        words = {"fp32": "float32", "bf16": "bfloat16"}
        said = [f"{ratio} in {words.get(dtype, dtype)}" for dtype, ratio in faster.items()]
        return f"{' and '.join(said)} than `scaled_dot_product_attention`"
    return "not measured yet"


def _contexts(published: Published) -> str:
    for name in published.have("contexts"):
        run = published.runs[name]
        said = [
            paragraph(
                f"bf16, causal, gated, head dimension 64, 8 heads, 65,536 tokens at every context; medians in ms from "
                f"[{run.path}]({run.path}) ([page]({published.page(name)})), made by `{command(run)}`:"
            )
        ]
        for words, pass_ in PASSES.items():
            said += [_over_contexts(published, name, words, pass_), _quoted(published, name, pass_)]
        return "\n\n".join(one for one in said if one)
    return "Not measured yet."


def _over_contexts(published: Published, name: str, words: str, pass_: str) -> str:
    group = published.group(name, pass_, 64)
    found = {(curve.kernel, curve.p): curve.points for curve in group.curves} if group else {}
    shown = {one: found[one] for one in CONTESTANTS if one in found}
    contexts = sorted({ctx for points in shown.values() for ctx in points if ctx & (ctx - 1) == 0})
    lines = [
        [_label(kernel, p, max(row.window or 0 for row in points.values()))]
        + [significant(points[ctx].median_ms or 0.0) if ctx in points else "" for ctx in contexts]
        for (kernel, p), points in shown.items()
    ]
    return table([words, *map(context_text, contexts)], lines) if lines else ""


def _quoted(published: Published, name: str, pass_: str, head_dim: int = 64) -> str:
    said = answer(published, name, pass_, head_dim)
    if said is None:
        return ""
    kept = [HOST_BOUND if one.startswith("Host bound") else one for one in said.sentences]
    return quote(f"{said.setting}: {' '.join(kept)}")


def answer(published: Published, name: str, pass_: str, head_dim: int, p: int = 2) -> Answer | None:
    """What a run answers of a degree in the setting of `Published.group`."""
    group = published.group(name, pass_, head_dim)
    if group is None:
        return None
    run = published.runs[name]
    only = {row.case_id for row in group.rows}
    part = Run(
        run.path, run.header, tuple(one for one in run.measurements if one.case_id in only), (), run.again, run.more
    )
    return next((found for found in answers(part) if found.p == p), None)


def _sizes(published: Published) -> str:
    lines = [line for size in SIZES for line in _size(published, *size)]
    note = f"\n\nWhat is {AS_GIVEN} was not measured here (T = 65,536, chunk 1024)."
    return table(["", *PASSES, "from"], lines) + (note if any(AS_GIVEN in line for line in lines) else "")


def _size(published: Published, kernel: str, p: int | None, head_dim: int) -> list[list[str]]:
    """Its line; from the first run that has both passes, or else one; none where no run has any."""
    best: tuple[int, str, list[str]] | None = None
    for name in published.have("sizes"):
        found = [published.row(name, kernel, p, head_dim, LONG, pass_) for pass_ in PASSES.values()]
        cells = [significant(row.median_ms or 0.0) if row else "" for row in found]
        if any(cells) and (best is None or sum(map(bool, cells)) > best[0]):
            best = sum(map(bool, cells)), name, cells
    if best:
        _, name, cells = best
        source = f"[{name.split('/')[1]}]({published.runs[name].path})"
        return [[f"{_label(kernel, p)}, d = {head_dim}", *cells, source]]
    if kernel in GIVEN:
        who, *cells = GIVEN[kernel]
        return [[f"{who}, p = {p}, d = {head_dim}", *cells, AS_GIVEN]]
    return []


def _wide_heads(published: Published) -> str:
    """Where power attention passes softmax attention at d = 128, and what refining makes of it."""
    said = []
    for name in published.have("wide heads")[:1]:
        found = [answer(published, name, pass_, 128) for pass_ in PASSES.values()]
        said.append(
            f"At head dimension 128 power attention passes softmax attention later ([page]({published.page(name)}))."
        )
        said += [f"{one.setting}: {one.sentences[0]}" for one in found if one]
    for name in published.have("refined")[:1]:
        crossings = [
            crossing.text
            for group in groups(rows(published.runs[name]))
            for _, _, between in pairs(_power_and_softmax(group.curves))
            for crossing in between.crossings
        ]
        said.append(
            f"`sweep --refine` adds contexts until a crossing is known to 10 %: {', '.join(crossings)} "
            f"([run]({published.runs[name].path}), [page]({published.page(name)}))."
        )
    return paragraph(" ".join(said)) if said else "Not measured yet."


def _power_and_softmax(curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if curve.family in ("power", "sdpa", "flash")]


def _decoding(published: Published) -> str:
    """Of the first setting that a run holds, by context and batch; nothing while there is no run."""
    for name in published.have("decoding"):
        run = published.runs[name]
        for found in [one for one in decode_tables(run) if one.sentences][:1]:
            said = f"{found.name} ([page]({published.page(name)}), `{command(run)}`)"
            if not found.grids:
                return paragraph(f"{said}: {' '.join(found.sentences)}")
            grid = found.grids[0]
            heads = ["context", *(f"batch {batch}" for batch in grid.batches)]
            lines = [[ctx, *cells] for ctx, cells in grid.lines]
            return f"{paragraph(f'{said}. {grid.title}; level: within the noise:')}\n\n{table(heads, lines)}"
    return ""


def _visits(published: Published) -> str:
    numbers = sorted({row.visits for name in published.have("contexts")[:1]
                      for row in rows(published.runs[name]) if row.visits})  # fmt: skip
    if not numbers:
        return ""
    if numbers[-1] == 1:
        return "(The runs of the H200 above are older: in one visit, one contestant after the other, by events.)"
    return f"(The run over contexts above made {numbers[-1]} visits.)"


def _label(kernel: str, p: int | None, window: int = 0) -> str:
    """window: the widest over the contexts, which a short one does not fill; 0 where the kernel has none."""
    if window:
        return f"`{kernel}`, up to {window} keys"
    return f"`{kernel}`" if p is None else f"`{kernel}`, p = {p}"
