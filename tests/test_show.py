"""`powerbench show`: the table, CSV, JSON and markdown of any run."""

from __future__ import annotations

import csv
import io
import json
import re

import pandas as pd
import pytest
from rich.console import Console

from powerbench.reports.answers import answers
from powerbench.reports.crossovers import CROSSOVER_COLUMNS
from powerbench.reports.frames import tidy
from powerbench.reports.rows import COLUMNS
from powerbench.reports.show import FORMATS, print_run, render
from powerbench.reports.show_crossovers import render_crossovers
from powerbench.reports.text import si, significant
from tests import runs


@pytest.fixture(params=runs.RUNS)
def any_run(request):
    return runs.RUNS[request.param]()


@pytest.mark.parametrize("format", FORMATS)
def test_every_run_shows_in_every_format(any_run, format):
    text = render(any_run, format)
    assert text.endswith("\n")
    if format in ("table", "markdown"):
        assert all(char.isprintable() or char == "\n" for char in text)


def test_csv_and_json_are_the_tidy_rows():
    run = runs.gpu_run(("fwd",))
    table = list(csv.DictReader(io.StringIO(render(run, "csv"))))
    records = json.loads(render(run, "json"))
    assert list(table[0]) == list(records[0]) == list(COLUMNS)
    assert len(table) == len(records) == len(run.measurements)
    for line, record in zip(table, records, strict=True):
        assert line["case_id"] == record["case_id"]
        assert (line["median_ms"] == "") == (record["median_ms"] is None)
        if record["median_ms"] is not None:
            assert float(line["median_ms"]) == record["median_ms"]
    expected = tidy(run).astype({"third_party": float})  # empty here, so that csv cannot tell that it is text
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(render(run, "csv"))), expected, check_dtype=False, check_column_type=False
    )


def test_the_table_fits_100_columns_and_says_why():
    for run in (runs.cpu_run(), runs.gpu_run()):
        text = render(run, "table")
        tables = [line for line in text.splitlines() if not line.startswith("  ")]
        assert max(map(len, tables)) <= 100
    text = render(runs.cpu_run(), "table")
    assert "*3.98" in text
    assert "unsupported: power-triton, p = 2 at 1k, 2k, 4k, 8k, 16k: power-triton needs a GPU" in text
    assert "from\n5.0k (4.9k..5.1k) tokens on" in text
    colored = io.StringIO()
    terminal = {"TERM": "xterm"}  # whatever this test itself runs in
    print_run(runs.cpu_run(), Console(file=colored, width=100, force_terminal=True, _environ=terminal))
    assert "\x1b[1m" in colored.getvalue()


def test_markdown_is_a_table_whatever_the_names():
    lines = [line for line in render(runs.hostile_run(), "markdown").splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(cells) == 1
    assert "<img" not in re.sub("`.*`", "", render(runs.hostile_run(), "markdown"))


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="table, csv, json, markdown"):
        render(runs.cpu_run(), "xml")


def test_numbers_for_people():
    assert [significant(x) for x in (0.00123, 0.0123, 0.123, 1.234, 12.34, 123.4, 12345.6)] == [
        "0.00123", "0.0123", "0.123", "1.23", "12.34", "123.4", "12346",
    ]  # fmt: skip
    assert [si(x) for x in (1234567, 999, 1.5e12, 45678)] == ["1.23M", "999.0", "1.50T", "45.7k"]
    assert si(2e10, " ") == "20.0 G"


def test_crossovers_in_every_format():
    run = runs.cpu_run()
    text = render_crossovers(run, "table")
    assert "from 5.0k (4.9k..5.1k) on" in " ".join(text.split())
    assert "cost model" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "| from 5.0k (4.9k..5.1k) on |" in render_crossovers(run, "markdown")
    records = json.loads(render_crossovers(run, "json"))
    frame = pd.read_csv(io.StringIO(render_crossovers(run, "csv")))
    assert list(frame.columns) == list(records[0]) == list(CROSSOVER_COLUMNS)
    assert len(frame) == len(records) == 3
    crossing = next(record for record in records if record["slower"] == "sdpa-cpu" and record["crossing_ctx"])
    assert crossing["ci_low_ctx"] < 5120 < crossing["ci_high_ctx"]
    assert (crossing["faster"], crossing["leader"]) == ("power-torch, p = 2",) * 2
    assert (crossing["ctx_from"], crossing["ctx_to"], crossing["verdict"]) == (1024, 16384, "crosses")
    assert render_crossovers(runs.run([]), "table") == "No two contestants were measured at the same context.\n"


def test_every_run_has_its_crossovers_in_every_format():
    for make in runs.RUNS.values():
        for form in ("table", "markdown", "csv", "json"):
            assert render_crossovers(make(), form).endswith("\n")


def test_a_prediction_stands_apart_from_what_was_measured():
    """sdpa quadratic and still ahead at 4k; both laws cross at 5120."""
    short = runs.cpu_run((256, 512, 1024, 2048, 4096))
    (answer,) = answers(short)
    assert "does not beat softmax attention (sdpa-cpu) within 256..4k" in answer.text
    assert "redicted" not in answer.text
    (predicted,) = answer.predictions
    found = re.fullmatch(
        r"Predicted, not measured: power-torch, p = 2 passes sdpa-cpu at about (\S+)k \((\S+)k..(\S+)k; "
        r"model error ([0-9.]+) %\)\.", predicted,
    )  # fmt: skip
    assert float(found[1]) == pytest.approx(5.0, rel=0.1)
    assert float(found[2]) <= float(found[1]) <= float(found[3])
    assert predicted in " ".join(render(short, "table").split())
    assert predicted in render(short, "markdown").replace("\\", "")
    assert "predicted" in render_crossovers(short, "table")
    assert answers(runs.cpu_run())[0].predictions == ()
