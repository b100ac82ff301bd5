"""What is too large, too deep or half there is one line and status 2; what is only long is quick."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import time
import tomllib
from functools import partial
from importlib import resources
from pathlib import Path

import msgspec
import pytest
from rich.table import Table
from rich.text import Text

from powerbench import cli
from powerbench.console import Console
from powerbench.cost import Cost, Launch
from powerbench.errors import INTERNAL
from powerbench.reports import long_table, show
from powerbench.reports.page import page
from powerbench.reports.phases import phase_rows
from powerbench.results import store
from powerbench.results.model import Phase, Round
from powerbench.results.store import RunWriter, StoreError, load
from tests import runs

ROOT = Path(__file__).parents[1]


def _file(path: Path, run=None) -> Path:
    run = run or runs.cpu_run((1024, 2048))
    with RunWriter.create(path, run.header) as writer:
        for measurement in run.measurements:
            writer.append(measurement)
    return path


def _changed(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)
    return path


def powerbench(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "powerbench", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip


HUGE = [
    [('"p":2', '"p":10000000'), ('"head_dim":64', '"head_dim":10000000')],
    *(
        [(before, before.partition(":")[0] + ":1" + "0" * 400)]
        for before in ('"seqlen":1024', '"heads":8', '"batch":1')
    ),
    [('"seqlen":1024', '"seqlen":1' + "0" * 5000)],
    [('"useful_flops":', '"useful_flops":1' + "0" * 30)],
    [('"bytes":', '"bytes":-')],
    [('"seed":0', '"seed":1' + "0" * 400)],
    [('"cores":8', '"cores":-1')],
    [('"d_tile":16', '"d_tile":0')],
    [('"chunk_size":256', '"chunk_size":1' + "0" * 30)],
    [('"schema":1', '"schema":1' + "0" * 400)],
    [('"copy_bytes_per_s":', '"copy_bytes_per_s":1e-300,"x":')],
    [('"samples_ms":[', '"samples_ms":[1e-300,')],
    [('"samples_ms":[', '"samples_ms":[1e300,')],
    [('"seed":0', '"seed":0,"later":' + "[" * 200_000 + "]" * 200_000)],
    [('"status":"ok"', '"status":"ok","later":' + '{"a":' * 200_000 + "1" + "}" * 200_000)],
]


@pytest.mark.parametrize("changes", HUGE, ids=lambda changes: changes[0][1][:30])
def test_beyond_the_bounds_is_one_line(tmp_path, changes):
    path = _changed(_file(tmp_path / "a.jsonl"), *changes)
    start = time.perf_counter()
    with pytest.raises(StoreError) as raised:
        load(path)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_no_verdict_of_check_comes_of_it(tmp_path):
    good, bad = _file(tmp_path / "a.jsonl"), _file(tmp_path / "b.jsonl")
    _changed(bad, ('"seqlen":1024', '"seqlen":1' + "0" * 400))
    done = powerbench("check", good, bad)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_the_largest_that_is_let_in_is_quick(tmp_path):
    most = ('"p":2', '"p":32'), ('"head_dim":64', '"head_dim":1048576'), ('"heads":8', '"heads":1048576')
    path = _changed(_file(tmp_path / "a.jsonl"), *most)
    run = load(path)
    start = time.process_time()
    assert page([run])
    assert time.process_time() - start < 60
    for form in show.FORMATS:
        assert show.render(run, form)


def test_what_load_refuses_is_not_written(tmp_path):
    (one, *_) = runs.cpu_run((1024,)).measurements
    with RunWriter.create(tmp_path / "a.jsonl", runs.header()) as writer:
        for sizes in ({"head_dim": 2**40}, {"seqlen": 2**50}, {"batch": -1}):
            with pytest.raises(ValueError, match=one.case.kernel):
                writer.append(runs.of_shape(one, **sizes))
        for samples in ((float("nan"), 1.0), (1.0, float("nan")), (float("inf"),), (0.0,)):
            with pytest.raises(ValueError, match=one.case.kernel):
                writer.append(msgspec.structs.replace(one, samples_ms=samples, rounds=()))
    assert load(tmp_path / "a.jsonl").measurements == ()


def test_an_internal_error_has_a_status_of_its_own(tmp_path, monkeypatch, capsys):
    path = _file(tmp_path / "a.jsonl")

    def broken(*_: object) -> None:
        raise RuntimeError("two\nlines\x1b[2J")

    monkeypatch.setattr(show, "print_run", broken)
    monkeypatch.setattr(sys, "argv", ["powerbench", "show", str(path)])
    for traced in (False, True):
        if traced:
            monkeypatch.setenv("POWERBENCH_TRACEBACK", "1")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == INTERNAL == 70
        said = capsys.readouterr().err
        assert "internal error: RuntimeError: two lines\\x1b[2J" in said
        assert ("Traceback" in said) == traced
        assert (len(said.splitlines()) == 1) == (not traced)
        assert "\x1b" not in said


def test_the_status_is_documented():
    assert "| 70 |" in (ROOT / "docs" / "cli.md").read_text()
    assert "| 70 |" in (ROOT / "docs" / "gate.md").read_text()


def test_a_table_of_many_rows_is_the_one_of_rich(monkeypatch):
    for name in ("cpu", "gpu", "with phases", "heads", "hostile"):
        found = []
        for few in (10**9, 0):
            monkeypatch.setattr(long_table, "FEW", few)
            found.append(show.render(runs.RUNS[name](), "table", width=400))
        assert found[0] == found[1]


def test_a_long_table_with_styles():
    def drawn(few: int) -> str:
        long_table.FEW = few
        table = long_table.LongTable(box=None, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("[red]x")
        table.add_row("[/nothing]")
        out = io.StringIO()
        Console(file=out, width=80).print(table)
        return out.getvalue()

    before = long_table.FEW
    try:
        assert "[/nothing]" in drawn(0)
    finally:
        long_table.FEW = before


def test_the_console_takes_no_markup_and_no_escapes():
    out = io.StringIO()
    table = Table(title="[/x]\x1b")
    table.add_column("[red]")
    table.add_row("[/x]\x9b", end_section=True)
    console = Console(file=out, width=60)
    console.print(table)
    console.print("[/x]:skull:\u202e\nb")
    console.print(Text("\x1b]52;c;x\x07"))
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(out.getvalue())
    assert "[/x]:skull:\\u202e\\nb\n" in out.getvalue()


def _seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def test_time_grows_with_size_not_with_its_square(tmp_path):
    """Four times as much takes less than ten times as long: phases and visits of a case, rows of a setting."""
    (one, *_) = [m for m in runs.gpu_run(("fwd",)).measurements if m.status == "ok"]

    def of_phases(n: int):
        launches = tuple(Launch(f"ph{i}", Cost(1000, 1000, 1000)) for i in range(n))
        phases = tuple(Phase(f"ph{i}", (0.1,) * 5) for i in range(n))
        return runs.run([msgspec.structs.replace(one, launches=launches, phases=phases)], runs.header("NVIDIA H200"))

    def of_visits(n: int) -> Path:
        lines = (msgspec.structs.replace(one, samples_ms=(1.0,) * 5, rounds=(Round(5, visit=i),)) for i in range(n))
        path = tmp_path / f"{n}.jsonl"
        path.write_bytes(b"".join(store._encode(line) + b"\n" for line in (runs.header(), *lines)))
        return path

    def of_rows(n: int):
        return runs.run([runs.measurement("sdpa-cpu", 1024 + i, 1.0, flops=1e6) for i in range(n)])

    for make, work in (
        (of_phases, phase_rows), (of_visits, load),
        (of_rows, lambda run: [show.columns(group) for group in show.groups(show.rows(run))]),
    ):  # fmt: skip
        small, large = make(2000), make(8000)
        times = [min(_seconds(partial(work, of)) for _ in range(2)) for of in (small, large)]
        assert times[1] < 10 * max(times[0], 0.02), (make.__name__, times)


@pytest.mark.parametrize("size", [0, 1, 10, 40, 400])
def test_a_half_header_is_said_and_started_over(tmp_path, size):
    path = tmp_path / "a.jsonl"
    path.write_bytes(_file(tmp_path / "whole.jsonl").read_bytes()[:size])
    with pytest.raises(StoreError, match="--resume starts it over") as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert store.holds_nothing(path)
    store.start_over(path)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"notes of mine", b'{"type":"headers"', b'{"a":1}', b'{"type":"header",\n', b"{}"])
def test_what_is_no_half_header_is_kept(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert not store.holds_nothing(path)


def test_a_full_disk_leaves_no_half_header(tmp_path, monkeypatch):
    def full(self: RunWriter, line: bytes) -> None:
        self._file.write(line[:20])
        self._file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunWriter, "_write_bytes", full)
    with pytest.raises(StoreError, match="No space left"):
        RunWriter.create(tmp_path / "a.jsonl", runs.header())
    assert not list(tmp_path.iterdir())


def test_folders_are_on_disk_before_the_file_is_used(tmp_path, monkeypatch):
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd))[1])
    _file(tmp_path / "new" / "deep" / "a.jsonl")
    folders = {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "deep")}
    assert folders <= set(synced)


def test_plotly_is_the_recorded_file():
    assets = resources.files("powerbench.reports") / "assets"
    said = tomllib.loads((assets / "plotly.toml").read_text())
    content = (assets / said["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == said["sha256"]
    assert f"v{said['version']}".encode() in content[:200]
    assert said["version"] in said["source"]
    assert said["licence"] == "MIT"
    assert "MIT" in (assets / said["licence_file"]).read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"powerbench/reports/assets/{said['licence_file']}" in project["project"]["license-files"]
    assert "reports/assets/*" in project["tool"]["setuptools"]["package-data"]["powerbench"]


def test_the_recipe_for_ci_gives_nothing_away():
    text = (ROOT / "docs" / "gate.md").read_text()
    recipe = text.partition("```yaml")[2].partition("```")[0]
    lines = [line.strip().removeprefix("- ") for line in recipe.splitlines()]
    actions = [line.split()[1] for line in lines if line.startswith("uses:")]
    assert actions
    for action in actions:
        digest = action.rpartition("@")[2]
        assert len(digest) == 40
        assert set(digest) <= set("0123456789abcdef")
    assert "permissions:\n  contents: read" in recipe
    assert "persist-credentials: false" in recipe
    for line in lines:
        if "${{" in line:
            assert line.startswith("BASE:")  # in the environment, never in a script
    assert "fork" in text.partition("```yaml")[0].rpartition("##")[2]
