"""The settings of a run beside each other."""

from __future__ import annotations

import re

import msgspec
import pytest

from powerbench.problem import Params
from powerbench.reports.crossovers import crossover_table
from powerbench.reports.curves import groups
from powerbench.reports.page import page
from powerbench.reports.rows import rows
from powerbench.reports.side_by_side import setting_table
from tests import runs


def _table(run):
    return setting_table(groups(rows(run)))


def _texts(table):
    return [[column.text(line) for column in table.columns] for line in table.lines]


def test_lines_are_in_order_and_what_is_the_same_is_said_once():
    table = _table(runs.heads_run())
    assert [column.heading for column in table.columns] == ["d", "heads / kv heads"]
    assert _texts(table) == [["32", "8 / 8"], ["64", "8 / 1"], ["64", "8 / 2"], ["64", "8 / 8"]]
    assert table.shared == "pass fwd, dtype fp32, gates ungated, context 4k, batch 1"
    assert table.where == ""
    both = [*runs.heads_run().measurements, *(_backward(m) for m in runs.heads_run().measurements)]
    passes = [texts[:2] for texts in _texts(_table(runs.run(reversed(both))))]
    assert passes == [["fwd", "32"], *[["fwd", "64"]] * 3, ["fwd+bwd", "32"], *[["fwd+bwd", "64"]] * 3]


def _backward(measured):
    return msgspec.structs.replace(measured, case=msgspec.structs.replace(measured.case, pass_="fwd+bwd"))


def test_times_are_of_the_fastest_choice_and_the_fastest_is_marked():
    table = _table(runs.heads_run())
    assert [column.heading for column in table.contestants] == ["power-torch, p = 2", "sdpa-cpu"]
    assert all(line.rows["power-torch, p = 2"].d_tile == 16 for line in table.lines)
    alone, one, two, eight = table.lines
    assert "sdpa-cpu" not in alone.rows  # out of memory: an empty cell
    assert alone.fastest is None  # nobody is beaten
    assert [line.fastest.kernel for line in (one, two, eight)] == ["sdpa-cpu", "power-torch", "power-torch"]


def test_a_time_above_the_roof_is_no_time():
    impossible = runs.of_shape(runs.measurement("sdpa-cpu", 4096, 0.001, flops=1e9), kv_heads=4)
    power = runs.of_shape(runs.measurement("power-torch", 4096, 2.0, params=Params(2, 16, 256), flops=1e6), kv_heads=4)
    table = _table(runs.run([*runs.heads_run().measurements, impossible, power]))
    (line,) = [line for line in table.lines if line.setting.kv_heads == 4]
    assert list(line.rows) == ["power-torch, p = 2"]


def test_the_state_goes_with_the_key_value_heads():
    table = _table(runs.heads_run())
    assert [column.heading for column in table.degrees] == ["MiB of state, p = 2"]
    _, one, two, eight = table.lines
    assert one.states == {2: 2560 * 65 * 4}  # ten tiles of 16 x 16, 64 values and the denominator, float32
    assert (two.states[2], eight.states[2]) == (2 * one.states[2], 8 * one.states[2])
    assert (one.state_text(2), one.state_text(3)) == ("0.635", "")


def test_fewer_than_three_settings_are_no_table():
    assert _table(runs.heads_run((8,))) is None
    assert _table(runs.heads_run((8, 2))) is not None
    assert _table(runs.run([])) is None
    failed = [runs.of_shape(m, kv_heads=heads) for m in runs.all_failed_run().measurements for heads in (1, 2, 4, 8)]
    assert _table(runs.run(failed)) is None
    decoding = [msgspec.structs.replace(m.case, pass_="decode") for m in runs.heads_run().measurements]
    measured = zip(runs.heads_run().measurements, decoding, strict=True)
    assert _table(runs.run(msgspec.structs.replace(m, case=case) for m, case in measured)) is None


def test_a_sweep_stands_at_its_longest_context_that_most_have():
    """One of the two kernels at 1k and 4k, both at 2k: 2k. The batch fills 4k tokens, rounded down."""
    found = []
    for kv_heads in (8, 4, 2):
        for ctx in (1024, 1448, 2048, 4096):
            power = runs.measurement("power-torch", ctx, 1.0, params=Params(2, 16, 256), flops=1e6, tokens=4096)
            softmax = runs.measurement("sdpa-cpu", ctx, 2.0, flops=1e6, tokens=4096)
            both = [power, softmax] if ctx < 4096 else [power]
            found += [runs.of_shape(m, kv_heads=kv_heads) for m in both]
    table = _table(runs.run(found))
    assert {(line.ctx, line.batch, len(line.rows)) for line in table.lines} == {(2048, 2, 2)}
    assert len(table.lines) == 3
    assert table.where == "Each setting at the longest context that most of its contestants have."


def test_shapes_with_batches_of_their_own_all_have_a_line():
    """Of one setting 2k x 4 and 16k x 2, as in the suite fla-shapes: two settings."""
    more = [
        runs.measurement("sdpa-cpu", ctx, 20.0, flops=1e6, tokens=ctx * batch) for ctx, batch in ((2048, 4), (16384, 2))
    ]
    table = _table(runs.run([*runs.heads_run((4, 2)).measurements, *(runs.of_shape(m, kv_heads=1) for m in more)]))
    assert [(line.ctx, line.batch) for line in table.lines if line.setting.kv_heads == 1] == [(2048, 4), (16384, 2)]
    assert [column.heading for column in table.columns] == ["d", "heads / kv heads", "context", "batch"]
    assert table.where == ""


def test_values_of_another_width_are_said():
    found = [runs.of_shape(m, value_dim=32) for m in runs.heads_run().measurements]
    assert [texts[0] for texts in _texts(_table(runs.run(found)))] == ["32", *["64 x 32"] * 3]


def test_pairs_of_one_context_are_not_to_cross():
    assert [pair.may_cross for pair in crossover_table(runs.heads_run())] == [False] * 3
    assert all(pair.may_cross for pair in crossover_table(runs.cpu_run()))


def _part(html, id):
    """The section with this heading, without markup's line breaks."""
    found = re.search(rf'<section aria-labelledby="run1-{id}">.*?</section>', html, re.DOTALL)
    return found and " ".join(found[0].split())


def test_on_the_page():
    html = page([runs.heads_run()])
    part = _part(html, "settings")
    assert html.index('id="run1-answers"') < html.index('id="run1-settings"') < html.index('id="run1-figures"')
    assert '<a href="#run1-settings">' in html
    head, *lines = re.findall(r"<tr.*?</tr>", part)
    assert re.findall(r'<th scope="col"[^>]*>(.*?)</th>', head)[:2] == ["d", "heads / kv heads"]
    assert "<span>power-torch,</span> <span>p = 2</span>" in head
    assert [re.findall(r'<th scope="row"[^>]*>(.*?)</th>', line) for line in lines] == _texts(_table(runs.heads_run()))
    bold = [re.findall(r"<td[^>]*><strong>(.*?)</strong></td>", line) for line in lines]
    assert [len(found) for found in bold] == [0, 1, 1, 1]
    assert float(bold[1][0]) == pytest.approx(1.5, rel=0.02)
    empty = [re.findall(r"<td[^>]*></td>", line) for line in lines]
    assert [len(found) for found in empty] == [1, 0, 0, 0]
    assert "d_tile and chunk. Bold: the fastest of its row." in part
    assert "The same in all rows: pass fwd, dtype fp32, gates ungated, context 4k, batch 1." in part
    assert 'id="run1-settings"' not in page([runs.gpu_run()])  # two settings
    assert "#run1-settings" not in page([runs.gpu_run()])


def test_crossovers_on_the_page_are_of_pairs_that_may_cross():
    part = _part(page([runs.heads_run()]), "pairs")
    assert "3 pairs of contestants share one context at most and cannot cross:" in part
    assert 'href="#run1-settings"' in part
    assert "<table" not in part
    part = _part(page([runs.cpu_run((16384,))]), "pairs")
    assert "3 pairs of contestants" in part
    assert "#run1-settings" not in part
    assert "cannot cross" not in _part(page([runs.cpu_run()]), "pairs")
    assert _part(page([runs.few_samples_run()]), "pairs") is None
    mixed = _part(page([runs.run([*runs.cpu_run().measurements, *runs.heads_run((4,)).measurements])]), "pairs")
    assert "1 pair of contestants shares one context at most and cannot cross:" in mixed
    assert "from 5.0k (4.9k..5.1k) on" in mixed
    assert "more contexts" not in mixed
