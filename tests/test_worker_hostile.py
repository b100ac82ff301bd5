"""Contestants that write to the worker's connection or will not end: each costs its own case, and no time."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import closing
from functools import partial

import msgspec
import pytest

from powerbench.plan import plan
from powerbench.protocol import (
    HEADER,
    LIMIT,
    Answer,
    Channel,
    Closed,
    MalformedError,
    Question,
    Ready,
    Sampled,
    read_answer,
)
from powerbench.runner import run
from powerbench.worker import Setup, Worker, WorkerLost, _how
from tests import hostile_kernels
from tests.fakes import CEILINGS, CPU, WALL
from tests.test_worker import SUITE, Silent, _is_running

SETUP = Setup(CPU, 0, WALL, kernels="tests.hostile_kernels:kernels")
TIMEOUT = 8.0
GROUPS = (*hostile_kernels.WRITERS, *hostile_kernels.ENDERS)


class Timed(Worker):
    """Knows how long each question and each end has taken."""

    took: dict[tuple[str, str], float]
    ended: list[float]

    def ask(self, verb, case, argument, timeout_s):
        start = time.monotonic()
        try:
            return super().ask(verb, case, argument, timeout_s)
        finally:
            self.took[verb, case.kernel] = time.monotonic() - start

    def close(self):
        start = time.monotonic()
        super().close()
        self.ended.append(time.monotonic() - start)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One sweep over all of them: rows by name, the file that must not be, and how long what has taken."""
    file = tmp_path_factory.mktemp("hostile") / "made"
    Timed.took, Timed.ended = {}, []
    table = hostile_kernels.kernels()
    names = ["first", *(kernel.name for kernel in GROUPS), "last"]
    os.environ["HOSTILE_FILE"] = str(file)
    try:
        planned = plan(SUITE, [table[name] for name in names], CPU, CEILINGS)
        with closing(run(planned, CPU, partial(Timed, SETUP), Silent(), timeout_s=TIMEOUT)) as rows:
            found = {row.case.kernel: row for row in rows}
    finally:
        del os.environ["HOSTILE_FILE"]
    assert found.keys() == set(names)
    return found, file


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("writes-two-bytes", "timeout", "no answer within the 8 s left to this case; it was ended"),
        ("announces-2gb", "failed", f"the process announced a message of {2**31} bytes, {LIMIT} allowed; it was ended"),
        ("writes-garbage", "failed", "the process sent what is no answer ("),
        ("answers-itself", "failed", "the process sent an answer (Closed) to another question than open"),
        ("pickles", "failed", "the process sent what is no answer ("),
        ("nests", "failed", "the process sent what is no answer ("),
        ("drips", "timeout", "no answer within the 8 s left to this case; it was ended"),
        ("forks-and-exits", "failed", "the process exited with status 0"),
        ("closes-and-hangs", "failed", "the process closed its connection, and was ended"),
        ("leaves-a-child", "timeout", "no answer within the 8 s left to this case; it was ended"),
    ],
)
def test_each_costs_its_own_case(swept, name, status, message):
    row = swept[0][name]
    assert (row.status, row.samples_ms) == (status, ())
    assert row.message.startswith(message)
    assert "\n" not in row.message


@pytest.mark.parametrize("name", ["first", "last"])
def test_the_right_ones_are_measured_all_the_same(swept, name):
    assert swept[0][name].status == "ok"


def test_a_pickle_runs_nothing_here(swept):
    assert not swept[1].exists()


def test_no_deadline_is_exceeded_and_no_death_waited_for(swept):
    for (verb, name), seconds in Timed.took.items():
        assert seconds < TIMEOUT + 2, f"{verb} of {name}"
    for name in ("announces-2gb", "writes-garbage", "pickles", "forks-and-exits", "closes-and-hangs"):
        assert Timed.took["open", name] < 4, name
    assert max(Timed.ended) < 2


def test_what_a_contestant_started_is_ended_with_it(swept):
    pids = [int(line) for line in (swept[1].parent / "made.pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a child outlives its worker"
        time.sleep(0.05)


def test_what_is_printed_without_end_fills_no_disk():
    worker = Worker(SETUP)
    with closing(worker):
        os.write(worker._output.fileno(), b"x" * 2**21)
        worker._forget()
        assert os.fstat(worker._output.fileno()).st_size == 0
        os.write(worker._output.fileno(), b"the last words\n")
        assert worker._last_words() == "the last words"


def test_a_dead_worker_leaves_no_file(tmp_path, monkeypatch):
    """Its output has no name, so that there is nothing to clear away."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with closing(Worker(SETUP)):
        assert list(tmp_path.iterdir()) == []


def test_closing_twice_ends_nobody_else(monkeypatch):
    worker = Worker(SETUP)
    worker.close()
    monkeypatch.setattr("os.killpg", lambda *_: pytest.fail("the number may be another's by now"))
    worker.close()


def test_a_death_by_any_signal_has_a_name():
    assert _how(-6) == "was ended by SIGABRT"
    assert _how(-40) == "was ended by signal 40"


# --- the channel alone ---


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def test_a_message_is_whole_or_late(pair):
    channel, theirs = pair
    threading.Timer(0.05, theirs.sendall, (HEADER.pack(3) + b"abc",)).start()
    assert channel.receive(5.0) == b"abc"
    theirs.sendall(HEADER.pack(3) + b"ab")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        channel.receive(0.2)
    assert time.monotonic() - start < 1


def test_what_is_there_is_read_though_no_time_is_left(pair):
    channel, theirs = pair
    theirs.sendall(HEADER.pack(3) + b"abc")
    assert channel.receive(0.0) == b"abc"


def test_what_the_dead_have_sent_is_still_read(pair):
    channel, theirs = pair
    theirs.sendall(HEADER.pack(3) + b"abc")
    assert channel.receive(60.0, lambda: True) == b"abc"
    theirs.sendall(HEADER.pack(3) + b"ab")  # by who holds the connection of the dead
    with pytest.raises(EOFError):
        channel.receive(60.0, lambda: True)


def test_nobody_reads_what_is_sent(pair):
    channel, _ = pair
    with pytest.raises(TimeoutError):
        channel.send(b"x" * 2**24, 0.2)


def test_what_is_sent_unasked_is_seen(pair):
    channel, theirs = pair
    assert not channel.has_more()
    theirs.sendall(b"x")
    assert channel.has_more()


ASKED = Question(3, "sample", None, 2, 0)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"number": 3}),
        msgspec.msgpack.encode({"number": 3, "reply": {"type": "unknown"}}),
        msgspec.msgpack.encode(Answer(2, Sampled((1.0, 1.0)))),
        msgspec.msgpack.encode(Answer(3, Closed())),
        msgspec.msgpack.encode(Answer(3, Ready())),
        msgspec.msgpack.encode(Answer(3, Sampled((1.0,)))),
        msgspec.msgpack.encode(Answer(3, Sampled((1.0, float("nan"))))),
        msgspec.msgpack.encode(Answer(3, Sampled((1.0, float("inf"))))),
        msgspec.msgpack.encode(Answer(3, Sampled((1.0, 0.0)))),
        msgspec.msgpack.encode(Answer(3, Sampled((1.0, 1.0), calls=0))),
        msgspec.msgpack.encode(Answer(3, Sampled((1.0, "2.0")))),
        msgspec.msgpack.encode(Answer(3, Sampled((1.0, 1.0)))) + b"\x00",
        b"\x82\xa6number\x03\xa5reply\x81\xa4type\xa2\xff\xfe",
    ],
)
def test_what_is_no_answer_is_refused(message):
    with pytest.raises(MalformedError):
        read_answer(message, ASKED)


def test_an_answer_is_taken():
    reply = Sampled((1.0, 2.0))
    assert read_answer(msgspec.msgpack.encode(Answer(3, reply)), ASKED) == reply


def test_a_worker_that_speaks_unasked_is_ended():
    worker = Worker(SETUP)
    table = hostile_kernels.kernels()
    (item,) = plan(SUITE, [table["first"]], CPU, CEILINGS)
    worker._channel.has_more = lambda: True
    with pytest.raises(WorkerLost, match="the process wrote to its connection unasked; it was ended"):
        worker.ask("open", item.case, True, 5.0)
