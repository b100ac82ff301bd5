"""Sliding windows: how long, against attention over each row's last keys, and what they multiply."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from powerbench import gate
from powerbench.bench import make_inputs
from powerbench.kernels import softmax, window
from powerbench.kernels.ledger import Tile, covered_pairs, visible_pairs
from powerbench.kernels.power.op import power_attention
from powerbench.kernels.power.state_size import state_bytes
from powerbench.problem import Case, Params, Problem
from powerbench.reports.frames import tidy
from powerbench.reports.rows import rows
from powerbench.reports.show import render
from powerbench.reports.states import state_bytes as row_bytes
from tests import runs
from tests.test_softmax import FakeFlash, install

KERNELS = {kernel.name: kernel for kernel in window.WINDOW_KERNELS}
CPU = torch.device("cpu")


def make_case(name="window-torch", pass_="fwd", wide=None, **changes):
    fields = {"batch": 2, "seqlen": 300, "heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 8, "dtype": "fp64"}
    problem = Problem(**{**fields, "gated": True, **changes})
    params = KERNELS[name].resolve(problem, Params(p=2), pass_, "cpu") if wide is None else Params(p=2, window=wide)
    return Case(problem, name, params, pass_)


def rows_of(q, k, v, width):
    """Softmax attention row by row: query i sees keys i - width + 1 .. i."""
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in (k, v))
    rows = []
    for i in range(q.shape[1]):
        seen = slice(max(0, i - width + 1), i + 1)
        weights = (torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, seen]) / q.shape[-1] ** 0.5).softmax(-1)
        rows.append(torch.einsum("bhj,bjhe->bhe", weights, v[:, seen]))
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("p", "d", "e", "dtype", "keys"),
    [
        (1, 64, 64, "bf16", 64),  # 64 x 64 sums of 4 bytes, 128 numbers of 2 bytes a key and value
        (2, 64, 64, "bf16", 2112),  # 2080 x 65
        (2, 64, 64, "fp16", 2112),
        (2, 64, 64, "fp32", 1056),
        (2, 64, 64, "fp64", 1056),  # whose sums are of 8 bytes
        (3, 64, 64, "bf16", 45760),  # 45760 x 64
        (4, 16, 16, "fp32", 2059),  # 3876 x 17 / 32 = 2059.1
        (2, 64, 32, "fp32", 715),  # 2080 x 33 / 96
        (1, 1, 1, "fp32", 1),
    ],
)
def test_a_window_keeps_as_many_bytes_as_the_state(p, d, e, dtype, keys):
    problem = make_case(head_dim=d, value_dim=e, dtype=dtype).problem
    assert window.equal_state_window(p, problem) == keys


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("p", [1, 2])
def test_its_bytes_are_those_of_the_operators_own_state(p, dtype):
    """Of the tensors that power_attention returns, with the smallest feature map."""
    problem = make_case(seqlen=64, batch=1, kv_heads=4, head_dim=16, value_dim=16, dtype=dtype).problem
    inputs = make_inputs(problem, CPU, 0)
    q, k, v = inputs.q, inputs.k, inputs.v
    _, state = power_attention(q, k, v, p=p, d_tile=1, return_state=True)
    kept = state.s.nbytes + (state.z.nbytes if p % 2 == 0 else 0)
    assert kept == 4 * state_bytes(p, 16, 16, dtype)
    keys = window.equal_state_window(p, problem)
    assert keys * (k[:, :1].nbytes + v[:, :1].nbytes) == pytest.approx(kept, rel=0.5 / keys)


def test_the_page_sees_them_equal():
    """Time against state size: a window beside the power attention that it stands for, and one cut to the context."""
    wide = make_case("window-flex", seqlen=65536, head_dim=64, value_dim=64, dtype="bf16").params
    power = Params(p=2, d_tile=1, chunk_size=1024)
    (one,) = rows(runs.run([runs.measurement("window-flex", 65536, 1.0, params=wide, dtype="bf16")]))
    (other,) = rows(runs.run([runs.measurement("power-triton", 65536, 1.0, params=power, dtype="bf16")]))
    assert (one.head_dim, one.kv_heads, one.dtype) == (other.head_dim, other.kv_heads, other.dtype)
    assert row_bytes(one) == pytest.approx(row_bytes(other), rel=0.5 / 2112)
    (cut,) = rows(runs.run([runs.measurement("window-flex", 300, 1.0, params=Params(p=2, window=300))]))
    (whole,) = rows(runs.run([runs.measurement("sdpa-flash", 300, 1.0)]))
    (stateless,) = rows(runs.run([runs.measurement("flex-power", 300, 1.0, params=Params(p=2))]))
    assert row_bytes(cut) == row_bytes(whole) == row_bytes(stateless)


def test_resolve_keeps_the_degree_and_ends_at_the_context():
    assert make_case(seqlen=300, head_dim=8).params == Params(p=2, window=20)  # 36 x 9 / 16
    assert make_case(seqlen=10, head_dim=8).params == Params(p=2, window=10)
    problem = make_case().problem
    params = KERNELS["window-torch"].resolve(problem, Params(p=9), "fwd", "cpu")
    case = Case(problem, "window-torch", params, "fwd")
    for kernel in KERNELS.values():
        assert "p = 9" in kernel.unsupported(case, "cuda")


def test_the_degree_of_a_window_loosens_no_tolerance():
    narrow, power = make_case(wide=4), Case(make_case().problem, "power-torch", Params(p=4), "fwd")
    four = Case(narrow.problem, "window-torch", Params(p=4, window=4), "fwd")
    assert gate.tolerance(four) == gate.tolerance(narrow) == gate.tolerance(power) / 2
    assert four.case_id != Case(narrow.problem, "window-torch", Params(p=4, window=5), "fwd").case_id


@pytest.mark.parametrize("wide", [1, 2, 20, 299, 300])
def test_reference_sees_the_last_keys(wide):
    case = make_case(wide=wide)
    inputs = make_inputs(case.problem, CPU, 0)
    rows = torch.tensor([0, 1, 19, 20, 150, 299])
    want = rows_of(inputs.q, inputs.k, inputs.v, wide)[:, rows]
    torch.testing.assert_close(softmax.softmax_reference(case, inputs, rows), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("seqlen", "wide"),
    [(300, 1), (300, 20), (300, 128), (300, 150), (300, 300), (63, 9), (1, 1), (128, 50), (500, 129)],
)
@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
def test_torch_passes_the_gate(seqlen, wide, pass_):
    if wide == 1 and seqlen > 1 and pass_ != "fwd":
        pytest.skip("of a single key the weight is 1 whatever q is: its gradient is 0, and has no relative error")
    case = make_case(pass_=pass_, seqlen=seqlen, wide=wide)
    kernel, inputs = KERNELS["window-torch"], make_inputs(case.problem, CPU, 0)
    assert kernel.unsupported(case, "cpu") is None
    assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < 1e-9


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_torch_in_other_dtypes(dtype):
    case = make_case(pass_="fwd+bwd", dtype=dtype, kv_heads=4)
    kernel, inputs = KERNELS["window-torch"], make_inputs(case.problem, CPU, 0)
    assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < gate.tolerance(case)


def test_a_window_one_key_off_fails_the_gate():
    case = make_case(wide=20, dtype="bf16")
    kernel, inputs = KERNELS["window-torch"], make_inputs(case.problem, CPU, 0)
    wrong = kernel.prepare(make_case(wide=21, dtype="bf16"))
    assert gate.check(kernel, case, inputs, wrong, 0).error > gate.tolerance(case)


@pytest.mark.parametrize("seqlen", [1, 100, 300])
@pytest.mark.parametrize("wide", [1, 7, 64, 1000, None])
@pytest.mark.parametrize("tile", [(1, 1, False), (16, 16, False), (16, 32, True), (64, 16, True)])
def test_pairs_against_a_walk(seqlen, wide, tile):
    seen = [(i, j) for i in range(seqlen) for j in range(i + 1) if wide is None or i - j < wide]
    assert visible_pairs(seqlen, wide) == len(seen)
    tile = Tile(*tile)
    tiles = {(i // tile.queries, j // tile.keys) for i, j in seen}
    covered = 0
    for a, b in tiles:
        rows = tile.queries if tile.padded else min(tile.queries, seqlen - a * tile.queries)
        keys = tile.keys if tile.padded else min(tile.keys, seqlen - b * tile.keys)
        covered += rows * keys
    assert covered_pairs(seqlen, tile, wide) == covered


def test_ledger_counts_the_window_and_what_blocks_add():
    (launch,) = KERNELS["window-torch"].launches(make_case(wide=20))
    assert launch.cost.useful_flops == 2 * 4 * (20 * 21 // 2 + 280 * 20) * 2 * 16
    blocks = 128 * 128 + 128 * 256 + 44 * (128 + 44)
    assert launch.cost.executed_flops == 2 * 4 * blocks * 2 * 16
    (flash,) = KERNELS["window-flash-2"].launches(make_case("window-flash-2", wide=20))
    assert flash.cost.useful_flops == launch.cost.useful_flops


@pytest.mark.parametrize(
    ("name", "distribution", "module"),
    [
        ("window-flash-2", "flash-attn", "flash_attn"),
        ("window-flash-3", "flash-attn-3", "flash_attn_interface"),
        ("window-flash-4", "flash-attn-4", "flash_attn.cute"),
    ],
)
def test_flash_gets_the_keys_to_the_left(name, distribution, module, monkeypatch):
    fake = FakeFlash(module, False)
    monkeypatch.setitem(__import__("sys").modules, module, fake)
    monkeypatch.setitem(__import__("sys").modules, module.split(".")[0], fake)
    install(monkeypatch, distribution)
    case = make_case(name, wide=20, dtype="bf16")
    assert KERNELS[name].unsupported(case, "cuda") is None
    assert KERNELS[name].version() == "9.9"
    inputs = make_inputs(case.problem, CPU, 0)
    KERNELS[name].prepare(case)(inputs.q, inputs.k, inputs.v, inputs.log_g)
    assert fake.calls[0][3] == {"causal": True, "window_size": (19, 0)}


def test_a_build_without_windows_still_decodes(monkeypatch):
    """Over a cache of the window's keys alone."""
    fake = FakeFlash("fa3_fwd_interface", False)
    monkeypatch.setitem(__import__("sys").modules, "fa3_fwd_interface", fake)
    install(monkeypatch, "fa3-fwd")
    prefill, decode = (make_case("window-flash-3", pass_, wide=20, dtype="bf16") for pass_ in ("fwd", "decode"))
    reason = "sliding windows are not in fa3-fwd (built without them)"
    assert KERNELS["window-flash-3"].unsupported(prefill, "cuda") == reason
    assert KERNELS["window-flash-3"].unsupported(decode, "cuda") is None


@pytest.mark.parametrize(("wide", "ctx"), [(20, 300), (300, 300), (1, 40)])
def test_it_decodes_over_the_last_keys(wide, ctx):
    problem = Problem(2, ctx, 4, 2, 8, 8, "fp64", True)
    case = Case(problem, "window-torch", Params(2, window=wide), "decode")
    kernel = KERNELS["window-torch"]
    assert kernel.refusal(case, "cpu") is None
    inputs = make_inputs(problem, CPU, 0, decoding=True)
    want = kernel.reference(case, replace(inputs, q=inputs.q.expand(-1, ctx, -1, -1)), torch.tensor([ctx - 1]))
    decoder = kernel.decoding.prepare(case, inputs)
    context = inputs.k.clone()
    inputs.k[:, -1] = torch.nan  # what is not appended is seen
    if wide < ctx:
        inputs.k.fill_(torch.nan)  # the window has memory of its own
    torch.testing.assert_close(decoder.step(), want)
    inputs.k.copy_(context)
    inputs.v.mul_(-1)
    decoder.reset()
    for _ in range(2):
        torch.testing.assert_close(decoder.step(), -want)
    assert torch.equal(inputs.k, context)
    assert kernel.decoding.sequence_bytes(case) == wide * 2 * (8 + 8) * 8
    attend = kernel.decoding.launches(case)[1].cost
    assert attend.useful_flops == 2 * 2 * 4 * wide * (8 + 8)
    assert attend.bytes == 2 * (wide * 2 * (8 + 8) + 4 * (8 + 8)) * 8


def test_a_window_in_a_copy_is_memory_beyond_the_inputs():
    whole, part = (Case(Problem(2, 300, 4, 2, 8, 8, "fp64", True), "window-torch", Params(2, window=wide), "decode")
                   for wide in (300, 20))  # fmt: skip
    extra = {case: KERNELS["window-torch"].decoding.workspace_bytes(case) for case in (whole, part)}
    token, scores = 2 * 2 * (8 + 8) * 8, 2 * 4 * 10  # bytes of k and v of two sequences' token; of scores of their key
    assert extra[whole] == 300 * (2 * token + scores)  # k and v for each of two groups
    assert extra[part] == 20 * (3 * token + scores)


def test_a_token_that_is_not_appended_to_a_window_is_seen(monkeypatch):
    problem = Problem(2, 300, 4, 2, 8, 8, "fp64", True)
    inputs = make_inputs(problem, CPU, 0, decoding=True)
    decoder = KERNELS["window-torch"].decoding.prepare(
        Case(problem, "window-torch", Params(2, window=20), "decode"), inputs
    )
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *_: self)
    assert decoder.step().isnan().all()


def test_flex_does_not_decode():
    case = Case(Problem(2, 300, 4, 2, 8, 8, "bf16", True), "window-flex", Params(2, window=20), "decode")
    assert KERNELS["window-flex"].refusal(case, "cuda") == "window-flex does not decode"


def test_flash_is_refused_as_without_a_window(monkeypatch):
    install(monkeypatch)
    reason = KERNELS["window-flash-4"].unsupported(make_case("window-flash-4", dtype="bf16"), "cuda")
    assert reason == "flash-attn-4 is not installed (pip install powerbench[flash])"
    assert KERNELS["window-flash-4"].unsupported(make_case("window-flash-4"), "cpu") == "needs a CUDA device"


def test_rows_name_the_window():
    case = make_case(wide=20, dtype="fp32")
    measured = runs.measurement("window-torch", 300, 1.0, params=case.params)
    run = runs.run([measured])
    assert tidy(run)["window"].tolist() == [20]
    assert "window" in render(run, "csv").splitlines()[0].split(",")
    assert "-w20/" in measured.case_id
