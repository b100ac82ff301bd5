"""What the template says of one run, made ready: words, figures, tables, and their parts of the payload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from powerbench.reports.answers import Answer, answers, gaps
from powerbench.reports.cases import CaseTable, case_table, phase_table
from powerbench.reports.chart import Chart
from powerbench.reports.command import Stated, stated
from powerbench.reports.crossovers import ModelRow, Pair, crossover_table, model_table
from powerbench.reports.curves import Group, setting_names
from powerbench.reports.decoding import DecodeTable, decode_tables
from powerbench.reports.facets import setting_facets
from powerbench.reports.figures import charts
from powerbench.reports.frames import tidy_phases, tidy_rows
from powerbench.reports.machine import ceiling_lines, environment_lines
from powerbench.reports.payload import Payload
from powerbench.reports.phases import phase_rows
from powerbench.reports.roofline_figure import roofline
from powerbench.reports.rows import Row
from powerbench.reports.side_by_side import SettingTable, setting_table
from powerbench.reports.stills import Stills
from powerbench.reports.style import Style
from powerbench.reports.tables import csv_text
from powerbench.results.model import Run


@dataclass(frozen=True)
class Plot:
    """A figure's place on the page. `still`: the same as SVG, for paper and where scripts are off; None: too many."""

    id: str
    chart: Chart
    still: Markup | None


@dataclass(frozen=True)
class Section:
    """One setting: its contestants and figures. `more`: those that only who looks for them wants to see."""

    name: str
    group: Group
    facets: int
    look: list[tuple[str, Style]]
    plots: list[Plot]
    more: list[Plot]
    gaps: str | None

    @property
    def about(self) -> str:
        """What goes after the name: details that it does not have already, and how much a case works on."""
        setting = self.group.setting
        details = [] if setting.details in self.name else [setting.details]
        return ", ".join([*details, *([self.group.workload] if setting.batch is None else [])])


@dataclass(frozen=True)
class View:
    """What the template says of one run."""

    id: str
    short: str  # among several runs: run 2
    name: str
    run: Run
    look: list[tuple[str, Style]]
    rows: list[Row]
    facts: str
    warnings: list[str]
    answers: list[Answer]
    roofline: Plot | None
    sections: list[Section]
    decoding: list[DecodeTable]
    settings: SettingTable | None  # None: too few to be put beside each other
    pairs: list[Pair]  # those that may cross
    uncrossed: int  # number of the other pairs, which share a context at most
    models: list[ModelRow]  # the cost models behind predictions
    cases: CaseTable
    phases: CaseTable | None  # None where no phase was timed
    command: Stated
    environment: list[tuple[str, str]]
    ceilings: list[tuple[str, str]]


def view(
    number: int,
    run: Run,
    all_rows: list[Row],
    found: Sequence[Group],
    look: Mapping[str, Style],
    payload: Payload,
    stills: Stills,
) -> View:
    """The parts of one run, the page's `number`-th from 1, with its rows in their groups.

    `look` has every contestant of the page. Figures and data go into `payload`.
    """
    id, header = f"run{number}", run.header
    phases, pairs = phase_rows(run), crossover_table(run)

    def place(chart: Chart, section: str) -> Plot:
        plot = Plot(f"{section}-{chart.name}", chart, stills.take(f"{section}-{chart.name}", chart))
        payload.add_figure(plot.id, chart, {"": header})
        return plot

    whole = roofline(found, run.ceilings, look, phases)
    sections = []
    names = setting_names(found)
    roof_plot = place(whole, id) if whole else None
    for i, (group, name) in enumerate(zip(found, names, strict=True), start=1):
        drawn, more = _main_and_more(charts(group, look, phases))
        sections.append(
            Section(
                name=name,
                group=group,
                facets=payload.facets(setting_facets(group.setting)),
                look=[(curve.label, look[curve.label]) for curve in group.curves],
                plots=[place(chart, f"{id}-{i}") for chart in drawn],
                more=[place(chart, f"{id}-{i}") for chart in more],
                gaps=gaps(group),
            )
        )
    payload.add_csv(f"{id}-csv", csv_text(tidy_rows(all_rows), float_format="%.6g"))
    if phases:
        payload.add_csv(f"{id}-phases-csv", csv_text(tidy_phases(run), float_format="%.6g"))
    return View(
        id=id,
        short=f"run {number}",
        name=f"run {number}: {Path(run.path).name}, {header.environment.device}",
        run=run,
        look=[(label, look[label]) for label in dict.fromkeys(c.label for group in found for c in group.curves)],
        rows=all_rows,
        facts=_facts(run, all_rows),
        warnings=[*run.warnings, *run.spoilers, *_invalid_warning(all_rows), *_throttled_warning(all_rows)],
        answers=answers(run),
        roofline=roof_plot,
        sections=sections,
        decoding=decode_tables(run),
        settings=setting_table(found),
        pairs=[pair for pair in pairs if pair.may_cross],
        uncrossed=sum(not pair.may_cross for pair in pairs),
        models=model_table(found, names),
        cases=case_table(found),
        phases=phase_table(found, phases) if phases else None,
        command=stated(header),
        environment=environment_lines(run),
        ceilings=ceiling_lines(run.ceilings, header.environment.device),
    )


def _main_and_more(drawn: Sequence[Chart]) -> tuple[list[Chart], list[Chart]]:
    """Of the heat maps of a contestant only that of its largest context, the first, stands in the open."""
    main: list[Chart] = []
    more: list[Chart] = []
    seen: set[str] = set()
    for chart in drawn:
        contestant = chart.name.rpartition("-")[0] if chart.drawn_as == "cells" else chart.name
        (more if contestant in seen else main).append(chart)
        seen.add(contestant)
    return main, more


def _facts(run: Run, all_rows: Sequence[Row]) -> str:
    """One line under the title: what ran when, and how many cases came out how."""
    header = run.header
    counts = Counter(row.status if row.valid or row.status != "ok" else "above the roof" for row in all_rows)
    cases = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none yet"
    started = header.started.replace("T", " ").replace("Z", " UTC")
    return f"Suite {header.suite}; {started}; {len(all_rows)} cases: {cases}{_visits(all_rows)}"


def _visits(all_rows: Sequence[Row]) -> str:
    """How the intervals came about: those of a single visit say nothing of the next one."""
    numbers = sorted({row.visits for row in all_rows if row.visits})
    if not numbers:
        return ""
    if numbers == [1]:
        return "; in one visit each, whose intervals are of its samples only"
    return f"; in {' to '.join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))} visits each"


def _invalid_warning(all_rows: Sequence[Row]) -> list[str]:
    count = sum(row.status == "ok" and not row.valid for row in all_rows)
    if not count:
        return []
    verb = "case is" if count == 1 else "cases are"
    return [f"{count} {verb} above the roof, faster than the measured ceilings: crosses in the roofline, not compared."]


def _throttled_warning(all_rows: Sequence[Row]) -> list[str]:
    count = sum(row.throttled for row in all_rows)
    if not count:
        return []
    verb = "case was" if count == 1 else "cases were"
    return [f"{count} {verb} measured while the GPU throttled: slower than it is in good health; the tables say which."]
