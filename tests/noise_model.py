"""Simulated runs: noise as the published runs show it, so that the gate's error rates can be counted.

A series of samples has a spread and a correlation of its own, which are those of a case drawn from the published runs;
its run is off by a deviation of its own, as runs of one code are; and on top come outliers, two clocks, or drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from powerbench.cost import Cost, Launch
from powerbench.problem import Case, Params, Problem
from powerbench.results.model import Measurement, Run
from powerbench.results.store import load
from tests import runs

ROOT = Path(__file__).parents[1]
CASES = 50
CONTROLS = 10  # of these: contestants that are not on trial


@dataclass(frozen=True)
class Series:
    """What one published case shows: number of samples, standard deviation of their logs, correlation of neighbours.

    The number is of all visits, because the stopping rule asks for so many together; the others are of one visit, whose
    samples were taken without a break.
    """

    n: int
    sd: float
    correlation: float


def observed(folder: str, kernels: str = "") -> list[Series]:
    """Of all cases of the runs in results/<folder> whose kernel's name begins so; without their outliers."""
    found = []
    for path in sorted((ROOT / "results" / folder).glob("*.jsonl")):
        for one in load(path).measurements:
            if one.status == "ok" and one.case.kernel.startswith(kernels) and len(one.visits[0]) >= 5:
                logs = np.log(one.visits[0])
                quarter = (np.quantile(logs, 0.75) - np.quantile(logs, 0.25)) / 1.349
                kept = logs[np.abs(logs - np.median(logs)) <= max(6 * quarter, 1e-4)]
                neighbours = np.corrcoef(kept[:-1], kept[1:])[0, 1] if len(kept) > 20 else 0.0
                found.append(Series(len(one.samples_ms), float(kept.std()), float(np.clip(neighbours, 0.0, 0.97))))
    return found


def repeats() -> list[Run]:
    """Five runs of one commit and suite on one H200, one after the other; docs/measuring.md judges by them."""
    return [load(path) for path in sorted((ROOT / "docs" / "runs" / "agreement").glob("h200-[1-5].jsonl"))]


def observed_between() -> float:
    """Root mean square log ratio of what two of the repeats measured both, of power-triton."""
    medians: dict[str, list[float]] = {}
    for run in repeats():
        for one in run.measurements:
            if one.status == "ok" and one.case.kernel == "power-triton":
                medians.setdefault(one.case_id, []).append(math.log(np.median(one.samples_ms)))
    ratios = [b - a for same in medians.values() for i, a in enumerate(same) for b in same[i + 1 :]]
    return math.sqrt(float(np.mean(np.square(ratios))))


@dataclass(frozen=True)
class Noise:
    """How runs are made. `between`: sd of a log ratio of two runs. The rest comes on top and may be 0."""

    between: float
    outliers: float = 0.0  # probability; an outlier takes up to three times as long
    second_clock: float = 0.0  # how much slower the other clock is; the chip stays some 30 samples at either
    drift: float = 0.0  # over each run, common to both sides

    def samples(self, series: Series, ms: float, generator: np.random.Generator) -> tuple[float, ...]:
        """One case of one run."""
        steps = generator.standard_normal(series.n)
        walk = np.empty(series.n)
        walk[0] = steps[0]
        keep = math.sqrt(1 - series.correlation**2)
        for i in range(1, series.n):
            walk[i] = series.correlation * walk[i - 1] + keep * steps[i]
        logs = series.sd * walk + self.between / math.sqrt(2) * generator.standard_normal()
        if self.second_clock:
            changes = generator.random(series.n) < 1 / 30
            state = (np.cumsum(changes) + generator.integers(2)) % 2
            logs += state * math.log1p(self.second_clock)
        if self.outliers:
            hit = generator.random(series.n) < self.outliers
            logs += hit * generator.uniform(0, math.log(3), series.n)
        logs += np.linspace(0, math.log1p(self.drift), series.n)
        return tuple((ms * np.exp(logs)).tolist())


def case(i: int) -> Case:
    """Fifty different ones; the first CONTROLS are somebody else's."""
    kernel, params = ("sdpa-cudnn", Params()) if i < CONTROLS else ("power-triton", Params(2, 8, 1024))
    return Case(Problem(1, 1024 + i, 8, 8, 64, 64, "bf16", True), kernel, params, "fwd")


def simulated(
    noise: Noise, series: list[Series], generator: np.random.Generator, slower: dict[int, float] | None = None
) -> Run:
    """A run of CASES cases, each of a series of its own; `slower`: the factor of some."""
    header = runs.header("NVIDIA H200", peak=7.9e14, bandwidth=4.1e12)  # under which all of these times are possible
    found = []
    for i in range(CASES):
        ms = (0.2 + 0.1 * i) * (slower or {}).get(i, 1.0)
        samples = noise.samples(series[i], ms, generator)
        launch = Launch("whole", Cost(10**9, 10**9, 10**6))
        found.append(
            Measurement(
                case=case(i), status="ok", samples_ms=samples, timer="graph-cold", launches=(launch,), error=0.0
            )
        )
    return runs.run(found, header)


def on_a_cpu(run: Run) -> Run:
    """The same run, of a machine without a GPU."""
    cpu = runs.header()
    return msgspec.structs.replace(run, header=msgspec.structs.replace(cpu, ceilings=run.header.ceilings))
