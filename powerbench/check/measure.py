"""What the gate measures itself: two commits in one session, the noise of this machine, or this machine now.

Each run is a whole sweep in a process of its own, with its ceilings, its gate and its samples: an ordinary run file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import msgspec

from powerbench.check.compare import compare_pairs
from powerbench.check.evidence import Evidence, Side
from powerbench.check.model import Comparison, Policy
from powerbench.check.noise import Calibration, CaseNoise, gpu_uuid, moderated, sample_variance
from powerbench.check.scratch import scratch
from powerbench.check.trees import Tree, last_line, this_tree, tree_of
from powerbench.check.triage import unfinished
from powerbench.errors import DeviceLostError, UserError
from powerbench.reports.rows import impossible
from powerbench.results.model import Run
from powerbench.results.statistics import MIN_SAMPLES
from powerbench.results.store import load
from powerbench.stopping import VISITS
from powerbench.turns import ring

BAD_INPUT = 2  # the exit status of a sweep that measured nothing because of its selectors


@dataclass(frozen=True)
class Measuring:
    """What to measure and where the run files stay; `folder` None: nowhere. `say` gets a line a run."""

    suite: str
    device: str
    kernels: str | None
    folder: Path | None
    say: Callable[[str], None]

    def run(self, tree: Tree, name: str, into: Path) -> Run:
        """One sweep on one side, in a process of its own."""
        self.say(f"measuring {name} ({tree.label}) ...")
        path = into / f"{name}.jsonl"
        done = tree.python(*self._sweep(path))
        return _outcome(tree, path, done.returncode, done.stderr)

    def in_turns(self, sides: Sequence[tuple[Tree, str]], into: Path) -> list[Run]:
        """A sweep on each side (its tree, the name of the run), at the same time, the first beginning.

        Each works while the others wait, and hands on after every 50 ms of samples (`powerbench.turns`). So one visit
        is enough: what drifts does it to all.
        """
        self.say(f"measuring {' and '.join(f'{name} ({tree.label})' for tree, name in sides)} in turns ...")
        paths = [into / f"{name}.jsonl" for _, name in sides]
        with ExitStack() as stack:
            errors = [stack.enter_context(TemporaryFile()) for _ in sides]
            with ring(len(sides)) as places:
                processes = [
                    stack.enter_context(tree.start(*self._sweep(path, visits=1), errors=file, turn=place))
                    for (tree, _), path, file, place in zip(sides, paths, errors, places, strict=True)
                ]
            for process in processes:
                process.wait()
            said = [_written(file) for file in errors]
        done = zip(sides, paths, processes, said, strict=True)
        return [_outcome(tree, path, process.returncode, text) for (tree, _), path, process, text in done]

    def _sweep(self, path: Path, visits: int = VISITS) -> list[str]:
        """The arguments of Python for one sweep into this file."""
        suite = str(Path(self.suite).resolve()) if self.suite.endswith(".toml") else self.suite
        arguments = ["--suite", suite, "--device", self.device, "--visits", str(visits), "-o", str(path)]
        arguments += ["--kernels", self.kernels] if self.kernels else []
        return ["-m", "powerbench", "sweep", *arguments]

    @contextmanager
    def _place(self) -> Iterator[tuple[Path, Path]]:
        """A folder for trees and caches, which goes away, and one for run files."""
        with scratch() as folder:
            into = self.folder.resolve() if self.folder else folder / "runs"
            into.mkdir(parents=True, exist_ok=True)
            if any(into.glob("*.jsonl")):
                raise UserError(f"--keep: {into} holds run files already; name another folder")
            yield folder, into

    @contextmanager
    def now(self) -> Iterator[Run]:
        """This code on this machine; its file stays as long as the context."""
        with self._place() as (folder, into):
            yield self.run(this_tree(folder / "new"), "new", into)

    def against(self, ref: str, policy: Policy, rounds: int) -> tuple[Comparison, Run]:
        """The code as it is against a commit of its repository, and one of the new runs; see `session`."""
        with scratch() as folder, tree_of(ref, folder) as old:
            return self.session(old, this_tree(folder / "new"), policy, rounds)

    def session(self, old: Tree, new: Tree, policy: Policy, rounds: int) -> tuple[Comparison, Run]:
        """Two trees, a round at a time until every case is decided; and one of the new runs.

        A round is two pairs of sweeps in turns, A B and B A, each in new processes. Each look at the data is a chance
        for a false alarm, so each gets its part of the false discovery rate.
        """
        each_look = msgspec.structs.replace(policy, false_discovery_rate=policy.false_discovery_rate / rounds)
        pairs: list[tuple[Run, Run]] = []
        with self._place() as (_, into):
            while True:
                first, second = len(pairs) + 1, len(pairs) + 2
                before, after = self.in_turns([(old, f"baseline-{first}"), (new, f"new-{first}")], into)
                after_again, before_again = self.in_turns([(new, f"new-{second}"), (old, f"baseline-{second}")], into)
                pairs += [(before, after), (before_again, after_again)]
                comparison = compare_pairs(pairs, each_look)
                undecided = comparison.counts.get("inconclusive", 0)
                if undecided <= policy.allow_inconclusive or len(pairs) >= 2 * rounds:
                    break
                self.say(f"{undecided} cases are undecided after {len(pairs)} pairs of runs: another round")
        return msgspec.structs.replace(comparison, baseline=old.label, new=new.label, policy=policy), after

    def calibrate(self, policy: Policy, runs: int) -> Calibration:
        """The same code again and again."""
        with self._place() as (folder, into):
            tree = this_tree(folder / "new")
            return calibration([self.run(tree, f"run-{i + 1}", into) for i in range(runs)], policy)


def _outcome(tree: Tree, path: Path, status: int, said: str) -> Run:
    """What a sweep has written. Raises UserError or DeviceLostError, with its own words, where that is not all.

    Of a sweep that ended before its time, cases of the baseline would be missed in neither run or called new.
    """
    if status == BAD_INPUT or not path.exists():
        raise UserError(f"measuring {tree.label}: {last_line(said)}")
    run = load(path)
    if status not in (0, 1) or (status and unfinished(run)):
        raise DeviceLostError(
            f"measuring {tree.label}: the sweep ended early, with {len(run.measurements)} cases: {last_line(said)}"
        )
    return run


def _written(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def calibration(runs: Sequence[Run], policy: Policy) -> Calibration:
    """The noise floor of each case that all of these runs of one code measured: what differs beyond their samples.

    The variance between runs is that of the log medians less what their own standard errors explain; twice that is the
    variance of a ratio. A case whose time is impossible in one of them says nothing. Raises UserError where no case was
    measured in all runs.
    """
    sides = {}
    roofs = [run.ceilings_by_environment for run in runs]
    for one in runs[0].measurements:
        found = [
            (other, roof)
            for run, roof in zip(runs, roofs, strict=True)
            for other in run.measurements
            if other.case_id == one.case_id
        ]
        enough = [
            other
            for other, roof in found
            if len(other.samples_ms) >= MIN_SAMPLES and not impossible(other, roof[other.environment])
        ]
        if len(enough) == len(runs):
            sides[one.case_id] = Side.of(enough)
    if not sides:
        raise UserError("--calibrate: no case was measured, with five samples or more and below the roof, in every run")
    within = {
        case: 2 * sum(median.standard_error**2 for median in side.medians) / len(runs) for case, side in sides.items()
    }
    beyond = {
        case: max(0.0, 2 * sample_variance([median.log_median for median in side.medians]) - within[case])
        for case, side in sides.items()
    }
    variances, freedom = moderated(beyond, len(runs) - 1)
    cases = {}
    for case, variance in variances.items():
        error = math.sqrt(variance + within[case])
        evidence = Evidence(0.0, 0.0, 0.0, 1.0, error, freedom, math.sqrt(variance))
        seen = evidence.detectable(policy.false_discovery_rate / len(sides), policy.threshold)
        cases[case] = CaseNoise(math.sqrt(variance), seen)
    header = runs[0].header
    return Calibration(
        header.environment.device, gpu_uuid(header.environment), len(runs), freedom, header.started, cases
    )
