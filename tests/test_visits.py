"""Several lines of a run file, one case."""

from __future__ import annotations

import msgspec
import pytest

from powerbench.results.model import Measurement, Phase, Round
from powerbench.results.store import RunWriter, load
from powerbench.results.visits import together, visited
from tests import runs


def visit(number, *samples_ms, **values) -> Measurement:
    given = {"stop": "precise", "timer": "graph-cold", "error": 1e-3, "peak_memory_bytes": 10, "order": "interleaved"}
    return Measurement(
        case=runs.cpu_run().measurements[0].case, status="ok", samples_ms=samples_ms,
        rounds=(Round(len(samples_ms), sm_mhz=1000.0, visit=number),), **(given | values),
    )  # fmt: skip


def lost(status="failed", message="boom") -> Measurement:
    return Measurement(case=runs.cpu_run().measurements[0].case, status=status, message=message)


def test_samples_follow_each_other_and_visits_are_kept_apart():
    phase = (Phase("forward", (0.5,)),)
    whole = together([
        visit(0, 1.0, 1.1, phases=phase), visit(2, 3.0, stop="time", error=2e-3), visit(1, 2.0, peak_memory_bytes=30),
    ])  # fmt: skip
    assert whole.samples_ms == (1.0, 1.1, 2.0, 3.0)
    assert whole.visits == ((1.0, 1.1), (2.0,), (3.0,))
    assert (whole.stop, whole.error, whole.peak_memory_bytes, whole.phases) == ("time", 2e-3, 30, phase)
    assert whole.order == "interleaved"
    assert visited(whole) == {0, 1, 2}


def test_precise_is_what_all_visits_agree_on():
    assert together([visit(0, 1.0), visit(1, 1.001), visit(2, 0.999)]).stop == "precise"
    assert together([visit(0, 1.0), visit(1, 1.05), visit(2, 0.95)]).stop == "visits"
    assert together([visit(0, 1.0), visit(1, 1.05, stop="samples"), visit(2, 0.95)]).stop == "samples"


def test_of_two_of_the_same_visit_the_last_counts():
    assert together([visit(0, 1.0), visit(1, 2.0), visit(0, 3.0)]).visits == ((3.0,), (2.0,))


def test_a_failure_is_the_fate_of_the_case_until_it_is_measured_anew():
    failed = together([visit(0, 1.0), lost()])
    assert (failed.status, failed.message, failed.visits) == ("failed", "in a later visit: boom", ())
    assert together([lost()]).message == "boom"
    assert together([visit(0, 1.0), lost(), visit(0, 2.0)]).visits == ((2.0,),)


def test_what_was_chosen_differently_is_said():
    whole = together(
        [visit(0, 1.0, config={"BLOCK": "64", "warps": "4"}), visit(1, 1.0, config={"BLOCK": "128", "warps": "4"})]
    )
    assert whole.config == {"BLOCK": "64 or 128", "warps": "4"}
    order = "in turn: all would need about 9 GiB"
    assert together([visit(0, 1.0), visit(1, 1.0, order=order)]).order == order


def test_two_ways_of_timing_are_not_mixed():
    mixed = together([visit(0, 1.0), visit(1, 1.0, timer="events-cold")])
    assert (mixed.status, mixed.samples_ms) == ("failed", ())
    assert mixed.message == "timed by graph-cold in one visit and by events-cold in another"


def test_a_file_of_before_holds_one_visit():
    (old, *_) = runs.cpu_run().measurements
    old = msgspec.structs.replace(old, rounds=())
    assert old.visits == (old.samples_ms,)
    assert visited(old) == {0}
    assert lost().visits == ()


@pytest.mark.parametrize("again", [1, 0])
def test_they_are_put_together_on_reading(tmp_path, again):
    path = tmp_path / "run.jsonl"
    with RunWriter.create(path, runs.header()) as writer:
        writer.append(visit(0, 1.0, 1.0))
        writer.append(visit(again, 2.0))
    run = load(path)
    assert len(run.measurements) == 1
    assert run.measurements[0].visits == (((1.0, 1.0), (2.0,)) if again else ((2.0,),))
    assert bool(run.warnings) == (again == 0)
