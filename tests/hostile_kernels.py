"""Contestants that cheat, or do to powerbench what a kernel must not: kept to be tried on every command.

A measuring process finds them by `tests.hostile_kernels:kernels`; as entry points they are attributes of this module
(`entry_points` has the text of a package's metadata). Each shows one thing, and says in its summary which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

import msgspec
import torch

from powerbench import gate
from powerbench.cost import Cost, Launch
from powerbench.kernels.kernel import Forward, Kernel
from powerbench.problem import Case, Params
from powerbench.protocol import HEADER, Answer, Closed
from tests.fakes import THEIRS, fake, softmax

HOUR = 3600


def _connection() -> int:
    """The descriptor of the worker's connection, as a kernel that looks for it finds it."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                return int(name)
    raise AssertionError("no connection")


def _writing(message: Callable[[], bytes], then: Callable[[], None] = lambda: None) -> Forward:
    def forward(*tensors: torch.Tensor) -> torch.Tensor:
        os.write(_connection(), message())
        then()
        return softmax(*tensors)

    return forward


def _hang() -> None:
    time.sleep(HOUR)


def _framed(message: bytes) -> bytes:
    return HEADER.pack(len(message)) + message


class _Runs:
    """Unpickled, it makes the file that the variable names."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, (f"touch {os.environ.get('HOSTILE_FILE', '/dev/null')}",)


def _drips() -> None:
    """A message of a thousand bytes, one at a time, for ever."""
    os.write(_connection(), HEADER.pack(1000))
    while True:
        os.write(_connection(), b"x")
        time.sleep(0.05)


def _tell(pid: int) -> None:
    """The child that is left behind, to whoever tests that it is not."""
    if "HOSTILE_FILE" in os.environ:
        with open(os.environ["HOSTILE_FILE"] + ".pids", "a") as file:
            file.write(f"{pid}\n")


def _forks_and_exits() -> None:
    child = os.fork()
    if child == 0:
        time.sleep(HOUR)
    _tell(child)
    os._exit(0)


def _closes_and_hangs() -> None:
    os.closerange(3, 4096)
    time.sleep(HOUR)


def _leaves_a_child() -> None:
    _tell(subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({HOUR})"]).pid)
    time.sleep(HOUR)


def _doing(action: Callable[[], None]) -> Forward:
    def forward(*tensors: torch.Tensor) -> torch.Tensor:
        action()
        return softmax(*tensors)

    return forward


# --- what they do to the inputs that all share ---


def _writes_quietly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
    """As a kernel that is given an address: no version of torch's changes."""
    y = softmax(q, k, v, log_g)
    q.detach().numpy()[...] *= 0.5
    return y


def _writes_one_element(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
    y = softmax(q, k, v, log_g)
    k.detach().numpy()[-1, -1, -1, -1] = 7.0
    return y


def _normalises_in_place(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
    y = softmax(q, k, v, log_g)
    with torch.no_grad():
        q.div_(q.norm(dim=-1, keepdim=True))
    return y


# --- how they cheat ---


class CachedBySign:
    """Computes once for each sign of one element of v."""

    def __init__(self) -> None:
        self.results: dict[bool, torch.Tensor] = {}

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        key = bool(v[0, 0, 0, 0] > 0)
        if key not in self.results:
            self.results[key] = softmax(q, k, v, log_g)
        return self.results[key]


class CachedByContent(CachedBySign):
    """Computes once for each content: right whenever it is asked, and quick where the content is an old one."""

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        key = hash(v.numpy().tobytes())
        if key not in self.results:
            time.sleep(0.02)
            self.results = {key: softmax(q, k, v, log_g)}
        return self.results[key]


class Lazy(torch.Tensor):
    """A result that is computed when somebody looks at it."""

    made: Callable[[], torch.Tensor]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        def plain(x: object) -> object:
            if isinstance(x, Lazy):
                return x.made()
            return type(x)(map(plain, x)) if isinstance(x, tuple | list) else x

        return function(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


def _lazy(*tensors: torch.Tensor) -> torch.Tensor:
    y = torch.empty(0).as_subclass(Lazy)
    y.made = lambda: softmax(*tensors)
    return y


def _only_sampled_rows(case: Case) -> Forward:
    rows = gate.sample_rows(case.problem, 0)

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
        y = torch.zeros_like(q)
        y[:, rows] = softmax(q, k, v, log_g)[:, rows]
        return y

    return forward


def _later(*tensors: torch.Tensor) -> torch.Tensor:
    """Returns at once, and computes in a thread."""
    y = torch.zeros_like(tensors[0])

    def work() -> None:
        time.sleep(0.02)
        y.copy_(softmax(*tensors))

    threading.Thread(target=work).start()
    return y


def _slow_clock(*tensors: torch.Tensor) -> torch.Tensor:
    """Takes 20 ms, and lets the clocks run a thousand times slower."""
    _patch_clocks(1e-3)
    time.sleep(0.02)
    return softmax(*tensors)


def _fast_clock(*tensors: torch.Tensor) -> torch.Tensor:
    """Lets the clocks run a thousand times faster: a baseline that looks slow."""
    _patch_clocks(1e3)
    time.sleep(0.002)
    return softmax(*tensors)


def _patch_clocks(speed: float) -> None:
    """Those of `time`, and every name under which powerbench has kept one."""
    if hasattr(time, "hostile"):
        return
    real = time.perf_counter_ns
    time.hostile = True  # type: ignore[attr-defined]
    time.perf_counter_ns = lambda: int(real() * speed)
    time.perf_counter = lambda: real() * speed / 1e9
    timing = sys.modules.get("powerbench.timing")
    for name, value in list(vars(timing).items()):
        if value is real:
            setattr(timing, name, time.perf_counter_ns)


def _copies(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
    """No attention: y is v."""
    return v.repeat_interleave(q.shape[2] // v.shape[2], 2)


OWN_WORD = fake(
    "own-word", _copies, reference=lambda case, inputs, rows: _copies(inputs.q, inputs.k, inputs.v, None)[:, rows],
    launches=lambda case: (Launch("nothing", Cost(1, 1, 1)),), summary="its own reference, and a tiny ledger",
)  # fmt: skip
WIDE = fake(
    "wide", lambda *tensors: softmax(*tensors) + 1.0, takes=frozenset({"p"}), summary="a degree that widens tolerances",
    resolve=lambda problem, params, pass_, device_type: Params(p=100_000),
)  # fmt: skip

WRITERS = (
    fake("writes-two-bytes", _writing(lambda: b"\x00\x00", _hang), summary="half a header to the connection"),
    fake("announces-2gb", _writing(lambda: HEADER.pack(2**31), _hang), summary="a header of 2 GB"),
    fake("writes-garbage", _writing(lambda: _framed(b"\xc1garbage")), summary="what is no message"),
    fake("answers-itself", _writing(lambda: _framed(msgspec.msgpack.encode(Answer(1, Closed())))), summary="a reply"),
    fake("pickles", _writing(lambda: _framed(pickle.dumps(_Runs()))), summary="a pickle that runs a command"),
    fake("nests", _writing(lambda: _framed(b"\x91" * 10**5)), summary="a message nested 100,000 times"),
    fake("drips", _doing(_drips), summary="a message byte by byte"),
)
ENDERS = (
    fake("forks-and-exits", _doing(_forks_and_exits), summary="a child that holds the connection"),
    fake("closes-and-hangs", _doing(_closes_and_hangs), summary="closes every descriptor"),
    fake("leaves-a-child", _doing(_leaves_a_child), summary="a child that lives on"),
)
SPOILERS = (
    fake("writes-quietly", _writes_quietly, summary="changes q behind torch's back"),
    fake("writes-one-element", _writes_one_element, summary="changes one element of k behind torch's back"),
    fake("normalises-in-place", _normalises_in_place, summary="normalises q in place"),
)
CHEATS = (
    fake("cached-by-sign", prepare=lambda case: CachedBySign(), summary="caches by one element's sign"),
    fake("lazy", _lazy, summary="a tensor that computes when looked at"),
    fake("only-sampled-rows", prepare=_only_sampled_rows, summary="computes the rows that the gate looks at"),
    fake("later", _later, summary="goes on after it has returned"),
    fake("slow-clock", _slow_clock, summary="a clock patched in the worker, that runs slow"),
    fake("fast-clock", _fast_clock, summary="a clock patched in the worker, that runs fast"),
)
THIRD_PARTY = (OWN_WORD, WIDE)


def kernels() -> Mapping[str, Kernel]:
    """All of them; two that are right at both ends."""
    table = [fake("first"), *WRITERS, *ENDERS, *SPOILERS, *CHEATS, *THIRD_PARTY, fake("last")]
    return {kernel.name: kernel for kernel in table}


def entry_points(names: tuple[str, ...]) -> str:
    """The entry points of a package that has these, and imports that fail."""
    table = {
        "oserror": "tests.hostile_imports.raises_oserror:X",
        "exits": "tests.hostile_imports.calls_exit:X",
        "interrupts": "tests.hostile_imports.raises_interrupt:X",
        "unreadable": "tests.hostile_imports.raises_unreadable:X",
    }
    table |= {name: f"tests.hostile_kernels:{_attribute(name)}" for name in names}
    return "[powerbench.kernels]\n" + "".join(f"{name} = {value}\n" for name, value in table.items())


def _attribute(name: str) -> str:
    return name.upper().replace("-", "_")


globals().update({_attribute(kernel.name): kernel for kernel in kernels().values()})

OF_A_FAMILY = dataclasses.replace(THEIRS, name="power")
NAMED_WITH_A_NEWLINE = dataclasses.replace(THEIRS, name="theirs\n::error::")
NAMED_BY_A_NUMBER = dataclasses.replace(THEIRS, name=7)  # type: ignore[arg-type]
WITHOUT_LAUNCHES = dataclasses.replace(THEIRS, launches=None, support="all", tuning_seconds=float("nan"))  # type: ignore[arg-type]
