"""The figures and the page, as text; tests/test_page_browser.py opens it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import msgspec
import plotly.offline
import pytest

from powerbench.reports.curves import groups
from powerbench.reports.figures import draw
from powerbench.reports.page import page, write_page
from powerbench.reports.rows import rows
from powerbench.reports.static import write_static
from powerbench.reports.style import roof_axes, styles
from tests import runs


@pytest.fixture(params=runs.RUNS)
def any_run(request):
    return runs.RUNS[request.param]()


def _drawn(run):
    found = groups(rows(run))
    return [{d.name: d.figure for d in draw(group, run.header.ceilings, styles(found))} for group in found]


def test_which_figures():
    assert [list(figures) for figures in _drawn(runs.cpu_run())] == [["latency", "throughput", "speedup", "roofline"]]
    assert [list(figures) for figures in _drawn(runs.cpu_run((1024,)))] == [["ranking", "roofline"]]
    assert _drawn(runs.all_failed_run()) == [{}]


def test_every_time_is_on_the_roofline():
    run = runs.gpu_run(("fwd",))
    roofline = _drawn(run)[0]["roofline"]
    points = sum(len(trace.x) for trace in roofline.data if trace.mode == "markers")
    assert points == sum(m.status == "ok" for m in run.measurements)
    (invalid,) = [trace for trace in roofline.data if trace.marker.symbol == "x-thin"]
    assert "above the roof" in invalid.text[0]


def test_roofline_axes_are_the_machines():
    alone = roof_axes(790, 4.1e12, [])
    assert alone.ridge == pytest.approx(790e12 / 4.1e12)
    assert roof_axes(790, 4.1e12, [(300, 500)]) == alone
    wide = roof_axes(790, 4.1e12, [(3e6, 1e-3)])
    assert wide.intensity == (alone.intensity[0], 1e7)
    assert wide.tflops[0] <= 1e-3
    assert alone.tflops[0] < 790 < alone.tflops[1]


def test_looks_differ():
    look = styles(groups(rows(runs.gpu_run())))
    assert len(set(look.values())) == len(look) > 6


def test_static_figures(any_run, tmp_path):
    files = write_static([any_run], tmp_path / "figures")
    assert all(path.stat().st_size > 1000 for path in files)
    assert sorted(path.name for path in files) == sorted(path.name for path in (tmp_path / "figures").iterdir())
    if any(row.valid for row in rows(any_run)):
        assert {path.suffix for path in files} == {".png", ".svg"}


class Checker(HTMLParser):
    """Collects tags and texts, and objects to tags that are closed in the wrong order."""

    VOID = ("meta", "link", "br", "img", "path", "input", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def _parsed(html):
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    return checker


def test_every_run_has_a_page(any_run):
    checker = _parsed(page([any_run]))
    ids = [attrs["id"] for _, attrs in checker.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in checker.tags:
        assert tag not in ("img", "iframe", "link", "object", "embed", "base")
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
    headings = [int(tag[1]) for tag, _ in checker.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_the_page_says_everything_without_scripts():
    text = " ".join(" ".join(_parsed(page([runs.cpu_run()])).text).split())
    assert "beats softmax attention (sdpa-cpu) from 5.0k tokens on" in text
    assert "power-triton needs a GPU" in text
    assert "powerbench sweep --p 2 --ctx 1k..16k" in text
    assert "Intel Xeon Platinum 8488C" in text
    assert "0.200 TFLOP/s" in text
    assert "Scripts are off" in text


def test_texts_of_a_run_cannot_become_markup():
    html = page([runs.hostile_run()])
    checker = _parsed(html)
    assert "<img" not in html
    assert [tag for tag, _ in checker.tags if tag == "script"] == ["script"] * 4  # two data, plotly, the page's own
    assert any(runs.HOSTILE in text for text in checker.text)
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)[1]
    assert "<" not in data
    assert "&lt;img" in json.loads(data)["texts"][0]  # plotly reads a little HTML, so it is escaped for plotly too


def test_several_runs_on_one_page():
    html = page([runs.cpu_run(), runs.gpu_run(("fwd",))])
    text = " ".join(_parsed(html).text)
    assert "Attention on Intel Xeon (8 cores) and NVIDIA H200" in text
    with pytest.raises(ValueError, match="at least one run"):
        page([])


def test_the_page_appears_whole(tmp_path):
    path = tmp_path / "reports" / "page.html"
    write_page([runs.cpu_run()], path)
    assert path.read_text(encoding="utf-8") == page([runs.cpu_run()])
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(NotADirectoryError):
        write_page([runs.cpu_run()], path / "below" / "a-file.html")


def test_sizes_and_times():
    assert len(page([runs.cpu_run()]).encode()) < 2.5e6
    base = runs.gpu_run(("fwd", "bwd", "fwd+bwd"))
    many = []
    for head_dim in (32, 64, 128):
        for m in base.measurements:
            problem = msgspec.structs.replace(m.case.problem, head_dim=head_dim, value_dim=head_dim)
            many.append(msgspec.structs.replace(m, case=msgspec.structs.replace(m.case, problem=problem)))
    start = time.perf_counter()
    html = page([runs.run(many[:2000], base.header)])
    assert len(many) >= 2000
    assert time.perf_counter() - start < 10
    assert len(html.encode()) < 4e6


def test_the_inlined_plotly_is_the_one_that_python_writes_for():
    assets = resources.files("powerbench.reports") / "assets"
    banner = (assets / "plotly-cartesian.min.js").read_text(encoding="utf-8")[:200]
    assert f"plotly.js (cartesian - minified) v{plotly.offline.get_plotlyjs_version()}" in banner
    assert "MIT" in (assets / "plotly-LICENSE.txt").read_text()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("powerbench.reports.page, powerbench.reports.show, powerbench.reports.static", "torch triton"),
        ("powerbench.results.store, powerbench.crossover", "torch triton pandas plotly matplotlib numpy"),
        ("powerbench.reports.show", "torch triton pandas plotly matplotlib"),
    ],
)
def test_imports_are_light(modules, absent):
    code = f"import sys, {modules}; sys.exit(' '.join(set('{absent}'.split()) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
