"""The page's figures as files: PNG, SVG and PDF by matplotlib, for papers and slides."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

from powerbench import outputs
from powerbench.reports.chart import Chart
from powerbench.reports.comparison import comparison
from powerbench.reports.comparison_figures import change_chart, overlay
from powerbench.reports.curves import Group, Setting, groups, setting_names
from powerbench.reports.figures import charts
from powerbench.reports.matplotlib_chart import figure
from powerbench.reports.phases import phase_rows
from powerbench.reports.roofline_figure import roofline
from powerbench.reports.rows import Row, rows
from powerbench.reports.style import Style, styles
from powerbench.reports.wsfr import section
from powerbench.results.model import Run

# format -> metadata without the time, so that the same run gives the same files
FORMATS: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_static(
    runs: Sequence[Run], folder: Path, *, only: str | None = None, formats: Collection[str] = tuple(FORMATS)
) -> list[Path]:
    """Write every figure of every run, each as PNG, SVG and PDF, into `folder`, which is made; returns the files.

    Names begin with the setting, with several runs with the run's number; those of several runs together with all-runs
    or runN-against-run1, those of the weight-state ratio with wsfr and the model. A run without a time to trust gives
    no figures of its own. only: the name of a single figure, without its suffix; formats: of FORMATS. Raises
    OutputError when a file cannot be written, or is that of a run.
    """
    outputs.make_folder(folder)
    inputs, written = [run.path for run in runs], []
    for name, where, chart in _charts(runs):
        if only not in (None, name):
            continue
        # 42: fonts as TrueType, which journals ask for; 3 is matplotlib's own default
        with mpl.rc_context({"pdf.fonttype": 42, "svg.hashsalt": name}):
            drawn = figure(chart, f"{chart.title}: {where}" if where else chart.title)
            for suffix in formats:
                path, drawing = folder / f"{name}.{suffix}", io.BytesIO()
                drawn.savefig(drawing, format=suffix, dpi=200, metadata=FORMATS[suffix] or None)
                outputs.write(path, drawing.getvalue(), inputs=inputs)
                written.append(path)
    return written


def _charts(runs: Sequence[Run]) -> Iterator[tuple[str, str, Chart]]:
    """A file name, what the figure is of in words, and the figure."""
    all_rows = [rows(run) for run in runs]
    found = [groups(of_run) for of_run in all_rows]
    look = styles([group for of_run in found for group in of_run])
    if len(runs) > 1:
        yield from _of_all(runs, all_rows, found, look)
    for number, (run, of_run) in enumerate(zip(runs, found, strict=True), start=1):
        prefix = f"run{number}-" if len(runs) > 1 else ""
        for name, setting, chart in _of_run(run, of_run, look):
            yield f"{prefix}{name}", setting, chart
    for part in section(runs):
        for chart in part.charts:
            of_model = part.model.name if part.model.name not in chart.title else ""
            yield f"wsfr-{_slug(part.model.name)}-{chart.name.removeprefix('wsfr-')}", of_model, chart


def _of_all(
    runs: Sequence[Run], all_rows: Sequence[list[Row]], found: Sequence[Sequence[Group]], look: Mapping[str, Style]
) -> Iterator[tuple[str, str, Chart]]:
    """The change of every case from the first run to each other one, and the settings that several runs measured."""
    names = [f"run {number}" for number in range(1, len(runs) + 1)]
    for number in range(1, len(runs)):
        against = comparison(runs[0], runs[number], (names[0], names[number]), (all_rows[0], all_rows[number]))
        changes = change_chart(against)
        if changes:
            yield f"run{number + 1}-against-run1-{_slug(changes.name)}", f"{names[number]} against {names[0]}", changes
    shared: dict[Setting, tuple[str, list[tuple[str, Group]]]] = {}
    for run, of_run in zip(names, found, strict=True):
        for group, setting in zip(of_run, setting_names(of_run), strict=True):
            if group.curves:
                shared.setdefault(group.setting, (setting, []))[1].append((run, group))
    for setting, members in shared.values():
        if len(members) > 1:
            yield f"all-runs-{_slug(setting)}-overlay", setting, overlay(members, look)


def _of_run(run: Run, found: Sequence[Group], look: Mapping[str, Style]) -> Iterator[tuple[str, str, Chart]]:
    phases = phase_rows(run)
    for group, setting in zip(found, setting_names(found), strict=True):
        for chart in charts(group, look, phases):
            yield f"{_slug(setting)}-{_slug(chart.name)}", setting, chart
    whole = roofline(found, run.ceilings, look, phases)
    if whole:
        yield whole.name, run.header.environment.device, whole


def _slug(text: str) -> str:
    """A file name's part: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("+", " plus ")).strip("-") or "figure"
