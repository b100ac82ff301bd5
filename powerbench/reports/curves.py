"""Which measurements may be compared: settings, the curves in each, and the best curve of a group of kernels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from powerbench.crossover import Crossover, context_text, crossover
from powerbench.models import smallest_with
from powerbench.problem import PASSES
from powerbench.reports.rows import Row, trusted

# The first name of a kernel is its family; these are the groups that the answers speak of.
POWER = ("power",)
SOFTMAX = ("sdpa", "flash")
LINEAR = ("linear", "fla")
# Of no group: other people's power attention, Taylor's softmax, and softmax that does not see the whole context.
_OTHERS = ("retention", "flex", "compile", "based", "window")
_FAMILY_ORDER = (*POWER, *LINEAR, *SOFTMAX, *_OTHERS)

_NEARLY = 0.75  # of the contestants: enough to compare them at a longer context

PASS_WORDS = {"fwd": "Forward", "bwd": "Backward", "fwd+bwd": "Forward + backward", "decode": "Decoding"}


@dataclass(frozen=True)
class Setting:
    """What contestants must share to be compared: the whole problem but its context, and how the batch goes with it.

    batch: None where the sweep has one batch for all contexts, or one a context for about the same number of tokens;
    otherwise the batch that this setting holds fixed.
    """

    pass_: str
    dtype: str
    head_dim: int
    value_dim: int
    heads: int
    kv_heads: int
    gated: bool
    batch: int | None = None

    @property
    def text(self) -> str:
        """Short name: pass, dtype, head dimension."""
        return f"{PASS_WORDS.get(self.pass_, self.pass_)}, {self.dtype}, d = {self._dims}"

    @property
    def details(self) -> str:
        """The rest of it: heads, and the smallest model that has such ones in groups, gates, batch."""
        heads = f"{self.heads} head{'s' * (self.heads != 1)}"
        if self.kv_heads != self.heads:
            heads += f" over {self.kv_heads} of k and v"
            model = smallest_with(self.heads, self.kv_heads, self.head_dim)
            heads += f" as in {model}" if model else ""
        parts = [heads, "gated" if self.gated else "ungated"]
        if self.batch is not None:
            parts.append(f"batch {self.batch}")
        return ", ".join(parts)

    @property
    def _dims(self) -> str:
        return str(self.head_dim) if self.value_dim == self.head_dim else f"{self.head_dim} (values {self.value_dim})"


@dataclass(frozen=True)
class Curve:
    """One contestant in one setting: a kernel at one degree, at each context with its fastest d_tile and chunk."""

    kernel: str
    p: int | None
    family: str
    points: dict[int, Row]  # context -> its best trusted row, ascending

    @property
    def label(self) -> str:
        """Unique within a run."""
        return self.kernel if self.p is None else f"{self.kernel}, p = {self.p}"


@dataclass(frozen=True)
class Group:
    """A setting with all its rows, and the curves through those that can be trusted."""

    setting: Setting
    rows: list[Row]
    curves: list[Curve] = field(default_factory=list)

    @property
    def workload(self) -> str:
        """How batch and context go together, for example `batch 1` or `batch x context = 64k tokens`."""
        batches = {row.batch for row in self.rows}
        tokens = {row.batch * row.ctx for row in self.rows}
        if len(batches) == 1:
            return f"batch {batches.pop()}"
        if len(tokens) == 1:
            return f"batch x context = {context_text(tokens.pop())} tokens"
        return "a batch of its own at each context"

    @property
    def compared_at(self) -> int | None:
        """The longest context at which nearly as many contestants as anywhere have a time; None without a time.

        Not all of them: one that stops at short contexts would take the comparison there with it.
        """
        counts = Counter(ctx for curve in self.curves for ctx in curve.points)
        most = max(counts.values(), default=0)
        return max((ctx for ctx, number in counts.items() if number >= _NEARLY * most), default=None)


def groups(all_rows: Sequence[Row]) -> list[Group]:
    """The run split into settings, each with its curves: those with curves first, then those of a single context."""
    plain: dict[Setting, list[Row]] = defaultdict(list)
    for row in all_rows:
        plain[_setting(row)].append(row)
    result = []
    for setting, members in plain.items():
        if _is_one_workload({(row.ctx, row.batch) for row in members}):
            result.append(Group(setting, members, curves(members)))
            continue
        split: dict[Setting, list[Row]] = defaultdict(list)
        for row in members:
            split[_setting(row, row.batch)].append(row)
        result.extend(Group(part, those, curves(those)) for part, those in split.items())
    return sorted(result, key=lambda group: (_only_context(group) > 0, group_order(group)))


def _is_one_workload(sizes: Collection[tuple[int, int]]) -> bool:
    """Whether one curve may go through these (context, batch): one batch for all, or the same tokens at each context.

    A number of tokens is met by the sequences that fit it, at least by one.
    """
    if len({ctx for ctx, _ in sizes}) < len(sizes):
        return False
    if len({batch for _, batch in sizes}) == 1:
        return True
    tokens = max(ctx * batch for ctx, batch in sizes if batch > 1)
    return all(2 * ctx * batch > tokens for ctx, batch in sizes)


def setting_names(found: Sequence[Group]) -> list[str]:
    """A name for each group, no longer than it takes to tell them apart."""
    texts = [group.setting.text for group in found]
    return [
        f"{text} ({group.setting.details})" if texts.count(text) > 1 else text
        for group, text in zip(found, texts, strict=True)
    ]


def curves(members: Iterable[Row]) -> list[Curve]:
    """The curves through one setting's trusted rows: power first, then linear, softmax and the others."""
    best: dict[tuple[str, int | None], dict[int, Row]] = defaultdict(dict)
    for row in trusted(members):
        points = best[row.kernel, row.p]
        held = points.get(row.ctx)
        if held is None or _time(row) < _time(held):
            points[row.ctx] = row
    found = [
        Curve(kernel, p, next(iter(points.values())).family, dict(sorted(points.items())))
        for (kernel, p), points in best.items()
    ]
    return sorted(found, key=curve_order)


def by_time(group: Group) -> list[Curve]:
    """The curves of a setting with a single context, fastest first."""
    return sorted(group.curves, key=lambda curve: min(_time(row) for row in curve.points.values()))


def best_of(members: Iterable[Curve], families: Collection[str], p: int | None = None) -> dict[int, Row]:
    """At each context the fastest row among the curves of these families, and of this degree where one is given."""
    best: dict[int, Row] = {}
    for curve in members:
        if curve.family not in families or (p is not None and curve.p != p):
            continue
        for ctx, row in curve.points.items():
            if ctx not in best or _time(row) < _time(best[ctx]):
                best[ctx] = row
    return dict(sorted(best.items()))


def compare(a: dict[int, Row], b: dict[int, Row]) -> Crossover:
    """Where the rows `a` become faster than the rows `b`; both by context, each with a time."""
    ours, theirs = ({ctx: row.measurement.visits for ctx, row in side.items()} for side in (a, b))
    return crossover(ours, theirs)


def pairs(members: Sequence[Curve]) -> Iterator[tuple[Curve, Curve, Crossover]]:
    """Every two curves once, the one that is faster at their largest shared context first."""
    for i, first in enumerate(members):
        for second in members[i + 1 :]:
            between = compare(first.points, second.points)
            if between.speedup is not None and between.speedup < 1:
                yield second, first, compare(second.points, first.points)
            else:
                yield first, second, between


def _time(row: Row) -> float:
    if row.median_ms is None:
        raise ValueError(f"{row.case_id} has no time")
    return row.median_ms


def _setting(row: Row, batch: int | None = None) -> Setting:
    return Setting(row.pass_, row.dtype, row.head_dim, row.value_dim, row.heads, row.kv_heads, row.gated, batch)


def group_order(group: Group) -> tuple[object, ...]:
    """To sort by: pass, dtype, head dimension, heads, gates, the context where it is one, batch."""
    setting = group.setting
    passes = PASSES.index(setting.pass_) if setting.pass_ in PASSES else len(PASSES)
    return (
        *(passes, setting.dtype, setting.head_dim, setting.value_dim, setting.heads, setting.kv_heads),
        *(setting.gated, _only_context(group), setting.batch or 0),
    )


def _only_context(group: Group) -> int:
    """The context of a setting that has one alone; 0 of a sweep."""
    contexts = {row.ctx for row in group.rows}
    return contexts.pop() if len(contexts) == 1 else 0


def curve_order(curve: Curve) -> tuple[int, str, int]:
    """To sort by: power attention first, then linear, softmax and the others."""
    rank = _FAMILY_ORDER.index(curve.family) if curve.family in _FAMILY_ORDER else len(_FAMILY_ORDER)
    return rank, curve.kernel, curve.p or 0
