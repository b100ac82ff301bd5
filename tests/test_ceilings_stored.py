"""Ceilings as stored and printed: nothing is printed that is not in the file, and files of before still load."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from powerbench import session
from powerbench.cost import Cost, Launch
from powerbench.datasheet import DATASHEETS
from powerbench.device import Device
from powerbench.reports.ceilings import NAMES, ceiling_name, ceiling_rows
from powerbench.reports.machine import ceiling_facts
from powerbench.results.model import Header
from powerbench.results.store import RunWriter, StoreError, load
from powerbench.roofline import Ceiling, Ceilings, roof_seconds
from tests import runs


def printed(monkeypatch, ceilings, device):
    """What `powerbench ceilings` says where it would measure these."""
    monkeypatch.setattr(session, "pick", lambda name: device)
    monkeypatch.setattr(session, "measure_all_ceilings", lambda *_: ceilings)
    monkeypatch.setattr(session, "matmul_dtypes", lambda device: ("bf16",))
    out = Console(file=io.StringIO(), width=140)
    session.print_ceilings(None, "auto", out)
    return out.file.getvalue()


H200 = Device("cuda", "NVIDIA H200", 2**37)


def test_beside_the_datasheet(monkeypatch):
    text = printed(monkeypatch, runs.gpu_ceilings(), H200)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    for words in ("790.0 TFLOP/s", "989.5 TFLOP/s (80 % reached)", "2.0 %", "8192 x 8192 x 8192"):
        assert words in lines["matmul bf16"]
    assert "4100 GB/s" in lines["read"]
    assert "4800 GB/s (85 % reached)" in lines["read"]
    assert "2.50 us" in lines["launch, on the device"]
    assert "reached" not in lines["L2 read"]


def test_an_unknown_device_has_no_datasheet(monkeypatch):
    text = printed(monkeypatch, runs.gpu_ceilings(), Device("cuda", "NVIDIA H9000", 2**37))
    assert "790.0 TFLOP/s" in text
    assert "datasheet" not in text


def test_what_is_printed_is_stored(monkeypatch, tmp_path):
    """A ceiling that is printed and not in the header would be lost: every line must come back from the file."""
    path = tmp_path / "run.jsonl"
    RunWriter.create(path, runs.header("NVIDIA H200", 7.9e14, 4.1e12)).close()
    stored = load(path).ceilings
    assert stored == runs.gpu_ceilings()
    assert {ceiling.kind for ceiling in stored.measured} == set(NAMES)
    text = printed(monkeypatch, runs.gpu_ceilings(), H200)
    heading, *lines, _legend = text.splitlines()[1:]
    assert heading.startswith("ceiling ")
    rows = ceiling_rows(stored, "NVIDIA H200")
    for line, row in zip(lines, rows, strict=True):
        assert all(cell in line for cell in row)
    names = [name for name, _ in ceiling_facts(stored, "NVIDIA H200")]
    assert names == [f"Measured: {ceiling_name(ceiling)}" for ceiling in stored.measured]


def test_datasheets_are_dense_and_in_order():
    for sheet in DATASHEETS.values():
        assert sheet.tflops["bf16"] == sheet.tflops["fp16"] >= sheet.tflops["tf32"] >= sheet.tflops["fp32"]
        assert 0.45 < sheet.tflops["tf32"] / sheet.tflops["bf16"] < 0.55  # half, where neither counts sparsity
        assert 100 < sheet.memory_gb_per_s < 10_000


OLD = sorted((Path(__file__).parents[1] / "results").rglob("*.jsonl"))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_runs_of_before_load_with_what_they_have(path):
    """Published when the rates were all there was."""
    run = load(path)
    assert run.header.schema == 1
    if b'"measured":' not in path.read_bytes():
        assert run.ceilings.measured == ()
        assert run.header.environment.gpu is None
        assert ceiling_facts(run.ceilings, run.header.environment.device) == []
    assert run.ceilings.copy_bytes_per_s > 0


def test_an_old_reader_ignores_what_is_new():
    """As the first version had them."""
    ceilings = msgspec.defstruct("C", [("matmul_flops_per_s", dict[str, float]), ("copy_bytes_per_s", float)])
    environment = msgspec.defstruct("E", [("device", str), ("packages", dict[str, str]), ("commit", str | None)])
    header = msgspec.defstruct(
        "H", [("schema", int), ("ceilings", ceilings), ("environment", environment)], tag="header", tag_field="type"
    )
    line = msgspec.json.encode(runs.header("NVIDIA H200"))
    old = msgspec.json.decode(line, type=header)
    assert old.ceilings.copy_bytes_per_s == msgspec.json.decode(line, type=Header).ceilings.copy_bytes_per_s


@pytest.mark.parametrize("bad", [{"samples_ms": ()}, {"samples_ms": (1.0, 0.0)}, {"work": 0}, {"samples_ms": (-1.0,)}])
def test_zeros_are_no_data(tmp_path, bad):
    broken = msgspec.structs.replace(runs.gpu_ceilings().measured[0], **bad)
    ceilings = msgspec.structs.replace(runs.gpu_ceilings(), measured=(broken,))
    header = msgspec.structs.replace(runs.header(), ceilings=ceilings)
    path = tmp_path / "run.jsonl"
    RunWriter.create(path, header).close()
    with pytest.raises(StoreError, match="line 1: ceiling matmul"):
        load(path)


def test_the_roof_of_memory_is_the_better_of_copy_and_read():
    copy = Ceiling("copy", 10**9, (1.0, 2.0), "wall", "of")
    slow, fast = (Ceiling("read", work, (1.0,), "wall", "of") for work in (9 * 10**8, 11 * 10**8))
    matmul = Ceiling("matmul", 10**12, (1.0,), "wall", "of", "fp32")
    for reads, bandwidth in (((), 1e12), ((slow,), 1e12), ((slow, fast), 1.1e12)):
        ceilings = Ceilings.of([matmul, copy, *reads])
        assert ceilings.memory_bytes_per_s == pytest.approx(bandwidth)
        seconds, bound = roof_seconds([Launch("read", Cost(0, 0, 10**9))], "fp32", ceilings)
        assert (seconds, bound) == (pytest.approx(1e9 / bandwidth), "memory")
