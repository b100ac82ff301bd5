"""What commands write: never over what they read, whole or not at all, through links, and only where files are."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from powerbench import outputs
from powerbench.outputs import OutputError
from powerbench.reports.index import write_index
from powerbench.reports.page import write_page
from powerbench.reports.static import write_static
from powerbench.results.store import RunWriter, load
from tests import runs
from tests.test_check import one
from tests.test_check_cli import write as write_run

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from powerbench.cli import main; main()"]


def powerbench(*args, cwd, **options):
    clean = {name: value for name, value in os.environ.items() if name not in ("GITHUB_STEP_SUMMARY", "COLUMNS")}
    env = {**clean, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(cwd / "state"), **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [*COMMAND, *map(os.fsdecode, args)], cwd=cwd, env=env, check=False, timeout=300, encoding="utf-8",
        errors="surrogateescape", **options,
    )  # fmt: skip


def is_one_line(done, *words):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("powerbench: error: ")
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture
def folder(tmp_path):
    """Two runs of the same code, one twice as slow, and names by which the first can be reached."""
    write_run(tmp_path / "a.jsonl", one(seed=1), one("mine", seed=2))
    write_run(tmp_path / "b.jsonl", one(seed=3), one("mine", seed=4))
    write_run(tmp_path / "slow.jsonl", one(seed=3, ms=2.0), one("mine", seed=4, ms=2.0))
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "a.jsonl")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "link.jsonl", "hard.jsonl", "./x/../a.jsonl"])
@pytest.mark.parametrize(
    "args",
    [
        ["report", "a.jsonl", "-o", "{}"],
        ["report", "b.jsonl", "a.jsonl", "-o", "{}"],
        ["check", "a.jsonl", "b.jsonl", "--json", "{}"],
        ["check", "b.jsonl", "a.jsonl", "--junit", "{}"],
        ["check", "b.jsonl", "a.jsonl", "--markdown", "{}"],
    ],
)
def test_no_output_replaces_an_input(folder, args, name):
    (folder / "x").mkdir()
    before = (folder / "a.jsonl").read_bytes()
    is_one_line(powerbench(*[arg.format(name) for arg in args], cwd=folder), "is an input of this command")
    assert (folder / "a.jsonl").read_bytes() == before


def test_the_summary_of_a_job_is_no_input_either(folder):
    before = (folder / "a.jsonl").read_bytes()
    done = powerbench("check", "a.jsonl", "b.jsonl", cwd=folder, env={"GITHUB_STEP_SUMMARY": "a.jsonl"})
    is_one_line(done, "GITHUB_STEP_SUMMARY", "is an input")
    assert (folder / "a.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["report", "a.jsonl", "-o", ""], "'' is no file name"),
        (["report", "a.jsonl", "--static", ""], "'' is no file name"),
        (["index", "a.jsonl", "-o", ""], "'' is no file name"),
        (["check", "a.jsonl", "b.jsonl", "--json", ""], "'' is no file name"),
        (["sweep", "--device", "cpu", "-o", ""], "'' is no file name"),
        (["report", "a.jsonl", "-o", "."], "is a folder"),
        (["report", "a.jsonl", "-o", "new/"], "is a folder"),
        (["sweep", "--device", "cpu", "-o", "."], "is a folder"),
        (["report", "a.jsonl", "--static", "a.jsonl"], "is not a folder"),
        (["index", "a.jsonl", "-o", "a.jsonl"], "is not a folder"),
        (["report", "a.jsonl", "-o", "a.jsonl/page.html"], "Not a directory"),
        (["report", "a.jsonl", "-o", "x" * 300], "File name too long"),
        (["sweep", "--device", "cpu", "-o", "x" * 300], "File name too long"),
        (["check", "a.jsonl", "b.jsonl", "--json", "y", "--junit", "y"], "the file of --json too"),
        (["check", "a.jsonl", "b.jsonl", "--json", "y", "--junit", "./y"], "the file of --json too"),
        (["check", "a.jsonl", "b.jsonl", "--json", "-", "--junit", "-"], "takes one of"),
        (["report", "a.jsonl", "-o", "p", "--static", "p"], "the file of -o too"),
        (["check", "--calibrate", "--noise", "."], "is a folder"),
        (["check", "--calibrate", "--json", "x"], "--json: has no effect here"),
        (["report", "a.jsonl", "-o", "/proc/none/page.html"], "cannot write /proc/none/page.html"),
        (["report", "a.jsonl", "-o", "loop"], "cannot write loop"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(folder, args, words):
    (folder / "loop").symlink_to("loop")
    before = sorted(folder.iterdir())
    is_one_line(powerbench(*args, cwd=folder), words)
    assert sorted(folder.iterdir()) == before


def test_pages_that_are_run_files_are_refused(folder):
    """By the commands and by the library."""
    (folder / "pages").mkdir()
    (folder / "a.jsonl").rename(folder / "pages" / "a.html")
    before = (folder / "pages" / "a.html").read_bytes()
    is_one_line(powerbench("index", "pages/a.html", "-o", "pages", cwd=folder), "is an input")
    run = load(folder / "pages" / "a.html")
    for write in (write_page, lambda runs, path: write_index(runs, path.parent)):
        with pytest.raises(OutputError, match="is an input"):
            write([run], folder / "pages" / "a.html")
    assert (folder / "pages" / "a.html").read_bytes() == before
    assert [path.name for path in (folder / "pages").iterdir()] == ["a.html"]


def test_a_figure_that_is_a_run_file_is_refused(tmp_path):
    (figure, *_) = write_static([runs.cpu_run()], tmp_path / "figures", formats=("svg",))
    with RunWriter.create(tmp_path / "run.jsonl", runs.header()) as writer:
        for measurement in runs.cpu_run().measurements:
            writer.append(measurement)
    (tmp_path / "run.jsonl").rename(figure)
    before = figure.read_bytes()
    with pytest.raises(OutputError, match="is an input"):
        write_static([load(figure)], tmp_path / "figures", formats=("svg",))
    assert figure.read_bytes() == before


def test_a_file_is_replaced_whole_with_its_mode_and_links_are_written_through(tmp_path):
    target, link, dangling = (tmp_path / name for name in ("target", "link", "dangling"))
    target.write_text("before")
    target.chmod(0o640)
    link.symlink_to("target")
    dangling.symlink_to("deep/new")
    outputs.write(link, "after")
    assert link.is_symlink()
    assert target.read_text() == "after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    outputs.write(dangling, b"made")
    assert dangling.is_symlink()
    assert (tmp_path / "deep" / "new").read_bytes() == b"made"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "deep", "link", "new", "target"]


def test_a_new_file_has_the_mode_of_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        outputs.write(tmp_path / "new", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_planted_link_under_the_draft_name_of_before_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".page.html.{os.getpid()}").symlink_to("victim")
    write_page([runs.cpu_run()], tmp_path / "page.html")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_fifo_is_written_to(folder):
    os.mkfifo(folder / "fifo")
    found = []
    reader = threading.Thread(target=lambda: found.append((folder / "fifo").read_text()))
    reader.start()
    done = powerbench("check", "a.jsonl", "b.jsonl", "--json", "fifo", cwd=folder)
    reader.join(60)
    assert done.returncode == 0, done.stderr
    assert found[0].startswith("{")
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdout"])
def test_a_device_is_written_to(folder, device):
    """As root too, who may replace it."""
    before = os.lstat(device)
    done = powerbench("report", "a.jsonl", "-o", device, cwd=folder)
    after = os.lstat(device)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert done.returncode == 0, done.stderr
    assert ("<!doctype html>" in done.stdout.lower()) == (device == "/dev/stdout")
    assert done.stdout.endswith(f"page: {device}\n")


def test_standard_output_that_is_a_file_stays_that_file(folder):
    with (folder / "page.html").open("wb") as file:
        done = powerbench("report", "a.jsonl", "-o", "/dev/stdout", cwd=folder, stdout=file)
    assert done.returncode == 0, done.stderr
    text = (folder / "page.html").read_text()
    assert text.lower().startswith("<!doctype html>")
    assert text.endswith("page: /dev/stdout\n")


def test_several_outputs_may_go_to_null(folder):
    done = powerbench("check", "a.jsonl", "b.jsonl", "--json", "/dev/null", "--junit", "/dev/null", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_summary_that_is_the_markdown_file_holds_it_once(folder):
    args = ["check", "a.jsonl", "b.jsonl", "--markdown", "summary.md"]
    assert powerbench(*args, cwd=folder, env={"GITHUB_STEP_SUMMARY": "summary.md"}).returncode == 0
    assert (folder / "summary.md").read_text().count("### powerbench check") == 1


def test_a_baseline_is_written_through_a_link(folder):
    (folder / "kept").mkdir()
    (folder / "baselines").mkdir()
    (folder / "kept" / "old.jsonl").write_text("old")
    (folder / "baselines" / "nvidia-h200.jsonl").symlink_to("../kept/old.jsonl")
    done = powerbench("check", "a.jsonl", "--baseline-dir", "baselines", "--update-baseline", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "baselines" / "nvidia-h200.jsonl").is_symlink()
    assert (folder / "kept" / "old.jsonl").read_bytes() == (folder / "a.jsonl").read_bytes()
    assert len(list((folder / "baselines").iterdir())) == 1


def test_a_run_file_is_made_through_a_link_to_none(tmp_path):
    (tmp_path / "link.jsonl").symlink_to("run.jsonl")
    RunWriter.create(tmp_path / "link.jsonl", runs.header()).close()
    assert (tmp_path / "link.jsonl").is_symlink()
    assert load(tmp_path / "run.jsonl").header == runs.header()
