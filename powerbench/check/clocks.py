"""From milliseconds to cycles, where the run says at which clock its samples were taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from powerbench.results.model import Measurement


def sample_mhz(measurement: Measurement) -> tuple[float, ...] | None:
    """The SM clock in MHz at each of the samples; None where the run does not hold it, as runs of schema 1 do not."""
    del measurement
    return None


def log_cycles(samples_ms: Sequence[float], mhz: Sequence[float]) -> float:
    """Logarithm of the median number of cycles of a call; one clock for each sample."""
    cycles = np.asarray(samples_ms, dtype=np.float64) * np.asarray(mhz, dtype=np.float64) * 1e3
    return math.log(float(np.median(cycles)))
