"""The index of several runs: what it says is what their pages say, each setting once, in a file that needs nothing."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import msgspec
import pytest

from powerbench.errors import UserError
from powerbench.problem import Params
from powerbench.reports.answers import answers
from powerbench.reports.headlines import headlines
from powerbench.reports.index import index, page_names, write_index
from tests import runs
from tests.browser import Browser, find_chromium

GPU = runs.header("NVIDIA H200", peak=7.9e14, bandwidth=4.1e12)


def at(run, path, **header):
    """The same run from another file, with other entries in its header."""
    return msgspec.structs.replace(run, path=path, header=msgspec.structs.replace(run.header, **header))


def gpu(contexts, path="results/h200/a.jsonl", slower=1.0, **header):
    """Power attention of p = 2, faster than softmax attention from 4k on; wide enough apart to be sure."""
    measured = []
    for ctx in contexts:
        measured += [
            runs.measurement("power-triton", ctx, slower * 1.0, params=Params(p=2), dtype="bf16", noise=1e-4),
            runs.measurement("flash-4", ctx, ctx / 4000, dtype="bf16", noise=1e-4),
        ]
    return at(runs.run(measured, GPU), path, **header)


def words(html):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_it_says_what_the_answers_say_and_links_the_page():
    run = gpu((1024, 2048, 8192, 16384))
    text = index([run])
    (answer,) = answers(run)
    assert answer.sentences[0] in words(text)
    assert "beats softmax attention (flash-4) from" in answer.sentences[0]
    assert 'href="a.html"' in text


def test_of_as_many_contexts_those_of_the_longest_are_told():
    far, later = gpu((2048, 65536), "far.jsonl"), gpu((1024, 4096), "later.jsonl", started="2027-01-01T00:00:00Z")
    (found,) = headlines([far, later])
    assert found.topics[0].statements[0].run is far


def test_a_setting_is_told_once_by_the_run_with_most_contexts_then_the_later():
    wide, long = gpu((1024, 2048, 4096), "w.jsonl"), gpu((65536,), "l.jsonl", started="2027-01-01T00:00:00Z")
    (found,) = headlines([long, wide])
    (topic,) = [topic for topic in found.topics if topic.title.startswith("Against")]
    assert [one.run for one in topic.statements] == [wide]
    assert [(line.run, line.power.ctx) for line in found.longest] == [(long, 65536)]
    later = gpu((1024, 2048, 4096), "later.jsonl", 2.0, started="2027-01-01T00:00:00Z")
    (found,) = headlines([later, wide])
    assert found.topics[0].statements[0].run is later


def test_the_share_of_flashattentions_mfu():
    (found,) = headlines([gpu((1024, 8192))])
    (line,) = found.longest
    assert line.of_flash == pytest.approx(line.power.mfu / line.flash.mfu)
    assert line.of_flash == pytest.approx(8192 / 4000, rel=1e-3)  # the same work in less time
    (topic,) = [topic for topic in found.topics if topic.title == "Use of the hardware"]
    assert topic.statements[0].text.startswith("205 % of FlashAttention's own MFU: at d = 64 and 8k ")


def test_rivals_at_the_longest_context():
    measured = [
        runs.measurement("power-triton", 8192, 1.0, params=Params(p=2), dtype="bf16", noise=1e-4),
        runs.measurement("sdpa-flash", 8192, 4.0, dtype="bf16", noise=1e-4),
        runs.measurement("window-flash-4", 8192, 0.5, params=Params(p=2, window=2112), dtype="bf16", noise=1e-4),
        runs.measurement("window-flash-4", 8192, 0.1, params=Params(p=1, window=64), dtype="bf16", noise=1e-4),
        runs.measurement("retention-triton", 8192, 6.0, params=Params(p=2), dtype="bf16", noise=1e-4),
    ]
    text = words(index([runs.run(measured, GPU)]))
    assert "4.0x faster than sdpa-flash (4.00 ms)" in text
    assert "2.0x slower than window-flash-4 (0.500 ms)" in text
    assert "6.0x faster than retention-triton (6.00 ms)" in text
    assert "(0.100 ms)" not in text  # the window of another degree's state


def test_what_the_gate_refused_is_a_finding():
    bad = msgspec.structs.replace(
        runs.measurement("flash-4", 1024, None, status="wrong", message="wrong"), error=0.81, tolerance=0.02
    )
    worse = msgspec.structs.replace(
        runs.measurement("flash-4", 2048, None, status="wrong", message="wrong"), error=1.2, tolerance=0.02
    )
    text = words(index([runs.run([bad, worse], GPU)]))
    assert "flash-4, fwd, d = 64 2 cases are wrong: relative error 0.810 to 1.20, where 0.0200 is allowed." in text


def test_devices_apart_and_suites_with_their_purpose():
    runs_of_two = [at(gpu((1024, 8192)), "h/a.jsonl", suite="crossover"), at(runs.cpu_run(), "c/a.jsonl")]
    text = words(index(runs_of_two))
    assert text.startswith("Attention on NVIDIA H200 and Intel Xeon (8 cores)")
    assert "From which context on is each kernel the fastest?" in text  # the suite's purpose
    for run in runs_of_two:
        assert run.header.command in text
        assert run.header.environment.commit in text
    assert page_names(runs_of_two) == ["h-a", "c-a"]


def test_two_pages_of_one_name_are_refused(tmp_path):
    twice = [at(runs.cpu_run(), "h/a.jsonl"), at(runs.cpu_run(), "h/a.jsonl")]
    with pytest.raises(UserError, match=r"the page would be a\.html, which is taken"):
        write_index(twice, tmp_path)
    with pytest.raises(UserError, match=r"index\.html, which is taken"):
        page_names([at(runs.cpu_run(), "index.jsonl")])


def test_what_comes_from_a_run_is_escaped():
    text = index([at(gpu((1024, 8192)), "a.jsonl", command="powerbench <script>alert(1)</script>")])
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_runs_without_a_comparison_and_without_rows():
    empty = runs.run([], GPU)
    assert "These runs compare nothing yet." in index([empty])
    with pytest.raises(ValueError, match="at least one run"):
        index([])


def test_the_folder_is_whole(tmp_path):
    files = write_index([at(runs.cpu_run((1024,)), "c/a.jsonl"), at(gpu((1024, 8192)), "h/a.jsonl")], tmp_path)
    assert [file.name for file in files] == ["c-a.html", "h-a.html", "index.html"]
    linked = set(re.findall(r'href="([^#"]+)"', (tmp_path / "index.html").read_text()))
    assert linked == {"c-a.html", "h-a.html"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path, width):
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no chromium on PATH (apt-get install chromium)")
    page = tmp_path / "index.html"
    page.write_text(index([gpu((1024, 2048, 8192)), at(runs.cpu_run(), "results/cpu/b.jsonl")]))
    browser = Browser(chromium, tmp_path / "profile")
    try:
        browser.open(page, width, dark=True)
        assert browser.errors() == []
        assert browser.requests() == [Path(page).absolute().as_uri()]
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    finally:
        browser.close()


def test_pages_of_files_of_one_name_are_distinct(tmp_path):
    paths = ("x/h/a.jsonl", "y/h/a.jsonl", "y/h/a.json", "y/h/A.jsonl", "h/y-h-a.jsonl", "b.jsonl")
    names = page_names([at(runs.cpu_run(), str(tmp_path / path)) for path in paths])
    assert len({name.casefold() for name in names}) == len(paths)
    several = page_names([at(runs.cpu_run(), str(tmp_path / path)) for path in ("x/h/a.jsonl", "y/h/a.jsonl")])
    assert several == ["x-h-a", "y-h-a"]
