"""The page's section on the weight-state FLOP ratio: for each model its answers, figures, legend and tidy frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from powerbench.models import DEFAULT, Model, presets
from powerbench.reports.chart import Chart
from powerbench.reports.style import COLORS, DASHES, MARKERS, Style
from powerbench.reports.wsfr_figures import cache_figure, degree_figure, measured_figure, ratio_figure
from powerbench.reports.wsfr_frame import tidy_measured, tidy_wsfr
from powerbench.reports.wsfr_measured import MeasuredSetting, measured_settings
from powerbench.reports.wsfr_rows import Analysis
from powerbench.results.model import Run
from powerbench.wsfr import variants

# The models a page speaks of, where the runs have their head dimension: 64 and 128.
MODELS = ("gpt2-xl", DEFAULT)
CONTEXTS = tuple(1024 << i for i in range(11))  # 1k to 1m


@dataclass(frozen=True)
class WsfrSection:
    """One model's part of the section; `look` is the legend of its figures, as a setting's on the page is."""

    model: Model
    analysis: Analysis
    answers: list[str]
    measured: list[MeasuredSetting]
    charts: list[Chart]
    look: list[tuple[str, Style]]
    frame: pd.DataFrame  # `tidy_wsfr`
    measured_frame: pd.DataFrame  # `tidy_measured`; empty where the runs have nothing of this head dimension


def section(runs: Sequence[Run], models: Sequence[Model] | None = None) -> list[WsfrSection]:
    """A part for each model; `models` None: those of MODELS whose head dimension was measured, else the default one.

    With several runs the names of what was measured begin with the device, or with the run's number where two are of
    the same device; a kernel looks the same in all.
    """
    if models is None:
        found = presets()
        dims = {measurement.case.problem.head_dim for run in runs for measurement in run.measurements}
        models = [found[name] for name in MODELS if found[name].head_dim in dims] or [found[DEFAULT]]
    return [_section(runs, model) for model in models]


def _section(runs: Sequence[Run], model: Model) -> WsfrSection:
    analysis = Analysis(model, variants(model), CONTEXTS)
    settings = [
        setting
        for run, prefix in zip(runs, _prefixes(runs), strict=True)
        for setting in measured_settings(run, model, prefix)
    ]
    look = _styles([*(variant.name for variant in analysis.variants), *(label for s in settings for label in s.curves)])
    charts = [ratio_figure(analysis, look), degree_figure(analysis, look), cache_figure(analysis, look)]
    charts += [measured_figure(setting, look, number) for number, setting in enumerate(settings, start=1)]
    rows = [row for setting in settings for curve in setting.curves.values() for row in curve]
    return WsfrSection(
        model=model,
        analysis=analysis,
        answers=[*analysis.sentences, *(f"{s.name}. {' '.join(s.sentences)}" for s in settings)],
        measured=settings,
        charts=charts,
        look=list(look.items()),
        frame=tidy_wsfr([analysis]),
        measured_frame=tidy_measured(rows),
    )


def _prefixes(runs: Sequence[Run]) -> list[str]:
    if len(runs) < 2:
        return [""] * len(runs)
    devices = [run.header.environment.device for run in runs]
    if len(set(devices)) == len(devices):
        return [f"{device}: " for device in devices]
    return [f"run {number}: " for number in range(1, len(runs) + 1)]


def _styles(labels: Iterable[str]) -> dict[str, Style]:
    return {
        label: Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], DASHES[(i // len(COLORS)) % len(DASHES)])
        for i, label in enumerate(dict.fromkeys(labels))
    }
