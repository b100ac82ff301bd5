"""From measurements to rows: one flat, typed record a case, every statistic computed from the raw samples.

All tables, figures and sentences are made from these rows, so that a number is the same wherever it stands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from powerbench.bootstrap import interval
from powerbench.crossover import percent_text
from powerbench.results.model import INTERLEAVED, Measurement, Run
from powerbench.results.statistics import median, typical
from powerbench.roofline import Ceilings, Roof, roof

HOST_BOUND = 0.1  # share of the wall time
HOST_BOUND_TEXT = "host bound: a user waits over 10 % longer than the device works"


class Row(msgspec.Struct, frozen=True, gc=False, rename={"pass_": "pass"}):
    """One case. None: not applicable or not measured. Times in ms, rates per second, fractions of 1, sizes in tokens.

    The field names (with `pass`) are the tidy frame's columns and a contract, all but the last, which is none; new ones
    go to the end, before it.
    """

    case_id: str
    kernel: str
    p: int | None
    d_tile: int | None
    chunk_size: int | None
    ctx: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    pass_: str
    status: str
    reason: str | None  # why there is no number, or why it cannot be trusted
    n: int  # samples
    median_ms: float | None  # of several visits, the geometric mean of their medians
    ci_low_ms: float | None  # its 95 % interval (`powerbench.bootstrap`); None for a single visit of under five samples
    ci_high_ms: float | None
    tokens_per_s: float | None
    useful_tflops: float | None
    executed_tflops: float | None
    intensity: float | None  # executed FLOPs per byte
    bound: str | None
    roof_fraction: float | None  # roofline time over measured time
    mfu: float | None
    hfu: float | None
    peak_memory_mib: float | None
    error: float | None
    timer: str | None
    config: str | None  # what tuning chose, as `name=value` pairs
    family: str
    value_dim: int
    gated: bool
    valid: bool  # a time that can be trusted: status ok and not above the roof
    attainable_tflops: float | None  # executed TFLOP/s at the roof
    stop: str | None  # why sampling stopped: precise, or the cap that was reached (time, samples, visits)
    order: str | None  # interleaved with the problem's other contestants, or in turn and why
    timer_reason: str | None  # why it was not timed by a graph, where one was tried
    wall_ms: float | None  # median wall time of a call, where `median_ms` is device time
    host_bound: bool  # the wall time exceeds the device time by more than 10 % of itself
    median_mcycles: float | None  # median of the samples in millions of SM cycles, at the clock of their rounds
    sm_mhz: float | None  # SM clock, median over the samples; like the next three None where NVML did not say
    power_w: float | None  # of the board, median over the samples
    temperature_c: float | None  # the highest
    throttle: str | None  # what held the clock down, by NVML's names; `none` where nothing did
    throttled: bool  # among that is a slowdown, in which the GPU cannot show what it can do
    retakes: int  # rounds of samples dropped and taken again, for such a slowdown
    window: int | None  # keys that a query of a sliding window sees; p is then the degree whose state it equals in size
    visits: int  # in how many visits, spread over the sweep, the samples were taken
    gb_per_s: float | None  # bytes of the ledger over the time, in 1e9 bytes
    sequence_bytes: int | None  # decoding: what is kept of one sequence, a cache or a state
    measurement: Measurement  # what the row was made of: its samples and its ledger; not a column

    @property
    def params_text(self) -> str:
        """The kernel's own parameters, for example `p = 2, d_tile = 16, chunk = 512`; empty when it has none."""
        named = (("p", self.p), ("d_tile", self.d_tile), ("chunk", self.chunk_size), ("window", self.window))
        return ", ".join(f"{name} = {value}" for name, value in named if value is not None)

    @property
    def interval_ms(self) -> tuple[float, float] | None:
        """95 % interval of the time; None where nothing is known of it."""
        if self.ci_low_ms is None or self.ci_high_ms is None:
            return None
        return self.ci_low_ms, self.ci_high_ms

    @property
    def spread(self) -> float | None:
        """The interval's larger half over the median: 0.02 reads as ± 2 %."""
        return relative_spread(self.median_ms, self.interval_ms)


COLUMNS: tuple[str, ...] = tuple(field.encode_name for field in msgspec.structs.fields(Row)[:-1])


# Of the last runs: a page asks for them half a dozen times. By identity, since a run and its rows are never changed.
_KEPT: deque[tuple[Run, list[Row]]] = deque(maxlen=8)


def rows(run: Run) -> list[Row]:
    """One row a measurement, in the order of the file."""
    for known, found in _KEPT:
        if known is run:
            return list(found)
    ceilings = run.ceilings
    found = [_row(measurement, ceilings) for measurement in run.measurements]
    _KEPT.append((run, found))
    return list(found)


def values(row: Row) -> list[object]:
    """The row's values in the order of COLUMNS."""
    return list(msgspec.structs.astuple(row)[:-1])


def trusted(all_rows: Iterable[Row]) -> list[Row]:
    """The rows whose time may be compared."""
    return [row for row in all_rows if row.valid]


def relative_spread(median_ms: float | None, interval_ms: tuple[float, float] | None) -> float | None:
    """An interval's larger half over its median; None where one of them is unknown."""
    if median_ms is None or interval_ms is None:
        return None
    low, high = interval_ms
    return max(high - median_ms, median_ms - low) / median_ms


def above_roof(under: Roof | None) -> str | None:
    """Why a time cannot be trusted; None where it can, or where nothing is known of it."""
    if under is None or under.valid:
        return None
    share = percent_text(under.roof_fraction)
    return f"above the roof: {share} of the measured ceiling; the ceiling, the ledger or the clock is wrong"


def is_host_bound(device_ms: float | None, wall_ms: float | None) -> bool:
    """Whether a user waits for the host: more than a tenth of the wall time is not the device's."""
    return device_ms is not None and wall_ms is not None and wall_ms - device_ms > HOST_BOUND * wall_ms


def _row(measurement: Measurement, ceilings: Ceilings) -> Row:
    case, cost = measurement.case, measurement.cost
    problem, params = case.problem, case.params
    visits = measurement.visits
    time_ms = typical(visits) if visits else None
    low_ms, high_ms = interval(visits) or (None, None)
    under = _place(measurement, time_ms, ceilings)
    seconds = time_ms / 1e3 if time_ms is not None else None
    wall_ms = median(measurement.wall_ms) if measurement.wall_ms else None
    host_bound = is_host_bound(time_ms, wall_ms)
    return Row(
        case_id=case.case_id,
        kernel=case.kernel,
        p=params.p,
        d_tile=params.d_tile,
        chunk_size=params.chunk_size,
        ctx=problem.seqlen,
        batch=problem.batch,
        heads=problem.heads,
        kv_heads=problem.kv_heads,
        head_dim=problem.head_dim,
        dtype=problem.dtype,
        pass_=case.pass_,
        status=measurement.status,
        reason=_reason(measurement, under, host_bound),
        n=len(measurement.samples_ms),
        median_ms=time_ms,
        ci_low_ms=low_ms,
        ci_high_ms=high_ms,
        tokens_per_s=case.tokens / seconds if seconds else None,
        useful_tflops=cost.useful_flops / seconds / 1e12 if seconds and measurement.launches else None,
        executed_tflops=cost.executed_flops / seconds / 1e12 if seconds and measurement.launches else None,
        intensity=cost.executed_flops / cost.bytes if cost.bytes > 0 else None,
        bound=under.bound if under else None,
        roof_fraction=under.roof_fraction if under else None,
        mfu=under.mfu if under else None,
        hfu=under.hfu if under else None,
        peak_memory_mib=None if measurement.peak_memory_bytes is None else measurement.peak_memory_bytes / 2**20,
        error=measurement.error,
        timer=measurement.timer,
        config=" ".join(f"{name}={value}" for name, value in measurement.config.items()) or None,
        family=case.kernel.partition("-")[0],
        value_dim=problem.value_dim,
        gated=problem.gated,
        valid=time_ms is not None and (under is None or under.valid),
        attainable_tflops=under.attainable_tflops if under else None,
        stop=measurement.stop,
        order=measurement.order,
        timer_reason=measurement.timer_reason,
        wall_ms=wall_ms,
        host_bound=host_bound,
        **_state(measurement),
        window=params.window,
        visits=len(visits),
        gb_per_s=cost.bytes / seconds / 1e9 if seconds and measurement.launches else None,
        sequence_bytes=measurement.sequence_bytes,
        measurement=measurement,
    )


def _state(measurement: Measurement) -> dict[str, Any]:
    """The columns on clocks: each round counts by its samples, and a number needs every round's."""
    rounds = measurement.rounds
    clocks = _by_sample((one.samples, one.sm_mhz) for one in rounds)
    powers = _by_sample((one.samples, one.power_w) for one in rounds)
    cycles = [ms * mhz / 1e3 for ms, mhz in zip(measurement.samples_ms, clocks, strict=False)]
    known = [one.reasons for one in rounds if one.reasons is not None]
    reasons = dict.fromkeys(reason for found in known for reason in found)
    return {
        "median_mcycles": median(cycles) if cycles else None,
        "sm_mhz": median(clocks) if clocks else None,
        "power_w": median(powers) if powers else None,
        "temperature_c": max((one.temperature_c for one in rounds if one.temperature_c is not None), default=None),
        "throttle": (", ".join(reasons) or "none") if known else None,
        "throttled": bool(measurement.throttled),
        "retakes": len(measurement.retaken),
    }


def _by_sample(rounds: Iterable[tuple[int, float | None]]) -> list[float]:
    """The value of each sample, which is its round's; empty where one is unknown."""
    values: list[float] = []
    for samples, value in rounds:
        if value is None:
            return []
        values += [value] * samples
    return values


def _place(measurement: Measurement, time_ms: float | None, ceilings: Ceilings) -> Roof | None:
    """Under the roof; None without a time, a ledger, or a ceiling for this dtype."""
    cost = measurement.cost
    if time_ms is None or cost.executed_flops <= 0 or cost.bytes <= 0:
        return None
    return roof(measurement.launches, measurement.case.problem.dtype, ceilings, time_ms / 1e3)


def _reason(measurement: Measurement, under: Roof | None, host_bound: bool) -> str | None:
    """Why there is no number; else why it cannot be trusted, or what a reader of it has to know."""
    if measurement.status != "ok":
        return measurement.message or "no reason was recorded"
    if above_roof(under) or measurement.message:
        return above_roof(under) or measurement.message
    remarks = [*_throttling(measurement), *([HOST_BOUND_TEXT] if host_bound else [])]
    if measurement.timer_reason:
        remarks.append(f"timed by {measurement.timer}, not as a CUDA graph: {measurement.timer_reason}")
    if measurement.order not in (None, INTERLEAVED):
        remarks.append(f"sampled {measurement.order}")
    return "; ".join(remarks) or None


def _throttling(measurement: Measurement) -> list[str]:
    """What the samples suffered from slowdowns of the GPU, or what was done that they did not."""
    slow, again = [one for one in measurement.rounds if one.slowdowns], measurement.retaken
    remarks = []
    if slow:
        number = f"{sum(one.samples for one in slow)} of {len(measurement.samples_ms)} samples"
        remarks.append(f"throttled: {number} under {', '.join(measurement.throttled)}, after {len(again)} retakes")
    elif again:
        why = ", ".join(dict.fromkeys(reason for one in again for reason in one.slowdowns))
        remarks.append(f"retaken: {len(again)} round{'s' * (len(again) > 1)} of samples under {why}")
    return remarks
