"""The pass `decode` in tables and sentences: time a token, bandwidth, bytes a sequence, and where a state wins.

Over contexts the curves and crossovers of every pass hold for decoding too (`powerbench.reports.curves`); here is what
decoding adds: the batch as the second axis, and memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from powerbench.crossover import Crossover, context_text, crossover, percent_text, ratio_text
from powerbench.reports.rows import Row, rows, trusted
from powerbench.reports.text import Column, si, significant
from powerbench.results.model import Run

SOFTMAX = ("sdpa", "flash")


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


COLUMNS: tuple[Column[DecodeRow], ...] = (
    Column("ctx", lambda one: context_text(one.row.ctx)),
    Column("batch", lambda one: str(one.row.batch)),
    Column("contestant", lambda one: one.label, is_number=False),
    Column("ms a step", lambda one: significant(one.row.median_ms or 0.0)),
    Column("tokens/s", lambda one: si(one.row.tokens_per_s or 0.0)),
    Column("GB/s", lambda one: "" if one.row.gb_per_s is None else significant(one.row.gb_per_s)),
    Column("of copy", lambda one: "" if one.bandwidth_share is None else percent_text(one.bandwidth_share)),
    Column("bytes a sequence", lambda one: si(one.row.sequence_bytes, " ") if one.row.sequence_bytes else ""),
    Column("largest batch", lambda one: "" if one.largest_batch is None else str(one.largest_batch)),
)


def decode_rows(run: Run, memory_bytes: int | None = None) -> list[DecodeRow]:
    """The run's trusted decode rows by context, batch and time. memory_bytes: None is the memory of its device."""
    memory = memory_bytes or run.header.environment.memory_bytes
    found = [row for row in trusted(rows(run)) if row.pass_ == "decode"]
    found.sort(key=lambda row: (row.ctx, row.batch, row.median_ms or 0.0))
    return [DecodeRow(row, memory, run.ceilings.copy_bytes_per_s) for row in found]


def batch_crossovers(found: Sequence[DecodeRow], p: int) -> dict[int, Crossover]:
    """At each context where power attention of degree p becomes faster than the best softmax as the batch grows.

    Both are the fastest rows of their kind at each batch; contexts where they share no batch are left out. The rows
    have to be of one setting (dtype, heads, head dimension).
    """
    power: dict[int, dict[int, float]] = defaultdict(dict)
    softmax: dict[int, dict[int, float]] = defaultdict(dict)
    for one in found:
        row = one.row
        kind = power if row.family == "power" and row.p == p else softmax if row.family in SOFTMAX else None
        if kind is not None and row.median_ms is not None:
            held = kind[row.ctx].get(row.batch, row.median_ms)
            kind[row.ctx][row.batch] = min(held, row.median_ms)
    between = {ctx: crossover(power[ctx], softmax[ctx]) for ctx in sorted(power.keys() & softmax.keys())}
    return {ctx: one for ctx, one in between.items() if one.contexts}


def sentences(found: Sequence[DecodeRow], p: int) -> list[str]:
    """One a context: from which batch on power attention wins, and by how much at the largest."""
    said = []
    for ctx, between in batch_crossovers(found, p).items():
        batches = [str(batch) for batch in between.contexts]
        assert between.speedup is not None  # they share a batch
        last = (
            f"at batch {batches[-1]} power attention (p = {p}) is {ratio_text(between.speedup)} than softmax attention"
        )
        last = last.replace("as fast than", "as fast as")
        match between.verdict:
            case "unknown":
                said.append(f"At context {context_text(ctx)} {last}.")
            case "always":
                said.append(f"At context {context_text(ctx)} {last}, and faster at every batch measured.")
            case "never":
                said.append(f"At context {context_text(ctx)} {last}, and faster at no batch measured.")
            case _:
                said.append(f"At context {context_text(ctx)} {last}; the lead changes at batch {_listed(between)}.")
    return said


def _listed(between: Crossover) -> str:
    return ", ".join(significant(batch) for batch in between.at)
