"""The page in a real browser. Where there is none these tests are skipped, but not in CI."""

from __future__ import annotations

import os

import pytest

from powerbench.reports.page import write_page
from tests import runs
from tests.browser import Browser, find_chromium

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = find_chromium()
    if chromium is None:
        message = "no chromium on PATH (apt-get install chromium)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in runs.RUNS.items():
        write_page([make()], folder / f"{name}.html")
    write_page([runs.cpu_run(), runs.gpu_run(("fwd",))], folder / "two.html")
    return folder


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", [*runs.RUNS, "two"])
def test_it_loads_alone_without_errors_and_fits(browser, pages, name, width):
    path = pages / f"{name}.html"
    browser.open(path, width)
    assert browser.errors() == []
    assert [url for url in browser.requests() if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width
    figures = browser.value("document.querySelectorAll('.chart').length")
    points = "[...document.querySelectorAll('details[open] .chart')].map(c => c.querySelectorAll('.point').length)"
    assert min(browser.value(points), default=1) > 0
    assert figures > 0 or name in ("empty", "all failed")


def _rgb(browser, selector, property):
    return browser.value(f"getComputedStyle(document.querySelector('{selector}')).{property}")


@pytest.mark.parametrize("dark", [False, True])
def test_dark_and_light(browser, pages, dark):
    browser.open(pages / "cpu.html", dark=dark)
    light_text, dark_text = "rgb(27, 31, 36)", "rgb(228, 231, 235)"
    text = dark_text if dark else light_text
    assert _rgb(browser, "body", "color") == text
    for selector in (".xtick text", ".ytick text", ".g-xtitle text", ".annotation text"):
        assert _rgb(browser, f".chart {selector}", "fill") == text
    assert _rgb(browser, ".chart .main-svg", "backgroundColor") == "rgba(0, 0, 0, 0)"


def test_hover_says_what_a_point_is(browser, pages):
    browser.open(pages / "cpu.html")
    browser.value("document.getElementById('run1-1-latency').scrollIntoView()")
    x, y = browser.value(
        "(() => { const box = document.querySelector('#run1-1-latency .trace .point').getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    for step in (20, 0):
        browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
        browser.value("new Promise((resume) => setTimeout(resume, 300))")
    said = browser.value("document.querySelector('#run1-1-latency .hoverlayer').textContent")
    for words in ("power-torch", "p = 2, d_tile = 16, chunk = 256", "1k tokens, batch 1", "ms (", "% of roof", "MFU"):
        assert words in said


def test_the_legend_hides_and_isolates(browser, pages):
    browser.open(pages / "cpu.html")
    count = "document.querySelectorAll('#run1-1-latency .scatterlayer .trace').length"
    button = "document.querySelectorAll('.legend button')[0]"
    settle = "new Promise((resume) => setTimeout(resume, 200))"
    assert browser.value(count) == 3
    browser.value(f"{button}.click(); {settle}")
    assert browser.value(count) == 2
    assert browser.value(f"{button}.ariaPressed") == "false"
    browser.value(f"{button}.click(); {settle}")
    assert browser.value(count) == 3
    browser.value(f"{button}.dispatchEvent(new MouseEvent('dblclick')); {settle}")
    assert browser.value(count) == 1
    browser.value(f"{button}.dispatchEvent(new MouseEvent('dblclick')); {settle}")
    assert browser.value(count) == 3
    assert browser.errors() == []


def test_phases_go_with_their_operator(browser, pages):
    """In the roofline and in the bars; and a point says which phase of what it is."""
    browser.open(pages / "with phases.html")
    count = "document.querySelectorAll('#run1-1-roofline .scatterlayer .point').length"
    bars = "document.querySelectorAll('#run1-1-phases-1 .barlayer .point').length"
    button = "[...document.querySelectorAll('.legend button')].find(b => b.dataset.curve === 'power-triton, p = 2')"
    settle = "new Promise((resume) => setTimeout(resume, 300))"
    with_all, all_bars = browser.value(count), browser.value(bars)
    assert all_bars == 11  # four phases at three contexts, one of them failed
    browser.value(f"{button}.click(); {settle}")
    assert with_all - browser.value(count) == 6 + 9  # two choices and three phases at three contexts
    assert browser.value(bars) == 0
    browser.value(f"{button}.click(); {settle}")
    assert (browser.value(count), browser.value(bars)) == (with_all, all_bars)
    browser.value("document.getElementById('run1-1-phases-1').scrollIntoView()")
    x, y = browser.value(
        "(() => { const box = document.querySelector('#run1-1-phases-1 .barlayer .point path').getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    for step in (20, 0):
        browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
        browser.value(settle)
    said = browser.value("document.querySelector('#run1-1-phases-1 .hoverlayer').textContent")
    for words in (
        "update_state of power-triton p = 2",
        "ms (",
        "30 % of the whole call",
        "compute bound, 34 % of roof",
    ):
        assert words in said
    assert browser.errors() == []


@pytest.mark.parametrize("dark", [False, True])
def test_names_of_phases_can_be_read(browser, pages, dark):
    browser.open(pages / "with phases.html", dark=dark)
    text = "rgb(228, 231, 235)" if dark else "rgb(27, 31, 36)"
    assert _rgb(browser, ".chart .legendtext", "fill") == text
    assert browser.value("getComputedStyle(document.querySelector('.chart .legend .bg')).fillOpacity") == "0"


def test_tables_sort_by_number_and_say_so(browser, pages):
    browser.open(pages / "gpu.html")
    table = "document.querySelector('#run1-cases + .scroll table')"
    head = f"[...{table}.tHead.rows[0].cells].find(c => c.textContent.trim() === 'tokens/s')"
    cells = f"[...{table}.tBodies[0].rows].map(r => r.cells[{head}.cellIndex]?.textContent ?? '')"
    browser.value(f"{head}.querySelector('button').click()")
    assert browser.value(f"{head}.ariaSort") == "ascending"
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    texts = [text for text in browser.value(cells) if text]
    numbers = [float(text.rstrip("kMG")) * units.get(text[-1], 1) for text in texts]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]
    assert browser.value(cells)[: len(texts)] == texts  # rows without a number stand last
    browser.value(f"{head}.querySelector('button').click()")
    assert [text for text in browser.value(cells) if text] == sorted(
        texts, key=lambda text: -float(text.rstrip("kMG")) * units.get(text[-1], 1)
    )


def test_copy_and_download(browser, pages, tmp_path):
    path = pages / "hostile.html"
    browser.open(path)
    browser.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.value("document.querySelector('[data-copy] button').click()")
    browser.value("new Promise((resume) => setTimeout(resume, 300))")
    label = browser.value("document.querySelector('[data-copy] button').textContent")
    assert label == "Copied" or browser.value("getSelection().toString()") == runs.hostile_run().header.command
    browser.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.value("document.querySelector('[data-csv] button').click()")
    browser.value("new Promise((resume) => setTimeout(resume, 1000))")
    (csv,) = tmp_path.glob("*.csv")
    assert csv.read_text().startswith("case_id,kernel,p,")
    assert "power-</script><img" in csv.read_text()


def test_without_scripts_the_words_and_tables_stand(browser, pages):
    browser.open(pages / "gpu.html", scripts=False)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)  # to look at what is there
    assert browser.value("document.querySelector('noscript p, .note') !== null")
    lines = browser.value("document.querySelectorAll('#run1-cases + .scroll tbody tr').length")
    assert lines == len(runs.gpu_run().measurements)
    assert browser.value("document.querySelectorAll('.chart .main-svg').length") == 0
    assert "tokens on" in browser.value("document.querySelector('.answers').innerText")


def test_closed_settings_draw_when_opened(browser, tmp_path):
    write_page([runs.gpu_run(("fwd", "bwd", "fwd+bwd"), doublings=2)], tmp_path / "three.html")
    browser.open(tmp_path / "three.html")
    third = "document.querySelectorAll('details.setting')[2]"
    assert browser.value(f"{third}.querySelectorAll('.main-svg').length") == 0
    browser.value(f"{third}.open = true")
    browser.wait_for_figures()
    assert browser.errors() == []


def test_it_prints(browser, pages, tmp_path):
    browser.open(pages / "cpu.html", dark=True)
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert browser.errors() == []


def test_the_checks_see_what_they_are_for(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<div style='width: 3000px'></div><img src='http://127.0.0.1:9/x.png'><script>oops()</script>")
    browser.open(path, 390)
    assert len(browser.errors()) >= 2  # the script's exception and the refused load
    assert "http://127.0.0.1:9/x.png" in browser.requests()
    assert browser.value("document.documentElement.scrollWidth") > 390
