"""Phases from a run file to tables: numbers that can be checked by hand, and what is said where there are none."""

from __future__ import annotations

import csv
import io
import json

import msgspec
import pandas as pd
import pytest

from powerbench.cost import Cost, Launch
from powerbench.reports.curves import groups
from powerbench.reports.frames import tidy_phases
from powerbench.reports.phase_table import phase_cases, phase_reasons
from powerbench.reports.phases import PHASE_COLUMNS, curves_with_phases, phase_names, phase_rows
from powerbench.reports.rows import rows
from powerbench.reports.show import PHASE_LEGEND, render, render_phases
from powerbench.results.model import Phase
from tests import runs

# 20 GB/s and 0.2 TFLOP/s in fp32: they meet at 10 FLOP/byte
DENSE = Launch("dense", Cost(800_000_000, 1_000_000_000, 10_000_000))  # 5 ms of arithmetic, 0.5 ms of copying
SPARSE = Launch("sparse", Cost(10_000_000, 10_000_000, 20_000_000))  # 0.05 ms of arithmetic, 1 ms of copying
COPY = Launch("copy", Cost(0, 0, 100_000_000))  # 5 ms of copying


def _apart(*phases: Phase, launches=(DENSE, SPARSE, COPY)):
    whole = msgspec.structs.replace(runs.measurement("power-torch", 1024, 20.0, noise=0), launches=launches)
    return runs.run([msgspec.structs.replace(whole, phases=phases)])


def _found(run):
    (found,) = phase_rows(run).values()
    return found


def test_each_phase_stands_under_the_roof_by_its_own_cost():
    dense, sparse, copy = _found(_apart(*(Phase(n, (10.0,) * 5) for n in ("dense", "sparse", "copy"))))
    assert (dense.bound, sparse.bound, copy.bound) == ("compute", "memory", "memory")
    assert [phase.roof_fraction for phase in (dense, sparse, copy)] == pytest.approx([0.5, 0.1, 0.5])
    assert [phase.intensity for phase in (dense, sparse, copy)] == pytest.approx([100, 0.5, 0])
    assert [phase.gb_per_s for phase in (dense, sparse, copy)] == pytest.approx([1, 2, 10])
    assert [phase.executed_tflops for phase in (dense, sparse, copy)] == pytest.approx([0.1, 0.001, 0])
    assert dense.useful_tflops == pytest.approx(0.08)
    assert [phase.share for phase in (dense, sparse, copy)] == pytest.approx([0.5, 0.5, 0.5])
    assert all(phase.valid and phase.reason is None for phase in (dense, sparse, copy))


def test_statistics_are_those_of_the_samples():
    (phase,) = _found(_apart(Phase("dense", (11.0, 9.0, 10.0, 14.0, 8.0, 10.5, 9.5))))
    assert (phase.n, phase.median_ms) == (7, 10.0)
    assert phase.ci_low_ms < 10 < phase.ci_high_ms
    assert phase.spread == pytest.approx(max(phase.ci_high_ms - 10, 10 - phase.ci_low_ms) / 10)
    (few,) = _found(_apart(Phase("dense", (11.0, 9.0))))
    assert (few.median_ms, few.interval_ms, few.spread) == (10.0, None, None)


def test_faster_than_the_machine_is_invalid_and_no_samples_is_failed():
    fast, failed = _found(_apart(Phase("dense", (4.0,) * 5), Phase("sparse", message="RuntimeError: boom")))
    assert (fast.valid, fast.state, fast.median_ms) == (False, "invalid", 4.0)
    assert fast.reason.startswith("above the roof: 125 % of the measured ceiling")
    assert (failed.valid, failed.state, failed.median_ms, failed.share) == (False, "failed", None, None)
    assert failed.reason == "RuntimeError: boom"


def test_launches_of_one_name_are_one_phase():
    (both,) = _found(_apart(Phase("dense", (20.0,) * 5), launches=(DENSE, DENSE)))
    assert both.roof_fraction == pytest.approx(0.5)


def test_without_a_ledger_or_a_ceiling_there_is_a_time_and_no_roof():
    (bare,) = _found(_apart(Phase("dense", (1.0,) * 5), launches=()))
    assert (bare.median_ms, bare.valid) == (1.0, True)
    assert (bare.useful_tflops, bare.gb_per_s, bare.intensity, bare.roof_fraction) == (None, None, None, None)
    other = runs.with_phases(runs.measurement("power-torch", 1024, 4.0, dtype="fp64"))
    found = _found(runs.run([other]))
    assert all(phase.roof_fraction is None and phase.gb_per_s for phase in found)


def test_figures_and_tables_take_the_fastest_choice():
    run = runs.phases_run()
    (group, _), phases = groups(rows(run)), phase_rows(run)
    found = curves_with_phases(group, phases)
    assert [curve.label for curve, _ in found] == ["power-triton, p = 2", "linear-triton, p = 1"]
    for _, points in found:
        assert [members[0].case.ctx for members in points] == [4096, 16384, 65536]
        assert {members[0].case.chunk_size for members in points} <= {1024, 256}
        assert phase_names(points) == ["update_state", "scan", "attention", "query_state"]
    assert [case[-1].phase for case in phase_cases(group, phases)] == ["whole call"] * 6
    whole = next(phase_cases(group, phases))[-1]
    moved = sum(phase_bytes for _, _, phase_bytes, _ in runs.FORWARD_PHASES) * 65536
    assert whole.gb_per_s == pytest.approx(moved / whole.median_ms / 1e6, rel=1e-3)


def test_a_context_of_one_chunk_lacks_phases_and_the_order_is_that_of_the_longest():
    whole = runs.with_phases(runs.measurement("power-triton", 4096, 20.0), scale=1e-3)
    short = runs.with_phases(runs.measurement("power-triton", 1024, 10.0), scale=1e-3)
    short = msgspec.structs.replace(short, phases=short.phases[2:3], launches=short.launches[2:3])
    run = runs.run([short, whole])
    ((_, points),) = curves_with_phases(groups(rows(run))[0], phase_rows(run))
    assert [len(members) for members in points] == [1, 4]
    assert phase_names(points) == ["update_state", "scan", "attention", "query_state"]


def test_csv_and_json_are_the_tidy_phases():
    run = runs.phases_run()
    table = list(csv.DictReader(io.StringIO(render_phases(run, "csv"))))
    records = json.loads(render_phases(run, "json"))
    assert list(table[0]) == list(records[0]) == list(PHASE_COLUMNS)
    assert len(table) == len(records) == sum(len(m.phases) for m in run.measurements)
    for line, record in zip(table, records, strict=True):
        assert (line["case_id"], line["phase"]) == (record["case_id"], record["phase"])
        assert (line["median_ms"] == "") == (record["median_ms"] is None)
        if record["median_ms"] is not None:
            assert float(line["median_ms"]) == record["median_ms"]
    frame = tidy_phases(run)
    assert frame.chunk_size.dtype == "Int64"
    assert frame.share.dtype == "float64"
    assert list(frame.columns) == list(tidy_phases(runs.cpu_run()).columns) == list(PHASE_COLUMNS)
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(render_phases(run, "csv"))), frame, check_dtype=False, check_column_type=False
    )
    assert json.loads(render_phases(runs.cpu_run(), "json")) == []
    assert render_phases(runs.cpu_run(), "csv").strip() == ",".join(PHASE_COLUMNS)
    with pytest.raises(ValueError, match="csv or json, not 'table'"):
        render_phases(run, "table")


def test_the_terminal_says_where_the_time_goes():
    text = render(runs.phases_run(), "table")
    lines = [line for line in text.splitlines() if not line.startswith("  ")]
    assert max(map(len, lines)) <= 100
    assert " ".join(PHASE_LEGEND.split()) in " ".join(text.split())
    case = text[text.index("64k  power-triton   2  update_state") :].splitlines()[:5]
    words = [line.replace("64k  power-triton   2", "").split() for line in case]
    assert words[0][:2] == ["update_state", "0.605"]
    assert words[1] == ["scan", "failed"]
    assert words[2][:2] == ["attention", "invalid"]
    assert words[4][:3] == ["whole", "call", "2.02"]
    said = " ".join(text.split())
    assert "failed: scan of power-triton, p = 2 at 64k: OutOfMemoryError: CUDA out of memory." in said
    assert "invalid: attention of power-triton, p = 2 at 64k: above the roof: " in said


def test_the_same_reason_is_said_once():
    found = []
    for ctx in (1024, 2048):
        whole = runs.with_phases(runs.measurement("power-torch", ctx, 20.0, flops=1e6), scale=1e-3)
        found.append(msgspec.structs.replace(whole, phases=(Phase("scan", message="RuntimeError: boom"),)))
    run = runs.run(found)
    assert phase_reasons(groups(rows(run))[0], phase_rows(run)) == [
        "failed: scan of power-torch at 1k, 2k: RuntimeError: boom"
    ]


def test_a_run_without_phases_says_nothing_of_them():
    for format in ("table", "markdown"):
        assert "hase" not in render(runs.cpu_run(), format)
        assert "Phases: each launch timed alone" in render(runs.phases_run(), format)
