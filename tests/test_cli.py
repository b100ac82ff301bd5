"""The command line as a user meets it: one process a command, small problems, no GPU."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from powerbench.cost import Cost, Launch
from powerbench.reports.ceilings import ceiling_name
from powerbench.results.store import load
from powerbench.session import Session, print_ceilings
from powerbench.suites import Suite
from powerbench.timing import Policy
from tests.fakes import CEILINGS, CPU, fake

SMALL = ["--p", "2", "--ctx", "64,128,256", "--head-dim", "16", "--device", "cpu"]


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from powerbench.cli import main; main()", *args]


def powerbench(*args: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


def found_beside(folder: Path) -> dict[str, str]:
    """An environment in which packages of this folder are found, beside this tree and what is found already."""
    paths = (str(folder), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def case_ids(path: Path) -> list[str]:
    return [measurement.case_id for measurement in load(path).measurements]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One small sweep that several tests look at: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    done = powerbench("sweep", *SMALL, "-o", "run.jsonl", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_sweep_prints_a_table_an_answer_and_the_report_command(swept):
    _, done = swept
    for word in ("power-torch", "linear-torch", "sdpa-cpu", "256", "tokens/s"):
        assert word in done.stdout
    assert "report: powerbench report run.jsonl" in done.stdout
    assert "Power attention (p = 2, power-torch)" in " ".join(done.stdout.split())
    assert "ETA" in done.stderr


def test_the_run_file_holds_raw_samples_and_what_made_them(swept):
    folder, _ = swept
    header, *rows, again = lines(folder / "run.jsonl")
    assert again["type"] == "ceilings"
    assert header["type"] == "header"
    assert header["command"].endswith("sweep --p 2 --ctx 64,128,256 --head-dim 16 --device cpu -o run.jsonl")
    assert header["ceilings"]["matmul_flops_per_s"]["fp32"] > 1e9
    assert {row["status"] for row in rows} == {"ok"}
    assert all(len(row["samples_ms"]) >= 2 and row["error"] < row["tolerance"] for row in rows)
    assert {row["timer"] for row in rows} == {"wall"}
    assert {row["order"] for row in rows} == {"interleaved"}
    assert {row["stop"] for row in rows} <= {"precise", "time", "samples"}
    assert [{one.get("visit", 0) for one in row["rounds"]} for row in rows] == [{i // 9} for i in range(45)]
    for case in load(folder / "run.jsonl").measurements:
        assert len(case.visits) == 5
        assert len(case.samples_ms) >= 10


@pytest.mark.parametrize("format_", ["table", "csv", "json", "markdown"])
def test_show(swept, format_):
    folder, _ = swept
    done = powerbench("show", "run.jsonl", "--format", format_, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "power-torch" in done.stdout
    if format_ == "json":
        records = json.loads(done.stdout)
        assert len(records) == 9
        contract = """
            case_id kernel p d_tile chunk_size ctx batch heads kv_heads head_dim dtype pass status reason n median_ms
            ci_low_ms ci_high_ms tokens_per_s useful_tflops executed_tflops intensity bound roof_fraction mfu hfu
            peak_memory_mib error timer config
        """
        assert set(contract.split()) <= set(records[0])


def test_report(swept):
    folder, _ = swept
    done = powerbench("report", "run.jsonl", "-o", "page.html", "--static", "figures", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "power-torch" in (folder / "page.html").read_text()
    assert list((folder / "figures").glob("*.png"))
    assert list((folder / "figures").glob("*.svg"))


def test_index(swept):
    folder, _ = swept
    done = powerbench("index", "run.jsonl", "-o", "pages", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["page: pages/run.html", "page: pages/index.html"]
    assert 'href="run.html"' in (folder / "pages" / "index.html").read_text()
    assert "power-torch" in (folder / "pages" / "run.html").read_text()
    twice = powerbench("index", "run.jsonl", "run.jsonl", "-o", "pages", cwd=folder)
    assert twice.returncode == 2
    assert twice.stderr.startswith("powerbench: error: run.jsonl, run.jsonl: the page would be run.html")


def test_sweep_does_not_overwrite_and_resume_measures_nothing_twice(swept):
    folder, _ = swept
    before = (folder / "run.jsonl").read_bytes()
    again = powerbench("sweep", *SMALL, "-o", "run.jsonl", cwd=folder)
    assert again.returncode == 2
    assert "run.jsonl exists" in again.stderr
    resumed = powerbench("sweep", *SMALL, "-o", "run.jsonl", "--resume", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "0 cases" in resumed.stderr
    assert (folder / "run.jsonl").read_bytes() == before


def test_resume_refuses_another_seed(swept):
    folder, _ = swept
    done = powerbench("sweep", *SMALL, "--seed", "1", "-o", "run.jsonl", "--resume", cwd=folder)
    assert done.returncode == 2
    assert "with seed 0; this is" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_resumes_to_the_uninterrupted_plan(swept, tmp_path, how):
    folder, _ = swept
    process = subprocess.Popen(
        command("sweep", *SMALL, "-o", "run.jsonl"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    path = tmp_path / "run.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") >= 4):
        time.sleep(0.01)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    kept = path.read_bytes()
    assert 3 <= kept.count(b"\n") - 1 < 45, "the sweep must be cut off half way for this test to mean anything"
    complete = sum(len(case.visits) == 5 for case in load(path).measurements)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert f"interrupted: {complete} of 9 cases are complete in run.jsonl" in stderr.decode()
        assert "Traceback" not in stderr.decode()
    with path.open("ab") as file:  # as if killed in the middle of a line
        file.write(b'{"type":"measurement","case":{"prob')
    resumed = powerbench("sweep", *SMALL, "-o", "run.jsonl", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{9 - complete} cases" in resumed.stderr
    assert path.read_bytes().startswith(kept)
    assert sorted(case_ids(path)) == sorted(
        case_ids(folder / "run.jsonl")
    )  # of a problem in the order of becoming precise
    run = load(path)
    assert not run.warnings  # among them that something was measured twice
    assert [len(case.visits) for case in run.measurements] == [5] * 9


def test_a_truncated_file_loads_with_a_warning(swept, tmp_path):
    folder, _ = swept
    whole = (folder / "run.jsonl").read_bytes()
    whole = whole[: whole.rindex(b'{"type":"ceilings"')]
    (tmp_path / "cut.jsonl").write_bytes(whole[:-40])
    done = powerbench("show", "cut.jsonl", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0
    assert sorted(record["visits"] for record in json.loads(done.stdout)) == [4] + [5] * 8
    assert "powerbench: warning: " in done.stderr


def test_dry_run_measures_nothing_and_says_what_would_be_skipped(tmp_path):
    done = powerbench("sweep", *SMALL, "--kernels", "power-torch,flash-2", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 to measure in about" in done.stdout
    assert "3 skipped" in done.stdout
    assert "MiB" in done.stdout
    assert "needs a CUDA device" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


def test_a_d_tile_that_divides_one_head_dimension_only_is_skipped_for_the_other(tmp_path):
    selectors = ["--ctx", "64", "--head-dim", "16,32", "--d-tile", "32", "--kernels", "power-torch", "--device", "cpu"]
    done = powerbench("sweep", *selectors, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 to measure" in done.stdout
    assert "d_tile 32 does not divide head dimension 16" in " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder on whose path another package brings a kernel of three phases, one of which fails."""
    folder = tmp_path_factory.mktemp("theirs")
    info = folder / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[powerbench.kernels]\ntheirs = tests.fakes:THEIRS_IN_PHASES\n")
    return found_beside(folder)


PHASES = [*("--ctx", "64,128", "--head-dim", "16", "--device", "cpu", "--ungated"), "--kernels", "fake,sdpa-cpu"]


def test_phases_from_sweep_to_page(theirs, tmp_path):
    done = powerbench("sweep", *PHASES, "--phases", "-o", "run.jsonl", cwd=tmp_path, env=theirs)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 phases" in done.stderr
    for words in ("whole call", "failed: weights of theirs-in-phases at 64, 128: RuntimeError: no such luck"):
        assert words in " ".join(done.stdout.split())
    written = [line for line in lines(tmp_path / "run.jsonl") if line["type"] == "measurement"]
    assert len(written) == 20
    assert not any("phases" in row for row in written[4:])  # in the first visit only
    rows = written[:4]
    for row in rows:
        phases = {phase["name"]: phase for phase in row.get("phases", ())}
        if row["case"]["kernel"] == "sdpa-cpu":
            assert "phases" not in row
            continue
        assert list(phases) == ["scores", "weights", "sum"]
        assert phases["weights"] == {"name": "weights", "message": "RuntimeError: no such luck"}
        assert len(phases["sum"]["samples_ms"]) >= 5
    # what is read needs neither the other package nor its kernels
    shown = powerbench("show", "run.jsonl", "--phases", "--format", "json", cwd=tmp_path)
    assert [record["phase"] for record in json.loads(shown.stdout)] == ["scores", "weights", "sum"] * 2
    report = powerbench("report", "run.jsonl", "-o", "page.html", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "Time by phase against context: theirs-in-phases" in (tmp_path / "page.html").read_text()


def test_resume_with_phases_measures_nothing_twice_and_says_so(theirs, tmp_path):
    first = ["--batch", "1", *PHASES[2:], "-o", "run.jsonl"]
    assert powerbench("sweep", "--ctx", "64,96", *first, cwd=tmp_path, env=theirs).returncode == 0
    before = (tmp_path / "run.jsonl").read_bytes()
    resumed = powerbench("sweep", "--ctx", "64,128", *first, "--phases", "--resume", cwd=tmp_path, env=theirs)
    assert resumed.returncode == 0, resumed.stderr
    assert "--phases: cases measured earlier without, which stay as they are: 1\n" in resumed.stderr
    assert (tmp_path / "run.jsonl").read_bytes().startswith(before)
    apart = [row["case"]["problem"]["seqlen"] for row in lines(tmp_path / "run.jsonl") if "phases" in row]
    assert apart == [128]


def test_what_was_timed_by_other_means_is_not_mixed(swept, tmp_path):
    """As in files of before, whose single visit was timed by `perf_counter`."""
    folder, _ = swept
    header, first, *_ = (folder / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run.jsonl").write_bytes(header + first.replace(b'"timer":"wall"', b'"timer":"perf_counter"'))
    resumed = powerbench("sweep", *SMALL, "--visits", "2", "-o", "run.jsonl", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "timed by other means (perf_counter), which stay as they are: 1\n" in resumed.stderr
    assert sorted(len(case.visits) for case in load(tmp_path / "run.jsonl").measurements) == [1] + [2] * 8


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """As `theirs`, but one kernel aborts its process and one hangs."""
    folder = tmp_path_factory.mktemp("faulty")
    info = folder / "faulty-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1\n")
    points = ("aborts = tests.planted:ABORTS", "hangs = tests.planted:HANGS")
    (info / "entry_points.txt").write_text("\n".join(["[powerbench.kernels]", *points, ""]))
    return found_beside(folder)


def test_a_sweep_survives_its_contestants(faulty, tmp_path):
    selectors = ["--ctx", "64", "--head-dim", "16", "--device", "cpu", "--kernels", "fake,sdpa-cpu", "--timeout", "10"]
    done = powerbench("sweep", *selectors, "-o", "run.jsonl", cwd=tmp_path, env=faulty)
    assert done.returncode == 0, done.stderr
    rows = {row["case"]["kernel"]: row for row in lines(tmp_path / "run.jsonl") if row["type"] == "measurement"}
    assert {name: row["status"] for name, row in rows.items()} == {
        "aborts": "failed", "hangs": "timeout", "sdpa-cpu": "ok",
    }  # fmt: skip
    said = " ".join(done.stdout.split())
    assert "failed: aborts at 64: the process was ended by SIGABRT: terminate called after a planted fault" in said
    assert "timeout: hangs at 64: no answer within the 10 s left to this case; it was ended" in said
    assert "planted fault" not in done.stderr.replace(rows["aborts"]["message"], ""), "the terminal is the parent's"
    checked = powerbench("verify", *selectors, cwd=tmp_path, env=faulty)
    assert checked.returncode == 1


def test_the_plan_counts_the_time_of_phases(monkeypatch):
    """With the same ceilings each time, so that nothing else can make a difference."""
    monkeypatch.setattr("powerbench.session.measure_ceilings", lambda *_: CEILINGS)
    work = (Launch("scores", Cost(10**9, 10**9, 10**6)), Launch("sum", Cost(10**9, 10**9, 10**6)))
    kernels = [fake("apart", launches=lambda _: work, phases=lambda *_: {}), fake("whole", launches=lambda _: work)]
    suite = Suite(ctx=(64,)).on("cpu")

    def plan(phases):
        printed = Console(file=io.StringIO(), width=200)
        Session(suite, kernels, CPU, 0, Console(file=io.StringIO()), phases).dry_run(printed)
        return [line.split() for line in printed.file.getvalue().splitlines() if line.startswith(("apart", "whole"))]

    (apart, whole), (apart_too, whole_too) = plan(False), plan(True)
    assert whole == whole_too
    assert apart != apart_too
    assert apart[1:] == whole[1:]


def test_verify(tmp_path):
    done = powerbench("verify", *SMALL, "--p", "1,2,3", "--pass", "fwd,bwd", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "power-torch/p3" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_where_nothing_can_run_exits_1(tmp_path):
    done = powerbench("sweep", *SMALL, "--kernels", "flash-2", "-o", "run.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert {row["status"] for row in lines(tmp_path / "run.jsonl")[1:-1]} == {"unsupported"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sweep", "--p", "0"], "--p: '0' is not a positive integer"),
        (["sweep", "--ctx", "12x"], "--ctx: '12x' is not a positive integer"),
        (["sweep", "--d-tile", "7"], "--d-tile: 7 does not divide head dimension 64"),
        (["sweep", "--kernels", "nope"], "--kernels: 'nope' is no kernel and no family"),
        (["sweep", "--device", "tpu"], "--device: 'tpu' is not one of auto, cpu, cuda"),
        (["sweep", "--dtype", "fp8"], "--dtype: 'fp8' is not one of bf16, fp16, fp32, fp64"),
        (["sweep", "--pass", "sideways"], "--pass: 'sideways' is not one of fwd, bwd, fwd+bwd"),
        (["sweep", "--batch", "2", "--tokens", "4k"], "--batch and --tokens exclude each other"),
        (["sweep", "--heads", "8", "--kv-heads", "3"], "--kv-heads"),
        (["sweep", "--suite", "nope"], "--suite: 'nope' is neither a TOML file nor one of"),
        (["sweep", "--resume"], "--resume: name the run file"),
        (["sweep", "--seed", "-1"], "--seed"),
        (["sweep", "--timer", "graph", "--device", "cpu"], "--timer: graph needs a CUDA device"),
        (["sweep", "--l2", "hot", "--device", "cpu"], "--l2: hot needs a CUDA device"),
        (["sweep", "--timer", "sundial"], "--timer"),
        (["sweep", "--timeout", "0"], "--timeout"),
        (
            ["sweep", "--phases", "--kernels", "sdpa-cpu,fla", "--device", "cpu"],
            "--phases: no selected kernel (sdpa-cpu, ",
        ),
        (["show", "junk.jsonl", "--phases"], "--phases goes with --format csv or json"),
        (["show", "junk.jsonl", "--phases", "--crossovers", "--format", "csv"], "--phases and --crossovers exclude"),
        (["sweep", "--refine", "--ctx", "1k", "--device", "cpu"], "--refine: --ctx has to name at least two contexts"),
        (["sweep", "--frobnicate"], "No such option"),
        (["sweep", "-o", "folder/"], "folder"),
        (["sweep", "-o", "empty.jsonl/run.jsonl"], "empty.jsonl/run.jsonl"),
        (["ceilings", "--dtype", "fp8"], "--dtype: 'fp8' is not one of bf16, fp16, fp32, fp64, tf32"),
        (["ceilings", "--dtype", "tf32", "--device", "cpu"], "--dtype: tf32 is a mode of NVIDIA's tensor cores"),
        (["ceilings", "--device", "tpu"], "--device: 'tpu' is not one of auto, cpu, cuda"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["show", "gone.jsonl"], "gone.jsonl"),
        (["show", "junk.jsonl"], "junk.jsonl"),
        (["show", "empty.jsonl"], "empty.jsonl"),
        (["show", "folder"], "folder"),
        (["report"], "Missing argument"),
        (["report", "half.jsonl"], "half.jsonl"),
        (["sweep", "-o", "junk.jsonl", "--resume"], "junk.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, args, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "junk.jsonl").write_bytes(b"\x00\xff not json\n")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "half.jsonl").write_text('{"type":"header","schema":1,"comm')
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    done = powerbench(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    error = done.stderr.splitlines()
    assert len(error) == 1, done.stderr
    assert error[0].startswith("powerbench: error: ")
    assert message in error[0]
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_device_cuda_without_one(tmp_path):
    done = powerbench("sweep", "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torch sees no CUDA device here" in done.stderr


def test_list_kernels_and_suites(tmp_path):
    kernels = powerbench("list", "kernels", cwd=tmp_path)
    assert kernels.returncode == 0, kernels.stderr
    for name in ("power-triton", "power-torch", "linear-torch", "sdpa-cudnn", "flash-4", "fla-simple-gla"):
        assert name in kernels.stdout
    assert "not installed" in kernels.stdout
    suites = powerbench("list", "suites", cwd=tmp_path)
    assert "smoke" in suites.stdout
    assert "About 7 min on an H200" in suites.stdout


def test_ceilings(tmp_path):
    done = powerbench("ceilings", "--dtype", "fp32", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "matmul fp32" in done.stdout
    assert "GB/s" in done.stdout
    assert "datasheet" not in done.stdout


def test_a_sweep_stores_every_ceiling_that_the_command_prints(swept, monkeypatch):
    """With everything `powerbench ceilings` measures by default, at small sizes."""
    folder, _ = swept
    monkeypatch.setattr("powerbench.ceilings.MATMUL_SIZES", {"cpu": (64,)})
    monkeypatch.setattr("powerbench.session.THOROUGH", Policy(min_samples=2, min_seconds=0.0))
    printed = Console(file=io.StringIO(), width=140)
    header = load(folder / "run.jsonl").header
    before = torch.get_num_threads()
    torch.set_num_threads(header.environment.cores)  # other tests may have chosen for this process
    try:
        print_ceilings(None, "cpu", printed)
    finally:
        torch.set_num_threads(before)
    _, heading, *table, _legend = printed.file.getvalue().splitlines()
    assert heading.startswith("ceiling ")
    stored = header.ceilings.measured
    names = [ceiling_name(ceiling) for ceiling in stored]
    assert len(names) == len(set(names)) == len(table) > 0
    assert all(line.startswith(f"{name}  ") for line, name in zip(table, names, strict=True))
    assert all(len(ceiling.samples_ms) >= 5 for ceiling in stored)


def test_the_reader_of_a_pipe_may_leave(swept):
    folder, _ = swept
    shell = f"{' '.join(map(repr, command('show', 'run.jsonl', '--format', 'csv')))} | head -n 1"
    done = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "the CPU" not in line]  # what the run says of a busy machine
    assert said == []
