"""What README says was measured is what the committed run files hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from powerbench.crossover import context_text
from powerbench.reports.answers import answers
from powerbench.reports.rows import rows
from powerbench.reports.text import significant
from powerbench.results.store import load

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


def test_readme_table_is_the_run_file():
    times = {
        (row.kernel, context_text(row.ctx)): significant(row.median_ms)
        for row in rows(load(ROOT / "results/h200/context.jsonl"))
        if row.median_ms is not None
    }
    table = re.findall(r"^\| .* \|$", README, re.MULTILINE)
    heads, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    checked = 0
    for kernel, *cells in lines:
        if kernel.startswith("`"):
            assert cells == [times[kernel.strip("`").split("`")[0], context] for context in heads[1:]]
            checked += 1
    assert checked == 8


@pytest.mark.parametrize("name", ["h200/context", "cpu/context"])
def test_readme_answers_are_the_run_files(name):
    (answer,) = answers(load(ROOT / f"results/{name}.jsonl"))
    quoted = " ".join(README.replace("\n> ", " ").split())
    assert answer.text in quoted


def test_readme_speedups_at_64k_are_the_run_files():
    said = {answer.setting.split(", ")[1]: answer.text for answer in answers(load(ROOT / "results/cpu/p2-64k.jsonl"))}
    found = re.search(r"([0-9.]+x) faster than `scaled_dot_product_attention`\sin float32 and ([0-9.]+x)", README)
    assert f"is {found[1]} faster than softmax" in said["fp32"]
    assert f"is {found[2]} faster than softmax" in said["bf16"]
