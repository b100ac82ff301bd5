"""What the page says of several runs together, before it says what each of them says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from powerbench.reports.comparison import Comparison, comparison
from powerbench.reports.comparison_figures import change_chart, overlay
from powerbench.reports.curves import Group, Setting
from powerbench.reports.facets import setting_facets
from powerbench.reports.payload import Payload
from powerbench.reports.stills import Stills
from powerbench.reports.style import Style
from powerbench.reports.view import Plot, View


@dataclass(frozen=True)
class Difference:
    """The first run against one of the others."""

    comparison: Comparison
    plot: Plot | None
    baseline: View
    new: View


@dataclass(frozen=True)
class Overlay:
    """A setting that several runs measured."""

    name: str
    facets: int
    look: list[tuple[str, Style]]
    plot: Plot


@dataclass(frozen=True)
class Versus:
    """Several runs together."""

    differences: list[Difference]
    overlays: list[Overlay]


def versus(views: Sequence[View], look: dict[str, Style], payload: Payload, stills: Stills) -> Versus | None:
    """Every run against the first, and the settings that several share; None of a single run."""
    if len(views) < 2:
        return None
    baseline = views[0]
    differences = []
    for new in views[1:]:
        found = comparison(baseline.run, new.run, (baseline.name, new.name), (baseline.rows, new.rows))
        chart = change_chart(found)
        plot = None
        if chart:
            id = f"{new.id}-{chart.name}"
            plot = Plot(id, chart, stills.take(id, chart))
            payload.add_figure(id, chart, {"": new.run.header})
        differences.append(Difference(found, plot, baseline, new))
    return Versus(differences, _overlays(views, look, payload, stills))


def _overlays(views: Sequence[View], look: dict[str, Style], payload: Payload, stills: Stills) -> list[Overlay]:
    shared: dict[Setting, list[tuple[View, Group, str]]] = {}
    for view in views:
        for section in view.sections:
            if section.group.curves:
                shared.setdefault(section.group.setting, []).append((view, section.group, section.name))
    result = []
    for number, (setting, members) in enumerate(shared.items(), start=1):
        if len(members) < 2:
            continue
        chart = overlay([(view.short, group) for view, group, _ in members], look)
        id = f"all-{number}-{chart.name}"
        headers = {view.short: view.run.header for view, _, _ in members}
        payload.add_figure(id, chart, headers)
        labels = dict.fromkeys(curve.label for _, group, _ in members for curve in group.curves)
        result.append(
            Overlay(
                members[0][2],
                payload.facets(setting_facets(setting)),
                [(label, look[label]) for label in labels],
                Plot(id, chart, stills.take(id, chart)),
            )
        )
    return result
