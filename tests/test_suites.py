"""The selector grammar, the suites and the cases they expand to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench.problem import DTYPES, PASSES
from powerbench.suites import SelectorError, Suite, load, presets
from powerbench.suites.grammar import count, counts, counts_or_auto, words


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("64", (64,)),
        ("8k", (8192,)),
        ("1m", (1048576,)),
        ("1K,2k", (1024, 2048)),
        ("1k..8k", (1024, 2048, 4096, 8192)),
        ("1k..7k", (1024, 2048, 4096)),
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
    assert {"smoke", "context", "tiles", "degree"} <= set(presets())
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
        ('gated = "yes"', "gated: 'yes' must be a true or false"),
        ('pass = ["forward"]', "pass: 'forward' is not one of fwd, bwd"),
        ("batch = 1\ntokens = 4", "exclude each other"),
        ("p = [", "mine.toml"),
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
    with pytest.raises(SelectorError, match=r"'nope' is neither a TOML file nor one of context, decode, degree"):
        load("nope")
    with pytest.raises(SelectorError, match=r"gone\.toml: No such file"):
        load("gone.toml")
