"""A file, a model and a kernel package that mean ill, tried on every command: nothing that they hold does anything."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pandas as pd
import pytest

from powerbench.printable import (
    csv_cell,
    markdown_text,
    plotly_text,
    printable,
    printable_json,
    printable_lines,
)
from powerbench.reports.command import command, stated
from powerbench.reports.page import page
from powerbench.reports.rows import rows
from powerbench.results.store import load
from tests import hostile, runs
from tests.hostile import WORST, faults


def powerbench(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    said = subprocess.run(
        [sys.executable, "-m", "powerbench", *map(str, arguments)], cwd=cwd, capture_output=True, check=False,
        timeout=240, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "80", **environment},
    )  # fmt: skip
    done = subprocess.CompletedProcess(said.args, said.returncode, said.stdout.decode(), said.stderr.decode())
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.returncode != 70, done.stderr
    assert faults(done.stdout) == set(), arguments
    assert faults(done.stderr) == set(), done.stderr
    return done


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return hostile.write(hostile.run(), tmp_path_factory.mktemp("hostile") / "a.jsonl")


SHOW = [
    *(["--format", form] for form in ("table", "csv", "json", "markdown")),
    *(["--crossovers", "--format", form] for form in ("table", "csv", "json", "markdown")),
    *(["--phases", "--format", form] for form in ("csv", "json")),
]


@pytest.mark.parametrize("options", SHOW, ids=" ".join)
def test_show(file, options):
    done = powerbench("show", file, *options, cwd=file.parent)
    assert done.returncode == 0
    if options[-1] == "json":
        assert any(WORST in str(value) for one in json.loads(done.stdout) for value in one.values())
    if options[-1] == "csv":
        frame = pd.read_csv(io.StringIO(done.stdout))
        texts = frame.select_dtypes(include=["object", "string"])
        assert not texts.map(lambda cell: bool(re.match(r"\s*[=+\-@]", str(cell)))).any().any()
    if options[-1] == "markdown":
        assert_markdown(done.stdout)


def assert_markdown(text: str) -> None:
    """Outside of code nobody is mentioned, nothing is a link, HTML or a formula."""
    outside = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert "@" not in outside
    assert "://" not in outside
    assert "$" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert not re.search(r"<(?!/?(details|summary))", outside)
    assert not re.search(r"(?<!\\)#\d", outside)


@pytest.mark.parametrize("output", ["json", "junit", "markdown", None])
def test_check(file, tmp_path, output):
    other = hostile.write(hostile.run(), tmp_path / "b.jsonl")
    options = [f"--{output}", "-"] if output else []
    summary = tmp_path / "summary.md"
    done = powerbench("check", file, other, *options, cwd=tmp_path, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode in (0, 3)
    assert faults(summary.read_text()) == set()
    assert_markdown(summary.read_text())
    if output == "json":
        assert json.loads(done.stdout)["device"] == WORST
    if output == "junit":
        ElementTree.fromstring(done.stdout)


def test_check_against_a_folder_of_baselines(file, tmp_path):
    assert powerbench("check", file, "--baseline-dir", "none", cwd=tmp_path).returncode == 2
    assert powerbench("check", file, "--baseline-dir", "d", "--update-baseline", cwd=tmp_path).returncode == 0
    assert powerbench("check", file, "--baseline-dir", "d", "--max-ms", "1", cwd=tmp_path).returncode == 1


def test_the_page_and_the_index(file, tmp_path):
    done = powerbench("report", file, file, "-o", "a.html", "--static", "figures", cwd=tmp_path)
    assert done.returncode == 0
    assert powerbench("index", file, "-o", "pages", cwd=tmp_path).returncode == 0
    for path in (tmp_path / "a.html", tmp_path / "pages" / "a.html", tmp_path / "pages" / "index.html"):
        html = unescape(re.sub(r"<script>.*?</script>", "", path.read_text(), flags=re.DOTALL))
        assert faults(html) <= {"workflow command"}
        assert "file states" in html
        assert "base-uri 'none'; form-action 'none'" in html


def test_a_sweep_that_goes_on_with_it(file, tmp_path):
    path = hostile.write(hostile.run(), tmp_path / "a.jsonl")
    before = path.read_bytes()
    assert powerbench("sweep", "-o", path, "--resume", "--device", "cpu", cwd=tmp_path).returncode == 2
    assert powerbench("sweep", "-o", path, "--device", "cpu", cwd=tmp_path).returncode == 2
    assert path.read_bytes() == before


def test_a_package_with_such_a_kernel(tmp_path):
    folder = hostile.package(tmp_path / "site")
    there = {"PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    done = powerbench("list", "kernels", cwd=tmp_path, **there)
    assert done.returncode == 0
    assert "hostile" in done.stdout
    small = ("--ctx", "64", "--head-dim", "16", "--device", "cpu")
    assert powerbench("verify", "--kernels", "hostile", *small, cwd=tmp_path, **there).returncode == 0
    assert powerbench("verify", "--kernels", "nothing", *small, cwd=tmp_path, **there).returncode == 2
    sweep = ("sweep", "--kernels", "hostile", *small, "-o", "a.jsonl", "--visits", "1", "--timeout", "60")
    assert powerbench(*sweep, cwd=tmp_path, **there).returncode == 0
    assert powerbench(*sweep, "--resume", cwd=tmp_path, **there).returncode == 0
    assert powerbench(*sweep, "--resume", "--dry-run", cwd=tmp_path, **there).returncode == 0


def test_a_model_of_such_a_name(tmp_path):
    path = hostile.toml(tmp_path / "a.toml")
    for form in ("table", "csv", "json", "markdown"):
        done = powerbench("wsfr", "--preset", path, "--format", form, cwd=tmp_path)
        assert done.returncode == 0
        if form == "markdown":
            assert_markdown(done.stdout)


def test_errors_and_warnings(file, tmp_path):
    for bad in ("a\x1b]0;t\x07\u202e.jsonl", "::error::x.jsonl"):
        assert powerbench("show", bad, cwd=tmp_path).returncode == 2
    assert powerbench("show", file, "--format", WORST.replace("\x00", ""), cwd=tmp_path).returncode == 2
    lines = file.read_bytes().splitlines(keepends=True)
    (tmp_path / "twice.jsonl").write_bytes(b"".join([*lines, lines[1], b'{"type":"meas']))
    assert "measured more than once" in powerbench("show", "twice.jsonl", cwd=tmp_path).stderr


def test_printable_shows_what_it_takes_out():
    assert printable("a\x1b[31m\n\u202e\u200b\u3164") == "a\\x1b[31m\\n\\u202e\\u200b\\u3164"
    assert printable("\U000e0041\ud800") == "\\U000e0041\\ud800"
    assert printable("é ± … 🔴 Tiếng Việt, שלום") == "é ± … 🔴 Tiếng Việt, שלום"
    assert printable("a" + "\u0301" * 9).count("\\u0301") == 5  # accents over the lines above
    for text in (WORST, "at::native", "::error::", "x::error file=y::", "##[add-mask]a", "##vso[task.x]"):
        assert printable(printable(text)) == printable(text)
        assert faults(printable(text)) == set()
    assert printable("at::native::copy_") == "at::native::copy_"
    assert printable_lines("a\nb\x07") == "a\nb\\x07"


def test_json_keeps_its_values():
    text = msgspec.json.encode({"a": WORST, "##[b]": "::error::"}).decode()
    assert faults(printable_json(text)) == set()
    assert json.loads(printable_json(text)) == {"a": WORST, "##[b]": "::error::"}


@pytest.mark.parametrize("text", ["=1", "+x", "-2+3", "@a", "\t=1", "\r=1", " =1", "\uff1d1", "-", "a;=1", "a; +b"])
def test_no_cell_begins_a_formula(text):
    assert not re.search(r"(^|;)\s*[=+\-@\uff1d]", csv_cell(text))
    assert csv_cell(csv_cell(text)) == csv_cell(text)


@pytest.mark.parametrize("text", ["-1", "+1.5", "-1e-05", "-0.5", "power-torch", "1k", "5"])
def test_numbers_and_names_stay_as_they_are(text):
    assert csv_cell(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "@octocat",
        "a@b.example",
        "@org/team",
        "https://a.example",
        "www.a.example",
        "#12",
        "o/r#1",
        "GH-1",
        "$x$",
        "0a1b2c3",
    ],
)
def test_markdown_makes_nothing_of_a_word(text):
    assert markdown_text(f"by {text}, then") == f"by `{text},` then"


def test_no_copied_command_does_more_than_it_shows():
    run = hostile.run()
    for row in rows(run):
        text = command(row, run.header)
        assert faults(text) == set()
        assert shlex.split(text)[:3] == ["powerbench", "sweep", "--kernels"]
    header = run.header
    for said, copied in (
        ("powerbench sweep \"; touch x\"", True), ("powerbench sweep; touch x", False),
        ("powerbench sweep\ntouch x", True), ("rm -rf ~", False),
        ("powerbench sweep --p '\x03", False), ("powerbench report a.jsonl -o b", False), (WORST, False),
    ):  # fmt: skip
        text, sweeps = stated(msgspec.structs.replace(header, command=said))
        assert faults(text) == set()
        assert sweeps == copied
        assert not re.search(r"[;\n]", re.sub(r"'[^']*'", "", text))
    ordinary = runs.header().command
    assert stated(runs.header()) == (ordinary, True)


def test_no_template_of_plotly_makes_a_link():
    """`%{meta.kernel}` in a name is the trace's own `meta`, which is put in before plotly reads links."""
    assert "%{" not in plotly_text(WORST)
    html = page([hostile.run()])
    assert "%{" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL).replace(
        printable("%{meta.kernel}"), ""
    )


def test_the_file_is_read_back_as_it_is(file):
    assert load(file).header == hostile.run().header
