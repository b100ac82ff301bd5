"""The plan of a sweep: its cases on a device, what will be skipped and why, and what each will take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from powerbench import gate
from powerbench.bench import PHASE_POLICY
from powerbench.cost import Cost, Launch
from powerbench.device import Device
from powerbench.inputs import DRAWN_ELEMENTS
from powerbench.kernels.kernel import Kernel, RecordError
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

MOST_WORK = 2.0**63  # FLOPs or bytes of one launch, which a run file still holds


@dataclass(frozen=True)
class PlannedCase:
    """A case before it runs. `reason`: why it will be skipped. Seconds and bytes are predictions, for one call.

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
        if self.reason:
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
            planned.append(replace(item, visits=left[:1] if item.reason else left, stopping=stopping))
    return planned


def _plan_case(case: Case, kernel: Kernel, device: Device, ceilings: Ceilings, phases: bool) -> PlannedCase:
    reason = kernel.refusal(case, device.type)
    if reason:
        return PlannedCase(case, kernel, reason, (), 0.0, 0)
    try:
        return _plan_supported(case, kernel, device, ceilings, phases)
    except RecordError as error:
        return PlannedCase(case, kernel, str(error), (), 0.0, 0)


def _plan_supported(case: Case, kernel: Kernel, device: Device, ceilings: Ceilings, phases: bool) -> PlannedCase:
    """Raises RecordError where the kernel's ledger does not answer, or with what is none."""
    decoding = kernel.decoding if case.pass_ == "decode" else None
    launches = kernel.ask("launches", lambda: tuple((decoding or kernel).launches(case)))
    _check_ledger(launches, kernel)
    seconds, _ = roof_seconds(launches, case.problem.dtype, ceilings)
    call_seconds = seconds / ASSUMED_ROOF_FRACTION
    apart = phases and kernel.phases is not None and not decoding
    own, shared = _own_bytes(case, kernel), _shared_bytes(case)
    kept = _bytes(kernel, "sequence_bytes", lambda: decoding.sequence_bytes(case)) if decoding else None
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
        workspace_bytes = kernel.decoding.workspace_bytes
        return _bytes(kernel, "workspace_bytes", lambda: workspace_bytes(case))
    gradients = 0 if case.pass_ == "fwd" else _input_bytes(case)
    workspace = _bytes(kernel, "workspace_bytes", lambda: kernel.workspace_bytes(case))
    return gradients + 2 * case.problem.y_bytes + workspace


def _bytes(kernel: Kernel, what: str, call: Callable[[], int]) -> int:
    size = kernel.ask(what, call)
    if not isinstance(size, int) or not 0 <= size < 2**63:
        raise RecordError(f"{what} of {kernel.name} answers {str(size)[:40]}, which is no number of bytes")
    return size


def _check_ledger(launches: tuple[object, ...], kernel: Kernel) -> None:
    for launch in launches:
        good = isinstance(launch, Launch) and isinstance(launch.name, str) and isinstance(launch.cost, Cost)
        costs = msgspec.structs.astuple(launch.cost) if good else (None,)  # type: ignore[attr-defined]
        if not all(isinstance(cost, int | float) and 0 <= cost < MOST_WORK for cost in costs):
            raise RecordError(f"launches of {kernel.name} answers {str(launch)[:100]}, which is no Launch with a cost")


def _input_bytes(case: Case) -> int:
    problem = case.problem
    queries = problem.q_bytes // problem.seqlen if case.pass_ == "decode" else problem.q_bytes
    return queries + problem.k_bytes + problem.v_bytes + problem.gate_bytes
