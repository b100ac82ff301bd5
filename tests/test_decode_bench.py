"""The pass `decode`: contestants, gate, re-check, cycles, ledger and rows."""

from __future__ import annotations

import math
import sys
import types
from dataclasses import replace
from itertools import count

import pytest
import runs
import torch
from fakes import CEILINGS, CPU, Inline, fake, softmax

from powerbench import gate
from powerbench.bench import make_inputs
from powerbench.cost import Cost, Launch, total
from powerbench.device import Device
from powerbench.kernels import packages
from powerbench.kernels.kernel import Decoder, Decoding
from powerbench.kernels.power import decode_cost
from powerbench.kernels.power.decode_contestants import prefill
from powerbench.kernels.power.decode_tiling import walks
from powerbench.kernels.power.feature_map import spow_dim, tspow_dim
from powerbench.kernels.power.torch_decode import sum_up
from powerbench.kernels.table import KERNELS, select
from powerbench.plan import plan
from powerbench.problem import Case, Params, Problem
from powerbench.reports.rows import rows
from powerbench.runner import run
from powerbench.stopping import Stopping
from powerbench.suites import Suite, load
from powerbench.timing import Taken

TABLE = {kernel.name: kernel for kernel in KERNELS}
SUITE = Suite(ctx=(40,), heads=(4,), kv_heads=(2,), head_dim=(8,), batch=(3,), dtype=("fp32",), pass_=("decode",)).on(
    "cpu"
)
H200 = Problem(64, 65536, 8, 8, 64, 64, "bf16", True)  # the main problem


class Silent:
    def started(self, planned): ...

    def finished(self, planned, measurement, visit): ...


def measure(*kernels, suite=SUITE):
    planned = plan(suite, kernels, CPU, CEILINGS)
    stopping = Stopping(min_samples=5, min_seconds=0, max_samples=5)
    return list(run(planned, CPU, lambda: Inline(kernels), Silent(), stopping=stopping))


def decoding(decoder, **changes):
    fields = {
        "prepare": lambda case, inputs: decoder(inputs),
        "launches": lambda case: (Launch("step", Cost(1000, 2000, 500)),),
        "sequence_bytes": lambda case: 123,
        "workspace_bytes": lambda case: 0,
    }
    return Decoding(**{**fields, **changes})


def right(inputs):
    """Softmax over the inputs as they are; the query at the last row."""

    def step():
        queries = inputs.q.expand(-1, inputs.k.shape[1], -1, -1)
        return softmax(queries, inputs.k, inputs.v, None)[:, -1:]

    return Decoder(step, lambda: None)


# --- contestants ---


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("ctx", [1, 2, 40])
def test_every_contestant_of_the_cpu_is_right(ctx, gated):
    kernels = [TABLE[name] for name in ("power-torch", "linear-torch", "sdpa-cpu")]
    suite = SUITE.override({"ctx": str(ctx), "p": "1,2,3", "chunk": "1,4,auto", "d_tile": "auto,8", "gated": gated})
    measured = measure(*kernels, suite=suite.on("cpu"))
    assert {one.status for one in measured} == {"ok"}, [one.message for one in measured]
    assert {one.case.params.chunk_size for one in measured} > {None, 1, 4}
    assert all(one.error < 1e-5 for one in measured)
    assert all(one.sequence_bytes for one in measured)


@pytest.mark.parametrize("pieces", [(3, 2), (2, 2), (1, 2), (1, 1)])
def test_the_reference_may_be_made_in_pieces(pieces, monkeypatch):
    """Of sequences and key/value heads; what is right is right, and of one wrong head the error is the same."""
    kernels = [TABLE[name] for name in ("power-torch", "linear-torch", "sdpa-cpu")]
    kernels.append(fake("wrong", decoding=decoding(one_wrong_head)))
    whole = measure(*kernels)
    one = gate._decoding_bytes(whole[0].case.problem)
    assert gate._decoding_pieces(whole[0].case.problem) == (3, 2)
    monkeypatch.setattr(gate, "DECODING_BYTES", math.prod(pieces) * one)
    assert gate._decoding_pieces(whole[0].case.problem) == pieces
    assert gate.memory_bytes(whole[0].case) == math.prod(pieces) * one
    parts = {part.case.kernel: part for part in measure(*kernels)}
    assert {name: part.status for name, part in parts.items() if part.status != "ok"} == {"wrong": "wrong"}
    for one in whole:
        assert parts[one.case.kernel].error == pytest.approx(one.error, rel=1e-6)


def one_wrong_head(inputs):
    decoder = right(inputs)

    def step():
        y = decoder.step()
        y[2, 0, 3] *= 1.1
        return y

    return Decoder(step, decoder.reset)


def test_long_contexts_of_many_sequences_fit():
    """Where k and v, 128 GiB, fit into an H200, what is beside them does, too."""
    device = Device("cuda", "NVIDIA H200", 139 * 2**30)
    suite = Suite(ctx=(2**18, 2**20), batch=(64, 256), p=(2,), pass_=("decode",), gated=True).on("cuda")
    kernels = [
        replace(TABLE[name], unsupported=lambda case, device_type: None) for name in ("power-triton", "sdpa-cudnn")
    ]
    fits = {
        (item.case.problem.batch, item.case.problem.seqlen, item.case.kernel)
        for item in plan(suite, kernels, device, CEILINGS)
        if item.memory_bytes <= device.memory_bytes
    }
    assert fits == {
        (b, t, name) for b, t in ((64, 2**18), (64, 2**20), (256, 2**18)) for name in ("power-triton", "sdpa-cudnn")
    }


def test_inputs_are_drawn_in_pieces(monkeypatch):
    problem = Problem(3, 40, 4, 2, 8, 8, "bf16", True)
    monkeypatch.setattr("powerbench.inputs.DRAWN_ELEMENTS", 2 * 40 * 2 * 8)  # of k two sequences, and then one
    one, same = (make_inputs(problem, torch.device("cpu"), 0, decoding=True) for _ in range(2))
    assert one.k.shape == (3, 40, 2, 8)
    assert one.k.dtype is torch.bfloat16
    assert torch.equal(one.k, same.k)
    assert 0.9 < one.k.float().std() < 1.1
    assert not torch.equal(one.k[0], one.k[2])


def test_who_has_no_decoding_says_so():
    (row,) = measure(fake("prefill-only"))
    assert (row.status, row.message) == ("unsupported", "prefill-only does not decode")


def test_the_other_passes_are_as_before():
    suite = SUITE.override({"pass": "fwd,decode"})
    both = measure(fake("right", decoding=decoding(right)), suite=suite)
    assert [(one.case.pass_, one.status) for one in both] == [("fwd", "ok"), ("decode", "ok")]
    assert both[0].launches != both[1].launches
    assert [one.sequence_bytes for one in both] == [None, 123]


@pytest.mark.parametrize("name", ["flash-2", "flash-4"])
def test_flash_attention_is_called_with_its_cache(name, monkeypatch):
    """flash-attn's call appends and attends; flash-attn-4 has none, and gets a cache that holds the token already."""
    problem = Problem(2, 30, 4, 2, 8, 8, "fp32", False)
    case = Case(problem, name, Params(), "decode")
    inputs = make_inputs(problem, torch.device("cpu"), 0, decoding=True)
    want = TABLE[name].reference(case, replace(inputs, q=inputs.q.expand(-1, 30, -1, -1)), torch.tensor([29]))
    lost = inputs.k[:, -1].clone()

    def attend(q, k, v, *, causal):
        assert causal
        return softmax(q.expand(-1, k.shape[1], -1, -1), k, v, None)[:, -1:]

    def flash_attn_with_kvcache(q, k_cache, v_cache, *, k, v, cache_seqlens, causal):
        assert cache_seqlens.tolist() == [29, 29]
        k_cache[:, 29:], v_cache[:, 29:] = k, v
        return attend(q, k_cache, v_cache, causal=causal)

    module = types.ModuleType("flash")
    if name == "flash-2":
        module.flash_attn_with_kvcache = flash_attn_with_kvcache
    else:
        module.flash_attn_func = lambda *tensors, causal: (attend(*tensors, causal=causal), None)
    for path in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, path, module)
    decoder = TABLE[name].decoding.prepare(case, inputs)
    inputs.k[:, -1] = torch.nan  # what is not appended is seen
    torch.testing.assert_close(decoder.step().double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(inputs.k[:, -1], lost)


@pytest.mark.parametrize("name", ["fla-linear", "fla-simple-gla"])
def test_fla_is_called_with_the_state(name, monkeypatch):
    problem = Problem(2, 30, 3, 3, 8, 4, "fp32", True)
    case = Case(problem, name, Params(p=1), "decode")
    inputs = make_inputs(problem, torch.device("cpu"), 0, decoding=True)

    def fused_recurrent_simple_gla(q, k, v, *, g, scale, initial_state, output_final_state):
        assert output_final_state
        decay = 1 if g is None else g[:, 0, :, None, None].exp()
        state = decay * initial_state + k[:, 0, :, :, None] * v[:, 0, :, None, :]
        return scale * torch.einsum("bhd,bhde->bhe", q[:, 0], state)[:, None], state

    for path in ("fla", "fla.ops", "fla.ops.simple_gla", "fla.ops.linear_attn"):
        monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    sys.modules["fla.ops.simple_gla"].fused_recurrent_simple_gla = fused_recurrent_simple_gla
    monkeypatch.setattr(packages, "version", lambda _: "0.6.0")
    kernel = TABLE[name]
    assert kernel.refusal(case, "cuda") is None
    decoder = kernel.decoding.prepare(case, inputs)
    want = kernel.reference(case, replace(inputs, q=inputs.q.expand(-1, 30, -1, -1)), torch.tensor([29]))
    for _ in range(2):  # every step begins from the same state
        torch.testing.assert_close(decoder.step().double(), want, rtol=1e-5, atol=1e-5)
    inputs.v.neg_()
    decoder.reset()
    torch.testing.assert_close(decoder.step().double(), -want, rtol=1e-5, atol=1e-5)


# --- gate, re-check, cycles ---


def test_one_wrong_sequence_is_seen():
    def wrong(inputs):
        decoder = right(inputs)

        def step():
            y = decoder.step()
            y[1] = y[0]
            return y

        return Decoder(step, decoder.reset)

    (row,) = measure(fake("wrong", decoding=decoding(wrong)))
    assert (row.status, row.samples_ms) == ("wrong", ())
    assert row.error > 0.1


def test_a_cached_result_is_seen_after_timing():
    def stale(inputs):
        y = right(inputs).step()
        return Decoder(y.clone, lambda: None)

    both = measure(fake("stale", decoding=decoding(stale)), fake("right", decoding=decoding(right)))
    assert sorted((one.case.kernel, one.status) for one in both) == [("right", "ok"), ("stale", "wrong")]
    assert next(one for one in both if one.status == "wrong").message.startswith("after timing, on changed inputs")


def test_a_sample_is_the_mean_over_a_cycle(monkeypatch):
    """Of a clock that counts 1, 2, 3 ... ms a call, samples over cycles of four differ by four."""
    ticks = count(1)
    monkeypatch.setattr("powerbench.timing._wall_ms", lambda call, *_: Taken(float(next(ticks)), call()))
    monkeypatch.setattr("powerbench.runner.implausible", lambda *_: (None, None))  # that no such time has passed
    (row,) = measure(fake("cycling", decoding=decoding(lambda inputs: replace(right(inputs), cycle=4))))
    steps = {round(b - a, 6) for a, b in zip(row.samples_ms, row.samples_ms[1:], strict=False)}
    assert steps == {4.0}


@pytest.mark.parametrize(
    ("batch", "window", "cycle"), [(1, 4, 4), (2, 4, 2), (3, 4, 4), (8, 4, 1), (6, 4, 2), (1, 64, 8)]
)
def test_sequences_fold_at_different_times(batch, window, cycle):
    """Over a cycle, where it is not cut short, every step's share of folded states is that of the long run."""
    problem = Problem(batch, 80, 1, 1, 8, 8, "fp32", True)
    case = Case(problem, "power-torch", Params(p=2, d_tile=8, chunk_size=window), "decode")
    inputs = make_inputs(problem, torch.device("cpu"), 0, decoding=True)
    decoder = TABLE["power-torch"].decoding.prepare(case, inputs)
    assert decoder.cycle == cycle
    state = next(
        cell.cell_contents for cell in decoder.step.__closure__ if hasattr(cell.cell_contents, "count")
        and isinstance(cell.cell_contents.count, torch.Tensor)
    )  # fmt: skip
    folded = []
    for _ in range(2 * cycle):
        before = state.count.clone()
        decoder.step()
        folded.append(int((state.count < before).sum()) if window > 1 else batch)
    assert sum(folded[:cycle]) == sum(folded[cycle:])
    if cycle * batch % window == 0:
        assert sum(folded[:cycle]) == cycle * batch // window


# --- ledger ---


def of(chunk, problem=H200, p=2, name="power-triton"):
    return Case(problem, name, Params(p=p, d_tile=8, chunk_size=chunk), "decode")


def test_bytes_of_a_plain_and_of_a_lazy_step():
    state = 64 * 8 * 2304 * 65 * 4  # batch, heads, rows, e and z
    plain = total(decode_cost.triton_launches(of(1), True)).bytes
    lazy = total(decode_cost.triton_launches(of(64), True)).bytes
    assert 2 * state < plain < 2.05 * state
    assert state * (1 + 1 / 64) < lazy < 1.1 * state
    assert lazy < 0.6 * plain


def test_useful_flops_counted_by_hand():
    problem = Problem(3, 100, 4, 2, 8, 6, "fp32", True)
    case = Case(problem, "power-torch", Params(p=2, d_tile=4, chunk_size=5), "decode")
    flops = 0
    for waiting in range(5):  # tokens in the window before a step
        for _ in range(3 * 4):  # sequences and query heads
            flops += 2 * spow_dim(8, 2) * 6 + (waiting + 1) * 2 * (8 + 6)
        for _ in range(3 * 2):  # a token is moved into the state once
            flops += 2 * spow_dim(8, 2) * 6
    cost = total(decode_cost.torch_launches(case, True))
    assert cost.useful_flops * 5 == flops
    rows = tspow_dim(8, 2, 4) - spow_dim(8, 2)
    assert cost.executed_flops - cost.useful_flops == 2 * rows * 6 * 3 * (4 + 2)


def test_grouped_queries_execute_a_whole_matrix():
    grouped = Problem(64, 65536, 8, 2, 64, 64, "bf16", True)
    cost = decode_cost.triton_launches(of(1, grouped), True)[0].cost
    assert cost.executed_flops > 2 * 2304 * 64 * 64 * 2 * 16


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_no_case_keeps_a_bfloat16_state(dtype):
    """So that no step walks over one: the partial sums that the ledger counts are those of `split`."""
    problem = Problem(2, 4, 2, 2, 16, 16, dtype, True)
    case = of(1, problem, name="power-torch")
    decoder = TABLE["power-torch"].decoding.prepare(case, make_inputs(problem, torch.device("cpu"), 0, decoding=True))
    state = next(cell.cell_contents for cell in decoder.step.__closure__ if isinstance(cell.cell_contents, tuple))
    assert state.s.dtype is torch.float32
    assert not walks(256, 16, 4, 1, state.s.element_size(), lazy=False, dense=True, processors=132)


@pytest.mark.parametrize("chunk", [1, 64])
def test_bytes_of_a_sequence_are_those_of_its_tensors(chunk):
    problem = Problem(3, 20, 4, 2, 16, 8, "bf16", True)
    case = of(chunk, problem, name="power-torch")
    inputs = make_inputs(problem, torch.device("cpu"), 0, decoding=True)
    decoder = TABLE["power-torch"].decoding.prepare(case, inputs)
    state = next(cell.cell_contents for cell in decoder.step.__closure__ if isinstance(cell.cell_contents, tuple))
    leaves = list(state) if chunk == 1 else [*state.state, *state[1:]]
    assert sum(x.nbytes for x in leaves) == 3 * decode_cost.sequence_bytes(case)


def test_a_cache_holds_every_token():
    assert TABLE["sdpa-cudnn"].decoding.sequence_bytes(of(None)) == 65536 * 8 * (64 + 64) * 2
    bytes_ = total(TABLE["sdpa-cudnn"].decoding.launches(of(None))).bytes
    assert bytes_ == pytest.approx(64 * 65536 * 8 * 128 * 2, rel=1e-3)


@pytest.mark.parametrize(("p", "d", "d_tile", "window"), [(1, 64, 64, 16), (2, 64, 8, 64), (2, 128, 8, 128)])
def test_the_window_left_open_moves_the_fewest_bytes(p, d, d_tile, window):
    problem = Problem(16, 65536, 8, 8, d, d, "bf16", True)

    def moved(chunk):
        case = Case(problem, "power-triton", Params(p=p, d_tile=d_tile, chunk_size=chunk), "decode")
        return total(decode_cost.triton_launches(case, p % 2 == 0)).bytes

    best = decode_cost.best_window(p, d_tile, problem)
    assert best == window
    assert moved(best) <= min(moved(2**i) for i in range(8)) * 1.01


# --- suite and rows ---


def test_the_suite():
    suite = load("decode").on("cuda")
    problems = list(suite.problems())
    assert {problem.batch for problem in problems} == {1, 16, 64, 256}
    assert max(problem.seqlen for problem in problems) == 2**20
    cases = suite.cases([TABLE["power-triton"], TABLE["sdpa-cudnn"]], "cuda")
    assert {case.params.chunk_size for case in cases} == {1, 64, None}
    assert {case.pass_ for case in cases} == {"decode"}


def test_rows_count_one_token_a_sequence():
    (measurement,) = measure(TABLE["sdpa-cpu"])
    (row,) = rows(runs.run([measurement]))
    seconds = row.median_ms / 1e3
    assert row.tokens_per_s == pytest.approx(3 / seconds)
    assert row.sequence_bytes == 40 * 2 * (8 + 8) * 4
    assert row.gb_per_s == pytest.approx(measurement.cost.bytes / seconds / 1e9)
    assert row.pass_ == "decode"


@pytest.mark.parametrize(("p", "gated"), [(1, True), (2, True), (2, False), (3, True)])
@pytest.mark.parametrize("number", [0, 1, 70])
def test_a_state_by_the_operator_is_that_of_plain_sums(p, gated, number):
    """Where a GPU makes states ready, in pieces, here by the interpreter."""
    pytest.importorskip("triton")
    inputs = make_inputs(Problem(1, 70, 2, 2, 16, 16, "fp32", gated=gated), torch.device("cpu"), 0)
    past = [None if x is None else x[0, :number] for x in (inputs.k, inputs.v, inputs.log_g)]
    dim = tspow_dim(16, p, 8)
    made = []
    for fill, tokens in ((sum_up, 16), (prefill, 32)):
        s, z = torch.full((2, dim, 16), torch.nan), torch.full((2, dim), torch.nan)
        fill(*past, s, z, p=p, d_tile=8, tokens=tokens)
        made.append((s, z))
    (want_s, want_z), (s, z) = made
    torch.testing.assert_close(s, want_s, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z, want_z, rtol=1e-4, atol=1e-4)


def test_a_reference_is_made_once_for_a_function_of_the_same_inputs(monkeypatch):
    """Power attention plain and lazy share one; in another visit or context, whose inputs are new, there is another."""
    made = []
    reference = gate.decoding_reference
    monkeypatch.setattr(gate, "decoding_reference", lambda *args: made.append(args[1].kernel) or reference(*args))
    suite = Suite(
        ctx=(16, 32), chunk=(1, 4), head_dim=(16,), heads=(2,), batch=(2,), dtype=("fp32",), pass_=("decode",),
        kernels=("sdpa-cpu", "power-torch"),
    )  # fmt: skip
    kernels = select(suite.kernels)
    items = plan(suite.on("cpu"), kernels, CPU, CEILINGS, visits=2)
    found = list(run(items, CPU, lambda: Inline(kernels), Silent(), stopping=Stopping(min_samples=1, min_seconds=0.0)))
    assert {one.status for one in found} == {"ok"}
    assert len(found) == 2 * 2 * 3
    assert made.count("power-torch") == made.count("sdpa-cpu") == 2 * 2
