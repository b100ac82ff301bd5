"""Several runs as a folder to send: a page for each, and an index page that says what they found and links them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from powerbench.crossover import context_text
from powerbench.errors import UserError
from powerbench.reports.answers import capital
from powerbench.reports.command import stated
from powerbench.reports.curves import PASS_WORDS
from powerbench.reports.headlines import headlines
from powerbench.reports.longest import COLUMNS
from powerbench.reports.page import LOCKED, asset, environment, write_page, write_text
from powerbench.reports.rows import Row, rows
from powerbench.reports.text import telling
from powerbench.results.model import Run
from powerbench.suites import load, presets

INDEX = "index.html"


@dataclass(frozen=True)
class Entry:
    """A run on the index."""

    run: Run
    name: str  # of its page, without .html
    suite: str | None  # of the presets
    purpose: str  # that of its suite; empty for a sweep of selectors
    shows: str
    holds: str  # what was measured, and how many cases came out how

    @property
    def page(self) -> str:
        """Where its page is, from the index on."""
        return f"{self.name}.html"


def write_index(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write the page of each run and the index into `folder`, which is made; returns the files, the index last.

    Raises UserError for runs whose pages would have the same name, OSError when the folder cannot be written.
    """
    files = []
    for run, name in zip(runs, page_names(runs), strict=True):
        write_page([run], folder / f"{name}.html")
        files.append(folder / f"{name}.html")
    write_text(folder / INDEX, index(runs))
    return [*files, folder / INDEX]


def index(runs: Sequence[Run]) -> str:
    """The index as HTML without scripts. Raises ValueError without a run, UserError as `write_index`."""
    if not runs:
        raise ValueError("an index needs at least one run")
    entries = [_entry(run, name) for run, name in zip(runs, page_names(runs), strict=True)]
    found = headlines(runs)
    devices = [one.device for one in found]
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            title=f"Attention on {' and '.join(devices)}",
            found=found,
            columns=[telling(COLUMNS, one.longest) for one in found],
            entries=[[entry for entry in entries if entry.run.header.environment.device == one] for one in devices],
            stated=stated,
            page={entry.run.path: entry for entry in entries},
            policy=f"{LOCKED}; style-src 'unsafe-inline'",
            style=asset("page.css") + asset("index.css"),
        )
    )


def page_names(runs: Sequence[Run]) -> list[str]:
    """A page's name for each run: that of its file, with that of its folder before it where there are several folders.

    Raises UserError where two would be the same, or the index.
    """
    paths = [Path(run.path) for run in runs]
    several = len({path.resolve().parent for path in paths}) > 1
    names = [f"{path.resolve().parent.name}-{path.stem}" if several else path.stem for path in paths]
    for name, count in Counter([*names, Path(INDEX).stem]).items():
        if count > 1:
            files = ", ".join(str(path) for path, own in zip(paths, names, strict=True) if own == name)
            raise UserError(f"{files}: the page would be {name}.html, which is taken; rename a run file or its folder")
    return names


def _entry(run: Run, name: str) -> Entry:
    header = run.header
    suite = load(header.suite) if header.suite in presets() else None
    return Entry(
        run=run,
        name=name,
        suite=header.suite if suite else None,
        purpose=suite.purpose if suite else "",
        shows=suite.shows if suite else "",
        holds=_holds(rows(run)),
    )


def _holds(all_rows: Sequence[Row]) -> str:
    """What a run measured: passes, sizes, contexts, contestants, cases."""
    if not all_rows:
        return "No case yet."
    passes = ", ".join(PASS_WORDS.get(one, one).lower() for one in dict.fromkeys(row.pass_ for row in all_rows))
    dtypes = ", ".join(dict.fromkeys(row.dtype for row in all_rows))
    dims = ", ".join(str(d) for d in sorted({row.head_dim for row in all_rows}))
    degrees = ", ".join(str(p) for p in sorted({row.p for row in all_rows if row.p is not None}))
    ends = dict.fromkeys(context_text(pick(row.ctx for row in all_rows)) for pick in (min, max))
    kernels = dict.fromkeys(row.kernel for row in all_rows if row.valid)
    counts = Counter("above the roof" if row.status == "ok" and not row.valid else row.status for row in all_rows)
    cases = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return (
        f"{capital(passes)}; {dtypes}; d = {dims}; {f'p = {degrees}; ' if degrees else ''}context {'..'.join(ends)}; "
        f"{', '.join(kernels)}. {len(all_rows)} cases: {cases}."
    )
