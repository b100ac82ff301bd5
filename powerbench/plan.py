"""The plan of a sweep: its cases on a device, what will be skipped and why, and what each will take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from powerbench import gate
from powerbench.bench import DRAWN_ELEMENTS, PHASE_POLICY
from powerbench.cost import Launch
from powerbench.device import Device
from powerbench.kernels.kernel import Kernel
from powerbench.problem import Case
from powerbench.roofline import Ceilings, roof_seconds
from powerbench.stopping import Stopping
from powerbench.suites import Suite

# A prediction, for the plan and the ETA only: what share of the roof a kernel may be expected to reach.
ASSUMED_ROOF_FRACTION = 0.25

# What a visit takes whatever the call: reference, gate, capture, the rests before samples, re-check. Likewise only for
# plan and ETA. By the logs of two sweeps: the 936 visits of results/h200/crossover.jsonl took 762 s, where samples were
# predicted to take 130; on two cores 45 visits took 20 s, where they were to take 6.
VISIT_SECONDS = {"cuda": 0.65, "cpu": 0.25}


@dataclass(frozen=True)
class PlannedCase:
    """A case before it runs. `reason`: why it will be skipped, being unsupported; `oom`: because it needs more memory
    than there is. Seconds and bytes are predictions, for one call.

    `fixed_seconds`: of each visit, whatever a call takes. `phases`: its launches will be timed one by one, too.
    `visits`: which of its visits are still to be made, each until `stopping` says that it is enough.
    """

    case: Case
    kernel: Kernel
    reason: str | None
    launches: tuple[Launch, ...]
    call_seconds: float
    memory_bytes: int
    own_bytes: int = 0  # of these, what it does not share with the other contestants of its problem
    fixed_seconds: float = 0.0
    phases: bool = False
    sequence_bytes: int | None = None  # of a decode case: what the kernel keeps of one sequence
    visits: tuple[int, ...] = (0,)
    stopping: Stopping = field(default_factory=Stopping)
    oom: str | None = None

    @property
    def floor_seconds(self) -> float:
        """What no call can undercut: its time at the roof. 0 where it will be skipped."""
        return self.call_seconds * ASSUMED_ROOF_FRACTION

    @property
    def total_seconds(self) -> float:
        """Predicted time of the whole case, in all its visits."""
        return sum(self.visit_seconds(visit) for visit in self.visits)

    def visit_seconds(self, visit: int) -> float:
        """Predicted time of one visit: gate, warm-up, samples, re-check; in the first also the phases.

        These as if each took an equal part.
        """
        if self.reason or self.oom:
            return 0.0
        seconds = self.fixed_seconds + self.call_seconds * 3 + self.stopping.expected_seconds(self.call_seconds)
        if self.times_phases(visit):
            number = len(self.launches)
            part = self.call_seconds / number
            samples = PHASE_POLICY.min_seconds / max(part, 1e-9)
            samples = min(PHASE_POLICY.max_samples, max(PHASE_POLICY.min_samples, samples))
            seconds += self.call_seconds * 2 + number * part * samples
        return seconds

    def times_phases(self, visit: int) -> bool:
        """Whether the launches are timed one by one in this visit: once is enough."""
        return self.phases and visit == self.visits[0]


def plan(
    suite: Suite,
    kernels: Sequence[Kernel],
    device: Device,
    ceilings: Ceilings,
    done: Mapping[str, Collection[int]] | None = None,
    *,
    phases: bool = False,
    visits: int = 1,
) -> list[PlannedCase]:
    """The cases of the suite on this device in the order they run, each with those of its `visits` that are to be made.

    `done` are the visits made before, by case id; a case without any left is not in the plan. `suite` is what
    `Suite.on` returned; `kernels` are the selected records. With `phases`, those of them that can be taken apart are
    also timed launch by launch.
    """
    by_name = {kernel.name: kernel for kernel in kernels}
    stopping = Stopping().of_each(visits)
    planned = []
    for case in suite.cases(kernels, device.type):
        left = tuple(visit for visit in range(visits) if visit not in (done or {}).get(case.case_id, ()))
        if left:
            item = _plan_case(case, by_name[case.kernel], device, ceilings, phases)
            item = replace(item, oom=lacking_memory(item, device))
            planned.append(replace(item, visits=left[:1] if item.reason or item.oom else left, stopping=stopping))
    return planned


def lacking_memory(item: PlannedCase, device: Device) -> str | None:
    """Why a case cannot fit into the device's memory; None: it may. It is not even tried."""
    if item.memory_bytes <= device.memory_bytes:
        return None
    need, have = gib(item.memory_bytes), gib(device.memory_bytes)
    shared = gib(item.memory_bytes - item.own_bytes)  # of a decode row all of its context, whatever the kernel keeps
    return f"predicted: needs about {need}, {shared} of it for inputs and reference; the device has {have} free"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB"


def _plan_case(case: Case, kernel: Kernel, device: Device, ceilings: Ceilings, phases: bool) -> PlannedCase:
    reason = kernel.refusal(case, device.type)
    if reason:
        return PlannedCase(case, kernel, reason, (), 0.0, 0)
    decoding = kernel.decoding if case.pass_ == "decode" else None
    launches = (decoding or kernel).launches(case)
    seconds, _ = roof_seconds(launches, case.problem.dtype, ceilings)
    call_seconds = seconds / ASSUMED_ROOF_FRACTION
    apart = phases and kernel.phases is not None and not decoding
    own, shared = _own_bytes(case, kernel), _shared_bytes(case)
    kept = decoding.sequence_bytes(case) if decoding else None
    return PlannedCase(
        case, kernel, None, launches, call_seconds, own + shared, own, VISIT_SECONDS[device.type], apart,
        sequence_bytes=kept,
    )  # fmt: skip


def _shared_bytes(case: Case) -> int:
    """Predicted for the inputs, and for making them or for the gate, which only one contestant passes at a time."""
    problem = case.problem
    values = problem.v_bytes // problem.itemsize
    drawn = 4 * min(values, max(DRAWN_ELEMENTS, values // problem.batch))  # operands, one after the other, in pieces
    gates = 2 * problem.gate_bytes  # drawn whole, and two tensors on the way
    return _input_bytes(case) + max(drawn, gates, gate.memory_bytes(case))


def _own_bytes(case: Case, kernel: Kernel) -> int:
    """Predicted for y and dy, gradients where asked for, and what the kernel says it needs."""
    if case.pass_ == "decode":
        assert kernel.decoding
        return kernel.decoding.workspace_bytes(case)
    gradients = 0 if case.pass_ == "fwd" else _input_bytes(case)
    return gradients + 2 * case.problem.y_bytes + kernel.workspace_bytes(case)


def _input_bytes(case: Case) -> int:
    problem = case.problem
    queries = problem.q_bytes // problem.seqlen if case.pass_ == "decode" else problem.q_bytes
    return queries + problem.k_bytes + problem.v_bytes + problem.gate_bytes
