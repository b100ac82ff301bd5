"""The report: runs as one HTML file that needs no network, no server and, for its words, tables and stills, no scripts.

What comes from a run is escaped by jinja2, or is inside the payload's base64. The page's content security policy allows
nothing but its own two scripts, by their hashes: should an escape ever be missed, it still could not run or load.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from powerbench.crossover import context_text, percent_text
from powerbench.printable import printable
from powerbench.reports.comparison import case_words
from powerbench.reports.curves import groups
from powerbench.reports.facets import SELECTORS, choices, row_facets
from powerbench.reports.payload import Payload
from powerbench.reports.rows import rows
from powerbench.reports.stills import Stills
from powerbench.reports.style import styles
from powerbench.reports.text import significant
from powerbench.reports.versus import versus
from powerbench.reports.view import view
from powerbench.reports.wsfr_view import models
from powerbench.results.model import Run

# The page's own script, in this order within one function; each file says what it is for.
SCRIPTS = ("figures.js", "point.js", "selectors.js", "tables.js", "start.js")

# Nothing is loaded, links are those of the page itself, and no form is sent anywhere.
LOCKED = "default-src 'none'; base-uri 'none'; form-action 'none'"


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write the report of one or more runs; the file appears whole or not at all.

    Raises ValueError without a run, OSError when the file cannot be written.
    """
    write_text(path, page(runs))


def write_text(path: Path, text: str) -> None:
    """Write a file, with its folder; it appears whole or not at all. Raises OSError."""
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
    payload, stills = Payload(), Stills()
    all_rows = [rows(run) for run in runs]
    found = [groups(of_run) for of_run in all_rows]
    look = styles([group for of_run in found for group in of_run])
    views = [
        view(number, *parts, look, payload, stills)
        for number, parts in enumerate(zip(runs, all_rows, found, strict=True), start=1)
    ]
    scripts = [_inline("plotly-cartesian.min.js"), _own_script()]
    devices = dict.fromkeys(run.header.environment.device for run in runs)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=f"Attention on {' and '.join(devices)}",
            views=views,
            versus=versus(views, look, payload, stills),
            models=models(runs, payload, stills),
            selectors=SELECTORS,
            choices=choices(row for one in views for row in one.rows),
            payload=payload,  # its text is asked for last, when the tables have added to it
            facets=row_facets,
            scripts=[Markup(script) for script in scripts],
            policy=_policy(scripts),
            style=asset("page.css"),
        )
    )


def environment() -> jinja2.Environment:
    """Where the templates are; whatever they are given is made printable and escaped."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("powerbench.reports"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(percent=percent_text, significant=significant, context=context_text, case_words=case_words)
    return found


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def asset(name: str) -> Markup:
    """A style sheet or script of the package, as it is."""
    return Markup(_text(name))


def _text(name: str) -> str:
    return resources.files("powerbench.reports").joinpath("assets", name).read_text(encoding="utf-8")


def _own_script() -> str:
    """One function, so that its names are its own and it may wait for the payload to be unpacked."""
    body = "\n".join(_inline(name) for name in SCRIPTS)
    return f'(async () => {{\n"use strict";\n{body}\n}})();'


def _inline(name: str) -> str:
    """A script's text that cannot end its own element."""
    return _text(name).replace("\r\n", "\n").replace("</script", "<\\/script")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing may be loaded, and only these scripts may run; style elements and data: images are plotly's."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"{LOCKED}; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
