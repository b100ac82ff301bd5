"""The page's section on the balance of weights and state, made ready for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from powerbench.crossover import context_text
from powerbench.reports.payload import Payload
from powerbench.reports.stills import Stills
from powerbench.reports.style import Style
from powerbench.reports.tables import csv_text
from powerbench.reports.view import Plot
from powerbench.reports.wsfr import WsfrSection, section
from powerbench.results.model import Run
from powerbench.wsfr import ratio_text


@dataclass(frozen=True)
class ModelView:
    """One model: its answers, figures, and its ratios as a table of attention by context."""

    id: str
    part: WsfrSection
    look: list[tuple[str, Style]]
    plots: list[Plot]
    contexts: list[str]
    lines: list[tuple[str, list[str]]]  # attention, its ratio at each context


def models(runs: Sequence[Run], payload: Payload, stills: Stills) -> list[ModelView]:
    """One view a model of `wsfr.section`; figures and frames go into `payload`."""
    result = []
    for number, part in enumerate(section(runs), start=1):
        id = f"model{number}"
        plots = []
        for chart in part.charts:
            plot = Plot(f"{id}-{chart.name}", chart, stills.take(f"{id}-{chart.name}", chart))
            payload.add_figure(plot.id, chart, {})
            plots.append(plot)
        payload.add_csv(f"{id}-csv", csv_text(part.frame, float_format="%.6g"))
        if not part.measured_frame.empty:
            payload.add_csv(f"{id}-measured-csv", csv_text(part.measured_frame, float_format="%.6g"))
        contexts = [context_text(ctx) for ctx in part.analysis.contexts]
        result.append(ModelView(id, part, part.look, plots, contexts, _lines(part)))
    return result


def _lines(part: WsfrSection) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for row in part.analysis.rows:
        found.setdefault(row.attention, []).append(ratio_text(row.wsfr))
    return list(found.items())
