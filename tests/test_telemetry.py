"""Clocks and throttling, of a GPU that is made up: what is read, what is taken again, what the reports say of it."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import closing

import msgspec
import pytest
import torch

from powerbench.plan import plan
from powerbench.reports.answers import answers
from powerbench.reports.frames import tidy
from powerbench.reports.hover import hover
from powerbench.reports.page import page
from powerbench.reports.rows import rows
from powerbench.reports.show import render
from powerbench.results.model import Measurement, Round
from powerbench.results.store import RunWriter, load
from powerbench.runner import run
from powerbench.stopping import Stopping
from powerbench.suites import Suite
from powerbench.telemetry import UNAVAILABLE, Reading, gauge, names, over
from powerbench.terminal import outcome
from powerbench.worker import Setup
from tests import runs
from tests.fakes import CEILINGS, CPU, WALL, Inline, fake, softmax
from tests.test_nvml import library, refuse

SUITE = Suite(ctx=(40,), heads=(4,), kv_heads=(2,), head_dim=(8,), batch=(2,), dtype=("fp32",)).on("cpu")
QUICK = dataclasses.replace(Stopping(), min_seconds=0.0, max_samples=30, precision=0.0, max_seconds=1e9)

COOL = Reading(1980.0, 500.0, 50.0, ())
CAPPED = Reading(1700.0, 700.0, 60.0, ("sw power cap",))
HOT = Reading(900.0, 600.0, 92.0, ("hw slowdown", "hw thermal slowdown"))


def loaded_gpu(**changes):
    """The library of a GPU at work, at its power limit."""
    answers = {
        "nvmlDeviceGetClockInfo": lambda handle, clock: {1: 1755}[clock],
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4,
        "nvmlDeviceGetPowerUsage": lambda handle: 699500,
        "nvmlDeviceGetTemperature": lambda handle, sensor: {0: 63}[sensor],
    }
    lib = library(**{**answers, **changes})
    lib.NVML_TEMPERATURE_GPU = 0
    return lib


# reading


def test_a_reading(install):
    lib = loaded_gpu()
    install(lib)
    assert gauge("1234")() == Reading(1755, 699.5, 63, ("sw power cap",))
    assert lib.open == 1, "for as long as the process lives"


@pytest.mark.parametrize("gone", [None, refuse], ids=["not in this nvidia-ml-py", "not supported"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nvmlDeviceGetClockInfo", "sm_mhz"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "reasons"),
    ],
)
def test_one_query_less_costs_one_number(install, query, field, gone):
    install(loaded_gpu(**{query: gone}))
    assert gauge("1234")() == Reading(1755, 699.5, 63, ("sw power cap",))._replace(**{field: None})


def test_earlier_drivers_call_the_reasons_otherwise(install):
    old = {"nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x8 | 0x40}
    install(loaded_gpu(nvmlDeviceGetCurrentClocksEventReasons=None, **old))
    assert gauge("1234")().reasons == ("hw slowdown", "hw thermal slowdown")


def test_names_of_reasons():
    assert names(0) == names(0x1) == ()
    assert names(0x1 | 0x4 | 0x20 | 0x80) == ("sw power cap", "sw thermal slowdown", "hw power brake")
    assert names(0x4000) == ("0x4000",), "of a later driver"


def test_the_clock_is_asked_for_first(install):
    """It falls, or rises, as soon as the load ends."""
    asked = []
    lib = loaded_gpu()
    for query in [name for name in vars(lib) if name.startswith("nvmlDeviceGet")]:
        answer = getattr(lib, query)
        setattr(lib, query, lambda *a, query=query, answer=answer: asked.append(query) or answer(*a))
    install(lib)
    reading = gauge("1234")
    asked.clear()
    reading()
    assert asked[0] == "nvmlDeviceGetClockInfo"


def test_without_a_gpu_or_nvml_a_reading_is_unavailable(install):
    assert gauge(None)() == UNAVAILABLE
    assert Setup(CPU, 0, WALL, kernels="tests.planted:kernels").bench().gauge() == UNAVAILABLE
    lib = loaded_gpu()
    install(lib)
    assert gauge("5678")() == UNAVAILABLE
    assert lib.open == 0
    install(None)
    assert gauge("1234")() == UNAVAILABLE


def test_a_gpu_that_falls_off_in_the_middle(install):
    lib = loaded_gpu()
    install(lib)
    reading = gauge("1234")
    for query in [name for name in vars(lib) if name.startswith("nvmlDeviceGet")]:
        setattr(lib, query, refuse)
    assert reading() == UNAVAILABLE


def test_a_round_from_the_readings_around_it():
    assert over([]) == over([UNAVAILABLE]) == UNAVAILABLE
    assert over([COOL]) == COOL
    assert over([COOL, HOT]) == Reading(1440.0, 550.0, 92.0, HOT.reasons)
    assert over([CAPPED, UNAVAILABLE, HOT]).reasons == ("sw power cap", *HOT.reasons)


# measuring


def test_readings_are_taken_beside_the_samples_not_within():
    """One while the call before the first sample may still run, one after the last sample; none between."""
    calls = [0]
    seen = []

    def counted(*tensors):
        calls[0] += 1
        return softmax(*tensors)

    def reading():
        seen.append(calls[0])
        return COOL

    kernel = fake("counted", counted)
    host = Inline([kernel], gauge=reading)
    (item,) = plan(SUITE, [kernel], CPU, CEILINGS)
    host.ask("open", item.case, True, 0)
    assert seen == []
    before = calls[0]
    assert host.ask("sample", item.case, 1, 0).state == COOL
    assert seen == [before + 1]
    host.ask("sample", item.case, 4, 0)
    assert seen[1:] == [before + 2, before + 6]


class Waits:
    """What `time.sleep` of the runner was asked for."""

    def __init__(self, monkeypatch):
        self.seconds = []
        monkeypatch.setattr("powerbench.runner.time.sleep", self.seconds.append)


@pytest.fixture
def waits(monkeypatch):
    return Waits(monkeypatch)


class Silent:
    def started(self, planned):
        pass

    def finished(self, planned, measurement, visit):
        pass


def measured(reading, *names, stopping=QUICK) -> list[Measurement]:
    kernels = [fake(name) for name in names or ("right",)]
    host = Inline(kernels, gauge=reading)
    planned = plan(SUITE, kernels, CPU, CEILINGS)
    with closing(run(planned, CPU, lambda: host, Silent(), stopping=stopping)) as found:
        result = list(found)
    assert {row.status for row in result} == {"ok"}
    for row in result:
        assert not row.rounds or sum(one.samples for one in row.rounds) == len(row.samples_ms)
    return result


def after(number, then, first):
    """A gauge that reads `first` so many times, and `then` ever after."""
    readings = itertools.chain([first] * number, itertools.repeat(then))
    return lambda: next(readings)


def test_a_good_gpu(waits):
    (row,) = measured(lambda: COOL)
    assert len(row.samples_ms) == 30
    assert row.rounds[0] == Round(1, *COOL)
    assert {one.sm_mhz for one in row.rounds} == {1980.0}
    assert (row.retaken, row.throttled, waits.seconds) == ((), (), [])


@pytest.mark.parametrize("bad", [1, 2, 5])
def test_samples_under_a_slowdown_are_taken_again(waits, bad):
    """The first rounds are of one sample, and have one reading: so many rounds are bad, and none of theirs is kept."""
    (row,) = measured(after(bad, COOL, HOT))
    assert row.retaken == (Round(1, *HOT),) * bad
    assert waits.seconds == [QUICK.pause_seconds] * bad
    assert row.throttled == ()
    assert all(one.slowdowns == () for one in row.rounds)
    assert len(row.samples_ms) == 30, "those dropped do not count"


def test_one_bad_reading_of_two_is_enough(waits, monkeypatch):
    """The clock fell, or came back, within the round."""
    monkeypatch.setattr("powerbench.stopping.ROUND_SECONDS", 1e9)  # rounds of several samples on any machine
    readings = iter([COOL, HOT, COOL, *[COOL] * 100])
    (row,) = measured(lambda: next(readings))
    assert [one.reasons for one in row.retaken] == [HOT.reasons]
    assert row.retaken[0].samples > 1
    assert row.throttled == ()


@pytest.mark.parametrize("reason", ["hw slowdown", "hw thermal slowdown", "hw power brake", "sw thermal slowdown"])
def test_a_slowdown_without_end_is_said_and_bounded(waits, reason):
    slow = HOT._replace(reasons=("sw power cap", reason))
    found = measured(lambda: slow, "a", "b")
    for row in found:
        assert len(row.retaken) == QUICK.max_retakes == 5
        assert row.throttled == (reason,)
        assert len(row.samples_ms) == 30
        assert outcome(row).endswith(", throttled")
    assert waits.seconds == [QUICK.pause_seconds] * 10


@pytest.mark.parametrize("reason", ["sw power cap", "application clocks", "sync boost", "0x4000"])
def test_what_is_normal_under_load_is_recorded_and_kept(waits, reason):
    (row,) = measured(lambda: CAPPED._replace(reasons=(reason,)))
    assert (row.retaken, row.throttled, waits.seconds) == ((), (), [])
    assert {one.reasons for one in row.rounds} == {(reason,)}
    assert "throttled" not in outcome(row)


def test_without_telemetry_only_turns_are_kept_and_nothing_else_changes(waits):
    (row,) = measured(Reading)
    assert (row.retaken, waits.seconds) == ((), [])
    assert set(row.rounds) <= {Round(n) for n in range(1, 31)}, "turns, and nothing of a GPU"
    assert sum(one.samples for one in row.rounds) == len(row.samples_ms) == 30


@pytest.mark.parametrize("error", [RuntimeError("driver went away"), OSError(5, "I/O error"), AttributeError("c_bool")])
def test_telemetry_that_raises_in_the_middle_costs_its_reading_only(waits, error):
    readings = iter([COOL])

    def broken():
        for reading in readings:
            return reading
        raise error

    (row,) = measured(broken)
    assert row.rounds[0].sm_mhz == 1980.0
    assert all(one == Round(one.samples) for one in row.rounds[1:])
    assert len(row.samples_ms) == 30
    (shown,) = rows(runs.run([row]))
    assert (shown.sm_mhz, shown.median_mcycles, shown.throttle) == (None, None, "none")
    assert shown.valid


def test_the_wait_does_not_count_as_the_case(monkeypatch):
    """A case has a time limit, which a hot GPU is not to use up."""
    limits = []

    class Watching(Inline):
        def ask(self, verb, case, argument, timeout_s):
            limits.append(timeout_s)
            return super().ask(verb, case, argument, timeout_s)

    kernel = fake("right")
    host = Watching([kernel], gauge=lambda: HOT)
    pause = dataclasses.replace(QUICK, pause_seconds=0.4)
    planned = plan(SUITE, [kernel], CPU, CEILINGS)
    with closing(run(planned, CPU, lambda: host, Silent(), stopping=pause, timeout_s=60)) as found:
        (row,) = list(found)
    assert len(row.retaken) == 5
    assert limits[-1] > 60 - 1.5, "five waits are 2 s"


# reporting


def test_cycles_are_those_of_each_sample_at_its_rounds_clock():
    rounds = (Round(2, 1000.0), Round(3, 2000.0))
    case = msgspec.structs.replace(
        runs.measurement("a", 1024, 1.0), samples_ms=(4.0, 4.0, 2.0, 2.0, 3.0), rounds=rounds
    )
    (row,) = rows(runs.run([case]))
    assert row.median_ms == 3.0
    assert row.median_mcycles == 4.0  # of 4, 4, 4, 4, 6 million: 4 ms at 1 GHz
    assert row.sm_mhz == 2000.0
    assert (row.power_w, row.temperature_c, row.throttle) == (None, None, None)


def test_columns_of_a_gpu_run():
    frame = tidy(runs.throttled_run()).set_index(["kernel", "ctx"])
    hot, retaken = frame.loc[("power-triton", 4096)], frame.loc[("sdpa-cudnn", 1024)]
    assert (hot.sm_mhz, hot.power_w, hot.temperature_c) == (1200.0, 610.0, 91.0)
    assert (hot.throttle, hot.throttled, hot.retakes) == ("sw power cap, hw thermal slowdown, hw slowdown", True, 5)
    assert hot.median_mcycles == pytest.approx(hot.median_ms * 1.2)
    assert (retaken.throttle, retaken.throttled, retaken.retakes) == ("sw power cap", False, 2)
    assert frame.loc[("power-triton", 1024)].throttle == "none"
    assert (frame.throttled.dtype, frame.retakes.dtype, frame.sm_mhz.dtype) == ("bool", "Int64", "float64")
    assert frame.valid.all(), "slow, but a time"


THROTTLED = "throttled: 20 of 20 samples under hw thermal slowdown, hw slowdown, after 5 retakes"
RETAKEN = "retaken: 2 rounds of samples under hw thermal slowdown, hw slowdown"


def test_a_throttled_row_says_so_wherever_it_stands():
    bad = runs.throttled_run()
    table, markdown, html = (render(bad, "table", width=200), render(bad, "markdown"), page([bad]))
    assert f"throttled: power-triton, p = 2 at 4k: {THROTTLED}" in table
    lines = [line.split() for line in table.splitlines() if line.split()[2:3] == ["power-triton"]]
    lines += [line.split() for line in table.splitlines() if line.split()[1:2] == ["power-triton"]]
    assert [line[-1] for line in lines if line[0] == "4k"] == ["throttled"]
    assert [line[-1] for line in lines if line[0] == "1k"] == ["3e-06"]
    assert f"note: sdpa-cudnn at 1k, 4k: {RETAKEN}" in table
    assert f"throttled: power-triton, p = 2 at 4k: {THROTTLED}" in markdown
    sentence = "Measured while the GPU throttled, so slower than it is in good health: power-triton, p = 2 at 4k."
    assert any(sentence in answer.text for answer in answers(bad))
    assert '<td class="t">throttled</td>' in html
    assert THROTTLED in html
    assert "1 case was measured while the GPU throttled" in html
    (slow,) = [row for row in rows(bad) if row.throttled]
    assert "Mcycles at 1200 MHz, 610 W, 91 °C" in hover(slow)
    assert "throttle" not in render(runs.cpu_run(), "table")


def test_rounds_that_contradict_their_samples_arerefused(tmp_path):
    good = runs.measurement("a", 1024, 1.0, n=20, rounds=(runs.COOL,))
    with RunWriter.create(tmp_path / "run.jsonl", runs.header()) as writer:
        for rounds in ((Round(19, 1000.0),), (Round(20, 0.0),), (Round(20), Round(0)), (Round(21), Round(-1))):
            with pytest.raises(ValueError, match="round"):
                writer.append(msgspec.structs.replace(good, rounds=rounds))
        writer.append(good)
    assert load(tmp_path / "run.jsonl").measurements == (good,)


@pytest.mark.gpu
@pytest.mark.timing
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_under_load():
    from powerbench.device import pick

    pytest.importorskip("pynvml")
    reading = gauge(pick("cuda").uuid())
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    for _ in range(50):
        a @ a
    found = reading()
    torch.cuda.synchronize()
    assert 200 < found.sm_mhz < 4000
    assert 10 < found.power_w < 3000
    assert 10 < found.temperature_c < 120
    assert found.reasons is not None
