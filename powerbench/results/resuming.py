"""Which of a run file's environments a sweep that goes on with it is in; or a new one, if that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from powerbench.errors import UserError
from powerbench.results.environments import completed, differences, differences_text, known_as, next_id
from powerbench.results.model import Environment, EnvironmentRecord, Run
from powerbench.roofline import Ceilings


def join(
    earlier: Run,
    here: Environment,
    command: str,
    *,
    anyway: bool,
    ceilings: Callable[[], Ceilings],
    warn: Callable[[str], None],
) -> EnvironmentRecord | str:
    """The id of the environment that this is, or the record that names it, to be appended to the file.

    `ceilings` measures those of a new environment. Raises UserError where this is none of the run's and `anyway` is
    False.
    """
    known = known_as(earlier, here)
    if known:
        if here.commit and here.commit.endswith("-dirty"):
            warn(f"--resume: {here.commit} has changes that are not committed: nobody knows if they are still the same")
        fuller = completed(earlier, known, here)
        return msgspec.structs.replace(fuller, command=command, started=now()) if fuller else known
    latest = list(earlier.environments.values())[-1]
    said = differences_text(differences(latest, here))
    if not anyway:
        raise UserError(
            f"--resume: {earlier.path} was measured in another environment: {said}; "
            "--resume-anyway goes on, and the file names both"
        )
    warn(f"--resume-anyway: another environment from here on: {said}")
    return EnvironmentRecord(next_id(earlier), here, ceilings(), command, now())


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
