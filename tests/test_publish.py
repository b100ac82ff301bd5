"""What the tool publishes holds the numbers of whatever runs there are, or says what is missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from powerbench.problem import Params
from powerbench.results.store import RunWriter
from tests import runs
from tools.publish import findings, readme
from tools.publish.__main__ import check, publish
from tools.publish.parts import PartError, differing, fill, table
from tools.publish.runs import Published, command

ROOT = Path(__file__).parents[1]
LONG = 65536


def measured(kernel, ctx, ms, *, p=None, window=None, head_dim=64, batch=None, **more):
    """A gated case in bf16 with eight heads; batch: None is that of the context."""
    found = runs.measurement(kernel, ctx, ms, params=Params(p=p, window=window), dtype="bf16", noise=1e-4, **more)
    problem = msgspec.structs.replace(
        found.case.problem, gated=True, head_dim=head_dim, value_dim=head_dim, batch=batch or found.case.problem.batch
    )
    return msgspec.structs.replace(found, case=msgspec.structs.replace(found.case, problem=problem))


def paper():
    """A run such as the suite `paper` makes."""
    found = []
    for pass_, cost in (("fwd", 1.0), ("fwd+bwd", 3.0)):
        for ctx in (1024, 8192, LONG):
            found += [
                measured("power-triton", ctx, cost, p=2, pass_=pass_),
                measured("flash-4", ctx, cost * ctx / 8000, pass_=pass_),
                measured("sdpa-flash", ctx, cost * ctx / 4000, pass_=pass_),
                measured("window-flash-4", ctx, cost * 0.8, p=2, window=2112, pass_=pass_),
                measured("retention-triton", ctx, cost * 6.0, p=2, pass_=pass_),
            ]
        found += [
            measured("power-triton", LONG, cost * 0.4, p=2, head_dim=32, pass_=pass_),
            measured("sdpa-flash", LONG, cost * 8.0, head_dim=32, pass_=pass_),
        ]
    return found


def root(folder, **files):
    """A place with README, findings and these runs on an H200."""
    for name in ("README.md", "docs/findings.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    header = runs.header("NVIDIA H200", peak=7.9e14, bandwidth=4.1e12)
    for name, found in files.items():
        header = msgspec.structs.replace(header, command=f"powerbench sweep --suite {name} -o {name}.jsonl")
        with RunWriter.create(folder / "results" / "h200" / f"{name}.jsonl", header) as writer:
            for one in found:
                writer.append(one)
    return Published(folder)


def test_without_runs_every_part_says_that_it_is_missing(tmp_path):
    published = root(tmp_path)
    parts = findings.parts(published)
    for name in ("utilization", "speedups", "crossings", "authors", "fla", "windows"):
        assert "ot measured yet" in parts[name], name
    assert parts["wrong"] == "No row of a published run is wrong."
    texts = readme.parts(published)
    assert texts["contexts"] == "Not measured yet."
    assert texts["decoding"] == ""
    assert "| the authors' Triton kernels, p = 2, d = 64 | 5.8 | 16.4 | as given to this project |" in texts["sizes"]


def test_readme_of_the_paper_suite(tmp_path):
    parts = readme.parts(root(tmp_path, paper=paper()))
    assert (
        "| forward | 1k | 8k | 64k |\n|---|---:|---:|---:|\n| `power-triton`, p = 2 | 1.00 | 1.00 | 1.00 |"
        in (parts["contexts"])
    )
    assert "| `window-flash-4`, up to 2112 keys | 2.40 | 2.40 | 2.40 |" in parts["contexts"]
    assert "made by `powerbench sweep --suite paper`:" in " ".join(parts["contexts"].split())
    assert "at 64k it is 8.2x faster" in " ".join(parts["contexts"].replace("\n> ", " ").split())
    assert "| `retention-triton`, p = 2, d = 64 | 6.00 | 18.00 | [paper](results/h200/paper.jsonl) |" in parts["sizes"]
    assert "the authors' Triton kernels" not in parts["sizes"]
    assert "| `power-triton`, p = 2, d = 32 | 0.400 | 1.20 | [paper]" in parts["sizes"]


def test_windows_stand_at_the_longest_context_of_all_runs(tmp_path):
    def beside(ctx, ms):
        return [
            measured("power-triton", ctx, ms, p=2, head_dim=128),
            measured("window-flash-4", ctx, ms / 2, p=2, window=8320, head_dim=128),
        ]

    parts = findings.parts(root(tmp_path, heads=beside(16384, 1.0), models=beside(LONG, 4.0)))
    assert "| forward, d = 128, 8 heads over 8 | 64k | 8320 | 2.00 | 4.00 | 2.0x slower |" in parts["windows"]
    assert "16k" not in parts["windows"]


def test_fla_over_softmax_at_the_longest_shape(tmp_path):
    found = [
        measured(kernel, ctx, ms, p=p, head_dim=128)
        for ctx, cost in ((2048, 0.1), (16384, 1.0))
        for kernel, p, ms in (("fla-linear", 1, cost), ("flash-4", None, 80 * cost**2))
    ]
    part = findings.parts(root(tmp_path, **{"fla-shapes": found}))["fla"]
    assert "so many times as long as FLA at T = 16k: forward 80.0." in part
    assert part.index("T = 16k") < part.index("T = 2k")


def test_findings_of_the_paper_suite(tmp_path):
    parts = findings.parts(root(tmp_path, paper=paper()))
    assert "| 64 | forward | 3.3x | 1.00 | 16.4x (16.38 ms) | | 8.2x (8.19 ms) | |" in parts["speedups"]
    assert "| 32 | forward + backward | 8.6x | 1.20 | 20.0x (24.00 ms) | | | |" in parts["speedups"]
    assert "| the authors' figures, H100 | 16.8 | 3.0x (49.7 ms) | |" in parts["authors"]
    assert "| `retention-triton`, H200 | 18.00 | 2.7x (49.15 ms) | 1.4x (24.58 ms), `flash-4` |" in parts["authors"]
    assert "ot measured yet" not in parts["authors"]
    assert "| forward, d = 64, 8 heads over 8 | 64k | 2112 | 0.800 | 1.00 | 1.25x slower |" in parts["windows"]
    assert "takes 1.25 to 1.25 times as long as the window" in parts["windows"]
    assert "* Forward, bf16, d = 64: Power attention (p = 2, power-triton) beats" in parts["crossings"]
    assert "imply a crossing at about 19k at d = 64, 7k at d = 32" in parts["crossings"]
    ours, theirs = re.findall(r"\| `(?:power|retention)-triton` \| forward \| 64 \|.*", parts["utilization"])
    assert "| 16.38 (" in ours  # of equal work, 16.38 times as fast as FlashAttention 2
    assert ours.count("reached") == 2
    assert "| 2.73 (" in theirs


def test_readme_speaks_of_decoding_as_soon_as_there_is_a_run(tmp_path):
    found = [
        measured("power-triton", LONG, 0.1, p=2, pass_="decode", flops=1e6, moved=1e6),
        measured("sdpa-flash", LONG, 1.3, pass_="decode", flops=1e6, moved=1e6),
    ]
    said = " ".join(readme.parts(root(tmp_path, decode=found))["decoding"].split())
    assert said.startswith(
        "Decoding, bf16, d = 64, 8 heads, gated ([page](reports/decode.html), `powerbench sweep --suite"
    )
    assert "At context 64k and batch 1 power attention (p = 2) is 13.0x faster than softmax attention." in said


def test_readme_has_a_table_of_decoding_by_context_and_batch(tmp_path):
    found = [
        measured(kernel, ctx, ms, p=p, pass_="decode", flops=1e6, moved=1e6, batch=batch)
        for kernel, p, ms in (("power-triton", 2, 0.1), ("sdpa-flash", None, 1.3))
        for ctx in (1024, LONG)
        for batch in (1, 16)
    ]
    said = readme.parts(root(tmp_path, decode=found))["decoding"]
    assert said.endswith(
        "| context | batch 1 | batch 16 |\n|---:|---:|---:|\n| 1k | 13.00x | 13.00x |\n| 64k | 13.00x | 13.00x |"
    )


def test_a_wrong_row_is_a_finding(tmp_path):
    wrong = msgspec.structs.replace(
        measured("flash-4", 1024, None, head_dim=16, status="wrong", message="wrong"), error=1.2, tolerance=0.02
    )
    parts = findings.parts(root(tmp_path, degree=[wrong]))
    assert parts["wrong"].startswith("* flash-4, fwd, d = 16: 1 case is wrong: relative error 1.20, where 0.0200")
    assert "(../results/h200/degree.jsonl)" in parts["wrong"]


def test_publishing_twice_changes_nothing_and_a_changed_number_is_seen(tmp_path):
    published = root(tmp_path, paper=paper())
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "gone.html").write_text("")
    assert "reports/gone.html: has no run file" in check(published)
    publish(published)
    assert check(published) == []
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in (tmp_path / "reports").iterdir()} == {"paper.html", "index.html"}
    assert (tmp_path / "docs" / "h200-context.png").stat().st_size > 10_000
    publish(Published(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == made
    text = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("| 1.00 | 1.00 | 1.00 |", "| 1.00 | 0.99 | 1.00 |"))
    (tmp_path / "reports" / "index.html").write_text("")
    (tmp_path / "reports" / "paper.html").unlink()
    assert check(published) == ["README.md: contexts", "reports/paper.html: missing", "reports/index.html"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("no place", "not in both: a"),
        ("<!-- begin: a -->x<!-- end: a --> <!-- begin: b --><!-- end: b -->", "not in both: b"),
        ("<!-- begin: a -->x", "do not pair up"),
        ("<!-- begin: a --><!-- end: a --><!-- begin: a --><!-- end: a -->", "do not pair up"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(text, fault):
    with pytest.raises(PartError, match=fault):
        fill(text, {"a": "new"})


def test_parts_in_a_line_and_on_lines_of_their_own():
    text = "it is <!-- begin: a -->old<!-- end: a -->.\n<!-- begin: b -->\nold\n<!-- end: b -->\n"
    filled = fill(text, {"a": "new", "b": "two\nlines\n"})
    assert filled == "it is <!-- begin: a -->new<!-- end: a -->.\n<!-- begin: b -->\ntwo\nlines\n<!-- end: b -->\n"
    assert fill(filled, {"a": "new", "b": "two\nlines"}) == filled
    assert differing(filled, {"a": "new", "b": "three"}) == ["b"]
    assert fill(text, {"a": "", "b": ""}).endswith("<!-- begin: b -->\n<!-- end: b -->\n")


def test_a_table_sets_numbers_flush_right():
    assert table(["", "ms", "who"], [["a", "1.5", ""], ["b", "", "x"]]) == (
        "| | ms | who |\n|---|---:|---|\n| a | 1.5 | |\n| b | | x |"
    )


def test_the_command_without_its_file(tmp_path):
    published = root(tmp_path, paper=paper()[:1])
    assert command(published.runs["h200/paper"]) == "powerbench sweep --suite paper"
