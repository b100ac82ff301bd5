"""The pass `decode` in tables and sentences: time a token, bandwidth, bytes a sequence, and where a state wins.

Over contexts the curves and crossovers of every pass hold for decoding too (`powerbench.reports.curves`); here is what
decoding adds: the batch as the second axis, and memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from powerbench.crossover import Crossing, Crossover, context_text, percent_text, ratio_text
from powerbench.reports.curves import POWER, SOFTMAX, Group, compare, groups
from powerbench.reports.rows import Row, rows
from powerbench.reports.text import Column, or_empty, si, significant, telling
from powerbench.results.model import Run


@dataclass(frozen=True)
class DecodeRow:
    """A trusted decode row, and what a memory of `memory_bytes` and a copy bandwidth make of it.

    bandwidth_share: bytes of the ledger over time and measured copy bandwidth, of 1. largest_batch: how many sequences
    of this context the memory would keep, were nothing else in it.
    """

    row: Row
    memory_bytes: int
    copy_bytes_per_s: float

    @property
    def label(self) -> str:
        """The contestant with its degree and, of power attention, whether its state is plain or lazy."""
        parts = [self.row.kernel, *([f"p = {self.row.p}"] if self.row.p else [])]
        if self.row.window:
            parts.append(f"{self.row.window} keys")
        if self.row.chunk_size:
            parts.append("plain" if self.row.chunk_size == 1 else f"window {self.row.chunk_size}")
        return ", ".join(parts)

    @property
    def bandwidth_share(self) -> float | None:
        """Of 1; None without a ledger."""
        return None if self.row.gb_per_s is None else self.row.gb_per_s * 1e9 / self.copy_bytes_per_s

    @property
    def largest_batch(self) -> int | None:
        """Sequences; None where it is not known what one takes."""
        return self.memory_bytes // self.row.sequence_bytes if self.row.sequence_bytes else None

    @property
    def token_mj(self) -> float | None:
        """Millijoule of the whole board a token; None where no power was read."""
        row = self.row
        return None if row.power_w is None or row.median_ms is None else row.power_w * row.median_ms / row.batch


COLUMNS: tuple[Column[DecodeRow], ...] = (
    Column("ctx", lambda one: context_text(one.row.ctx)),
    Column("batch", lambda one: str(one.row.batch)),
    Column("contestant", lambda one: one.label, is_number=False),
    Column("ms a step", lambda one: significant(one.row.median_ms or 0.0)),
    Column("tokens/s", lambda one: si(one.row.tokens_per_s or 0.0)),
    Column("GB/s", lambda one: or_empty(one.row.gb_per_s, significant)),
    Column("of copy", lambda one: or_empty(one.bandwidth_share, percent_text)),
    Column("mJ a token", lambda one: or_empty(one.token_mj, significant)),
    Column("bytes a sequence", lambda one: si(one.row.sequence_bytes, " ") if one.row.sequence_bytes else ""),
    Column("largest batch", lambda one: or_empty(one.largest_batch)),
)


@dataclass(frozen=True)
class SpeedGrid:
    """How many times as fast as the best softmax attention power attention of degree p is, by context and batch."""

    p: int
    batches: list[int]
    lines: list[tuple[str, list[str]]]  # a context and a cell a batch; empty where not both were measured

    @property
    def title(self) -> str:
        """What the cells say."""
        return (
            f"Power attention (p = {self.p}): times as fast a token as the best softmax attention, by context and batch"
        )


@dataclass(frozen=True)
class DecodeTable:
    """The decode rows of one setting, by context, batch and time, and what they say of power attention."""

    name: str  # dtype, head dimension, heads, gates
    rows: list[DecodeRow]
    grids: list[SpeedGrid]  # one a degree
    sentences: list[str]

    @property
    def columns(self) -> list[Column[DecodeRow]]:
        """Those of COLUMNS that say something here."""
        return telling(COLUMNS, self.rows)


def decode_tables(run: Run, memory_bytes: int | None = None) -> list[DecodeTable]:
    """The run's trusted decode rows, a table a setting. memory_bytes: None is the memory of the run's device."""
    memory = memory_bytes or run.header.environment.memory_bytes
    found: dict[str, list[DecodeRow]] = defaultdict(list)
    for group in groups([row for row in rows(run) if row.pass_ == "decode"]):
        trusted = [row for row in group.rows if row.valid]
        found[_name(group)] += [DecodeRow(row, memory, run.ceilings.copy_bytes_per_s) for row in trusted]
    tables = []
    for name, members in found.items():
        members.sort(key=lambda one: (one.row.ctx, one.row.batch, one.row.median_ms or 0.0))
        degrees = sorted({one.row.p for one in members if one.row.family in POWER and one.row.p})
        said = [sentence for p in degrees for sentence in sentences(members, p)]
        tables.append(DecodeTable(name, members, [grid for p in degrees for grid in speed_grids(members, p)], said))
    return [table for table in tables if table.rows]


def _name(group: Group) -> str:
    setting = replace(group.setting, batch=None)
    return f"{setting.text}, {setting.details}"


def batch_crossovers(found: Sequence[DecodeRow], p: int) -> dict[int, Crossover]:
    """At each context where power attention of degree p becomes faster than the best softmax as the batch grows.

    Both are the fastest rows of their kind at each batch, which stands in the place of the context in what is returned;
    contexts where they share no batch are left out. The rows are those of one `DecodeTable`.
    """
    power: dict[int, dict[int, Row]] = defaultdict(dict)
    softmax: dict[int, dict[int, Row]] = defaultdict(dict)
    for one in found:
        row = one.row
        kind = power if row.family in POWER and row.p == p else softmax if row.family in SOFTMAX else None
        if kind is not None:
            kind[row.ctx].setdefault(row.batch, row)  # the first is the fastest
    between = {ctx: compare(power[ctx], softmax[ctx]) for ctx in sorted(power.keys() & softmax.keys())}
    return {ctx: one for ctx, one in between.items() if one.contexts}


def speed_grids(found: Sequence[DecodeRow], p: int) -> list[SpeedGrid]:
    """The grid of a degree, if it was measured at several batches beside softmax attention."""
    between = batch_crossovers(found, p)
    batches = sorted({batch for one in between.values() for batch in one.contexts})
    if len(batches) < 2:
        return []
    lines = []
    for ctx, one in between.items():
        shown = zip(one.contexts, one.speedups, one.leads, strict=True)
        cells = {batch: f"{significant(speedup)}x" if lead else "level" for batch, speedup, lead in shown}
        lines.append((context_text(ctx), [cells.get(batch, "") for batch in batches]))
    return [SpeedGrid(p, batches, lines)]


def sentences(found: Sequence[DecodeRow], p: int) -> list[str]:
    """One a context: from which batch on power attention wins, and by how much at the largest."""
    return [
        f"At context {context_text(ctx)} and batch {between.contexts[-1]} power attention (p = {p}) is "
        f"{_how_fast(between)} softmax attention{_over_batches(between)}."
        for ctx, between in batch_crossovers(found, p).items()
    ]


def _how_fast(between: Crossover) -> str:
    assert between.speedup is not None  # they share a batch
    ratio = ratio_text(between.speedup)
    level = between.leads[-1] == 0 or ratio == "as fast"
    return "as fast within the noise as" if level else f"{ratio} than"


def _over_batches(between: Crossover) -> str:
    match between.verdict:
        case "unknown" | "level":
            return ""
        case "always":
            said = "" if between.level_at else ", and faster at every batch measured"
        case "never":
            said = ", and faster at no batch measured"
        case _:
            said = f"; the lead changes at batch {', '.join(_place(crossing) for crossing in between.crossings)}"
    level = [str(batch) for batch in between.level_at if batch != between.contexts[-1]]
    return f"{said}; level within the noise at batch {', '.join(level)}" if level else said


def _place(crossing: Crossing) -> str:
    """A batch between those measured, with its 95 % interval."""
    if crossing.low is None or crossing.high is None:
        return significant(crossing.at)
    return f"{significant(crossing.at)} ({significant(crossing.low)}..{significant(crossing.high)})"
