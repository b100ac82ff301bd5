"""The figures and the page, as text; tests/test_page_browser.py opens it."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
import time
import zlib
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import msgspec
import plotly.graph_objects as go
import plotly.offline
import pytest

from powerbench.printable import printable
from powerbench.problem import Params
from powerbench.reports.command import command
from powerbench.reports.curves import groups
from powerbench.reports.figures import charts
from powerbench.reports.hover import hover
from powerbench.reports.matplotlib_chart import figure, inline_svg
from powerbench.reports.page import page, write_page
from powerbench.reports.phases import PHASE_COLUMNS, phase_rows
from powerbench.reports.plotly_chart import plotly_figure
from powerbench.reports.roofline_figure import roofline
from powerbench.reports.rows import rows
from powerbench.reports.states import state_bytes
from powerbench.reports.static import write_static
from powerbench.reports.style import context_ticks, roof_axes, styles, tint
from powerbench.reports.text import significant
from powerbench.reports.wsfr import section
from powerbench.results.store import StoreError, load
from powerbench.suites import chosen
from tests import runs


@pytest.fixture(params=runs.RUNS)
def any_run(request):
    return runs.RUNS[request.param]()


def _charts(run):
    """Of each setting its figures by name, and the roofline of the run."""
    found = groups(rows(run))
    look, phases = styles(found), phase_rows(run)
    settings = [{chart.name: chart for chart in charts(group, look, phases)} for group in found]
    return settings, roofline(found, run.ceilings, look, phases)


def _drawn_as(chart, *kinds):
    return [series for series in chart.series if series.draw in kinds]


def test_which_figures():
    (figures,), _ = _charts(runs.cpu_run())
    assert list(figures) == ["latency", "throughput", "speedup", "pareto"]
    (figures,), _ = _charts(runs.cpu_run((1024,)))
    assert list(figures) == ["ranking", "pareto"]
    assert _charts(runs.all_failed_run()) == ([{}], None)
    settings, _ = _charts(runs.phases_run())
    phases = ["phases-1", "phases-1-chunk", "phases-2", "tiles-1-65536", "tiles-1-16384", "tiles-1-4096"]
    assert [list(figures) for figures in settings] == [["latency", "throughput", "speedup", "pareto", *phases]] * 2
    figures = list(_charts(runs.gpu_run(("fwd",)))[0][0])
    assert figures[4:6] == ["work-1", "work-2"]
    assert next(name for name in figures if name.startswith("tiles-")) == "tiles-1-131072"
    assert sum(name.startswith("tiles-") for name in figures) == 8 + 6


def test_every_time_is_on_the_roofline():
    run = runs.gpu_run(("fwd", "fwd+bwd"))
    _, chart = _charts(run)
    shown = [point.about.case_id for series in chart.series for point in series.points]
    assert sorted(shown) == sorted(m.case_id for m in run.measurements if m.status == "ok")
    (impossible,) = [point for series in _drawn_as(chart, "cross") for point in series.points]
    assert "above the roof" in hover(impossible.about)
    assert "<b>invalid</b>" in hover(impossible.about)
    assert {s.facets["pass"]: s.draw for s in chart.series if s.key} == {"fwd": "points", "fwd+bwd": "dotted"}


def test_the_roofline_has_the_measured_ceilings():
    _, chart = _charts(runs.gpu_run(("fwd",)))
    memory, l2, compute = chart.rules
    assert (memory.text, l2.text) == ("memory (copy) 4.10 TB/s", "L2 (read) 8.20 TB/s")
    assert compute.text == "bf16 matmul 790.0 TFLOP/s"
    for rule, rate in ((memory, 4.1e12), (l2, 8.2e12)):
        for intensity, tflops in rule.places:
            assert tflops * 1e12 == pytest.approx(intensity * rate)
    assert [tflops for _, tflops in compute.places] == pytest.approx([790, 790])
    assert compute.places[0][0] == pytest.approx(790e12 / 8.2e12)


@pytest.mark.parametrize("intensity", [1.0, 3.0, 10.0, 30.0])
def test_the_name_of_the_memory_gives_way_to_points(intensity):
    """Decoding is a heap of points at one intensity, near the memory's line and below it."""
    rates = [4.0e12 * 0.9**step for step in range(20)]
    measured = [
        runs.measurement("power-torch", 1024 * 2**step, flops / rate * 1e3, flops=0.8 * flops, moved=flops / intensity,
                         noise=0.0)
        for step, (flops, rate) in enumerate((1e12, rate * intensity) for rate in rates)
    ]  # fmt: skip
    _, chart = _charts(runs.run(measured, runs.header(peak=7.9e14, bandwidth=4.1e12)))
    memory = chart.rules[0]
    assert memory.below
    assert list(memory.places) == sorted(set(memory.places))
    x, y = memory.places[memory.named]
    points = [(point.x, point.y) for point in _drawn_as(chart, "points")[0].points]
    assert len(points) == len(measured)
    assert all(at == pytest.approx(intensity) for at, _ in points)
    across, down = ((high / low) ** share for (low, high), share in ((chart.x.range, 0.2), (chart.y.range, 0.05)))
    assert not [at for at in points if x <= at[0] <= x * across and y / down <= at[1] <= y]


def test_the_axes_of_one_machine_are_the_same_whatever_was_measured():
    """So that two pages lie over each other: the forward pass in bf16 alone, and a sweep of tiles and more passes."""
    ceilings = runs.gpu_ceilings()
    some = [m for m in runs.gpu_run(("fwd",)).measurements if m.case.kernel == "flash-4"]
    one = _charts(runs.run(some, runs.gpu_run().header))[1]
    other = _charts(runs.gpu_run(("fwd",)))[1]
    assert (one.x.range, one.y.range) == (other.x.range, other.y.range)
    assert one.y.range[0] < ceilings.matmul_flops_per_s["bf16"] / 1e12 < one.y.range[1]
    (cross,) = [point for series in _drawn_as(other, "cross") for point in series.points]
    assert cross.y == other.y.range[1] < cross.about.executed_tflops  # beyond the edge, so at the edge


def test_every_phase_with_products_is_on_the_roofline_tied_to_its_operator():
    run = runs.phases_run()
    phases = phase_rows(run)
    _, chart = _charts(run)
    hollow = [series for series in _drawn_as(chart, "hollow") if series.facets["pass"] == "fwd"]
    assert [series.facets["curve"] for series in hollow] == ["power-triton, p = 2", "linear-triton, p = 1"]
    links = [series for series in _drawn_as(chart, "links") if series.facets["pass"] == "fwd"]
    for some, ties in zip(hollow, links, strict=True):
        (whole,) = [s for s in _drawn_as(chart, "points") if s.facets == some.facets]
        assert some.style == whole.style
        operators, tied = ties.points[::2], ties.points[1::2]
        assert tied == some.points
        assert [one.about.case_id for one in operators] == [one.about.case.case_id for one in tied]
    power, linear = hollow
    assert (len(power.points), len(linear.points)) == (9, 9)  # three contexts; a scan has no products, so no place
    first = next(found for found in phases.values() if found[0].case.chunk_size == 1024)[0]
    assert (power.points[0].x, power.points[0].y) == (first.intensity, first.executed_tflops)
    said = [hover(point.about) for point in power.points]
    for words in (
        *("update_state</b> of power-triton p = 2, d_tile = 16, chunk = 1024", "4k tokens", "0.605 ms ("),
        *("30 % of the", "TFLOP/s, 216.7 GB/s", "1250 FLOP/byte, compute bound, 34 % of roof"),
    ):
        assert words in said[0]
    (impossible,) = [text for text in said if "<b>invalid: above the roof" in text]
    assert "attention</b> of power-triton" in impossible
    assert max(point.y for point in power.points) < chart.y.range[1], "the axes hold every point"


def test_time_by_phase_adds_up_to_what_was_measured():
    (forward, both), _ = _charts(runs.phases_run())
    bars = forward["phases-1"]
    assert [s.name for s in _drawn_as(bars, "bar")] == ["update_state", "scan", "attention", "query_state"]
    assert {s.facets["curve"] for s in bars.series} == {"power-triton, p = 2"}
    (whole,) = _drawn_as(bars, "mark")
    total = [sum(p.x for s in _drawn_as(bars, "bar") for p in s.points if p.y == i) for i in range(3)]
    assert total[:2] == pytest.approx([1.1 * point.x for point in whole.points[:2]])
    scan = bars.series[1]
    assert [point.y for point in scan.points] == [0, 1]  # at 64k it failed
    assert [text for _, text in bars.y.ticks] == ["4k", "16k", "64k"]
    chunks = forward["phases-1-chunk"]
    assert [text for _, text in chunks.y.ticks] == ["512", "1024"]
    assert {p.about.case.ctx for s in _drawn_as(chunks, "bar") for p in s.points} == {65536}
    assert len({series.style.color for series in _drawn_as(both["phases-1"], "bar")}) == 8


def test_time_by_phase_against_the_degree():
    found = []
    for p in (1, 2, 3):
        case = runs.measurement("power-triton", 4096, 1.0 * p, params=Params(p, 16, 512), dtype="bf16")
        found.append(runs.with_phases(case))
    (figures,), _ = _charts(runs.run(found, runs.gpu_run().header))
    bars = figures["phases-p-1"]
    assert [text for _, text in bars.y.ticks] == ["p = 1", "p = 2", "p = 3"]
    (whole,) = _drawn_as(bars, "mark")
    assert [point.x for point in whole.points] == pytest.approx([1, 2, 3], rel=0.02)


def test_work_by_d_tile_is_the_ledger():
    (figures,), _ = _charts(runs.gpu_run(("fwd",)))
    chart = figures["work-1"]
    assert [text for _, text in chart.y.ticks] == ["8", "16", "32"]
    useful, more = chart.series
    for wanted, beyond in zip(useful.points, more.points, strict=True):
        assert wanted.about.ctx == 131072
        flops = next(m.cost for m in runs.gpu_run(("fwd",)).measurements if m.case_id == wanted.about.case_id)
        assert wanted.x == pytest.approx(flops.useful_flops / 1e12)
        assert wanted.x + beyond.x == pytest.approx(flops.executed_flops / 1e12)
    assert "80 % of" in useful.points[0].words


def test_the_state_is_what_the_feature_map_says():
    by_kernel = {(row.kernel, row.d_tile): row for row in rows(runs.gpu_run(("fwd",))) if row.p in (None, 1, 2)}
    assert state_bytes(by_kernel["power-triton", 8]) == 36 * 64 * 65 * 8 * 4  # C(64 / 8 + 1, 2) tiles of 8 x 8
    assert state_bytes(by_kernel["power-triton", 32]) == 3 * 1024 * 65 * 8 * 4
    assert state_bytes(by_kernel["linear-triton", None]) == 64 * 64 * 8 * 4
    assert state_bytes(by_kernel["flash-4", None]) == 131072 * 8 * (64 + 64) * 2
    assert state_bytes(by_kernel["fla-chunk", None]) is None  # a state of unknown size


def test_pareto_joins_what_no_other_beats():
    (figures,), _ = _charts(runs.gpu_run(("fwd",)))
    chart = figures["pareto"]
    (stairs,) = chart.rules
    times = [(point.x, point.y) for series in chart.series for point in series.points]
    for corner in stairs.places[::2]:
        assert corner in times
        assert not any(x <= corner[0] and y <= corner[1] and (x, y) != corner for x, y in times)


@pytest.mark.parametrize(("short", "where"), [(1, "2k"), (2, "1k")])
def test_pareto_is_not_drawn_early_for_one_that_stops(short, where):
    """But for two of five it is."""
    names = ("sdpa-flash", "sdpa-cudnn", "flash-2", "flash-4")
    power = [runs.measurement("power-torch", ctx, 1.0, params=Params(2, 8, 512), flops=1e6) for ctx in (1024, 2048)]
    others = [
        runs.measurement(name, ctx, 1.0 + i, flops=1e6)
        for i, name in enumerate(names)
        for ctx in ((1024,) if i < short else (1024, 2048))
    ]
    (figures,), _ = _charts(runs.run(power + others))
    assert figures["pareto"].title == f"Time against state size at {where} tokens"


def test_charts_are_what_plotly_takes(any_run):
    settings, whole = _charts(any_run)
    for chart in [*(chart for figures in settings for chart in figures.values()), *([whole] if whole else [])]:
        drawn = plotly_figure(chart, lambda point, series: 0)
        assert len(go.Figure(drawn).data) == len(chart.series) + len(chart.rules)  # raises for what it does not know


def test_tints_are_the_colour_and_what_lies_between_it_and_white():
    assert tint("#D55E00", 0) == "#d55e00"
    assert tint("#000000", 1) == "#999999"
    assert len({tint("#0072B2", i) for i in range(8)}) == 8
    assert tint("#0072B2", 8) == tint("#0072B2", 0)


def test_the_page_of_a_run_with_phases_says_them_without_scripts():
    html = page([runs.phases_run()])
    text = " ".join(" ".join(_parsed(html).text).split())
    assert "Time by phase against context: power-triton, p = 2" in text
    assert "Hollow: phases timed alone" in text
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB" in text
    assert "update_state_backward" in text
    table = html[html.index('id="run1-phases">') :]
    lines = re.findall(r"<tr", table[: table.index("</table>")])
    assert len(lines) == 1 + sum(len(m.phases) for m in runs.phases_run().measurements)
    csv = _payload(html)["csv"]["run1-phases-csv"]
    assert csv.splitlines()[0] == ",".join(PHASE_COLUMNS)
    assert len(csv.splitlines()) == len(lines)


def test_the_page_of_a_run_without_phases_has_no_trace_of_them():
    html = page([runs.cpu_run()])
    body = html[html.index("<body>") : html.index('<script type="text/plain"')]
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


@pytest.mark.parametrize("name", [name for name in runs.RUNS if name not in ("gpu", "with phases")])
def test_static_figures(name, tmp_path):
    """Of every figure of the page a PNG, an SVG and a PDF; those of the other two are drawn below."""
    run = runs.RUNS[name]()
    files = write_static([run], tmp_path / "figures")
    assert all(path.stat().st_size > 1000 for path in files)
    assert sorted(path.name for path in files) == sorted(path.name for path in (tmp_path / "figures").iterdir())
    settings, whole = _charts(run)
    models = sum(len(part.charts) for part in section([run]))
    assert len(files) == 3 * (sum(map(len, settings)) + (whole is not None) + models)
    assert {path.suffix for path in files} == {".png", ".svg", ".pdf"}


def test_static_figures_of_several_runs(tmp_path):
    """Those of the differences too, of every run against the first, and each contestant looks the same in all."""
    base = runs.cpu_run()
    files = {path.stem for path in write_static([base, runs.slower_run(base), base], tmp_path) if path.suffix == ".svg"}
    assert {f"run{i}-against-run1-changes" for i in (2, 3)} <= files
    assert any(name.startswith("all-runs-") and name.endswith("-overlay") for name in files)
    alone = {name.removeprefix("run1-") for name in files if name.startswith("run1-")}
    assert {f"run{i}-{name}" for i in (2, 3) for name in alone} <= files


@pytest.mark.parametrize("run", [runs.phases_run(), runs.gpu_run(("fwd",), doublings=1)], ids=["phases", "tiles"])
def test_every_chart_can_be_drawn_for_paper(run):
    settings, whole = _charts(run)
    for chart in [*settings[0].values(), whole]:
        drawn = figure(chart, chart.title)
        (axes,) = drawn.axes
        assert [text for _, text in chart.y.ticks] in ([], [label.get_text() for label in axes.get_yticklabels()])


@pytest.mark.parametrize("times", [(1.0, 0.0602), (1e-5, 0.999e-5), (100.0, 1.0)])
def test_the_words_of_the_longest_bar_have_room(times):
    kernels = ("power-torch", "sdpa-cpu")
    measured = [runs.measurement(kernel, 1024, ms, flops=1, moved=1) for kernel, ms in zip(kernels, times, strict=True)]
    (figures,), _ = _charts(runs.run(measured))
    drawn = figure(figures["ranking"], "")
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    words = [text for text in axes.texts if text.get_text().endswith(" ms")]
    assert len(words) == 2
    assert max(text.get_window_extent().x1 for text in words) <= axes.bbox.x1
    assert axes.get_xlim()[0] == 0


def test_static_files_are_the_same_every_time(tmp_path):
    for folder in ("one", "two"):
        write_static([runs.cpu_run((1024,))], tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_the_drawn_roofline_names_the_phases_at_the_longest_context():
    drawn = figure(_charts(runs.phases_run())[1])
    names = [text.get_text() for text in drawn.axes[0].texts]
    assert "update_state" in names
    assert "scan" not in names  # without products: it has no place


def test_stills_are_parts_of_one_page():
    """Many drawings in one document: no id twice, every reference to one of its own, texts as texts."""
    html = page([runs.phases_run()])
    stills = re.findall(r"<svg[^>]*xmlns:xlink.*?</svg>", html, re.DOTALL)
    assert len(stills) > 8
    for still in stills:
        own = set(re.findall(r'\bid="([^"]+)"', still))
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', still)) <= own
        assert "<text" in still
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_a_still_keeps_its_numbers():
    """Coordinates are cut to hundredths, what is written is not."""
    run = runs.run([runs.measurement("sdpa-cpu", 1024, 0.01234, flops=1e6, moved=512, n=1)])
    ((figures,), _), (row,) = _charts(run), rows(run)
    still = inline_svg(figures["ranking"], "x")
    assert f">{significant(row.median_ms)} ms<" in still


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


def _payload(html):
    """What the page's scripts unpack."""
    text = re.search(r'<script type="text/plain" id="payload">(.*?)</script>', html, re.DOTALL)[1]
    assert re.fullmatch(r"[A-Za-z0-9+/=]*", text), "nothing that means anything to HTML"
    return json.loads(zlib.decompress(base64.b64decode(text)))


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
    contents = [attrs["href"][1:] for tag, attrs in checker.tags if tag == "a" and "href" in attrs]
    named = [attrs["id"] for tag, attrs in checker.tags if tag == "h2" and attrs.get("id") in contents]
    assert [name for name in dict.fromkeys(contents) if name in named] == named
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
    (figures,), _ = _charts(runs.cpu_run())
    (mark,) = _drawn_as(figures["speedup"], "crossing")
    (place,) = mark.points
    assert (mark.facets["curve"], place.y) == ("power-torch, p = 2", 1)
    assert place.low < 5120 < place.high
    (trace,) = [t for t in plotly_figure(figures["speedup"], lambda *_: 0)["data"] if t["meta"]["draw"] == "crossing"]
    assert trace["error_x"]["array"] == pytest.approx([place.high - place.x], rel=1e-3)


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
    assert [tag for tag, _ in checker.tags if tag == "script"] == ["script"] * 3  # the payload, plotly, the page's own
    assert any(printable(runs.HOSTILE) in text for text in checker.text)
    payload = _payload(html)
    said = [one["says"] for one in payload["about"]]
    assert all(re.fullmatch(r"(?:[^<>]|</?b>|<br>)*", text) for text in said)  # plotly reads a little HTML
    assert any("&lt;img" in text for text in said)
    for drawn in payload["figures"].values():
        for trace in drawn["data"]:
            assert "<img" not in json.dumps([trace.get("name", ""), trace.get("text")])


@pytest.mark.parametrize("kernel", ["a", runs.HOSTILE])
def test_every_point_has_the_command_that_measures_it_again(kernel):
    """Read back by the shell's rules and powerbench's own, it is the case, and nothing else."""
    run = runs.run([runs.measurement(kernel, 2048, 1.0, params=Params(2, 16, 512), dtype="bf16", pass_="fwd+bwd")])
    (row,) = rows(run)
    program, sub, *words = shlex.split(command(row, run.header))
    assert (program, sub) == ("powerbench", "sweep")
    options = iter(word for word in words if word not in ("--gated", "--ungated"))
    values = {name.removeprefix("--").replace("-", "_"): next(options) for name in options}
    assert values.pop("kernels") == printable(kernel)
    assert (values.pop("device"), values.pop("seed")) == ("cpu", "0")
    suite = chosen({**values, "gated": "--gated" in words})
    (problem,) = suite.on("cpu").problems()
    assert problem == run.measurements[0].case.problem
    assert (suite.p, suite.d_tile, suite.chunk, suite.pass_) == ((2,), (16,), (512,), ("fwd+bwd",))


def test_the_command_names_the_timer_that_was_used():
    run = runs.gpu_run(("fwd",))
    first, second = rows(run)[:2]
    timed = msgspec.structs.replace(first, timer="graph-hot")
    assert " --timer graph --l2 hot" in command(timed, run.header)
    assert command(second, run.header, phases=True).endswith("--seed 0 --phases")
    vain = msgspec.structs.replace(first, timer="events-cold", timer_reason="it synchronizes")
    assert "--timer" not in command(vain, run.header)
    assert command(vain, run.header).endswith("--l2 cold")


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
    assert len(page([runs.large_run(2000)]).encode()) < 4e6
    large = runs.large_run(10_000)
    assert len(large.measurements) == 10_000
    start = time.process_time()  # of this process alone: the machine that tests has other work
    page([large])
    assert time.process_time() - start < 10


OLDEST = """
{"type":"header","schema":1,"command":"powerbench sweep","suite":"custom","seed":0,"started":"2026-01-02T03:04:05Z",\
"environment":{"device":"NVIDIA H200","device_type":"cuda","cores":132,"memory_bytes":9,"os":"Linux","python":"3.12",\
"cpu":"x86_64","driver":null,"packages":{},"commit":null,"powerbench":"0.1.0"},\
"ceilings":{"matmul_flops_per_s":{"bf16":8e14},"copy_bytes_per_s":4e12}}
{"type":"measurement","case":{"problem":{"batch":1,"seqlen":1024,"heads":8,"kv_heads":8,"head_dim":64,"value_dim":64,\
"dtype":"bf16","gated":true},"kernel":"power-triton","params":{"p":2},"pass":"fwd"},"status":"ok",\
"samples_ms":[0.5],"timer":"events-cold","launches":[{"name":"whole","cost":{"useful_flops":1000000000,\
"executed_flops":1200000000,"bytes":4000000}}],"error":null,"tolerance":null,"peak_memory_bytes":null}
"""


def test_a_run_file_of_the_first_version(tmp_path):
    """Without all that was added since: telemetry, samples of the ceilings, timers and their reasons, phases."""
    path = tmp_path / "old.jsonl"
    path.write_text(OLDEST.replace("\\\n", "").lstrip())
    html = page([load(path)])
    (about,) = [one for one in _payload(html)["about"] if one["case"]]
    assert "0.500 ms, n = 1" in about["says"]
    assert "status ok" in about["says"]
    assert about["command"].endswith("--timer events --l2 cold")
    assert "Roofline" in html


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1.0"])
def test_a_time_that_is_none_is_refused_in_one_line(tmp_path, number):
    path = tmp_path / "bad.jsonl"
    path.write_text(OLDEST.replace("\\\n", "").lstrip().replace("[0.5]", f"[{number}]"))
    with pytest.raises(StoreError, match=r"bad\.jsonl: line 2: "):
        load(path)


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


@pytest.mark.parametrize(
    ("contexts", "labels"),
    [
        ([2**i for i in range(10, 17)], "1k 2k 4k 8k 16k 32k 64k"),
        ([2**i for i in range(10, 21)], "1k 4k 16k 64k 256k 1m"),
        ([4096, 16384, 25088, 28416, 32768, 65536], "4k 16k 32k 64k"),  # as --refine leaves them
        ([1024], "1k"),
        ([], ""),
    ],
)
def test_labels_of_contexts_have_room(contexts, labels):
    ticks, texts = context_ticks(contexts)
    assert texts == labels.split()
    assert set(ticks) <= set(contexts)
