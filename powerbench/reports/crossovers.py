"""Every two contestants of every setting: where one passes the other, how sure that is, and what is predicted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from typing import ClassVar

import msgspec

from powerbench.costmodel import CostModel, Prediction
from powerbench.crossover import Crossover, context_text, percent_text
from powerbench.reports.curves import Curve, Group, Setting, groups, pairs, setting_names
from powerbench.reports.predictions import model, model_text, prediction, prediction_text
from powerbench.reports.rows import rows
from powerbench.reports.text import Column, or_empty, telling
from powerbench.results.model import Run

CROSSOVER_LEGEND = (
    "One contestant is faster than another beyond the noise. In brackets: the 95 % interval, of the noise and of how "
    "the curves may bend between measured contexts. level: as fast within the noise. Predictions are the cost model's, "
    "beyond the measured contexts."
)
MODEL_LEGEND = (
    "Time of a call = launch + linear (bytes) + quadratic (FLOPs) terms of the ledger, fitted to the measured medians. "
    "Missed by: predicted over measured time, less 1. By more than 25 %: nothing is predicted from it."
)


class Pair(msgspec.Struct, frozen=True):
    """Two contestants in one setting, the one that is faster at their largest shared context first.

    host_bound_up_to: the largest shared context at which one of the two is, so that a user waits longer than its time.
    """

    name: str  # of the setting
    setting: Setting
    faster: str
    slower: str
    crossover: Crossover
    host_bound_up_to: int | None
    prediction: Prediction | None

    @property
    def may_cross(self) -> bool:
        """They share two contexts or more: one may pass the other between them."""
        return len(self.crossover.contexts) > 1

    @property
    def predicted_text(self) -> str:
        """The prediction in words; empty without one."""
        return prediction_text(self.prediction) if self.prediction else ""


class ModelRow(msgspec.Struct, frozen=True):
    """A contestant's fitted cost model, in words."""

    name: str  # of the setting
    label: str
    terms: str
    error: str
    residuals: str  # by context
    legend: ClassVar[str] = MODEL_LEGEND


def crossover_table(run: Run) -> list[Pair]:
    """Every two curves of every setting, once."""
    found = groups(rows(run))
    return [
        Pair(name, group.setting, first.label, second.label, between, _host_bound_up_to(first, second, between),
             prediction(first, second) if len(between.contexts) > 1 else None)
        for group, name in zip(found, setting_names(found), strict=True)
        for first, second, between in pairs(group.curves)
    ]  # fmt: skip


def model_table(found: Iterable[Group], names: Iterable[str]) -> list[ModelRow]:
    """The cost model of every curve that has one."""
    modelled = [
        (name, curve.label, model(curve)) for group, name in zip(found, names, strict=True) for curve in group.curves
    ]
    return [_model_row(name, label, known) for name, label, known in modelled if known is not None]


def crossover_records(run: Run) -> list[dict[str, object]]:
    """One record a crossing, in the order of CROSSOVER_COLUMNS; a pair without one has one record, without a place."""
    return [record for pair in crossover_table(run) for record in _records(pair)]


def crossover_columns(found: list[Pair]) -> list[Column[Pair]]:
    """The columns of the crossovers' table that say something."""
    several = len({pair.name for pair in found}) > 1
    all_columns: list[Column[Pair]] = [
        Column("setting", lambda pair: pair.name if several else "", is_number=False),
        Column("contestant", lambda pair: pair.faster, is_number=False),
        Column("against", lambda pair: pair.slower, is_number=False),
        Column("is faster", lambda pair: pair.crossover.text, is_number=False),
        Column("times as fast at the end", lambda pair: or_empty(pair.crossover.speedup, lambda x: f"{x:.3g}")),
        Column("host bound up to", lambda pair: or_empty(pair.host_bound_up_to, context_text)),
        Column("predicted to be passed", lambda pair: pair.predicted_text, is_number=False),
    ]
    return telling(all_columns, found)


def model_columns(found: list[ModelRow]) -> list[Column[ModelRow]]:
    """The columns of the cost models' table."""
    several = len({row.name for row in found}) > 1
    all_columns: list[Column[ModelRow]] = [
        Column("setting", lambda row: row.name if several else "", is_number=False),
        Column("contestant", lambda row: row.label, is_number=False),
        Column("cost model", lambda row: row.terms, is_number=False),
        Column("error", lambda row: row.error),
        Column("missed by", lambda row: row.residuals, is_number=False),
    ]
    return telling(all_columns, found)


_SETTING_COLUMNS = ("pass", "dtype", "head_dim", "value_dim", "heads", "kv_heads", "gated", "batch")
CROSSOVER_COLUMNS = (
    *_SETTING_COLUMNS,
    *("faster", "slower", "verdict", "ctx_from", "ctx_to", "crossing_ctx", "ci_low_ctx", "ci_high_ctx", "leader"),
    *("level_at", "speedup_at_end", "host_bound_up_to", "predicted_ctx", "predicted_low_ctx", "predicted_high_ctx"),
    "model_error",
)


def _records(pair: Pair) -> list[dict[str, object]]:
    between, expected = pair.crossover, pair.prediction
    ends = (between.contexts[0], between.contexts[-1]) if between.contexts else (None, None)
    predicted = (expected.at, expected.low, expected.high, expected.error) if expected else (None,) * 4
    level = " ".join(map(str, between.level_at)) or None
    setting = astuple(pair.setting)
    rest = (level, between.speedup, pair.host_bound_up_to, *predicted)
    places: list[tuple[object, ...]] = [
        (place.at, place.low, place.high, pair.faster if place.leader == 1 else pair.slower)
        for place in between.crossings
    ]
    lines = [
        (*setting, pair.faster, pair.slower, between.verdict, *ends, *place, *rest)
        for place in places or [(None, None, None, None)]
    ]
    return [dict(zip(CROSSOVER_COLUMNS, line, strict=True)) for line in lines]


def _host_bound_up_to(first: Curve, second: Curve, between: Crossover) -> int | None:
    bound = [ctx for ctx in between.contexts if first.points[ctx].host_bound or second.points[ctx].host_bound]
    return max(bound, default=None)


def _model_row(name: str, label: str, known: CostModel) -> ModelRow:
    missed = sorted(known.residuals.items())
    words = [f"{context_text(ctx)} {'+' if miss > 0 else '-'}{percent_text(abs(miss))}" for ctx, miss in missed]
    return ModelRow(name, label, model_text(known), percent_text(known.error), ", ".join(words))
