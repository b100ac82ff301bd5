"""Contestants made for the tests: one that is right, and ones that go wrong in every way a kernel can."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from powerbench.bench import Bench
from powerbench.cost import Cost, Launch
from powerbench.device import Device
from powerbench.kernels.kernel import Forward, Inputs, Kernel, no_params
from powerbench.problem import Case, Problem
from powerbench.protocol import Reply
from powerbench.roofline import Ceilings
from powerbench.telemetry import Gauge, Reading
from powerbench.timing import Method

WALL = Method("wall", "hot")
CPU = Device("cpu", "a test CPU", 2**30)
CEILINGS = Ceilings({"fp32": 1e11, "bf16": 2e11, "fp64": 5e10}, 1e10)
PROBLEM = Problem(2, 40, 4, 2, 8, 8, "fp32", True)


class Inline:
    """A bench in this process, for kernels that cannot be named across processes; otherwise as a worker has it."""

    def __init__(self, kernels: Iterable[Kernel], device: Device = CPU, gauge: Gauge = Reading) -> None:
        self.bench = Bench(device, 0, {kernel.name: kernel for kernel in kernels}, WALL, gauge)
        self.asked: list[tuple[str, str]] = []

    def ask(self, verb: str, case: Case, argument: int | bool, timeout_s: float) -> Reply:
        self.asked.append((verb, case.kernel))
        return self.bench.answer(verb, case, argument, seed=1000 + len(self.asked))

    def close(self) -> None:
        self.asked.append(("end", ""))


def softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
    """Causal softmax attention as plainly as it can be written; GQA by repetition."""
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril()
    return torch.einsum("bhij,bjhe->bihe", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)


def _reference(case: Case, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    return softmax(inputs.q, inputs.k, inputs.v, None)[:, rows]


def fake(name: str, forward: Forward = softmax, reason: str | None = None, **changes: Any) -> Kernel:
    """A kernel of family `fake`, right unless `forward` is not."""
    fields: dict[str, Any] = {
        "name": name,
        "family": "fake",
        "summary": "made for a test",
        "takes": frozenset(),
        "gated": False,
        "version": lambda: "1",
        "resolve": no_params,
        "unsupported": lambda case, device_type: reason,
        "prepare": lambda case: forward,
        "reference": _reference,
        "launches": lambda case: (Launch("forward", Cost(1000, 2000, 500)),),
        "workspace_bytes": lambda case: 0,
    }
    return Kernel(**{**fields, **changes})


LAUNCHES = tuple(Launch(name, Cost(1000, 2000, 500)) for name in ("scores", "weights", "sum"))


def phased(name: str, calls: dict[str, Callable[[], object]], **changes: Any) -> Kernel:
    """A right kernel of three launches that can be taken apart into `calls`."""
    return fake(name, launches=lambda case: LAUNCHES, phases=lambda case, inputs: calls, **changes)


def _product() -> object:
    return torch.ones(64, 64) @ torch.ones(64, 64)


def raising(error: BaseException) -> Callable[..., torch.Tensor]:
    """A forward that raises."""

    def forward(*_: object) -> torch.Tensor:
        raise error

    return forward


THEIRS = fake("theirs")  # what entry points of the tests name
THEIRS_IN_PHASES = phased(
    "theirs-in-phases", {"scores": _product, "weights": raising(RuntimeError("no such luck")), "sum": _product}
)
THIEF = fake("power-torch")
