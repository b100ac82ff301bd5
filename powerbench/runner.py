"""Runs a sweep: plans its cases, makes their inputs, gates each for correctness, then times it. Nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from powerbench import gate
from powerbench.cost import Launch
from powerbench.device import Device
from powerbench.errors import DeviceLostError
from powerbench.kernels.kernel import TORCH_DTYPES, Forward, Inputs, Kernel
from powerbench.problem import Case, Problem
from powerbench.results.model import Measurement
from powerbench.roofline import Ceilings, roof_seconds
from powerbench.suites import Suite
from powerbench.timing import Policy, time_call

# A prediction, for the plan and the ETA only: what share of the roof a kernel may be expected to reach.
ASSUMED_ROOF_FRACTION = 0.25
SLOW_GATES = 6.9  # log_g = logsigmoid(randn + 6.9): half-life about 700 tokens, so that a wrong state is seen


@dataclass(frozen=True)
class PlannedCase:
    """A case before it runs. `reason`: why it will be skipped. Seconds and bytes are predictions, for one call."""

    case: Case
    kernel: Kernel
    reason: str | None
    launches: tuple[Launch, ...]
    call_seconds: float
    memory_bytes: int

    @property
    def total_seconds(self) -> float:
        """Predicted time of the whole case: gate, warm-up and samples."""
        policy = Policy()
        samples = min(policy.max_samples, max(policy.min_samples, policy.min_seconds / max(self.call_seconds, 1e-9)))
        return 0.0 if self.reason else self.call_seconds * (samples + 2)


class Observer(Protocol):
    """What the runner tells whoever watches."""

    def started(self, planned: PlannedCase) -> None:
        """The case is about to run."""

    def finished(self, planned: PlannedCase, measurement: Measurement) -> None:
        """The case has been measured, refused or lost."""


def plan(
    suite: Suite, kernels: Sequence[Kernel], device: Device, ceilings: Ceilings, done: Collection[str] = ()
) -> list[PlannedCase]:
    """The cases of the suite on this device in the order they run, less those whose id is in `done`.

    `suite` is what `Suite.on` returned; `kernels` are the selected records.
    """
    by_name = {kernel.name: kernel for kernel in kernels}
    cases = suite.cases(kernels, device.type)
    return [_plan_case(case, by_name[case.kernel], device, ceilings) for case in cases if case.case_id not in done]


def _plan_case(case: Case, kernel: Kernel, device: Device, ceilings: Ceilings) -> PlannedCase:
    reason = kernel.unsupported(case, device.type)
    if reason:
        return PlannedCase(case, kernel, reason, (), 0.0, 0)
    launches = kernel.launches(case)
    seconds, _ = roof_seconds(launches, case.problem.dtype, ceilings)
    return PlannedCase(case, kernel, None, launches, seconds / ASSUMED_ROOF_FRACTION, _memory_bytes(case, kernel))


def _memory_bytes(case: Case, kernel: Kernel) -> int:
    """Predicted peak: inputs, y and dy, gradients where asked for, what the kernel says it needs, and the gate."""
    problem = case.problem
    inputs = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.gate_bytes
    gradients = 0 if case.pass_ == "fwd" else inputs
    return inputs + gradients + 2 * problem.y_bytes + kernel.workspace_bytes(case) + gate.memory_bytes(case)


def make_inputs(problem: Problem, device: torch.device, seed: int) -> Inputs:
    """Random tensors for a problem, the same for the same seed and device type. Never zeros: they time too well."""
    generator = torch.Generator(device).manual_seed(seed)
    B, T, H, Hk = problem.batch, problem.seqlen, problem.heads, problem.kv_heads

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    def operand(heads: int, width: int) -> torch.Tensor:
        return normal(B, T, heads, width).to(TORCH_DTYPES[problem.dtype])

    return Inputs(
        q=operand(H, problem.head_dim),
        k=operand(Hk, problem.head_dim),
        v=operand(Hk, problem.value_dim),
        log_g=torch.nn.functional.logsigmoid(normal(B, T, Hk) + SLOW_GATES) if problem.gated else None,
        dy=operand(H, problem.value_dim),
    )


def run(
    planned: Sequence[PlannedCase], device: Device, seed: int, observer: Observer, *, timed: bool = True
) -> Iterator[Measurement]:
    """Measure the planned cases one by one; a failure of one is its row, not the end.

    `timed` False gates for correctness only. Raises DeviceLostError when nothing more can be measured in this process.
    """
    inputs: Inputs | None = None
    problem: Problem | None = None
    for item in planned:
        observer.started(item)
        if item.reason:
            measurement = Measurement(case=item.case, status="unsupported", message=item.reason)
        elif item.memory_bytes > device.memory_bytes:
            need, have = (f"{size / 2**30:.1f} GiB" for size in (item.memory_bytes, device.memory_bytes))
            message = f"predicted: needs about {need}, the device has {have} free"
            measurement = Measurement(case=item.case, status="oom", message=message, launches=item.launches)
        else:
            if problem != item.case.problem or inputs is None:
                inputs = None  # freed before the next ones are made
                problem = item.case.problem
            measurement, inputs = _guarded(item, inputs, device, seed, timed)
        observer.finished(item, measurement)
        yield measurement
        if measurement.status == "failed" and device.type == "cuda":
            _check_device(measurement)


def _guarded(
    item: PlannedCase, inputs: Inputs | None, device: Device, seed: int, timed: bool
) -> tuple[Measurement, Inputs | None]:
    """One case, with whatever it raises turned into a row."""
    try:
        inputs = inputs or make_inputs(item.case.problem, device.torch, seed)
        return _measure(item, inputs, device, seed, timed), inputs
    except (torch.OutOfMemoryError, MemoryError) as error:
        status, message = "oom", _first_line(error)
    except Exception as error:  # a contestant is other people's code and may raise anything; its row says what
        out_of_memory = "can't allocate memory" in str(error)  # how torch's CPU allocator says it, as a RuntimeError
        status, message = ("oom" if out_of_memory else "failed"), f"{type(error).__name__}: {_first_line(error)}"
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Measurement(case=item.case, status=status, message=message, launches=item.launches), inputs  # type: ignore[arg-type]


def _measure(item: PlannedCase, inputs: Inputs, device: Device, seed: int, timed: bool) -> Measurement:
    forward = item.kernel.prepare(item.case)
    error = gate.worst_error(item.kernel, item.case, inputs, forward, seed)
    allowed = gate.tolerance(item.case)
    config = {} if item.kernel.gated or not item.case.problem.gated else {"gates": "none: this kernel has no gates"}
    row = {"case": item.case, "launches": item.launches, "error": error, "tolerance": allowed, "config": config}
    if not error <= allowed:
        message = f"relative error {error:.2g} against the float64 reference, {allowed:.2g} allowed"
        return Measurement(**row, status="wrong", message=message)
    if not timed:
        return Measurement(**row, status="ok")
    call = _call(item, inputs, forward)
    peak = device.peak_memory_bytes(call)  # also the warm-up: whatever compiles or tunes does it here or in the gate
    samples = time_call(call, device.torch)
    return Measurement(**row, status="ok", samples_ms=samples.ms, timer=samples.timer, peak_memory_bytes=peak)


def _call(item: PlannedCase, inputs: Inputs, forward: Forward) -> Callable[[], object]:
    """What is timed: the case's pass, from tensors on the device to tensors on the device."""
    if item.case.pass_ == "fwd":

        def call() -> object:
            with torch.no_grad():
                return forward(inputs.q, inputs.k, inputs.v, inputs.log_g)

        return call
    if item.case.pass_ == "bwd":
        _, gradients = gate.differentiable(item.kernel, inputs, forward)
        return lambda: gradients(inputs.dy)
    return lambda: gate.differentiable(item.kernel, inputs, forward)[1](inputs.dy)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _check_device(measurement: Measurement) -> None:
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise DeviceLostError(f"the device is lost after {measurement.case_id}: {_first_line(error)}") from error
