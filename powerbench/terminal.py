"""What a run shows while it goes: the plan, a progress bar with an ETA, or a line a case where there is no terminal."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from powerbench.printable import printable
from powerbench.refine import LIMIT
from powerbench.results.model import Measurement
from powerbench.roofline import ABOVE_ROOF_TOLERANCE

if TYPE_CHECKING:
    from powerbench.plan import PlannedCase

TRUSTED_SECONDS = 20.0


def duration(seconds: float) -> str:
    """For people: 850 ms, 12 s, 3 min 20 s."""
    if seconds < 1e-6:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def median(samples_ms: Sequence[float]) -> float:
    """The middle sample, for the line a case; stored runs get theirs from `powerbench.reports.frames`."""
    return sorted(samples_ms)[len(samples_ms) // 2]


def outcome(measurement: Measurement, floor_ms: float = 0.0) -> str:
    """One case's result in a few words; a time well under `floor_ms`, that of the roof, is none."""
    if measurement.status != "ok":
        return f"{measurement.status}: {measurement.message}"
    error = f"error {measurement.error:.1e}"
    if not measurement.samples_ms:
        return f"ok, {error}"
    time_ms = median(measurement.samples_ms)
    if time_ms * ABOVE_ROOF_TOLERANCE < floor_ms:
        return f"invalid: {time_ms:.3g} ms, where this machine needs {floor_ms:.3g} ms at best"
    throttled = ", throttled" if measurement.throttled else ""
    return f"{time_ms:.3f} ms, {error}{_phases_timed(measurement)}{throttled}"


def _phases_timed(measurement: Measurement) -> str:
    number = len(measurement.phases)
    timed = sum(bool(phase.samples_ms) for phase in measurement.phases)
    return f", {number if timed == number else f'{timed} of {number}'} phases" if number else ""


class Watcher:
    """The runner's observer on standard error. Its ETA scales the predicted times by how the past ones came out.

    The first cases bear the start of the measuring process and all that compiles: `TRUSTED_SECONDS` of the prediction
    count as if they had come out as predicted, so that those do not stand for the rest.
    """

    def __init__(self, planned: Sequence[PlannedCase], console: Console) -> None:
        self.console = console
        self.total = sum(len(item.visits) for item in planned)
        self.count = 0
        self.predicted_left = sum(item.total_seconds for item in planned)
        self.predicted_done = 0.0
        self.start = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task("starting", total=self.total, eta=self.eta())

    def eta(self) -> str:
        """Time left, from the predictions and how far they were off so far."""
        elapsed = time.monotonic() - self.start
        correction = (elapsed + TRUSTED_SECONDS) / (self.predicted_done + TRUSTED_SECONDS)
        return duration(max(0.0, self.predicted_left * correction))

    def __enter__(self) -> Watcher:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def started(self, planned: PlannedCase) -> None:
        """Names the case in flight."""
        self.progress.update(self.task, description=printable(planned.case.case_id))

    def finished(self, planned: PlannedCase, measurement: Measurement, visit: int) -> None:
        """Counts the visit, or all that are left to a case that failed; without a terminal, prints its line."""
        over = [visit] if measurement.status == "ok" else [other for other in planned.visits if other >= visit]
        seconds = sum(planned.visit_seconds(one) for one in over)
        self.count += len(over)
        self.predicted_left -= seconds  # sums of floats: may end a hair below zero
        self.predicted_done += seconds
        self.progress.update(self.task, advance=len(over), eta=self.eta())
        if not self.console.is_terminal:
            result = outcome(measurement, planned.floor_seconds * 1e3)
            line = printable(f"[{self.count}/{self.total}] {measurement.case_id}: {result} (ETA {self.eta()})")
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_plan(planned: Sequence[PlannedCase], console: Console) -> None:
    """The dry run: every case with its predicted time and memory, or why it would be skipped."""
    table = Table(title=f"{len(planned)} cases", title_justify="left", box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    table.add_column("a call", justify="right")
    table.add_column("in all", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("skipped because", overflow="fold")
    for item in planned:
        numbers = ("", "", "") if item.reason else (
            duration(item.call_seconds), duration(item.total_seconds), f"{item.memory_bytes / 2**20:.0f} MiB",
        )  # fmt: skip
        table.add_row(item.case.case_id, *numbers, item.reason or "")
    console.print(table)
    skipped = sum(item.reason is not None for item in planned)
    total = duration(sum(item.total_seconds for item in planned))
    console.print(f"{len(planned) - skipped} to measure in about {total}, {skipped} skipped.", highlight=False)


def refining_text(planned: Sequence[PlannedCase]) -> str:
    """What --refine may add to a plan, as if it went to its limit at the context that takes longest."""
    seconds: dict[object, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for item in planned:
        problem = item.case.problem
        setting = msgspec.structs.replace(problem, seqlen=0, batch=0)
        seconds[setting, item.case.pass_][problem.seqlen] += item.total_seconds
    most = sum(LIMIT * max(contexts.values()) for contexts in seconds.values())
    return (
        f"--refine: then up to {LIMIT} contexts more around the crossings of each setting, "
        f"at most about {duration(most)}"
    )
