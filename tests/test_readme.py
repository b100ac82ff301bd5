"""What README says was measured is what the committed run files hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from powerbench.crossover import context_text
from powerbench.reports.answers import answers
from powerbench.reports.curves import groups, pairs
from powerbench.reports.rows import rows
from powerbench.reports.text import significant
from powerbench.results.store import load
from tools.coverage import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RUNS = sorted((ROOT / "results").rglob("*.jsonl"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_published_runs_are_whole_and_right(path):
    run = load(path)
    assert not run.warnings
    assert {row.status for row in rows(run)} <= {"ok", "unsupported"}
    assert all(row.valid for row in rows(run) if row.status == "ok")
    assert run.header.environment.commit


def tables():
    """Of README: the first line's cells, and those of the lines of kernels."""
    for text in re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE):
        head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
        yield head, [line for line in lines if line[0].startswith("`")]


def times(path, *key):
    """Medians as README prints them, by these columns of a run."""
    return {
        tuple(getattr(row, name) for name in key): significant(row.median_ms)
        for row in rows(load(ROOT / path))
        if row.median_ms is not None
    }


def test_readme_tables_over_contexts_are_the_run_file():
    found = times("results/h200/context.jsonl", "kernel", "ctx", "pass_")
    measured = {(kernel, context_text(ctx), pass_): time for (kernel, ctx, pass_), time in found.items()}
    passes = {"forward": "fwd", "forward + backward": "fwd+bwd"}
    checked = 0
    for (title, *contexts), lines in tables():
        for label, *cells in lines:
            if title in passes:
                kernel = label.split("`")[1]
                assert cells == [measured[kernel, ctx, passes[title]] for ctx in contexts]
                checked += 1
    assert checked == 9


def test_readme_table_of_sizes_is_the_run_files():
    ((_, lines),) = [table for table in tables() if table[0][0] == ""]
    for label, *cells, source in lines:
        path = re.search(r"\((.*)\)", source)[1]
        p, d = re.search(r"p = (\d)", label), re.search(r"d = (\d+)", label)
        measured = times(path, "kernel", "p", "head_dim", "ctx", "pass_")
        key = label.split("`")[1], int(p[1]) if p else None, int(d[1]), 65536
        assert cells == [measured[*key, "fwd"], measured[*key, "fwd+bwd"]]
    assert len(lines) == 7


@pytest.mark.parametrize("name", ["h200/context", "cpu/context"])
def test_readme_answers_are_the_run_files(name):
    quoted = " ".join(README.replace("\n> ", " ").split())
    for answer in answers(load(ROOT / f"results/{name}.jsonl")):
        assert answer.text in quoted


def test_readme_crossover_at_head_dimension_128_is_the_run_file():
    forward = answers(load(ROOT / "results/h200/context-d128.jsonl"))[0].text
    found = re.search(r"from (\S+ \(\S+\)) tokens on forward", " ".join(README.split()))[1]
    assert f"beats softmax attention (flash-4) from {found} tokens on" in forward


def test_readme_speedups_at_64k_are_the_run_files():
    said = {answer.setting.split(", ")[1]: answer.text for answer in answers(load(ROOT / "results/cpu/p2-64k.jsonl"))}
    found = re.search(r"([0-9.]+x) faster than `scaled_dot_product_attention`\sin float32 and ([0-9.]+x)", README)
    assert f"is {found[1]} faster than softmax" in said["fp32"]
    assert f"is {found[2]} faster than softmax" in said["bf16"]


def test_readme_quotes_the_refined_crossing():
    (between,) = [one for _, _, one in _pairs("results/h200/refine-d128.jsonl")]
    (crossing,) = between.crossings
    assert crossing.width < 0.1
    assert crossing.text in README


def _pairs(path):
    return [pair for group in groups(rows(load(ROOT / path))) for pair in pairs(group.curves)]


@pytest.mark.parametrize("runs", ["h200-?", "cpu-?", "cpu-one-visit-?"])
def test_docs_count_what_the_intervals_cover(runs):
    paths = sorted(map(str, (ROOT / "docs" / "runs" / "agreement").glob(f"{runs}.jsonl")))
    covered, number = re.match(r"covered: (\d+) of (\d+) differences", table(paths)[-1]).groups()
    docs = " ".join((ROOT / "docs" / "measuring.md").read_text().split())
    share = f"{100 * int(covered) / int(number):.1f} %"
    assert re.search(rf"{covered} of (the )?{number}\b[^.]*?, {re.escape(share)}", docs)
