"""Tables at the widths that terminals have: names and times stay whole, and what goes is named."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from powerbench.check.compare import compare
from powerbench.check.outputs.terminal import print_comparison
from powerbench.kernels.table import available
from powerbench.listing import print_kernels
from powerbench.reports.show import render
from powerbench.reports.show_crossovers import render_crossovers
from tests import runs
from tests.test_check import one, run

WIDTHS = (60, 80, 100, 120)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", [runs.cpu_run, runs.gpu_run, runs.phases_run, runs.throttled_run])
def test_show_keeps_names_and_times(make, width):
    measured = make()
    text = render(measured, "table", width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for name in {found.case.kernel for found in measured.measurements}:
        assert any(f" {name} " in f"{line} " for line in lines), name
    assert "…" not in text
    if "TFLOP/s  " not in text:
        assert "left out, for want of width: " in text
        assert "--format csv" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_crossovers_keep_names(width):
    text = render_crossovers(runs.cpu_run(), "table", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "power-torch, p = 2" in text
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_check_keeps_verdicts_and_times(width):
    found = compare(run(one(seed=1), one("mine", seed=2)), run(one(seed=3, ms=1.5), one("mine", seed=4)))
    out = Console(file=io.StringIO(), width=width, highlight=False)
    print_comparison(found, out)
    text = out.file.getvalue()
    assert "…" not in text
    heading = next(line for line in text.splitlines() if line.startswith("verdict"))
    assert [word for word in heading.split() if word in ("verdict", "time", "case")] == ["verdict", "time", "case"]
    assert "regression" in text
    assert ("sees" in heading) != ("left out, for want of width: " in text)


@pytest.mark.parametrize("width", WIDTHS)
def test_list_kernels_keeps_names(width):
    out = Console(file=io.StringIO(), width=width, highlight=False)
    print_kernels(out)
    text = out.file.getvalue()
    assert "…" not in text
    table = text.partition("\n\n")[0].splitlines()
    for name in available():
        assert any(line.startswith(f"{name} ") for line in table), name
    assert ("sweeps" in table[0]) != ("left out, for want of width: " in text)
