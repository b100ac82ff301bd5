"""The settings of a run beside each other: how times go with heads, head dimension or shape, not with the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from powerbench.crossover import context_text
from powerbench.reports.curves import POWER, Curve, Group, Setting, best_of, curve_order, group_order
from powerbench.reports.facets import contestant_facets, degree_facets, setting_facets
from powerbench.reports.rows import Row
from powerbench.reports.states import state_bytes
from powerbench.reports.text import Column, significant

_FEWEST = 3  # settings: the answers have one or two beside each other
_MIB = 2**20


@dataclass(frozen=True)
class SettingLine:
    """One setting at one context."""

    setting: Setting
    ctx: int  # tokens
    batch: int
    rows: dict[str, Row]  # contestant's label -> its fastest trusted row
    states: dict[int, int]  # degree -> bytes of the state of its fastest power attention, of one sequence and layer

    @property
    def fastest(self) -> Row | None:
        """The row of the fastest contestant; None where there is no other to be faster than."""
        return min(self.rows.values(), key=lambda row: row.median_ms or 0.0) if len(self.rows) > 1 else None

    @property
    def facets(self) -> dict[str, str]:
        """What the selectors ask of it."""
        return setting_facets(self.setting)

    def state_text(self, p: int) -> str:
        """MiB of the state of degree p; empty where there is none."""
        return significant(self.states[p] / _MIB) if p in self.states else ""


@dataclass(frozen=True)
class ContestantColumn:
    """The times of one contestant."""

    curve: Curve  # in one of its settings

    @property
    def heading(self) -> str:
        """The contestant as it is called elsewhere, and in the rows of a line."""
        return self.curve.label

    @property
    def facets(self) -> dict[str, str]:
        """What the selectors and the legend ask of it."""
        return contestant_facets(self.curve)


@dataclass(frozen=True)
class StateColumn:
    """The size of the state of degree p."""

    p: int

    @property
    def heading(self) -> str:
        """With its unit."""
        return f"MiB of state, p = {self.p}"

    @property
    def facets(self) -> dict[str, str]:
        """What the selectors ask of it."""
        return degree_facets(self.p)


@dataclass(frozen=True)
class SettingTable:
    """The lines, and the columns that differ between them."""

    where: str  # at which context each setting stands
    shared: str  # what is the same in all lines, for example `dtype bf16, context 16k`
    columns: list[Column[SettingLine]]
    contestants: list[ContestantColumn]
    degrees: list[StateColumn]
    lines: list[SettingLine]


_COLUMNS: tuple[Column[SettingLine], ...] = (
    Column("pass", lambda line: line.setting.pass_, is_number=False),
    Column("dtype", lambda line: line.setting.dtype, is_number=False),
    Column("d", lambda line: _dims(line.setting)),
    Column("heads / kv heads", lambda line: f"{line.setting.heads} / {line.setting.kv_heads}"),
    Column("gates", lambda line: "gated" if line.setting.gated else "ungated", is_number=False),
    Column("context", lambda line: context_text(line.ctx)),
    Column("batch", lambda line: str(line.batch)),
)


def setting_table(found: Sequence[Group]) -> SettingTable | None:
    """Three settings or more beside each other, by pass, dtype, head dimension, heads; None of fewer.

    Settings without a time to trust are left out, and decoding, which has tables of its own.
    """
    timed = [group for group in found if group.setting.pass_ != "decode" and group.curves]
    if len(timed) < _FEWEST:
        return None
    timed.sort(key=group_order)
    lines = [_line(group, group.compared_at) for group in timed if group.compared_at]
    differing = [column for column in _COLUMNS if len({column.text(line) for line in lines}) > 1]
    shared = [f"{column.heading} {column.text(lines[0])}" for column in _COLUMNS if column not in differing]
    return SettingTable(
        where=_where(timed, lines),
        shared=", ".join(shared),
        columns=differing,
        contestants=_contestants(timed, lines),
        degrees=[StateColumn(p) for p in sorted({p for line in lines for p in line.states})],
        lines=lines,
    )


def _line(group: Group, ctx: int) -> SettingLine:
    rows = {curve.label: curve.points[ctx] for curve in group.curves if ctx in curve.points}
    degrees = {curve.p for curve in group.curves if curve.family in POWER and curve.p is not None}
    best = {p: best_of(group.curves, POWER, p).get(ctx) for p in sorted(degrees)}
    states = {p: size for p, row in best.items() if row is not None and (size := state_bytes(row)) is not None}
    return SettingLine(group.setting, ctx, next(iter(rows.values())).batch, rows, states)


def _contestants(timed: Sequence[Group], lines: Sequence[SettingLine]) -> list[ContestantColumn]:
    """Those that have a time in one of the lines."""
    shown = {label for line in lines for label in line.rows}
    curves = {curve.label: curve for group in timed for curve in group.curves if curve.label in shown}
    return [ContestantColumn(curve) for curve in sorted(curves.values(), key=curve_order)]


def _where(timed: Sequence[Group], lines: Sequence[SettingLine]) -> str:
    """Words on the context of each line; none where nothing else was measured."""
    measured = {(group.setting, ctx) for group in timed for curve in group.curves for ctx in curve.points}
    if len(measured) == len(lines):
        return ""
    return "Each setting at the longest context that most of its contestants have."


def _dims(setting: Setting) -> str:
    """`128`, or `128 x 64` where values are narrower or wider than queries and keys."""
    return " x ".join(str(width) for width in dict.fromkeys((setting.head_dim, setting.value_dim)))
