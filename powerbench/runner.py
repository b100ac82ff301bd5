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
from powerbench.results.model import Measurement, Phase
from powerbench.roofline import Ceilings, roof_seconds
from powerbench.suites import Suite
from powerbench.timing import Policy, time_call

# A prediction, for the plan and the ETA only: what share of the roof a kernel may be expected to reach.
ASSUMED_ROOF_FRACTION = 0.25
# Phases explain a time and are not ranked by theirs: half the samples, so that they cost less than the case itself.
PHASE_POLICY = Policy(min_seconds=0.2, max_samples=50)
SLOW_GATES = 6.9  # log_g = logsigmoid(randn + 6.9): half-life about 700 tokens, so that a wrong state is seen


@dataclass(frozen=True)
class PlannedCase:
    """A case before it runs. `reason`: why it will be skipped. Seconds and bytes are predictions, for one call.

    `phases`: its launches will be timed one by one, too.
    """

    case: Case
    kernel: Kernel
    reason: str | None
    launches: tuple[Launch, ...]
    call_seconds: float
    memory_bytes: int
    phases: bool = False

    @property
    def total_seconds(self) -> float:
        """Predicted time of the whole case: gate, warm-up and samples; phases as if each took an equal part."""
        if self.reason:
            return 0.0
        seconds = self.call_seconds * 2 + _sampling_seconds(self.call_seconds, Policy())
        if self.phases:
            number = len(self.launches)
            seconds += self.call_seconds * 2 + number * _sampling_seconds(self.call_seconds / number, PHASE_POLICY)
        return seconds


def _sampling_seconds(call_seconds: float, policy: Policy) -> float:
    samples = policy.min_seconds / max(call_seconds, 1e-9)
    return call_seconds * min(policy.max_samples, max(policy.min_samples, samples))


class Observer(Protocol):
    """What the runner tells whoever watches."""

    def started(self, planned: PlannedCase) -> None:
        """The case is about to run."""

    def finished(self, planned: PlannedCase, measurement: Measurement) -> None:
        """The case has been measured, refused or lost."""


def plan(
    suite: Suite,
    kernels: Sequence[Kernel],
    device: Device,
    ceilings: Ceilings,
    done: Collection[str] = (),
    *,
    phases: bool = False,
) -> list[PlannedCase]:
    """The cases of the suite on this device in the order they run, less those whose id is in `done`.

    `suite` is what `Suite.on` returned; `kernels` are the selected records. With `phases`, those of them that can be
    taken apart are also timed launch by launch.
    """
    by_name = {kernel.name: kernel for kernel in kernels}
    todo = [case for case in suite.cases(kernels, device.type) if case.case_id not in done]
    return [_plan_case(case, by_name[case.kernel], device, ceilings, phases) for case in todo]


def _plan_case(case: Case, kernel: Kernel, device: Device, ceilings: Ceilings, phases: bool) -> PlannedCase:
    reason = kernel.unsupported(case, device.type)
    if reason:
        return PlannedCase(case, kernel, reason, (), 0.0, 0)
    launches = kernel.launches(case)
    seconds, _ = roof_seconds(launches, case.problem.dtype, ceilings)
    call_seconds = seconds / ASSUMED_ROOF_FRACTION
    apart = phases and kernel.phases is not None
    return PlannedCase(case, kernel, None, launches, call_seconds, _memory_bytes(case, kernel), apart)


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
        failed = measurement.status == "failed" or any(phase.message for phase in measurement.phases)
        if failed and device.type == "cuda":
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
        status, message = ("oom" if out_of_memory else "failed"), _in_words(error)
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
    del call  # and with it the graph of a backward pass, before the phases make buffers of their own
    phases = _time_phases(item, inputs, device) if item.phases else ()
    times = {"samples_ms": samples.ms, "timer": samples.timer, "phases": phases}
    return Measurement(**row, **times, status="ok", peak_memory_bytes=peak)


def _time_phases(item: PlannedCase, inputs: Inputs, device: Device) -> tuple[Phase, ...]:
    """Each launch by itself. One that raises says why in its place, and costs neither the others nor the case."""
    assert item.kernel.phases
    names = list(dict.fromkeys(launch.name for launch in item.launches))
    try:
        calls = item.kernel.phases(item.case, inputs)
        if not calls.keys() <= set(names):
            raise ValueError(f"phases {', '.join(calls)} are not all among the launches {', '.join(names)}")
    except Exception as error:  # as above: a contestant may raise anything, and the whole call has its time
        return tuple(Phase(name, message=_in_words(error)) for name in names)
    return tuple(_time_phase(name, calls[name], device) for name in names if name in calls)


def _time_phase(name: str, call: Callable[[], object], device: Device) -> Phase:
    try:
        call()  # the warm-up
        return Phase(name, time_call(call, device.torch, PHASE_POLICY).ms)
    except Exception as error:
        return Phase(name, message=_in_words(error))


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


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _check_device(measurement: Measurement) -> None:
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise DeviceLostError(f"the device is lost after {measurement.case_id}: {_first_line(error)}") from error
