"""What else changed between two runs, in words: a slower kernel is one explanation of a slower time among several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from powerbench.check.clocks import sample_mhz
from powerbench.check.words import change
from powerbench.results.environments import machine_differences
from powerbench.results.model import Environment, Measurement, Run
from powerbench.results.statistics import median
from powerbench.roofline import Ceilings, roof_seconds

CLOCK_CHANGE = 0.01  # a step of an H200's clock is 15 of 1980 MHz


def environment_changes(baseline: Environment, new: Environment) -> list[str]:
    """What differs of machine and software, `name: old, now new`, versions of the contestants included."""
    return [f"{name}: {before}, now {after}" for name, before, after in machine_differences(baseline, new)]


def _said(value: object) -> str:
    return "none" if value is None else str(value)


def machine_ratio(one: Measurement, baseline: Ceilings, new: Ceilings) -> float | None:
    """How much slower the new machine was at this work: its roofline time over the baseline's, of the same launches.

    None where a ceiling or the ledger is missing, or where the ceilings are no measurement of these runs.
    """
    dtype = one.case.problem.dtype
    if not one.launches or any(dtype not in side.matmul_flops_per_s for side in (baseline, new)):
        return None
    before, _ = roof_seconds(one.launches, dtype, baseline)
    after, _ = roof_seconds(one.launches, dtype, new)
    return after / before if before > 0 and after > 0 else None


def config_changes(old: Measurement, one: Measurement) -> list[str]:
    """What the kernel chose otherwise: tile sizes, and the configuration that tuning found."""
    sizes = [
        (name, getattr(old.case.params, field), getattr(one.case.params, field))
        for name, field in (("d_tile", "d_tile"), ("chunk", "chunk_size"))
    ]
    names = [*old.config, *(name for name in one.config if name not in old.config)]
    pairs = sizes + [(name, old.config.get(name), one.config.get(name)) for name in names]
    changes = [f"{name} {_said(before)}, now {_said(after)}" for name, before, after in pairs if before != after]
    return [f"config changed: {', '.join(changes)}"] if changes else []


def clock_changes(old: Measurement, one: Measurement) -> list[str]:
    """Whether the new samples were taken at another clock, and what slowed the GPU down that did not before."""
    reasons = [reason for reason in one.throttled if reason not in old.throttled]
    said = [f"the GPU was slowed down: {', '.join(reasons)}"] if reasons else []
    clocks = sample_mhz(old), sample_mhz(one)
    if clocks[0] and clocks[1]:
        before, after = median(clocks[0]), median(clocks[1])
        if abs(math.log(after / before)) > math.log1p(CLOCK_CHANGE):
            said.append(f"clock {'lower' if after < before else 'higher'}: {before:.0f} MHz, now {after:.0f}")
    return said


def phase_changes(old: Measurement, one: Measurement, threshold: float) -> list[str]:
    """Which launches became slower by more than the threshold, where not all did; and which have no time any more."""
    before = {phase.name: phase.samples_ms for phase in old.phases if phase.samples_ms}
    after = {phase.name: phase.samples_ms for phase in one.phases if phase.samples_ms}
    both = [name for name in after if name in before]
    gone = [name for name in before if name not in after] if one.phases else []
    said = [f"not timed any more: {'phase' if len(gone) == 1 else 'phases'} {', '.join(gone)}"] if gone else []
    ratios = {name: median(after[name]) / median(before[name]) for name in both}
    slower = {name: ratio for name, ratio in ratios.items() if ratio > 1 + threshold}
    if not slower or len(slower) == len(ratios):
        return said
    named = ", ".join(f"{name} ({ratio:.2f}x)" for name, ratio in slower.items())
    return [f"only {'phase' if len(slower) == 1 else 'phases'} {named} of {len(ratios)} slower", *said]


UNFINISHED = "ends without the ceilings that close a sweep: perhaps it was interrupted (sweep --resume goes on with it)"


def unfinished(run: Run) -> bool:
    """Whether the file lacks the line that ends a sweep."""
    return not run.again


def unphased(pairs: Sequence[tuple[Measurement | None, Measurement | None]]) -> list[str]:
    """A note where cases that the baseline took apart were timed whole only: then no phase explains anything."""
    lacking = [one for old, one in pairs if old and one and old.phases and not one.phases]
    return [f"phases were timed in the baseline only: {len(lacking)} cases"] if lacking else []


def alike(kernels: Sequence[str], log_ratios: Sequence[float], threshold: float) -> str | None:
    """A note where every kernel, other people's too, became slower together: then it is hardly a kernel."""
    if len(set(kernels)) < 3 or min(log_ratios) <= math.log1p(threshold):
        return None
    low, high = change(math.exp(min(log_ratios))), change(math.exp(max(log_ratios)))
    return (
        f"all {len(log_ratios)} cases of {len(set(kernels))} kernels are slower, by {low} to {high}: "
        "rather the machine than a kernel"
    )
