"""The selector grammar, the suites and the cases they expand to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench.problem import DTYPES, PASSES
from powerbench.suites import SelectorError, Suite, chosen, load, presets
from powerbench.suites.grammar import count, counts, counts_or_auto, words
from tests.fakes import fake


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("64", (64,)),
        ("8k", (8192,)),
        ("1m", (1048576,)),
        ("1K,2k", (1024, 2048)),
        ("1k..8k", (1024, 2048, 4096, 8192)),
        ("1k..7k", (1024, 2048, 4096, 7168)),
        ("1k..3k", (1024, 2048, 3072)),
        ("5..5", (5,)),
        ("1k..64k:3", (1024, 8192, 65536)),
        ("1..100:3", (1, 10, 100)),
        ("4,4,2..4", (4, 2)),
    ],
)
def test_counts(text, values):
    assert counts(text, "--ctx") == values


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "12x", "1.5", "k", "1k..", "..4", "8..2", "1..8:1", "1..8:x", "1,,2", "٣"]
)
def test_counts_refuses(text):
    with pytest.raises(SelectorError, match="--ctx"):
        counts(text, "--ctx")


@given(st.integers(1, 2**20), st.integers(1, 2**20), st.integers(2, 40))
def test_log_range_has_its_ends_and_rises(a, b, points):
    low, high = sorted((a, b))
    values = counts(f"{low}..{high}:{points}", "--ctx")
    assert (values[0], values[-1]) == (low, high)
    assert list(values) == sorted(set(values))
    assert len(values) <= points


def test_auto_and_words():
    assert counts_or_auto("auto,8", "--chunk") == (None, 8)
    assert words("fwd,bwd", "--pass", PASSES) == ("fwd", "bwd")
    with pytest.raises(SelectorError, match=r"--dtype: 'fp8' is not one of bf16"):
        words("fp8", "--dtype", DTYPES)
    with pytest.raises(SelectorError):
        count("4,8", "--batch")


def test_tokens_keep_work_equal_and_batch_keeps_it_growing():
    equal = Suite(ctx=(1024, 4096)).on("cpu")
    assert [(p.batch, p.seqlen) for p in equal.problems()] == [(4, 1024), (1, 4096)]
    fixed = Suite(ctx=(1024, 4096), batch=(2,)).on("cpu")
    assert [(p.batch, p.seqlen) for p in fixed.problems()] == [(2, 1024), (2, 4096)]


def test_override_replaces_batch_by_tokens_and_the_other_way_round():
    suite = Suite(batch=(2,)).override({"tokens": "8k"})
    assert (suite.batch, suite.tokens) == (None, 8192)
    suite = Suite(tokens=8192).override({"batch": "2"})
    assert (suite.batch, suite.tokens) == ((2,), None)
    kept = Suite(batch=(2,)).override({"ctx": "1k"})
    assert (kept.batch, kept.tokens) == ((2,), None)
    with pytest.raises(SelectorError, match="exclude each other"):
        Suite().override({"tokens": "8k", "batch": "1"})


def test_kv_heads_must_divide_some_heads():
    suite = Suite(ctx=(64,), heads=(8, 12), kv_heads=(8,)).on("cpu")
    assert [(p.heads, p.kv_heads) for p in suite.problems()] == [(8, 8)]
    with pytest.raises(SelectorError, match="--kv-heads"):
        list(Suite(ctx=(64,), heads=(8,), kv_heads=(3,)).on("cpu").problems())


def test_d_tile_must_divide_some_head_dimension():
    with pytest.raises(SelectorError, match=r"--d-tile: 7 does not divide head dimension 64; allowed are 1, 2, 4"):
        Suite(d_tile=(7,)).check()
    Suite(d_tile=(64,), head_dim=(32, 64)).check()


def test_presets_are_valid_and_say_what_they_are_for():
    assert {"smoke", "ci", "context", "tiles", "degree"} <= set(presets())
    for name in presets():
        suite = load(name)
        assert suite.name == name
        assert len(suite.purpose) > 20
        for device in ("cpu", "cuda"):
            assert list(suite.on(device).problems())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('contxt = "1k"', "unknown key 'contxt'; allowed are name, purpose"),
        ('ctx = "12x"', "ctx: '12x' is not a positive integer"),
        ("p = true", "p: True must be a number"),
        ("p = 1.5", "p: 1.5 must be a number"),
        ('gated = "yes"', "gated: 'yes' must be true or false"),
        ('pass = ["forward"]', "pass: 'forward' is not one of fwd, bwd"),
        ("batch = 1\ntokens = 4", "exclude each other"),
        ("p = [", "mine.toml"),
        ('minutes = "3"', "minutes: '3' must be a whole number of minutes"),
        ("minutes = 0", "minutes: 0 must be a whole number of minutes"),
        ('name = "../mine"', "name: '../mine' must be a text of letters, digits and ._-"),
        ('name = ""', "name: '' must be a text of letters"),
        ("kernels = []", "kernels: '' is not a name"),
        ("p = []", "p: '' is not a positive integer"),
        ("p = {low = 1}", "p: {'low': 1} must be a number"),
        ('model = ["llama-8b"]', "model: ['llama-8b'] is not one of gpt2"),
        (
            'model = "llama-8b"\n[[block]]\nheads = 4',
            "block 1: heads and the model above the blocks exclude each other",
        ),
        ("minutes = true", "minutes: True must be a whole number of minutes"),
        ("d_tile = 7", "d_tile: 7 does not divide head dimension 64; allowed are 1, 2, 4"),
        ("heads = 8\nkv_heads = 3", "kv_heads: 3 divides none of heads 8"),
        ('model = "llama"', "model: 'llama' is not one of gpt2, gpt2-xl"),
        ('model = "llama-8b"\nheads = 4', "model and heads exclude each other"),
        ("[block]\np = 2", "block must be written as [[block]]"),
        ("[[blocks]]\np = 2", "unknown key 'blocks'; allowed are name, purpose"),
        ('[[block]]\np = 2\n[[block]]\nctx = "1q"', "block 2: ctx: '1q' is not a positive integer"),
        ('[[block]]\npurpose = "none"', "block 1: unknown key 'purpose'; allowed are p, ctx"),
        ("[[block]]\nbatch = 1\ntokens = 4", "block 1: batch and tokens exclude each other"),
        ("head_dim = 16\n[[block]]\nd_tile = 32", "block 1: d_tile: 32 does not divide head dimension 16"),
    ],
)
def test_a_bad_suite_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SelectorError) as caught:
        load(str(path))
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_good_suite_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('p = [1, 2]\nctx = "1k..4k"\nchunk = ["auto", 256]\npass = "fwd,bwd"\ngated = false\n')
    suite = load(str(path))
    assert (suite.name, suite.p, suite.ctx, suite.chunk) == ("mine", (1, 2), (1024, 2048, 4096), (None, 256))
    assert (suite.pass_, suite.gated) == (("fwd", "bwd"), False)


def test_unknown_suite():
    with pytest.raises(SelectorError, match=r"'nope' is neither a TOML file nor one of ci, context, crossover"):
        load("nope")
    with pytest.raises(SelectorError, match=r"gone\.toml: No such file"):
        load("gone.toml")


BLOCKS = """
purpose = "Two blocks."
p = 2
tokens = "4k"
ctx = "1k,2k"
kernels = "power"

[[block]]
head_dim = 32

[[block]]
ctx = "2k,4k"
head_dim = [32, 64]
batch = 3
kernels = "sdpa,theirs"

[[block]]
model = "llama-1b"
dtype = "fp16"
"""


@pytest.fixture
def blocks(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(BLOCKS)
    return str(path)


def test_a_suite_of_blocks_is_their_union(blocks):
    suite = load(blocks).on("cuda")
    assert (suite.name, suite.dtype, suite.kernels) == ("mine", ("bf16", "fp16"), ("power", "sdpa", "theirs"))
    found = [(p.seqlen, p.batch, p.heads, p.kv_heads, p.head_dim, p.dtype) for p in suite.problems()]
    assert found == [
        (1024, 4, 8, 8, 32, "bf16"), (2048, 2, 8, 8, 32, "bf16"),
        (2048, 3, 8, 8, 32, "bf16"), (4096, 3, 8, 8, 32, "bf16"),
        (2048, 3, 8, 8, 64, "bf16"), (4096, 3, 8, 8, 64, "bf16"),
        (1024, 4, 32, 8, 64, "fp16"), (2048, 2, 32, 8, 64, "fp16"),
    ]  # fmt: skip


def test_options_replace_in_every_block(blocks):
    suite = chosen({"suite": blocks, "ctx": "1k", "batch": "3", "kernels": "power"}).on("cuda")
    assert suite.kernels == ("power",)
    assert [(p.seqlen, p.batch, p.head_dim) for p in suite.problems()] == [(1024, 3, 32), (1024, 3, 64), (1024, 3, 64)]
    with pytest.raises(SelectorError, match="--d-tile: 64 does not divide head dimension 32"):
        chosen({"suite": blocks, "d_tile": "64"})


def test_cases_of_blocks_stand_problem_by_problem(tmp_path):
    """A problem of two blocks has the contestants of both side by side, each where its block names it."""
    path = tmp_path / "mine.toml"
    shared = 'ctx = 64\nheads = 1\ndtype = "fp32"\n'
    path.write_text(f'{shared}[[block]]\nkernels = "a"\n[[block]]\nkernels = "fake"\nctx = "32,64"\nbatch = 1\n')
    suite = load(str(path)).on("cpu")
    cases = suite.cases([fake("a", family="other"), fake("b"), fake("c")], "cpu")
    assert [(case.problem.seqlen, case.kernel) for case in cases] == [
        (64, "a"), (64, "b"), (64, "c"), (32, "b"), (32, "c"),
    ]  # fmt: skip
