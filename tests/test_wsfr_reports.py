"""The weight-state ratio as a command, as tables, frames and figures, and in measured time."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from powerbench.cli import cli, main
from powerbench.models import chosen, presets
from powerbench.problem import Params
from powerbench.reports.static import write_static
from powerbench.reports.wsfr import CONTEXTS, section
from powerbench.reports.wsfr_choice import analysis
from powerbench.reports.wsfr_measured import measured_settings
from powerbench.reports.wsfr_table import print_wsfr, render
from tests import runs

COLUMNS = [
    *("model", "attention", "kind", "own", "p", "ctx", "mode", "weight_flops", "state_flops", "wsfr", "balanced_ctx"),
    *("dtype", "state_bytes", "kv_cache_bytes", "size_ratio"),
]


def asked(**options):
    return analysis({"ctx": "1k,64k", "p": "1,2", "mode": "prefill", "dtype": "bf16", **options})


def invoke(*args):
    return CliRunner().invoke(cli, ["wsfr", *args], catch_exceptions=False)


def printed(found, width=120):
    out = io.StringIO()
    print_wsfr(found, Console(file=out, width=width))
    return out.getvalue()


def test_csv_and_json_are_the_same_rows():
    done = invoke("--preset", "gpt2-xl", "--ctx", "1k..4k", "--p", "1,2", "--format", "csv")
    frame = pd.read_csv(io.StringIO(done.stdout))
    records = json.loads(invoke("--preset", "gpt2-xl", "--ctx", "1k..4k", "--p", "1,2", "--format", "json").stdout)
    assert list(frame.columns) == COLUMNS == list(records[0])
    assert len(frame) == len(records) == 8 * 3
    assert frame.wsfr.tolist() == pytest.approx([record["wsfr"] for record in records])
    np.testing.assert_allclose(frame.wsfr, frame.weight_flops / frame.state_flops)


def test_bytes_by_hand():
    """Llama 3.1 8B: 8 heads of 128, k and v, 32 layers, 2 bytes: 128 KiB a token."""
    frame = section([], [presets()["llama-8b"]])[0].frame.set_index(["attention", "ctx"])
    assert frame.loc[("full, GQA 8", 65536), "state_bytes"] == 128 * 1024 * 65536
    assert (frame.loc["power, p = 2"].state_bytes == 8256 * 129 * 8 * 32 * 2).all()
    assert frame.loc[("linear, p = 1", 1024), "kv_cache_bytes"] == 128 * 1024 * 1024


def test_the_table_marks_the_best_and_the_models_own():
    text = printed(asked(preset="gpt2-xl"))
    assert "full, MHA (own)" in text
    ratios = text.partition("State or KV cache")[0]
    assert ratios.count("*") == 2
    assert "never, 79:1" in text
    assert "weights and state take equal FLOPs at a context of 19.8k" in " ".join(text.split())
    assert "p = 2 at 1k..64k (20:1 to 4:1)" in " ".join(text.split())


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_contexts_that_do_not_fit_go_into_further_tables(width):
    text = printed(asked(preset="gpt2-xl", ctx="1k..1m"), width)
    assert "…" not in text
    titles = text.count("Weight FLOPs : state")
    assert titles == (1 if width == 120 else max(2, titles))
    for context in ("1k", "64k", "1m"):
        heads = [line.split() for line in text.splitlines() if line.startswith("attention ")]
        assert sum(context in head for head in heads) == 2


def test_markdown_has_both_tables_and_escapes_a_files_name(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('name = "<b>|x"\nlayers = 2\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\n')
    text = render(asked(preset=str(path)), "markdown")
    assert text.startswith("**&lt;b&gt;\\|x: 2 layers")
    assert text.count("| :--- |") == 2
    assert r"\*" in text
    with pytest.raises(ValueError, match="format has to be one of csv, json, markdown, not 'html'"):
        render(asked(), "html")


def test_a_shape_by_options_and_list_models():
    shape = ["--layers", "2", "--d-model", "128", "--heads", "2", "--d-ff", "512", "--vocab", "1k"]
    done = invoke(*shape, "--ctx", "1k", "--format", "json")
    assert json.loads(done.stdout)[0]["model"] == "custom"
    assert json.loads(done.stdout)[0]["weight_flops"] == 2 * (2 * (4 * 128**2 + 3 * 128 * 512) + 1024 * 128)
    listed = CliRunner().invoke(cli, ["list", "models"]).stdout
    assert all(name in listed for name in presets())


BAD = [
    (["--preset", "nope"], "--preset: 'nope' is neither a TOML file nor one of gpt2"),
    (["--ctx", "64k..1k"], "runs downwards"),
    (["--p", "7"], "--p: 7 is not a degree of power attention; allowed are 1, 2, 3, 4"),
    (["--layers", "2"], "needs --d-model, --heads, --d-ff, --vocab too"),
    (["--heads", "two", "--preset", "gpt2"], "--heads: 'two' is not a positive integer"),
    (["--heads", "5", "--preset", "llama-8b"], "kv_heads is 8; for 5 heads it must be one of 1, 5"),
    (["--mode", "decode", "--chunk", "64"], "--chunk: decoding goes token by token"),
    (["--window", "0"], "--window: '0' is not a positive integer"),
]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_bad_input_is_one_line_and_status_2(args, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["powerbench", "wsfr", *args])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_measured_time_by_hand():
    """40 ms for 4096 tokens and 8 heads at 4e11 / 2 FLOP/s in fp32: of GPT-2 XL, 25 heads and 48 layers."""
    model = presets()["gpt2-xl"]
    run = runs.run([runs.measurement("sdpa-cpu", 4096, 40.0, noise=0.0)])
    (setting,) = measured_settings(run, model)
    (row,) = setting.curves["sdpa-cpu"]
    assert row.attention_us == pytest.approx(40e3 / 4096 * 25 / 8 * 48)
    assert row.weights_us == pytest.approx(2 * model.weights / 2e11 * 1e6)
    assert row.time_ratio == pytest.approx(row.weights_us / row.attention_us)
    assert (row.low, row.high) == pytest.approx((row.time_ratio, row.time_ratio))
    assert setting.sentences == ["With sdpa-cpu: attention takes less time than the weights at 4k."]


@pytest.mark.parametrize(("pass_", "forwards"), [("fwd", 1), ("bwd", 2), ("fwd+bwd", 3)])
def test_a_backward_has_two_products_for_each_weight(pass_, forwards):
    run = runs.run([runs.measurement("sdpa-cpu", 4096, 40.0, pass_=pass_)])
    (row,) = measured_settings(run, presets()["gpt2-xl"])[0].curves["sdpa-cpu"]
    assert row.weights_us == pytest.approx(forwards * 2 * presets()["gpt2-xl"].weights / 2e11 * 1e6)


def test_measured_crossover():
    """Attention quadratic in the context, whose time a token meets that of the weights at 4096."""
    model = presets()["gpt2-xl"]
    level_ms = 2 * model.weights / 2e11 * 1e3 * 8 / 25 / 48  # a token, at 4096
    cases = [
        runs.measurement("sdpa-cpu", ctx, level_ms * ctx * ctx / 4096, noise=0.0) for ctx in (1024, 2048, 8192, 16384)
    ]
    slow = [runs.measurement("power-torch", ctx, 9 * level_ms * ctx, params=Params(2)) for ctx in (1024, 8192)]
    fast = [runs.measurement("linear-torch", ctx, level_ms * ctx / 9, params=Params(1)) for ctx in (1024, 8192)]
    (setting,) = measured_settings(runs.run([*cases, *slow, *fast]), model)
    assert set(setting.sentences) == {
        "With sdpa-cpu: attention takes longer than the weights from 4k on.",
        "With power-torch, p = 2: attention takes longer than the weights at every measured context (1k..8k).",
        "With linear-torch, p = 1: attention takes less time than the weights at every measured context (1k..8k).",
    }


def test_nothing_is_measured_of_another_head_dimension_or_without_a_ceiling_or_a_time():
    run = runs.run([runs.measurement("sdpa-cpu", 4096, 40.0)])
    assert measured_settings(run, presets()["llama-8b"]) == []
    half = runs.run([runs.measurement("sdpa-cpu", 4096, 40.0, dtype="fp16")])
    assert measured_settings(half, presets()["gpt2-xl"]) == []
    failed = runs.run([runs.measurement("sdpa-cpu", 4096, None, status="oom", message="out of memory")])
    assert measured_settings(failed, presets()["gpt2-xl"]) == []
    (part,) = section([failed])
    assert part.measured_frame.empty
    assert [chart.name for chart in part.charts] == ["wsfr", "state-bytes", "cache-bytes"]


def test_the_section_chooses_models_by_head_dimension():
    assert [part.model.name for part in section([runs.cpu_run()])] == ["gpt2-xl"]
    assert [part.model.name for part in section([])] == ["llama-8b"]
    mine = chosen("gpt2-xl", {"layers": 2})
    assert [part.model for part in section([runs.cpu_run()], [mine])] == [mine]


def test_figures_hold_the_frames_numbers():
    (part,) = section([runs.cpu_run()])
    charts = {chart.name: chart for chart in part.charts}
    frame = part.frame.set_index("attention")
    assert set(charts) == {"wsfr", "state-bytes", "cache-bytes", "wsfr-time-1"}
    for series in charts["wsfr"].series:
        assert [point.y for point in series.points] == frame.loc[series.name].wsfr.tolist()
        assert [point.x for point in series.points] == list(CONTEXTS)
    assert {series.points[0].x: series.points[0].y for series in charts["state-bytes"].series} == {
        p: rows.state_bytes.iloc[0] for p, rows in part.frame[part.frame.p.notna()].groupby("p")
    }
    caches = {series.name: [point.y for point in series.points] for series in charts["cache-bytes"].series}
    assert caches["full, MHA"] == frame.loc["full, MHA"].kv_cache_bytes.tolist()
    assert not any(label.startswith(("power", "linear")) for label in caches)
    assert charts["cache-bytes"].y == charts["state-bytes"].y
    measured = part.measured_frame.set_index("label")
    for series in charts["wsfr-time-1"].series:
        assert [point.y for point in series.points] == measured.loc[series.name].time_ratio.tolist()
    looks = dict(part.look)
    assert {series.name for chart in charts.values() for series in chart.series} == set(looks)
    assert len(set(looks.values())) == len(looks)


def test_hostile_names_are_escaped():
    run = runs.run([runs.measurement("<script>x</script>", 4096, 40.0)])
    (part,) = section([run])
    said = [point.says for chart in part.charts for series in chart.series for point in series.points]
    assert all(said)
    assert not any("<script>" in text for text in said)
    assert any("&lt;script&gt;" in text for text in said)


def test_several_runs_are_told_apart():
    cpu, gpu = runs.cpu_run(), runs.gpu_run(("fwd",))
    (part,) = section([cpu, gpu])
    assert [setting.name.partition(":")[0] for setting in part.measured] == [
        cpu.header.environment.device,
        gpu.header.environment.device,
    ]
    (twice,) = section([cpu, cpu])
    assert [setting.name.partition(":")[0] for setting in twice.measured] == ["run 1", "run 2"]
    assert len(twice.measured_frame) == 2 * len(section([cpu])[0].measured_frame)


def test_static_figures(tmp_path):
    files = write_static([runs.cpu_run()], tmp_path / "new")
    names = {path.name for path in files}
    for kind in ("wsfr", "state-bytes", "cache-bytes", "time-1"):
        for suffix in ("png", "svg", "pdf"):
            assert f"wsfr-gpt2-xl-{kind}.{suffix}" in names
    for path in files:
        if path.suffix == ".svg":
            ElementTree.parse(path)
        assert path.stat().st_size > 5000
