"""The noise floor: how much two runs of the same code differ, beyond what their samples show.

A run's samples tell how well its own median is known. They do not tell where that median would lie next time: memory
lands elsewhere, another process warms the chip, the GPU is another one of its model. A gate that looks at samples alone
takes this for a change. The floor is measured by `powerbench check --calibrate`, or assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from powerbench.bounds import Count
from powerbench.results.model import Run

PRIOR_FREEDOM = 4  # how many degrees of freedom what all cases show together is worth beside a case's own
LEAST = 0.002  # nobody times two runs more alike than this


class Floor(NamedTuple):
    """Standard deviation of the log ratio of two runs of one code, beyond their samples; and how well it is known."""

    sd: float
    freedom: float  # degrees of freedom of Student's t; infinite where it is assumed
    source: str

    def at_least(self, sd: float, source: str) -> Floor:
        """This floor, or a higher one that something else demands."""
        return self if self.sd >= sd else Floor(sd, self.freedom, source)


# Assumed where nothing was calibrated. On one H200 the published runs of this project, minutes apart, differ in quiet
# cases by 0.5 % (root mean square of seven pairs, the largest 0.8 %); two GPUs of a model differ by a percent or two;
# a two-core cloud machine with other load now and then by 10 %, up to 30 % (docs/gate.md).
ASSUMED = {
    "same gpu": Floor(0.0075, math.inf, "assumed"),
    "gpu": Floor(0.02, math.inf, "assumed, another GPU"),
    "cpu": Floor(0.1, math.inf, "assumed"),
}


class CaseNoise(msgspec.Struct, frozen=True):
    """What calibration found of one case: the floor's standard deviation, and the smallest change a gate can see."""

    sd: float
    detectable: float


class Calibration(msgspec.Struct, frozen=True):
    """A/A runs of one machine, boiled down. `freedom`: degrees of freedom of each case's floor."""

    device: str
    gpu: str | None  # its UUID
    runs: Count
    freedom: Count
    started: str  # of the first run, UTC
    cases: dict[str, CaseNoise]

    def fits(self, run: Run) -> bool:
        """Whether the run was measured where this was calibrated."""
        return (self.device, self.gpu) == (run.header.environment.device, gpu_uuid(run))


def gpu_uuid(run: Run) -> str | None:
    """Which GPU it was; None on a CPU, or where NVML did not say."""
    gpu = run.header.environment.gpu
    return gpu.uuid if gpu else None


def floor_of(case_id: str, baseline: Run, new: Run, calibration: Calibration | None) -> Floor:
    """The floor for a case of these two runs: calibrated if both were measured there, else assumed."""
    if calibration and calibration.fits(baseline) and calibration.fits(new) and case_id in calibration.cases:
        return Floor(calibration.cases[case_id].sd, calibration.freedom, f"{calibration.runs} A/A runs")
    if new.header.environment.device_type != "cuda":
        return ASSUMED["cpu"]
    same = gpu_uuid(baseline) is not None and gpu_uuid(baseline) == gpu_uuid(new)
    return ASSUMED["same gpu" if same else "gpu"]


def moderated(variances: Mapping[str, float], freedom: int) -> tuple[dict[str, float], int]:
    """Variances, each from `freedom` degrees of freedom, drawn towards what all cases show together.

    A variance of a few runs is hardly known, and a case whose runs happened to agree would cry wolf next time. The
    weighted mean with the average of all cases (the moderated variance of Smyth 2004, its prior weight fixed) is known
    better: the degrees of freedom returned are the sum of both.
    """
    prior = min(PRIOR_FREEDOM, (len(variances) - 1) * freedom)
    average = sum(variances.values()) / max(1, len(variances))
    together = {
        case: max(LEAST**2, (prior * average + freedom * own) / (prior + freedom)) for case, own in variances.items()
    }
    return together, prior + freedom


def sample_variance(values: Sequence[float]) -> float:
    """Of at least two values, with n - 1 in the denominator."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)
