"""Decoding in tables and sentences, from made-up measurements."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import runs

from powerbench.cost import Cost, Launch
from powerbench.problem import Case, Params, Problem
from powerbench.reports.decoding import COLUMNS, batch_crossovers, decode_tables
from powerbench.reports.page import page
from powerbench.results.model import Measurement


def measured(kernel, ctx, batch, ms, *, params=None, kept=None, moved=1000, pass_="decode"):
    problem = Problem(batch, ctx, 8, 8, 64, 64, "fp32", True)
    return Measurement(
        case=Case(problem, kernel, params or Params(), pass_), status="ok", samples_ms=(ms,) * 5, timer="wall",
        launches=(Launch("step", Cost(10, 10, moved)),), sequence_bytes=kept,
    )  # fmt: skip


def power(ctx, batch, ms, chunk=64):
    return measured("power-triton", ctx, batch, ms, params=Params(2, 8, chunk), kept=4_000_000)


RUN = runs.run(
    [
        power(1024, 1, 0.02), power(1024, 16, 0.04), power(1024, 16, 0.06, chunk=1), power(65536, 16, 0.04),
        measured("sdpa-cudnn", 1024, 1, 0.01, kept=1_000_000), measured("flash-2", 1024, 1, 0.04, kept=1_000_000),
        measured("sdpa-cudnn", 1024, 16, 0.16, kept=1_000_000), measured("sdpa-cudnn", 65536, 16, 0.8, kept=64_000_000),
        measured("sdpa-cudnn", 65536, 16, 9.0, pass_="fwd"),
    ]
)  # fmt: skip


def decode_rows(memory_bytes=None):
    (table,) = decode_tables(RUN, memory_bytes)
    return table.rows


def test_only_decode_rows_in_order():
    found = decode_rows()
    assert [(one.row.ctx, one.row.batch) for one in found] == [(1024, 1)] * 3 + [(1024, 16)] * 3 + [(65536, 16)] * 2
    assert [one.label for one in found[3:6]] == [
        "power-triton, p = 2, window 64", "power-triton, p = 2, plain", "sdpa-cudnn",
    ]  # fmt: skip


def test_memory_and_bandwidth():
    first = next(one for one in decode_rows(memory_bytes=10_000_000) if one.row.ctx == 65536)
    assert first.largest_batch == 2
    rate = 1000 / 0.04e-3
    assert first.row.gb_per_s == pytest.approx(rate / 1e9)
    assert first.bandwidth_share == pytest.approx(rate / RUN.ceilings.copy_bytes_per_s)
    assert first.row.tokens_per_s == pytest.approx(16 / 0.04e-3)
    texts = {column.heading: column.text(first) for column in COLUMNS}
    assert (texts["ctx"], texts["batch"], texts["bytes a sequence"], texts["largest batch"]) == (
        "64k", "16", "4.00 M", "2",
    )  # fmt: skip


def test_energy_is_shown_where_power_was_read():
    """The board's 500 W for 0.04 ms, over 16 tokens."""
    (table,) = decode_tables(RUN)
    assert "mJ a token" not in [column.heading for column in table.columns]
    one = next(one for one in table.rows if one.row.ctx == 65536)
    assert replace(one, row=msgspec.structs.replace(one.row, power_w=500.0)).token_mj == pytest.approx(1.25)


def test_crossover_in_batch():
    """At 1k power attention is half as fast at batch 1 and four times as fast at 16: level at 16^(1/3)."""
    between = batch_crossovers(decode_rows(), 2)
    (crossing,) = between[1024].crossings
    assert crossing.at == pytest.approx(16 ** (1 / 3), rel=1e-3)
    assert between[65536].speedup == pytest.approx(20)
    assert batch_crossovers(decode_rows(), 3) == {}


def test_sentences():
    (table,) = decode_tables(RUN)
    assert table.name == "Decoding, fp32, d = 64, 8 heads, gated"
    assert table.sentences == [
        "At context 1k and batch 16 power attention (p = 2) is 4.0x faster than softmax attention; the lead changes at "
        "batch 2.52 (1.00..16.00).",
        "At context 64k and batch 16 power attention (p = 2) is 20.0x faster than softmax attention.",
    ]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ((0.02, 0.02), "2.0x faster than softmax attention; level within the noise at batch 1."),
        ((0.01, 0.02), "2.0x faster than softmax attention, and faster at every batch measured."),
        ((0.02, 0.04), "as fast within the noise as softmax attention."),
        ((0.02, 0.08), "2.0x slower than softmax attention, and faster at no batch measured; level within the noise at "
                       "batch 1."),
        ((0.04, 0.04), "as fast within the noise as softmax attention, and faster at no batch measured."),
    ],
)  # fmt: skip
def test_a_batch_at_which_both_are_level_is_no_win(times, said):
    found = [power(4096, batch, ms) for batch, ms in zip((1, 16), times, strict=True)]
    found += [measured("sdpa-cudnn", 4096, 1, 0.02), measured("sdpa-cudnn", 4096, 16, 0.04)]
    (table,) = decode_tables(runs.run(found))
    assert table.sentences == [f"At context 4k and batch 16 power attention (p = 2) is {said}"]


def test_the_page_has_a_section_of_decoding():
    text = page([RUN])
    section = text.split('id="run1-decoding">')[1].split("</section>")[0]
    assert "faster than softmax attention; the lead changes at batch" in section
    assert "power-triton, p = 2, plain" in section
    grid, rest = section.split("</table>", 1)
    assert "<td>0.500x</td><td>4.00x</td>" in grid.split("1k</th>")[1].splitlines()[0]
    assert "<td></td><td>20.00x</td>" in grid.split("64k</th>")[1].splitlines()[0]
    assert rest.count("<tr>") == 1 + 8
    assert 'id="run1-decoding"' not in page([runs.run([measured("sdpa-cudnn", 1024, 1, 0.1, pass_="fwd")])])
