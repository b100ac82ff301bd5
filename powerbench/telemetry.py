"""What a GPU does while it measures: its SM clock, power and temperature, and what holds the clock down.

NVML answers for the moment it is asked. `read` therefore asks for the clock first; when to ask is `powerbench.bench`'s
concern, and what follows from an answer `powerbench.runner`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from powerbench.nvml import Gpu, NvmlUnavailableError, connect

# NVML's clocks event reasons, a mask of these bits (nvml.h; earlier drivers call them throttle reasons).
IDLE = 0x1  # between two samples: says nothing about either
REASONS = {
    0x2: "application clocks",
    0x4: "sw power cap",
    0x8: "hw slowdown",
    0x10: "sync boost",
    0x20: "sw thermal slowdown",
    0x40: "hw thermal slowdown",
    0x80: "hw power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
REASON_QUERIES = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")  # new, old


class Reading(NamedTuple):
    """The state of a GPU, at one moment or over a round of samples. None: unavailable."""

    sm_mhz: float | None = None
    power_w: float | None = None  # of the whole board; on most GPUs NVML's average over the last second
    temperature_c: float | None = None
    reasons: tuple[str, ...] | None = None  # names as in REASONS; empty: nothing holds the clock down


UNAVAILABLE = Reading()
Gauge = Callable[[], Reading]


def gauge(uuid: str | None) -> Gauge:
    """What reads the GPU of this UUID (as torch gives it). Without a GPU or NVML every reading is unavailable."""
    if uuid is None:
        return Reading
    try:
        gpu = connect(uuid)
    except NvmlUnavailableError:  # the run's environment says why
        return Reading
    return lambda: read(gpu)


def read(gpu: Gpu) -> Reading:
    """Ask now; the clock first, because it is the first to change when work ends."""
    clock = gpu.ask("nvmlDeviceGetClockInfo", gpu.library.NVML_CLOCK_SM)
    masks = (gpu.ask(query) for query in REASON_QUERIES)
    mask = next((mask for mask in masks if mask is not None), None)
    power = gpu.ask("nvmlDeviceGetPowerUsage")  # milliwatts
    temperature = gpu.ask("nvmlDeviceGetTemperature", gpu.library.NVML_TEMPERATURE_GPU)
    return Reading(clock, None if power is None else power / 1e3, temperature, None if mask is None else names(mask))


def names(mask: int) -> tuple[str, ...]:
    """The reasons in a mask, ascending by bit; a bit of a later NVML as its number."""
    bits = (1 << i for i in range(mask.bit_length()) if mask >> i & 1)
    return tuple(REASONS.get(bit, hex(bit)) for bit in bits if bit != IDLE)


def over(readings: Sequence[Reading]) -> Reading:
    """The state over a round from readings around it: mean clock and power, highest temperature, every reason."""
    clocks = [one.sm_mhz for one in readings if one.sm_mhz is not None]
    powers = [one.power_w for one in readings if one.power_w is not None]
    temperatures = [one.temperature_c for one in readings if one.temperature_c is not None]
    found = [one.reasons for one in readings if one.reasons is not None]
    return Reading(
        sum(clocks) / len(clocks) if clocks else None,
        sum(powers) / len(powers) if powers else None,
        max(temperatures, default=None),
        tuple(dict.fromkeys(reason for reasons in found for reason in reasons)) if found else None,
    )
