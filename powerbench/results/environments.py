"""The environments of a run file: which one is the present machine, in what two differ, and what a mixture says.

A file has one environment in its header. Where a sweep goes on elsewhere, or runs are put together, it has more, each
with an id, and each measurement names its own.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import NamedTuple

import msgspec

from powerbench.nvml import UNAVAILABLE
from powerbench.results.model import Environment, EnvironmentRecord, Run

BASE = ("torch", "triton")  # packages that every environment names where they are installed
SHOWN = 4  # differences in one line
GPU_FIELDS = {
    "uuid": "GPU",
    "ecc": "ECC",
    "mig": "MIG",
    "persistence_mode": "persistence mode",
    "application_sm_mhz": "application SM clock, MHz",
    "application_memory_mhz": "application memory clock, MHz",
    "power_limit_w": "power limit, W",
}


class Difference(NamedTuple):
    """Something that two environments have otherwise, as text."""

    name: str
    before: str
    after: str


def contestant_version(environment: Environment, kernel: str) -> str:
    """The version of the kernel's package. powerbench's own counts not: its kernels are what is on trial."""
    version = environment.packages.get(kernel, "unknown")
    own = environment.powerbench
    return version.removeprefix(own).removeprefix(" on ") or "its own" if version.startswith(own) else version


def machine_differences(old: Environment, new: Environment) -> list[Difference]:
    """What differs of machine and software, powerbench's own code aside; versions of contestants that both know.

    What NVML could not say in one of them is no difference.
    """
    pairs: list[tuple[str, object, object]] = [
        (name, getattr(old, name), getattr(new, name)) for name in ("cpu", "os", "python", "driver", "cuda", "cores")
    ]
    both = [name for name in old.packages if name in new.packages]  # others are other selections
    pairs += [(name, old.packages[name], new.packages[name]) for name in both if name in BASE]
    pairs += [(name, contestant_version(old, name), contestant_version(new, name)) for name in both if name not in BASE]
    if old.gpu and new.gpu:
        settings = [(said, getattr(old.gpu, field), getattr(new.gpu, field)) for field, said in GPU_FIELDS.items()]
        pairs += [one for one in settings if not {UNAVAILABLE, None} & set(one[1:])]
    return [Difference(name, _said(before), _said(after)) for name, before, after in pairs if before != after]


def differences(old: Environment, new: Environment) -> list[Difference]:
    """Everything that makes them two environments; what says most comes first. Empty: they are one.

    A contestant's version that only follows torch's or triton's is not repeated.
    """
    pairs: list[tuple[str, object, object]] = [
        (name, getattr(old, name), getattr(new, name)) for name in ("device", "commit", "powerbench")
    ]
    absent = [name for name in BASE if (name in old.packages) != (name in new.packages)]
    pairs += [(name, old.packages.get(name), new.packages.get(name)) for name in absent]
    own = [Difference(name, _said(before), _said(after)) for name, before, after in pairs if before != after]
    machine = machine_differences(old, new)
    base = [one for one in machine if one.name in BASE]
    rest = [one for one in machine if one.name not in BASE and not any(_follows(one, known) for known in base)]
    gpu = [one for one in rest if one.name == GPU_FIELDS["uuid"]]
    return [*own, *base, *gpu, *(one for one in rest if one not in gpu)]


def _follows(one: Difference, base: Difference) -> bool:
    return one.before.replace(base.before, base.after) == one.after


def differences_text(found: list[Difference], most: int = SHOWN) -> str:
    """`torch was 2.8.0, is 2.9.0; ...`, the first few of them."""
    named = "; ".join(f"{one.name} was {one.before}, is {one.after}" for one in found[:most])
    return named + (f"; and {len(found) - most} more" if len(found) > most else "")


def known_as(run: Run, here: Environment) -> str | None:
    """The id under which the run has this environment, the latest of several; None: it is another one."""
    environments = run.environments
    return next((id_ for id_ in reversed(environments) if not differences(environments[id_], here)), None)


def next_id(run: Run) -> str:
    """An id that the run has not given yet: e2, e3 ..."""
    taken = run.environments
    return next(id_ for number in count(len(taken) + 1) if (id_ := f"e{number}") not in taken)


def completed(run: Run, id_: str, here: Environment) -> EnvironmentRecord | None:
    """The environment of this id with the packages that only `here` names, other contestants' say; None: it has all."""
    known = run.environments[id_]
    if here.packages.keys() <= known.packages.keys():
        return None
    together = msgspec.structs.replace(known, packages=here.packages | known.packages)
    return EnvironmentRecord(id_, together)


def mixture(run: Run) -> str | None:
    """What a reader of the run's times has to know where they are from several environments; None where from one."""
    counts = Counter(one.environment for one in run.measurements)
    if len(counts) < 2:
        return None
    environments = run.environments
    first, *others = (id_ for id_ in environments if id_ in counts)
    differing = {id_: differences_text(differences(environments[first], environments[id_])) for id_ in others}
    said = [f"{id_} ({_cases(counts[id_])}): {text}" for id_, text in differing.items()]
    return (
        f"measured in {len(counts)} environments, so times of different ones may differ for that reason; "
        f"beside {first} ({_cases(counts[first])}) {', and '.join(said)}"
    )


def _cases(number: int) -> str:
    return f"{number} case{'s' * (number != 1)}"


def _said(value: object) -> str:
    return "none" if value is None else str(value)
