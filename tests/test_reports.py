"""Rows, frames, curves and answers, from synthetic runs whose answers are known."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pandas as pd
import pytest

from powerbench.crossover import contexts_text
from powerbench.problem import Params
from powerbench.reports.answers import answers, gaps
from powerbench.reports.crossovers import crossover_table
from powerbench.reports.curves import groups
from powerbench.reports.frames import tidy
from powerbench.reports.page import page
from powerbench.reports.rows import COLUMNS, rows
from powerbench.reports.show import render
from powerbench.reports.text import si, significant
from powerbench.reports.tiles import tile_maps
from powerbench.terminal import outcome
from tests import runs

CONTRACT = [
    *("case_id", "kernel", "p", "d_tile", "chunk_size", "ctx", "batch", "heads", "kv_heads", "head_dim", "dtype"),
    *("pass", "status", "reason", "n", "median_ms", "ci_low_ms", "ci_high_ms", "tokens_per_s", "useful_tflops"),
    *("executed_tflops", "intensity", "bound", "roof_fraction", "mfu", "hfu", "peak_memory_mib", "error", "timer"),
    "config",
]


def test_the_columns_are_the_contract():
    assert list(COLUMNS[: len(CONTRACT)]) == CONTRACT
    assert list(tidy(runs.run([])).columns) == list(COLUMNS)


def test_tidy_numbers():
    frame = tidy(runs.cpu_run()).set_index(["kernel", "ctx"])
    row = frame.loc[("sdpa-cpu", 16384)]
    measurement = next(
        m for m in runs.cpu_run().measurements if m.case.kernel == "sdpa-cpu" and m.case.problem.seqlen == 16384
    )
    seconds = np.median(measurement.samples_ms) / 1e3
    assert row.median_ms == pytest.approx(seconds * 1e3)
    assert row.ci_low_ms <= row.median_ms <= row.ci_high_ms
    assert row.tokens_per_s == pytest.approx(16384 / seconds)
    assert row.useful_tflops == pytest.approx(measurement.cost.useful_flops / seconds / 1e12)
    assert row.mfu == pytest.approx(measurement.cost.useful_flops / seconds / 2e11)
    assert row.hfu == pytest.approx(1.25 * row.mfu)
    assert row.peak_memory_mib == 96
    assert (row.bound, row.n, row.status, row.valid) == ("compute", 7, "ok", True)
    assert pd.isna(row.p)
    assert frame.p.dtype == "Int64"
    missing = frame.loc[("power-triton", 1024)]
    assert (missing.status, missing.reason, missing.n) == ("unsupported", "power-triton needs a GPU", 0)
    assert pd.isna(missing.median_ms)


def test_few_samples_have_a_median_but_no_interval():
    (row,) = rows(runs.few_samples_run())
    assert row.median_ms is not None
    assert (row.ci_low_ms, row.ci_high_ms, row.spread) == (None, None, None)


def test_above_the_roof_keeps_its_time_but_is_not_compared():
    fast = runs.measurement("power-torch", 1024, 0.001, flops=1e9, params=Params(2))
    run = runs.run([fast, runs.measurement("sdpa-cpu", 1024, 5.0, flops=1e6)])
    row = rows(run)[0]
    assert row.median_ms == pytest.approx(0.001, rel=0.05)
    assert not row.valid
    assert row.reason.startswith("above the roof: ")
    assert "above the roof" in answers(run)[0].text
    assert "invalid: power-torch, p = 2 at 1k: above the roof" in render(run, "table")
    assert "1 case is above the roof" in page([run])


def test_above_the_roof_has_no_speed_wherever_it_stands():
    """Impossibly fast at 2k, beside a slower choice that is possible: no curve, crossover or best goes through it."""
    found = []
    for ctx in (1024, 2048):
        found.append(runs.measurement("sdpa-cpu", ctx, 5.0, flops=1e6))
        found.append(runs.measurement("power-torch", ctx, 20.0, flops=1e6, params=Params(2, 16, 128)))
    found.append(runs.measurement("power-torch", 2048, 0.00123, flops=1e9, params=Params(2, 16, 64)))
    run = runs.run(found)
    (impossible,) = [row for row in rows(run) if not row.valid]
    assert (impossible.status, impossible.chunk_size) == ("ok", 64)
    assert [row.chunk_size for row in groups(rows(run))[0].curves[0].points.values()] == [128, 128]
    assert {pair.faster for pair in crossover_table(run)} == {"sdpa-cpu"}
    assert answers(run)[0].sentences[0].endswith("does not beat softmax attention (sdpa-cpu) within 1k..2k; "
                                                 "at 2k it is 4.0x slower.")  # fmt: skip
    frame = tidy(run).set_index("case_id")
    assert list(frame.index[~frame.valid]) == [impossible.case_id]
    assert frame.loc[impossible.case_id].reason.startswith("above the roof: ")
    for text in (render(run, "table", width=200), render(run, "markdown")):
        (line,) = [line for line in text.splitlines() if "invalid" in line and ": " not in line]
        assert not any(speed in line for speed in (si(impossible.tokens_per_s), significant(impossible.useful_tflops)))
    (tiles,) = tile_maps(groups(rows(run))[0].rows)
    assert tiles.price(impossible) is None


def test_the_line_of_a_case_refuses_an_impossible_time():
    """Two percent are allowed, as everywhere."""
    case = runs.measurement("power-torch", 1024, 1.0, noise=0.0)
    assert outcome(case, floor_ms=1.019).startswith("1.000 ms, error")
    assert outcome(case, floor_ms=1.021) == "invalid: 1 ms, where this machine needs 1.02 ms at best"


def test_no_ceiling_or_no_ledger_is_no_roof():
    bare, other = rows(runs.no_ledger_run())
    assert (bare.roof_fraction, bare.intensity, bare.useful_tflops, bare.valid) == (None, None, None, True)
    assert (other.roof_fraction, other.valid) == (None, True)
    assert other.intensity is not None


def test_ten_thousand_measurements_in_ten_seconds():
    many = [
        runs.measurement("power-torch", 1024 + i, 1.0, params=Params(2, 8, 64 + j), n=5 + i % 40)
        for i in range(100)
        for j in range(100)
    ]
    start = time.perf_counter()
    assert len(tidy(runs.run(many))) == 10_000
    assert time.perf_counter() - start < 10


def test_settings_are_kept_apart():
    mixed = runs.run(
        [
            runs.measurement("sdpa-cpu", 1024, 5.0),
            runs.measurement("sdpa-cpu", 1024, 9.0, pass_="fwd+bwd"),
            runs.measurement("sdpa-cpu", 1024, 5.0, dtype="bf16"),
            runs.measurement("power-torch", 1024, 9.0, dtype="bf16", params=Params(2)),
            runs.measurement("power-torch", 1024, 9.0, dtype="bf16", params=Params(3)),
        ]
    )
    found = groups(rows(mixed))
    assert [group.setting.text for group in found] == [
        "Forward, bf16, d = 64",
        "Forward, fp32, d = 64",
        "Forward + backward, fp32, d = 64",
    ]
    assert [curve.label for curve in found[0].curves] == ["power-torch, p = 2", "power-torch, p = 3", "sdpa-cpu"]
    assert len(crossover_table(mixed)) == 3


def test_a_curve_is_one_batch_or_one_number_of_tokens():
    """As many sequences as fit the tokens, at least one; unlike numbers of tokens are problems of their own."""

    def settings(*sizes):
        measured = [runs.measurement("power-torch", ctx, 1.0, tokens=batch * ctx) for ctx, batch in sizes]
        return [(group.setting.batch, len(group.rows)) for group in groups(rows(runs.run(measured)))]

    assert settings((1024, 8), (4096, 8), (65536, 8)) == [(None, 3)]
    assert settings((1024, 64), (4096, 16), (65536, 1), (2**20, 1)) == [(None, 4)]
    assert settings((1024, 64), (36864, 1), (33792, 1)) == [(None, 3)]  # one of them fills the 64k by half
    assert settings((2048, 4), (16384, 2)) == [(4, 1), (2, 1)]
    assert settings((1024, 64), (16384, 2), (2048, 2)) == [(2, 2), (64, 1)]


def test_two_batches_at_a_context_are_two_settings():
    mixed = [runs.measurement("sdpa-cpu", ctx, 5.0 * t, tokens=t) for ctx in (1024, 2048) for t in (4096, 8192)]
    found = groups(rows(runs.run(mixed)))
    assert [group.setting.batch for group in found] == [4, 8, 2]  # those of a single context come last, by context
    assert all(row.batch == group.setting.batch for group in found for row in group.rows)
    constant = groups(rows(runs.run(mixed[::2])))
    assert [group.workload for group in constant] == ["batch x context = 4k tokens"]


def test_a_curve_is_the_fastest_choice_at_each_context():
    found = groups(rows(runs.gpu_run(("fwd",))))[0]
    power = found.curves[0]
    assert power.label == "power-triton, p = 2"
    assert {(row.d_tile, row.chunk_size) for row in power.points.values()} == {(16, 1024)}
    assert list(power.points) == sorted(power.points)
    maps = tile_maps(found.rows)
    assert [(tiles.label, tiles.ctx) for tiles in maps][:2] == [
        ("power-triton, p = 2", 1024),
        ("power-triton, p = 2", 2048),
    ]
    assert maps[0].price(maps[0].best) == 0
    assert maps[0].price(maps[0].cells[8, 1024]) == pytest.approx(0.12, abs=0.01)
    assert len(maps) == 8 + 6  # degree 3 ran out of memory at the two largest contexts
    assert gaps(found) == (
        "Without a number to trust: flash-2 (unsupported); power-triton, p = 3 at 64k, 128k (oom); "
        "sdpa-math at 4k (above the roof)."
    )


def test_the_answer():
    (answer,) = answers(runs.cpu_run())
    assert answer.text == (
        "Forward, fp32, d = 64: Power attention (p = 2, power-torch) beats softmax attention (sdpa-cpu) from 5.0k "
        "(4.9k..5.1k) tokens on; at 16k it is 3.2x faster. It does not beat linear attention (linear-torch, p = 1) "
        "within 1k..16k; at 16k it is 20.0x slower. At 16k sdpa-cpu comes nearest to this machine's roof, at 42 %; "
        "power-torch, p = 2 reaches 22 %."
    )


def test_one_context_is_not_a_crossover():
    (answer,) = answers(runs.cpu_run((16384,)))
    assert answer.sentences[:3] == (
        "Power attention (p = 2, power-torch) is 3.2x faster than softmax attention (sdpa-cpu) at 16k.",
        "It is 20.0x slower than linear attention (linear-torch, p = 1) at 16k.",
        "A crossover needs more contexts.",
    )


def test_what_needs_more_contexts_is_said_where_it_does():
    """Softmax ran out of memory at all contexts but one; linear attention was measured at each."""
    measured = [m for m in runs.cpu_run().measurements if m.case.kernel != "sdpa-cpu" or m.case.problem.seqlen == 1024]
    (answer,) = answers(runs.run(measured))
    softmax, needs, linear = answer.sentences[:3]
    assert softmax.endswith("than softmax attention (sdpa-cpu) at 1k.")
    assert needs == "A crossover needs more contexts."
    assert linear.startswith("It does not beat linear attention (linear-torch, p = 1) within 1k..16k")
    assert needs not in answer.sentences[3:]


def _two(times, other, **options):
    contexts = runs.POWERS_OF_TWO[: len(times)]
    found = []
    for ctx, ms, other_ms in zip(contexts, times, other, strict=True):
        found.append(runs.measurement("power-torch", ctx, ms, params=Params(2), flops=1e6, **options))
        found.append(runs.measurement("sdpa-cpu", ctx, other_ms, flops=1e6, **options))
    return answers(runs.run(found))[0].sentences


@pytest.mark.parametrize(
    ("times", "other", "sentence"),
    [
        ([1, 1, 1], [2, 3, 4], "beats {} at every measured context (1k..4k); at 4k it is 4.0x faster."),
        ([2, 3, 4], [1, 1, 1], "does not beat {} within 1k..4k; at 4k it is 4.0x slower."),
        ([1, 2, 4], [2, 2.1, 2], "beats {} only up to 2.10k (2.09k..2.11k) tokens; at 4k it is 2.0x slower."),
        ([1, 2, 1], [2, 1, 2],
         "changes places with {} at 1.2k (1k..1.4k), 3.3k (2.8k..4k) tokens; at 4k it is 2.0x faster."),
        ([2, 2, 2], [1, 1, 2.004], "does not beat {} within 1k..4k; at 4k it is as fast within the noise."),
        ([2, 2, 2], [2, 2.004, 2], "is as fast as {} within the noise at every measured context (1k..4k)."),
        ([2, 2, 2], [1, 2, 1], "does not beat {} within 1k..4k, level at 2k; at 4k it is 2.0x slower."),
        ([1, 1, 1], [2, 1, 2], "beats {} at 1k, 4k, level at 2k; at 4k it is 2.0x faster."),
        ([2, 2, 2.004], [1, 1, 2], "does not beat {} within 1k..4k; at 4k it is as fast within the noise."),
    ],
)  # fmt: skip
def test_sentences(times, other, sentence):
    assert _two(times, other, noise=0.002)[0] == "Power attention (p = 2, power-torch) " + sentence.format(
        "softmax attention (sdpa-cpu)"
    )


def test_missing_sides_are_said():
    power = [runs.measurement("power-torch", ctx, 1.0, params=Params(2), flops=1e6) for ctx in (1024, 2048)]
    text = answers(runs.run(power))[0].text
    assert "softmax" not in text  # none was tried, so there is nothing to say
    failed = [runs.measurement("sdpa-cpu", ctx, None, status="oom", message="64 GiB wanted.") for ctx in (1024, 2048)]
    text = answers(runs.run(power + failed))[0].text
    assert "could not be compared with softmax attention" in text
    assert "No time to trust for softmax attention: sdpa-cpu: oom, 64 GiB wanted." in text
    names = ("sdpa-flash", "sdpa-cudnn", "flash-2", "flash-4")
    failed = [runs.measurement(name, 1024, None, status="oom", message="64 GiB wanted") for name in names]
    text = answers(runs.run(power + failed))[0].text
    assert "for softmax attention: sdpa-flash, sdpa-cudnn, flash-2: oom, 64 GiB wanted; and 1 more." in text
    elsewhere = runs.measurement("sdpa-cpu", 4096, 1.0, flops=1e6)
    text = answers(runs.run([*power, elsewhere]))[0].text
    assert "was never measured at the same context as softmax attention (sdpa-cpu)" in text
    text = answers(runs.all_failed_run())[0].text
    assert (
        "No time to trust for power attention (p = 2): power-triton, p = 2: failed, no CUDA device was found." in text
    )
    text = answers(runs.run([elsewhere]))[0].text
    assert text.startswith("Forward, fp32, d = 64: At 4k sdpa-cpu is fastest, 0.994 ms. At 4k sdpa-cpu comes nearest")
    failed = runs.measurement("sdpa-cpu", 1024, None, status="oom", message="64 GiB wanted")
    text = answers(runs.run([failed]))[0].text
    assert text.endswith("No time to trust for any contestant: sdpa-cpu: oom, 64 GiB wanted.")
    assert answers(runs.run([])) == []


def _alone(*cases):
    found = [runs.measurement("power-torch", ctx, ms, flops=1e6, noise=0.0, **own) for ctx, ms, own in cases]
    return [answer.sentences for answer in answers(runs.run(found))]


def test_a_contestant_without_rivals_has_its_time_said():
    ((sentence,),) = _alone((1024, 3.0, {"params": Params(2)}), (2048, 4.0, {"params": Params(2)}))
    assert sentence.startswith("Power attention (p = 2, power-torch) takes 4.00 ms at 2k, 512k tokens/s, ")
    assert sentence.endswith("% of this machine's roof (memory bound).")


def test_the_price_of_d_tile_and_chunk_is_said():
    ((_, sentence),) = _alone(
        *((2048, ms, {"params": Params(2, 8, chunk)}) for ms, chunk in ((5, 256), (4, 512), (9, 1024)))
    )
    assert sentence == (
        "Of 3 choices of d_tile and chunk at 2k, d_tile = 8, chunk = 512 is the fastest; the next best takes 25 % "
        "longer, the slowest 2.2 times as long."
    )
    ((_, sentence),) = _alone(*((2048, ms, {"params": Params(2, 8, chunk)}) for ms, chunk in ((5, 256), (4, 512))))
    assert sentence == (
        "Of 2 choices of d_tile and chunk at 2k, d_tile = 8, chunk = 512 is the fastest; the other takes 25 % longer."
    )


def test_one_choice_is_no_map():
    """Nor are two of which one cannot be run."""
    ran = runs.measurement("power-torch", 2048, 1.0, params=Params(2, 8, 512), flops=1e6)
    refused = runs.measurement(
        "power-torch", 2048, None, params=Params(2, 8, 1), status="unsupported", message="below 16"
    )
    failed = runs.measurement("power-torch", 2048, None, params=Params(2, 8, 64), status="oom", message="64 GiB wanted")
    assert tile_maps(rows(runs.run([ran, refused]))) == []
    (found,) = tile_maps(rows(runs.run([ran, refused, failed])))
    assert found.chunks == [1, 64, 512]


def test_what_a_degree_costs_is_said():
    first, second = _alone(*((2048, 2.0 * p, {"params": Params(p, 8, 512)}) for p in (1, 2)))
    assert len(first) == 1
    assert second[1] == "At 2k p = 2 is 2.0x slower than p = 1."


def test_where_the_time_goes_is_said():
    sentences = answers(runs.phases_run())[0].sentences
    assert "At 64k the time goes into query_state (40 %), update_state (30 %)." in sentences


def test_contexts_where_power_failed_are_said():
    sentences = next(a for a in answers(runs.gpu_run()) if a.p == 3).sentences
    assert sentences[-1].startswith(
        "No time to trust for power attention at 64k, 128k: power-triton, p = 3: oom, CUDA out"
    )


def test_contexts_without_any_time_are_said_once():
    lost = [
        runs.measurement(name, ctx, None, params=params, status="oom", message="64 GiB wanted")
        for name, params, at in (("power-torch", Params(2), (4096,)), ("sdpa-cpu", Params(), (2048, 4096)))
        for ctx in at
    ]
    power = [runs.measurement("power-torch", ctx, 1.0, params=Params(2), flops=1e6) for ctx in (1024, 2048)]
    softmax = runs.measurement("sdpa-cpu", 1024, 1.0, flops=1e6)
    sentences = answers(runs.run([*power, softmax, *lost]))[0].sentences
    assert sentences[-2:] == (
        "No time to trust for any contestant at 4k: power-torch, p = 2, sdpa-cpu: oom, 64 GiB wanted.",
        "No time to trust for softmax attention at 2k: sdpa-cpu: oom, 64 GiB wanted.",
    )


def test_contexts_that_the_other_side_lacks_are_said():
    run = runs.cpu_run()
    busy = msgspec.structs.replace(run.header.ceilings, matmul_flops_per_s={"fp32": 0.07e12})  # too low a ceiling
    header = msgspec.structs.replace(run.header, ceilings=busy)
    kept = [m for m in run.measurements if m.case.kernel != "sdpa-cpu" or m.case.problem.seqlen >= 4096]
    slow = [runs.measurement("sdpa-cpu", ctx, 500.0, flops=1e9) for ctx in (1024, 2048)]
    text = answers(runs.run(kept + slow, header))[0].text
    assert "beats softmax attention (sdpa-cpu) at every measured context (1k..2k)" in text
    assert "No time to trust for softmax attention at 4k..16k: sdpa-cpu: above the roof: 121 % of the meas" in text


def test_contexts_in_a_row_are_a_range():
    """In a row among those measured: 3k is not missing between 2k and 4k where nobody measured it."""
    measured = [1024 * n for n in (1, 2, 4, 8, 16, 32)]
    assert contexts_text({32768, 1024, 4096, 2048}, measured) == "1k..4k, 32k"
    assert contexts_text({1024, 2048, 8192}, measured) == "1k, 2k, 8k"
    assert contexts_text(measured, measured) == "1k..32k"


def test_the_faster_of_a_pair_stands_first():
    pairs = {(pair.faster, pair.slower): pair.crossover.text for pair in crossover_table(runs.cpu_run())}
    assert pairs == {
        ("linear-torch, p = 1", "power-torch, p = 2"): "at every measured context (1k..16k)",
        ("power-torch, p = 2", "sdpa-cpu"): "from 5.0k (4.9k..5.1k) on",
        ("linear-torch, p = 1", "sdpa-cpu"): "at every measured context (1k..16k)",
    }


def test_what_a_reader_of_a_time_has_to_know():
    """Host bound, timed by events and why, sampled in turn and why: none of it makes the time invalid."""
    why = "RuntimeError: cannot synchronize while capturing"
    slow = runs.measurement("sdpa-cpu", 1024, 1.0, wall_ms=(1.2, 1.2, 9.0), timer_reason=why, flops=1e6)
    slow = msgspec.structs.replace(slow, order="in turn: all would need 9 GiB", timer="events-cold")
    quick = runs.measurement("sdpa-cpu", 2048, 1.0, wall_ms=(1.1,), flops=1e6)
    known, plain = rows(runs.run([slow, quick]))
    assert known.valid
    assert plain.valid
    assert (known.host_bound, known.wall_ms, known.timer_reason) == (True, 1.2, why)
    assert known.reason == (
        "host bound: a user waits over 10 % longer than the device works; "
        f"timed by events-cold, not as a CUDA graph: {why}; sampled in turn: all would need 9 GiB"
    )
    assert (plain.host_bound, plain.reason) == (False, None)


def test_the_crossover_says_where_it_is_host_bound():
    found = []
    for ctx in (1024, 4096):
        found.append(runs.measurement("sdpa-cpu", ctx, ctx**2 / 1e6, flops=1e6, moved=4096))
        wall_ms = (2 * ctx / 1e3,) if ctx == 1024 else ()
        power = runs.measurement("power-torch", ctx, ctx / 1e3, params=Params(2), flops=1e6, moved=4096)
        found.append(msgspec.structs.replace(power, wall_ms=wall_ms))
    (answer,) = answers(runs.run(found))
    sentence = "Host bound (a user waits over 10 % longer than these device times say): power-torch, p = 2 at 1k."
    assert sentence in answer.text
    assert [pair.host_bound_up_to for pair in crossover_table(runs.run(found))] == [1024]
    assert "Host bound" not in answers(runs.cpu_run())[0].text
