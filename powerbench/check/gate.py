"""The gate's ways to an answer: stored runs, a stored baseline, another commit; and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from powerbench.check.baselines import (
    dropped,
    load_baseline,
    load_calibration,
    noise_path,
    save_calibration,
    update_baseline,
)
from powerbench.check.compare import compare
from powerbench.check.demands import Wanted, hold
from powerbench.check.model import Comparison, Policy
from powerbench.check.outputs.terminal import print_calibration
from powerbench.reports.rows import invalid, rows
from powerbench.results.model import Run
from powerbench.results.store import load

if TYPE_CHECKING:
    from powerbench.check.measure import Measuring


@dataclass(frozen=True)
class Gate:
    """What was asked for. `folder` holds baselines, `noise` is a calibration's file, `keep` gets measured runs."""

    policy: Policy
    demands: tuple[Wanted, ...]
    folder: Path | None
    noise: Path | None
    suite: str
    device: str
    kernels: str | None
    rounds: int
    keep: Path | None
    say: Callable[[str], None]

    def compare(self, runs: Sequence[str]) -> Comparison:
        """NEW (measured now where it is not given) against BASELINE, or that of the folder, or demands alone."""
        with self._new(*runs[-1:]) as new:
            demands, device = hold(self.demands, new), new.header.environment.device
            if len(runs) == 2:
                baseline = load(runs[0])
            elif self.folder:
                baseline = load_baseline(self.folder, device)
            else:
                return Comparison(None, new.path, device, new.header.started, self.policy, demands=demands)
        calibration = load_calibration(self.noise or noise_path(device, self.folder))
        compared = compare(baseline, new, self.policy, calibration)
        warnings = tuple(f"{run.path}: {warning}" for run in (baseline, new) for warning in run.warnings)
        return msgspec.structs.replace(compared, demands=demands, notes=(*warnings, *compared.notes))

    def against(self, ref: str) -> Comparison:
        """This code against a commit, both measured now."""
        compared, new = self._measuring().against(ref, self.policy, self.rounds)
        return msgspec.structs.replace(compared, demands=hold(self.demands, new))

    def update_baseline(self, *run: str) -> Path:
        """The path of the baseline that the run, or one measured now, has become."""
        assert self.folder
        with self._new(*run) as new:
            gone = dropped(self.folder, new)
            path = update_baseline(self.folder, new)
        impossible = len(invalid(rows(new)))
        if impossible:
            self.say(f"cases above the roof, which nothing can be compared with: {impossible}")
        if gone:
            self.say(f"cases that the baseline had a time of before, and has none of now: {gone}")
        return path

    def _new(self, *path: str) -> AbstractContextManager[Run]:
        return nullcontext(load(*path)) if path else self._measuring().now()

    def calibrate(self, console: Console) -> None:
        """Measure, store and print the noise of this machine."""
        found = self._measuring().calibrate(self.policy, 2 * self.rounds)
        path = self.noise or noise_path(found.device, self.folder)
        save_calibration(found, path)
        print_calibration(found, path, self.policy, console)

    def _measuring(self) -> Measuring:
        from powerbench.check.measure import Measuring  # noqa: PLC0415  what measures imports torch, late
        from powerbench.suites import chosen  # noqa: PLC0415

        chosen({"suite": self.suite} | ({"kernels": self.kernels} if self.kernels else {}))  # slips are answered now
        return Measuring(self.suite, self.device, self.kernels, self.keep, self.say)
