"""Which case of the baseline belongs to which of the new run, and why two of them may not be compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import msgspec

from powerbench.problem import Case
from powerbench.results.environments import contestant_version
from powerbench.results.model import Environment, Measurement, Run


class Pair(NamedTuple):
    """A case on both sides; None where a side has none."""

    baseline: Measurement | None
    new: Measurement | None

    @property
    def case_id(self) -> str:
        """Of the new run, or of the baseline where there is no new one."""
        found = self.new or self.baseline
        assert found
        return found.case_id


def pair(baseline: Run, new: Run) -> list[Pair]:
    """All cases of both runs, each once, in the order of the new run, then those that only the baseline has.

    First by case id. Of what is left, a case whose kernel now chooses another d_tile or chunk is the same question with
    another answer, and one of another dtype is worth saying so: paired where there is exactly one on each side.
    """
    old = {measurement.case_id: measurement for measurement in baseline.measurements}
    found = {one.case_id: old.pop(one.case_id, None) for one in new.measurements}
    for key in (without_tiling, _without_dtype):
        unpaired = _once((one for one in new.measurements if found[one.case_id] is None), key)
        left = _once(old.values(), key)
        for same in unpaired.keys() & left.keys():
            found[unpaired[same].case_id] = old.pop(left[same].case_id)
    pairs = [Pair(found[one.case_id], one) for one in new.measurements]
    return pairs + [Pair(one, None) for one in old.values()]


def _once(measurements: Iterable[Measurement], key: Callable[[Case], Hashable]) -> dict[Hashable, Measurement]:
    """By key, those whose key no other has."""
    by_key: dict[Hashable, list[Measurement]] = {}
    for one in measurements:
        by_key.setdefault(key(one.case), []).append(one)
    return {name: ones[0] for name, ones in by_key.items() if len(ones) == 1}


def without_tiling(case: Case) -> Hashable:
    """What is asked of a kernel, whatever d_tile and chunk it chooses."""
    return case.problem, case.kernel, case.params.p, case.pass_


def _without_dtype(case: Case) -> Hashable:
    return msgspec.structs.replace(case.problem, dtype="fp64"), case.kernel, case.params.p, case.pass_


def runs_differ(baseline: Run, new: Run) -> str | None:
    """Why no case of these runs can be compared; None: some may."""
    old, one = baseline.header, new.header
    if old.schema != one.schema:
        return f"schema {old.schema} against {one.schema}: measure the baseline again"
    sides = [list(dict.fromkeys(each.device for each in run.environments.values())) for run in (baseline, new)]
    if not set(sides[0]) & set(sides[1]):
        return f"device: {', '.join(sides[0])} against {', '.join(sides[1])}"
    return None


def cases_differ(
    old: Measurement, one: Measurement, environments: tuple[Environment, Environment], *, ignore_versions: bool
) -> str | None:
    """Why these two measured cases, each with its environment, are not the same question; None: they are."""
    before, after = environments
    if before.device != after.device:
        return f"device: {before.device} against {after.device}"
    dtypes = old.case.problem.dtype, one.case.problem.dtype
    if dtypes[0] != dtypes[1]:
        return f"dtype: {dtypes[0]} against {dtypes[1]}"
    if old.timer != one.timer:
        return f"timer: {old.timer} against {one.timer}"
    versions = [contestant_version(side, one.case.kernel) for side in environments]
    if versions[0] != versions[1] and not ignore_versions:
        return f"versions of {one.case.kernel}: {versions[0]} against {versions[1]}"
    return None
