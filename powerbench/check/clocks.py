"""From milliseconds to cycles, where the run says at which clock its samples were taken."""

from __future__ import annotations

import math

import numpy as np

from powerbench.results.model import Measurement


def sample_mhz(measurement: Measurement) -> tuple[float, ...] | None:
    """The SM clock in MHz at each of the samples: that of its round. None where one is not known, as on a CPU."""
    clocks = [(one.sm_mhz, one.samples) for one in measurement.rounds]
    mhz = tuple(clock for clock, samples in clocks if clock for _ in range(samples))
    return mhz if mhz and len(mhz) == len(measurement.samples_ms) else None


def log_cycles(measurement: Measurement) -> float | None:
    """Logarithm of the median number of cycles of a call; None where the clock is not known."""
    mhz = sample_mhz(measurement)
    if mhz is None:
        return None
    cycles = np.asarray(measurement.samples_ms, dtype=np.float64) * np.asarray(mhz, dtype=np.float64) * 1e3
    return math.log(float(np.median(cycles)))
