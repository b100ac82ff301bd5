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
from powerbench.reports.figures import draw, speedup
from powerbench.reports.page import page, write_page
from powerbench.reports.phases import PHASE_COLUMNS, curves_with_phases, phase_rows
from powerbench.reports.rows import rows
from powerbench.reports.static import write_static
from powerbench.reports.style import roof_axes, styles, tint
from tests import runs


@pytest.fixture(params=runs.RUNS)
def any_run(request):
    return runs.RUNS[request.param]()


def _drawn(run):
    found = groups(rows(run))
    look, phases = styles(found), phase_rows(run)
    return [{d.name: d.figure for d in draw(group, run.header.ceilings, look, phases)} for group in found]


def test_which_figures():
    assert [list(figures) for figures in _drawn(runs.cpu_run())] == [["latency", "throughput", "speedup", "roofline"]]
    assert [list(figures) for figures in _drawn(runs.cpu_run((1024,)))] == [["ranking", "roofline"]]
    assert _drawn(runs.all_failed_run()) == [{}]
    with_phases = ["latency", "throughput", "speedup", "roofline", "phases-1", "phases-2"]
    assert [list(figures) for figures in _drawn(runs.phases_run())] == [with_phases] * 2


def test_every_time_is_on_the_roofline():
    run = runs.gpu_run(("fwd",))
    roofline = _drawn(run)[0]["roofline"]
    points = sum(len(trace.x) for trace in roofline.data if trace.mode == "markers")
    assert points == sum(m.status == "ok" for m in run.measurements)
    (invalid,) = [trace for trace in roofline.data if trace.marker.symbol == "x-thin"]
    assert "above the roof" in invalid.text[0]


def test_every_phase_with_products_is_on_the_roofline_with_its_operator():
    run = runs.phases_run()
    phases = phase_rows(run)
    roofline = _drawn(run)[0]["roofline"]
    hollow = [trace for trace in roofline.data if trace.mode == "markers" and trace.marker.symbol.endswith("-open")]
    assert [trace.meta for trace in hollow] == ["power-triton, p = 2", "linear-triton, p = 1"]  # the legend's names
    for trace in hollow:
        (whole,) = [t for t in roofline.data if t.meta == trace.meta and t.marker.size == 8]
        assert trace.marker.color == whole.marker.color
        assert trace.marker.symbol == f"{whole.marker.symbol}-open"
        assert trace.marker.size < whole.marker.size
    power, linear = hollow
    assert (len(power.x), len(linear.x)) == (9, 9)  # three contexts; a scan has no products, so no place
    first = next(found for found in phases.values() if found[0].case.chunk_size == 1024)[0]
    assert (power.x[0], power.y[0]) == (first.intensity, first.executed_tflops)
    for words in (
        *(
            "update_state</b> of power-triton p = 2, d_tile = 16, chunk = 1024",
            "4k tokens",
            "0.605 ms (",
            "30 % of the",
        ),
        *("TFLOP/s, 216.7 GB/s", "1250 FLOP/byte, compute bound, 34 % of roof"),
    ):
        assert words in power.text[0]
    (impossible,) = [text for text in power.text if "<b>above the roof" in text]
    assert "attention</b> of power-triton" in impossible
    top = 10 ** roofline.layout.yaxis.range[1]
    assert max(power.y) < top, "the axes hold every point"


def test_time_by_phase_adds_up_to_what_was_measured():
    forward, both = _drawn(runs.phases_run())
    bars = forward["phases-1"]
    assert [trace.name for trace in bars.data] == ["update_state", "scan", "attention", "query_state"]
    assert {trace.meta for trace in bars.data} == {"power-triton, p = 2"}
    total = [sum(x for t in bars.data for x, y in zip(t.x, t.y, strict=True) if y == i) for i in range(3)]
    assert total[:2] == pytest.approx([1.1, 1.1])
    scan = bars.data[1]
    assert list(scan.y) == [0, 1]  # at 64k it failed
    assert list(bars.layout.yaxis.ticktext) == ["4k", "16k", "64k"]
    assert len({trace.marker.color for trace in both["phases-1"].data}) == 8
    assert sum(trace.x[0] for trace in both["phases-2"].data) == pytest.approx(1.1 * 0.3 + 1.1 * 0.7)


def test_tints_are_the_colour_and_what_lies_between_it_and_white():
    assert tint("#D55E00", 0) == "#d55e00"
    assert tint("#000000", 1) == "#999999"
    assert len({tint("#0072B2", i) for i in range(8)}) == 8
    assert tint("#0072B2", 8) == tint("#0072B2", 0)


def test_the_page_of_a_run_with_phases_says_them_without_scripts():
    html = page([runs.phases_run()])
    text = " ".join(" ".join(_parsed(html).text).split())
    assert "Time by phase: power-triton, p = 2" in text
    assert "Hollow: single phases" in text
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB" in text
    assert "update_state_backward" in text
    table = html[html.index('id="run1-phases">') :]
    lines = re.findall(r"<tr", table[: table.index("</table>")])
    assert len(lines) == 1 + sum(len(m.phases) for m in runs.phases_run().measurements)
    csv = json.loads(re.search(r'id="run1-phases-csv">(.*?)</script>', html)[1])
    assert csv.splitlines()[0] == ",".join(PHASE_COLUMNS)
    assert len(csv.splitlines()) == len(lines)


def test_the_page_of_a_run_without_phases_has_no_trace_of_them():
    html = page([runs.cpu_run()])
    body = html[html.index("<body>") : html.index("<script>")]
    assert "hase" not in body


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
    apart = {
        curve.label for group in groups(rows(any_run)) for curve, _ in curves_with_phases(group, phase_rows(any_run))
    }
    assert len(apart) <= sum("-phases-" in path.name for path in files)
    assert bool(apart) == any("-phases-" in path.name for path in files)


def test_static_roofline_names_the_phases_at_the_longest_context(tmp_path):
    write_static([runs.phases_run()], tmp_path)
    svg = (tmp_path / "forward-bf16-d-64-roofline.svg").read_text()
    for name, times in (("update_state", 2), ("attention", 2), ("query_state", 2), ("scan", 0)):
        assert svg.count(f"<!-- {name} -->") == times, name


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


def test_crossovers_models_and_predictions_on_the_page():
    """Predictions stand apart, labelled; the models with their residuals stand below; host bound only where it is."""
    short = page([runs.cpu_run((256, 512, 1024, 2048, 4096))])
    text = " ".join(" ".join(_parsed(short).text).split())
    assert "Predicted, not measured: power-torch, p = 2 passes sdpa-cpu at about" in text
    assert "Predicted by the cost models below, not measured: power-torch, p = 2 passes sdpa-cpu at about" in text
    assert "Cost models: what is predicted beyond the measured contexts rests on these" in text
    assert "quadratic" in text
    assert "host bound up to" not in text
    crossing = page([runs.cpu_run()])
    assert "from 5.0k (4.9k..5.1k) on" in " ".join(_parsed(crossing).text)
    assert "Predicted" not in " ".join(_parsed(crossing).text)
    found = groups(rows(runs.cpu_run()))
    figure = speedup(found[0], styles(found)).figure
    (mark,) = [trace for trace in figure.data if trace.mode == "markers"]
    assert (mark.meta, mark.y) == ("power-torch, p = 2", (1,))
    low, high = mark.x[0] - mark.error_x.arrayminus[0], mark.x[0] + mark.error_x.array[0]
    assert low < 5120 < high


def test_the_page_says_everything_without_scripts():
    text = " ".join(" ".join(_parsed(page([runs.cpu_run()])).text).split())
    assert "beats softmax attention (sdpa-cpu) from 5.0k (4.9k..5.1k) tokens on" in text
    assert "power-triton needs a GPU" in text
    assert "powerbench sweep --p 2 --ctx 1k..16k" in text
    assert "Intel Xeon Platinum 8488C" in text
    assert "0.200 TFLOP/s" in text
    assert "Scripts are off" in text


def test_texts_of_a_run_cannot_become_markup():
    html = page([runs.hostile_run()])
    checker = _parsed(html)
    assert "<img" not in html
    assert [tag for tag, _ in checker.tags if tag == "script"] == ["script"] * 5  # three data, plotly, the page's own
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
        ("powerbench.results.store", "torch triton pandas plotly matplotlib numpy"),
        ("powerbench.crossover, powerbench.costmodel", "torch triton pandas plotly matplotlib"),
        ("powerbench.reports.show", "torch triton pandas plotly matplotlib"),
    ],
)
def test_imports_are_light(modules, absent):
    code = f"import sys, {modules}; sys.exit(' '.join(set('{absent}'.split()) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
