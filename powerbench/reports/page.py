"""The report: runs as one HTML file that needs no network, no server and, for its words and tables, no scripts.

What comes from a run is escaped by jinja2, and as JSON by `_script_json`. The page's content security policy allows
nothing but its own two scripts, by their hashes: should an escape ever be missed, it still could not run or load.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from powerbench.crossover import context_text, percent_text
from powerbench.reports.answers import Answer, Pair, answers, crossover_table, gaps, setting_names
from powerbench.reports.cases import CaseTable, case_table, phase_table
from powerbench.reports.curves import Group, groups
from powerbench.reports.figures import Drawn, draw
from powerbench.reports.frames import tidy, tidy_phases
from powerbench.reports.machine import ceiling_facts, gpu_facts
from powerbench.reports.phases import PhasesByCase, phase_rows
from powerbench.reports.rows import Row, rows
from powerbench.reports.style import Style, styles
from powerbench.reports.text import si, significant
from powerbench.reports.tiles import TileMap, tile_maps
from powerbench.results.model import Environment, Run
from powerbench.roofline import Ceilings

_GIB = 2**30


@dataclass(frozen=True)
class Plot:
    """A figure's place on the page."""

    id: str
    drawn: Drawn


@dataclass(frozen=True)
class Section:
    """One setting: its figures and its maps of d_tile and chunk, by contestant."""

    name: str
    group: Group
    look: list[tuple[str, Style]]
    plots: list[Plot]
    tiles: list[tuple[str, list[TileMap]]]
    gaps: str | None


@dataclass(frozen=True)
class View:
    """What the template says of one run."""

    id: str
    run: Run
    facts: str
    warnings: list[str]
    answers: list[Answer]
    sections: list[Section]
    pairs: list[Pair]
    cases: CaseTable
    csv: str
    phases: CaseTable | None  # None where no phase was timed
    phases_csv: str
    environment: list[tuple[str, str]]
    ceilings: list[tuple[str, str]]


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write the report of one or more runs; the file appears whole or not at all.

    Raises ValueError without a run, OSError when the file cannot be written.
    """
    text = page(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def page(runs: Sequence[Run]) -> str:
    """The report as HTML. Raises ValueError without a run."""
    if not runs:
        raise ValueError("a report needs at least one run")
    views = [_view(f"run{i}", run) for i, run in enumerate(runs, start=1)]
    figures = {
        plot.id: plot.drawn.figure.to_plotly_json() for view in views for part in view.sections for plot in part.plots
    }
    texts = _share_texts(figures.values())
    scripts = [_inline("plotly-cartesian.min.js"), _inline("page.js")] if figures else [_inline("page.js")]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("powerbench.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent_text, significant=significant, context=context_text, safe_json=_script_json
    )
    devices = dict.fromkeys(run.header.environment.device for run in runs)
    return environment.get_template("page.html.j2").render(
        title=f"Attention on {' and '.join(devices)}",
        views=views,
        figures=_script_json({"figures": figures, "texts": texts}),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        style=Markup(_asset("page.css")),
    )


def _share_texts(figures: Iterable[dict[str, Any]]) -> list[str]:
    """Replace each point's hover text by its index in the list returned: most stand in several figures."""
    places: dict[str, int] = {}
    for figure in figures:
        for trace in figure["data"]:
            if "text" in trace:
                trace["text"] = [places.setdefault(text, len(places)) for text in trace["text"]]
    return list(places)


def _view(id: str, run: Run) -> View:
    all_rows = rows(run)
    found = groups(all_rows)
    look = styles(found)
    names = setting_names(found)
    phases = phase_rows(run)
    sections = [
        _section(f"{id}-{i}", name, group, look, run.ceilings, phases)
        for i, (group, name) in enumerate(zip(found, names, strict=True), start=1)
    ]
    return View(
        id=id,
        run=run,
        facts=_facts(run, all_rows),
        warnings=[*run.warnings, *run.spoilers, *_invalid_warning(all_rows), *_throttled_warning(all_rows)],
        answers=answers(run),
        sections=sections,
        pairs=crossover_table(run),
        cases=case_table(found),
        csv=tidy(run).to_csv(index=False, float_format="%.6g"),
        phases=phase_table(found, phases) if phases else None,
        phases_csv=tidy_phases(run).to_csv(index=False, float_format="%.6g"),
        environment=_environment(run),
        ceilings=_ceilings(run.ceilings, run.header.environment.device),
    )


def _section(
    id: str, name: str, group: Group, look: dict[str, Style], ceilings: Ceilings, phases: PhasesByCase
) -> Section:
    return Section(
        name=name,
        group=group,
        look=[(curve.label, look[curve.label]) for curve in group.curves],
        plots=[Plot(f"{id}-{drawn.name}", drawn) for drawn in draw(group, ceilings, look, phases)],
        tiles=[(label, list(maps)) for label, maps in groupby(tile_maps(group.rows), key=lambda tiles: tiles.label)],
        gaps=gaps(group),
    )


def _facts(run: Run, all_rows: Sequence[Row]) -> str:
    """One line under the title: what ran when, and how many cases came out how."""
    header = run.header
    counts = Counter(row.status if row.valid or row.status != "ok" else "above the roof" for row in all_rows)
    cases = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none yet"
    started = header.started.replace("T", " ").replace("Z", " UTC")
    return f"Suite {header.suite}; {started}; {len(all_rows)} cases: {cases}"


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


def _environment(run: Run) -> list[tuple[str, str]]:
    machine: Environment = run.header.environment
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    cores = "threads" if machine.device_type == "cpu" else "multiprocessors"
    pairs: list[tuple[str, str | None]] = [
        ("Device", f"{machine.device}, {machine.cores} {cores}, {machine.memory_bytes / _GIB:.0f} GiB"),
        ("CPU", machine.cpu),
        ("Driver", machine.driver),
        *gpu_facts(machine),
        ("System", f"{machine.os}, Python {machine.python}"),
        ("Packages", packages),
        ("powerbench", f"{machine.powerbench}, commit {machine.commit or 'unknown'}"),
        ("Run", f"suite {run.header.suite}, seed {run.header.seed}, started {run.header.started}"),
        ("File", run.path),
    ]
    return [(name, value) for name, value in pairs if value]


def _ceilings(ceilings: Ceilings, device: str) -> list[tuple[str, str]]:
    matmul = [
        (f"{dtype} matmul", f"{significant(rate / 1e12)} TFLOP/s, above {significant(rate / ceilings.copy_bytes_per_s)}"
         " FLOP/byte")
        for dtype, rate in ceilings.matmul_flops_per_s.items()
    ]  # fmt: skip
    copy = ("Copy bandwidth", f"{si(ceilings.copy_bytes_per_s, ' ')}B/s")
    return [*matmul, copy, ("Source", ceilings.source), *ceiling_facts(ceilings, device)]


def _asset(name: str) -> str:
    return resources.files("powerbench.reports").joinpath("assets", name).read_text(encoding="utf-8")


def _inline(name: str) -> str:
    """A script's text that cannot end its own element."""
    return _asset(name).replace("\r\n", "\n").replace("</script", "<\\/script")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing may be loaded, and only these scripts may run; style elements and data: images are plotly's."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element whatever it holds."""
    text = msgspec.json.encode(value).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
