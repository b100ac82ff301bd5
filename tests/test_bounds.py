"""Numbers that nobody measures: one line and exit status 2, at once, from options and from TOML alike."""

from __future__ import annotations

import time

import pytest

from powerbench import models
from powerbench.bounds import LARGEST
from powerbench.errors import UserError
from powerbench.plan import plan
from powerbench.reports.wsfr_choice import analysis
from powerbench.suites import Suite, chosen, load
from powerbench.suites.grammar import counts
from powerbench.terminal import print_plan
from tests.fakes import CEILINGS, CPU, fake
from tests.test_outputs import is_one_line, powerbench

HUGE = "1" + "0" * 20
THOUSANDS = "9" * 5000
NUMBERS = [HUGE, THOUSANDS, "1e20", "inf", "nan", "-1", "0"]
SELECTORS = ("p", "ctx", "chunk", "d_tile", "head_dim", "value_dim", "heads", "kv_heads", "batch", "tokens")
SHAPE = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab", "mlp_matrices", "window", "full_every")
ABSURD = ["[" * 100_000, "a = " + "[" * 5000, "a = " + THOUSANDS, "#" * (2**20 + 1), "\x00", "a = 1\na = 2"]
MODEL = {"layers": 2, "d_model": 64, "heads": 4, "d_ff": 128, "vocab": 100}


def refused(call, *arguments, words=()):
    """In one short line, within a second."""
    start = time.process_time()
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert time.process_time() - start < 1
    text = str(error.value)
    assert len(text) < 500, text
    assert "\n" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", SELECTORS)
def test_a_selector_of_the_command_line(key, number):
    refused(chosen, {key: number}, words=(f"--{key.replace('_', '-')}",))


@pytest.mark.parametrize(
    "number", [HUGE, f"[{HUGE}]", THOUSANDS, "0x" + "f" * 5000, "inf", "nan", "1e20", "-1", f'"{HUGE}"']
)
@pytest.mark.parametrize("key", [*SELECTORS, "minutes"])
def test_a_selector_of_a_suite(tmp_path, key, number):
    (tmp_path / "mine.toml").write_text(f"{key} = {number}\n")
    refused(load, str(tmp_path / "mine.toml"), words=("mine.toml",))
    (tmp_path / "block.toml").write_text(f"[[block]]\n{key} = {number}\n")
    refused(load, str(tmp_path / "block.toml"), words=("block.toml",))


@pytest.mark.parametrize("number", [HUGE, THOUSANDS, "0x" + "f" * 5000, "inf", "nan", "1e20", "-1", "true"])
@pytest.mark.parametrize("key", [*SHAPE, "parameters"])
def test_a_model_of_a_file(tmp_path, key, number):
    if key == "parameters" and number == "-1":
        return
    lines = [f"{name} = {value}" for name, value in MODEL.items() if name != key]
    (tmp_path / "mine.toml").write_text("\n".join([*lines, f"{key} = {number}", ""]))
    refused(models.load, str(tmp_path / "mine.toml"), words=("mine.toml",))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", [*SHAPE, "chunk", "ctx", "p"])
def test_an_option_of_wsfr(key, number):
    base = {"ctx": "1k", "p": "2", "mode": "prefill", "dtype": "bf16"}
    refused(analysis, base | {key: number}, words=(f"--{key.replace('_', '-')}",))


@pytest.mark.parametrize("name", ["suite", "preset"])
@pytest.mark.parametrize(
    "content", ["[" * 100_000, "a = " + "[" * 5000, "a = " + THOUSANDS, "#" * (2**20 + 1), "\x00", "a = 1\na = 2"]
)
def test_a_file_that_is_absurd(tmp_path, name, content):
    (tmp_path / "mine.toml").write_text(content)
    refused(load if name == "suite" else models.load, str(tmp_path / "mine.toml"), words=("mine.toml",))


@pytest.mark.parametrize("name", ["suite", "preset"])
def test_a_byte_order_mark_is_no_fault(tmp_path, name):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + "\n".join(f"{k} = {v}" for k, v in MODEL.items()).encode())
    if name == "preset":
        assert models.load(str(tmp_path / "mine.toml")).heads == 4
    else:
        (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfctx = 64\n")
        assert load(str(tmp_path / "mine.toml")).ctx == (64,)


@pytest.mark.parametrize(
    "text",
    ["1k..64k:1000000000", f"1..{HUGE}", "1..64k:1001", ",".join(map(str, range(1, 1002))), "1" + ",1" * 10**6],
)
def test_too_many_points(text):
    refused(counts, text, "--ctx", words=("--ctx",))


def test_too_many_cases():
    many = "1..1000:1000"
    refused(chosen, {"ctx": many, "heads": many}, words=("cases a kernel", "at most 20000"))


def test_too_many_cases_of_a_suite(tmp_path):
    block = '[[block]]\nctx = "1..64k:1000"\nbatch = "1..100000:19"\n'
    (tmp_path / "mine.toml").write_text(block)
    load(str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").write_text(2 * block)
    refused(load, str(tmp_path / "mine.toml"), words=("mine.toml", "cases a kernel"))


def test_what_is_at_the_bound_is_taken():
    for key in SELECTORS:
        rest = {"head_dim": str(LARGEST["head_dim"])} if key == "d_tile" else {}
        rest |= {"heads": str(LARGEST["heads"])} if key == "kv_heads" else {}
        assert chosen({key: str(LARGEST[key]), **rest})


@pytest.mark.parametrize(
    "args",
    [
        *(["sweep", "--timeout", number] for number in ("inf", "nan", "1e10", "-1", "0", "", "x", THOUSANDS)),
        *(["verify", "--timeout", number] for number in ("inf", "1e10")),
        *(["sweep", "--seed", number] for number in (HUGE, THOUSANDS, "-1", "1.5", "")),
        *(["sweep", "--visits", number] for number in (HUGE, THOUSANDS, "0", "1001", "")),
        ["sweep", "--ctx", "1k..64k:1000000000"],
        *(["check", "a", "--max-ms", number] for number in ("nan", "inf", "1e400", "mine=nan", "-1")),
        *(["check", "a", "--min-roof", number] for number in ("nan", "power@64k=inf")),
        *(["check", "a", "--min-speedup", f"a:b={number}"] for number in ("nan", "inf")),
        ["check", "a", "--max-ms", f"mine@{HUGE}=1"],
        *(["check", "a", "b", "--threshold", number] for number in ("nan", "inf", "1e400%")),
        *(["check", "a", "b", "--allow-inconclusive", number] for number in (HUGE, "-1", THOUSANDS)),
        ["check", "--calibrate", "--rounds", HUGE],
    ],
    ids=lambda args: " ".join(args)[:60],
)  # fmt: skip
def test_an_option_is_one_line(tmp_path, args):
    done = powerbench(*args, cwd=tmp_path)
    is_one_line(done, next(arg for arg in args[::-1] if arg.startswith("--")))
    assert len(done.stderr) < 300


def test_a_plan_refuses_what_the_sweep_refuses():
    """A case that cannot fit takes no time, and the plan says so."""
    kernels = [fake("fits"), fake("does-not", workspace_bytes=lambda case: 2**31)]
    planned = plan(Suite(ctx=(64,)).on("cpu"), kernels, CPU, CEILINGS, visits=5)
    fits, does_not = planned
    assert fits.oom is None
    assert fits.total_seconds > 0
    assert does_not.oom.startswith("predicted: needs about 2.0 GiB")
    assert (does_not.total_seconds, does_not.visits) == (0, (0,))
    from io import StringIO

    from rich.console import Console

    out = Console(file=StringIO(), width=300)
    print_plan(planned, out)
    text = " ".join(out.file.getvalue().split())
    assert "predicted: needs about 2.0 GiB" in text
    assert "1 to measure in about" in text
    assert "1 skipped." in text


def test_the_dry_run_of_a_huge_batch_promises_no_minutes(tmp_path):
    done = powerbench(
        "sweep", "--batch", "10000000", "--ctx", "64", "--head-dim", "16", "--device", "cpu", "--dry-run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "0 to measure in about 0 s, 3 skipped." in done.stdout
