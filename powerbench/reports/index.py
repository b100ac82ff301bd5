"""Several runs as a folder to send: a page for each, and an index page that says what they found and links them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from powerbench import outputs
from powerbench.crossover import context_text
from powerbench.errors import UserError
from powerbench.reports.answers import capital
from powerbench.reports.curves import PASS_WORDS
from powerbench.reports.headlines import headlines
from powerbench.reports.longest import COLUMNS
from powerbench.reports.page import asset, environment, page
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

    Raises OutputError when a page cannot be written, or is the file of a run, before any is.
    """
    pages = [folder / f"{name}.html" for name in page_names(runs)]
    inputs = [run.path for run in runs]
    outputs.check({str(path): path for path in (*pages, folder / INDEX)}, inputs)
    for run, path in zip(runs, pages, strict=True):
        outputs.write(path, page([run]), inputs=inputs)
    outputs.write(folder / INDEX, index(runs), inputs=inputs)
    return [*pages, folder / INDEX]


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
            page={entry.run.path: entry for entry in entries},
            policy="default-src 'none'; style-src 'unsafe-inline'",
            style=asset("page.css") + asset("index.css"),
        )
    )


def page_names(runs: Sequence[Run]) -> list[str]:
    """A page's name for each run, all different whatever the case: that of its file, or more of its path.

    With that of its folder before it where there are several folders, and those above where that is not enough; of
    files that differ only in their suffix the later have a number. Raises UserError for a run that is given twice, or
    whose page would be the index.
    """
    paths = [Path(run.path).resolve() for run in runs]
    depths = [int(len({path.parent for path in paths}) > 1)] * len(paths)
    while True:
        names = [_page_name(path, depth) for path, depth in zip(paths, depths, strict=True)]
        taken = Counter(name.casefold() for name in names)
        longer = [
            i for i, name in enumerate(names) if taken[name.casefold()] > 1 and depths[i] < len(paths[i].parents) - 1
        ]
        if not longer:
            break
        for i in longer:
            depths[i] += 1
    for name, path in zip(names, paths, strict=True):
        if paths.count(path) > 1 or name.casefold() == Path(INDEX).stem:
            files = ", ".join(run.path for run, own in zip(runs, paths, strict=True) if own == path)
            first = _page_name(path, 0) if paths.count(path) > 1 else name
            raise UserError(f"{files}: the page would be {first}.html, which is taken; rename a run file or its folder")
    return _numbered(names)


def _page_name(path: Path, depth: int) -> str:
    """The name of a file after those of so many folders above it."""
    return "-".join((*(folder.name for folder in reversed(path.parents[:depth])), path.stem))


def _numbered(names: Sequence[str]) -> list[str]:
    found: dict[str, str] = {}
    for name in names:
        free = (name if number == 1 else f"{name}-{number}" for number in count(1))
        chosen = next(one for one in free if one.casefold() not in found and (one == name or one not in names))
        found[chosen.casefold()] = chosen
    return list(found.values())


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
