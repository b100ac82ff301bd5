"""What a point of a figure says of itself, in the little HTML that plotly reads: texts of a run are escaped."""

from __future__ import annotations

from collections.abc import Callable

from powerbench.crossover import context_text, percent_text
from powerbench.printable import plotly_text
from powerbench.reports.curves import PASS_WORDS
from powerbench.reports.phases import PhaseRow
from powerbench.reports.rows import Row
from powerbench.reports.text import si, significant


def hover(about: Row | PhaseRow) -> str:
    """Name, problem, time and spread, rate, place under the roof, configuration, status."""
    return _phase(about) if isinstance(about, PhaseRow) else _case(about)


def _case(row: Row) -> str:
    lines = [
        f"<b>{plotly_text(row.kernel)}</b> {row.params_text}",
        _problem(row),
        f"{_known(row.median_ms, significant)} ms{_interval(row)}, n = {row.n}{_visits(row)}",
        f"{_known(row.tokens_per_s, si)} tokens/s",
    ]
    if row.intensity is not None:
        lines.append(f"{significant(row.intensity)} FLOP/byte{f', {row.bound} bound' if row.bound else ''}")
    if row.executed_tflops is not None:
        lines.append(
            f"{significant(row.executed_tflops)} executed TFLOP/s, {_known(row.useful_tflops, significant)} useful"
        )
    if row.roof_fraction is not None:
        lines.append(
            f"{percent_text(row.roof_fraction)} of roof, MFU {_known(row.mfu, percent_text)}, "
            f"HFU {_known(row.hfu, percent_text)}"
        )
    if row.sm_mhz is not None:
        clock = f"{_known(row.median_mcycles, significant)} Mcycles at {row.sm_mhz:.0f} MHz"
        lines.append(
            f"{clock}, {_known(row.power_w, '{:.0f} W'.format)}, {_known(row.temperature_c, '{:.0f} °C'.format)}"
        )
    if row.throttled:
        lines.append(f"<b>throttled</b>: {plotly_text(row.throttle or '')}")
    if row.config:
        lines.append(plotly_text(row.config))
    status = f"status {row.status}" if row.valid else f"<b>{'invalid' if row.status == 'ok' else row.status}</b>"
    lines.append(f"{status}: {plotly_text(row.reason)}" if row.reason else status)
    return "<br>".join(lines)


def _phase(phase: PhaseRow) -> str:
    case = phase.case
    share = f", {percent_text(phase.share)} of the whole call" if phase.share is not None else ""
    lines = [
        f"<b>{plotly_text(phase.phase)}</b> of {plotly_text(case.kernel)} {case.params_text}",
        _problem(case),
        f"{_known(phase.median_ms, significant)} ms{_interval(phase)} alone, n = {phase.n}{share}",
    ]
    if phase.gb_per_s is not None:
        work = [f"{significant(phase.executed_tflops)} executed TFLOP/s"] if phase.executed_tflops else []
        lines.append(", ".join([*work, f"{significant(phase.gb_per_s)} GB/s"]))
    if phase.roof_fraction is not None:
        where = f"{significant(phase.intensity)} FLOP/byte, " if phase.intensity else ""
        lines.append(f"{where}{phase.bound} bound, {percent_text(phase.roof_fraction)} of roof")
    if phase.reason:
        lines.append(f"<b>{phase.state}: {plotly_text(phase.reason)}</b>")
    return "<br>".join(lines)


def _problem(row: Row) -> str:
    size = f"d = {row.head_dim}" + (f", values {row.value_dim}" if row.value_dim != row.head_dim else "")
    return (
        f"{context_text(row.ctx)} tokens, batch {row.batch}, {PASS_WORDS.get(row.pass_, row.pass_).lower()}, "
        f"{row.dtype}, {size}"
    )


def _visits(row: Row) -> str:
    return f" in {row.visits} visits" if row.visits > 1 else ""


def _interval(about: Row | PhaseRow) -> str:
    return " ({} to {})".format(*map(significant, about.interval_ms)) if about.interval_ms else ""


def _known(value: float | None, form: Callable[[float], str]) -> str:
    return "unknown" if value is None else form(value)
