"""The weight-state ratio in measured time: a run's attention against the weights' matmuls at the run's own ceiling.

Attention's time is scaled from the run's heads to the model's, and to its layers; the weights are taken to run at the
measured matmul rate, which real ones do not quite reach. So the ratio is a lower bound of what a model would show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from powerbench.crossover import crossover
from powerbench.models import Model
from powerbench.reports.curves import Group, groups, setting_names
from powerbench.reports.rows import Row, rows
from powerbench.results.model import Run

# FLOPs of the weights' matmuls in each pass, in forwards: a backward has two products for each of the forward's.
_PASS_FLOPS = {"fwd": 1, "bwd": 2, "fwd+bwd": 3}


class MeasuredRow(msgspec.Struct, frozen=True, rename={"pass_": "pass"}):
    """One measured case as part of a model; times in microseconds a token of the whole model.

    The field names (with `pass`) are columns and a contract; new ones go to the end.
    """

    model: str
    device: str
    kernel: str
    p: int | None
    d_tile: int | None
    chunk_size: int | None
    pass_: str
    dtype: str
    ctx: int
    batch: int
    heads: int  # those that were measured
    kv_heads: int
    weights_us: float  # weight FLOPs over the run's measured matmul rate
    attention_us: float  # median, scaled to the model's heads and layers
    time_ratio: float  # weights over attention
    low: float | None  # 95 % interval of time_ratio, from that of the median
    high: float | None
    label: str  # of the curve it is on


@dataclass(frozen=True)
class MeasuredSetting:
    """One setting of one run, as part of a model."""

    name: str
    curves: dict[str, list[MeasuredRow]]  # label -> rows by context

    @property
    def sentences(self) -> list[str]:
        """From which context on attention takes longer than the weights, once for all kernels with the same answer."""
        found: dict[str, list[str]] = defaultdict(list)
        for label, points in self.curves.items():
            found[_verdict(points)].append(label)
        return [f"With {'; '.join(labels)}: {verdict}." for verdict, labels in found.items()]


def measured_settings(run: Run, model: Model, prefix: str = "") -> list[MeasuredSetting]:
    """The run's settings that have the model's head dimension and a matmul ceiling of their dtype.

    `prefix` begins the settings' names, where there are several runs. Of each kernel and degree, at each context the
    fastest d_tile and chunk.
    """
    found = groups(rows(run))
    result = []
    for group, name in zip(found, setting_names(found), strict=True):
        rate = run.ceilings.matmul_flops_per_s.get(group.setting.dtype)
        dims = (group.setting.head_dim, group.setting.value_dim)
        fits = dims == (model.head_dim, model.head_dim) and group.setting.pass_ in _PASS_FLOPS
        if rate is None or not fits or not group.curves:
            continue
        device = run.header.environment.device
        curves = {
            curve.label: [_row(row, model, rate, device, curve.label) for row in curve.points.values()]
            for curve in group.curves
        }
        result.append(MeasuredSetting(_setting_name(group, name, prefix), curves))
    return result


def _setting_name(group: Group, name: str, prefix: str) -> str:
    details = "" if group.setting.details in name else f", measured with {group.setting.details}"
    return f"{prefix}{name}{details}"


def _row(row: Row, model: Model, flops_per_s: float, device: str, label: str) -> MeasuredRow:
    assert row.median_ms is not None  # curves hold rows with a time only
    scale = 1e3 / (row.batch * row.ctx) * model.layers * model.heads / row.heads  # ms of a call -> us a token
    weights_us = _PASS_FLOPS[row.pass_] * 2 * model.weights / flops_per_s * 1e6
    low_ms, high_ms = row.interval_ms or (None, None)
    return MeasuredRow(
        model=model.name,
        device=device,
        kernel=row.kernel,
        p=row.p,
        d_tile=row.d_tile,
        chunk_size=row.chunk_size,
        pass_=row.pass_,
        dtype=row.dtype,
        ctx=row.ctx,
        batch=row.batch,
        heads=row.heads,
        kv_heads=row.kv_heads,
        weights_us=weights_us,
        attention_us=row.median_ms * scale,
        time_ratio=weights_us / (row.median_ms * scale),
        low=None if high_ms is None else weights_us / (high_ms * scale),
        high=None if low_ms is None else weights_us / (low_ms * scale),
        label=label,
    )


def _verdict(found: Sequence[MeasuredRow]) -> str:
    # the weights' time is computed, not sampled: a place without an interval
    weights = {row.ctx: ((row.weights_us,),) for row in found}
    between = crossover(weights, {row.ctx: ((row.attention_us,),) for row in found})
    match between.verdict:
        case "always":
            return f"attention takes longer than the weights at every measured context ({between.range_text})"
        case "never":
            return f"attention takes less time than the weights at every measured context ({between.range_text})"
        case "unknown":
            longer = "longer" if (between.speedup or 0) > 1 else "less time"
            return f"attention takes {longer} than the weights at {between.range_text}"
    return f"attention takes longer than the weights {between.text}"
