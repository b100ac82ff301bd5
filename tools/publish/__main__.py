"""Makes all that is published from the run files under results/.

python -m tools.publish            pages, index, picture, and the generated parts of README.md and docs/findings.md
python -m tools.publish --check    write nothing; exit status 1, naming them, where texts or index would change
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from powerbench import outputs
from powerbench.reports.index import INDEX, index, page_names, write_index
from powerbench.reports.static import write_static
from tools.publish import findings, readme
from tools.publish.parts import differing, fill
from tools.publish.runs import Published

ROOT = Path(__file__).parents[2]
TEXTS: dict[str, Callable[[Published], dict[str, str]]] = {
    "README.md": readme.parts,
    "docs/findings.md": findings.parts,
}
PICTURE = "docs/h200-context.png"
FIGURE = "forward-bf16-d-64-latency"


def main() -> None:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(prog="python -m tools.publish", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    published = Published(ROOT)
    if parser.parse_args().check:
        stale = check(published)
        print("\n".join(stale) if stale else "all that is published agrees with the run files")
        sys.exit(1 if stale else 0)
    publish(published)


def publish(published: Published) -> None:
    """Write everything that is made from the run files, and remove pages whose run is gone."""
    root, runs = published.root, list(published.runs.values())
    written = write_index(runs, root / "reports")
    for page in sorted({*(root / "reports").glob("*.html")} - set(written)):
        page.unlink()
        print(f"removed {page.relative_to(root)}: no run file")
    _picture(published)
    for name, parts in TEXTS.items():
        path = root / name
        outputs.write(path, fill(path.read_text(), parts(published)))


def check(published: Published) -> list[str]:
    """What would change of the texts and the index, and which pages are missing or stale; a line each."""
    root, runs = published.root, list(published.runs.values())
    stale = [f"{name}: {part}" for name, parts in TEXTS.items()
             for part in differing((root / name).read_text(), parts(published))]  # fmt: skip
    pages = {f"{name}.html" for name in page_names(runs)}
    there = {path.name for path in (root / "reports").glob("*.html")} - {INDEX}
    stale += [f"reports/{name}: {'missing' if name in pages else 'has no run file'}" for name in sorted(pages ^ there)]
    path = root / "reports" / INDEX
    if not path.exists() or path.read_text() != index(runs):
        stale.append(f"reports/{INDEX}")
    return stale


def _picture(published: Published) -> None:
    """The context sweep's time against context, with the contestants of README's tables."""
    for name in published.have("contexts")[:1]:
        with tempfile.TemporaryDirectory() as folder:
            run = readme.of_contestants(published.runs[name])
            for path in write_static([run], Path(folder), only=FIGURE, formats=("png",)):
                outputs.write(published.root / PICTURE, path.read_bytes())


if __name__ == "__main__":
    main()
