"""Run files on disk: JSON Lines, the header first, one visit of a case a line, on disk before the next one starts.

A line is complete when its newline is there. The only damage that a killed sweep can do is a half-written last line:
reading leaves it out with a warning, resuming cuts it off. Everything else that is wrong with a file is an error.
Fields that this version does not know are ignored, so that a later version may add some without a new schema number;
a file of a newer schema is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from powerbench.errors import UserError
from powerbench.results.model import (
    FIRST,
    SCHEMA_VERSION,
    CeilingsAgain,
    EnvironmentRecord,
    Header,
    Measurement,
    Run,
)
from powerbench.results.visits import together, visited
from powerbench.roofline import Ceilings


class StoreError(UserError):
    """A run file that cannot be read or written; the message is one line: path, line number, what was wrong."""


class _AnyHeader(msgspec.Struct, tag="header", tag_field="type"):
    """What the header of every schema, past and future, is known to hold."""

    schema: int


class _Contents(NamedTuple):
    header: Header
    measurements: list[Measurement]
    again: list[CeilingsAgain]
    more: list[EnvironmentRecord]
    warnings: list[str]
    size: int  # bytes of the file up to the end of its last good line
    newline: bool  # is that line ended


_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(Measurement | CeilingsAgain | EnvironmentRecord).decode
_decode_header = msgspec.json.Decoder(Header).decode
_decode_any_header = msgspec.json.Decoder(_AnyHeader).decode


def load(path: str | os.PathLike[str]) -> Run:
    """Read a run file. Raises StoreError for anything but a good file with at most its last line half written."""
    return _run(Path(path), _read(Path(path)))


def make_room(path: Path) -> None:
    """Make the folder of a run file that is to be. Raises StoreError when that cannot be, or when the file exists."""
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise StoreError(f"{path}: exists already; resume it, or choose another name")


class RunWriter:
    """Appends measurements to a run file, each on disk before `append` returns. Also a context manager.

    Made by `create` or `resume`. `environment` is the id of the one that what is appended was taken in: the header's,
    until `use` or `append_environment` says another.
    """

    def __init__(self, path: Path, header: Header, file: BinaryIO) -> None:
        self.path = path
        self.header = header
        self.environment = FIRST
        self._file = file

    @classmethod
    def create(cls, path: str | os.PathLike[str], header: Header) -> RunWriter:
        """Start a run file, with its folder. Raises StoreError when the file exists or cannot be written."""
        path = Path(path)
        make_room(path)
        with _os_errors(path):
            try:
                file = path.open("xb")
            except FileExistsError:
                raise StoreError(f"{path}: exists already; resume it, or choose another name") from None
            writer = cls(path, header, file)
            try:
                _lock(path, file)
                writer._write(header)
            except BaseException:
                writer.close()
                path.unlink()
                raise
        return writer

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> tuple[RunWriter, Run]:
        """Go on with a run file: a half-written last line is cut off. Raises StoreError as `load` does."""
        path = Path(path)
        with _os_errors(path):
            file = path.open("r+b")
            try:
                _lock(path, file)
                contents = _read(path)
                writer = cls(path, contents.header, file)
                writer._file.truncate(contents.size)
                writer._file.seek(contents.size)
                if not contents.newline:
                    writer._write_bytes(b"\n")
            except BaseException:
                file.close()
                raise
        return writer, _run(path, contents)

    def append(self, measurement: Measurement) -> None:
        """Write one line and wait until it is on disk.

        JSON has no NaN: the error of a row that is not ok (an output full of NaN) is stored as null when it is not
        finite. Raises ValueError for a measurement that `load` would refuse, StoreError when the disk does.
        """
        if measurement.status != "ok" and measurement.error is not None and not math.isfinite(measurement.error):
            measurement = msgspec.structs.replace(measurement, error=None)
        fault = _fault(measurement)
        if fault:
            raise ValueError(f"{measurement.case_id}: {fault}")
        if measurement.environment != self.environment:
            measurement = msgspec.structs.replace(measurement, environment=self.environment)
        with _os_errors(self.path):
            self._write(measurement)

    def append_ceilings(self, ceilings: Ceilings, warnings: tuple[str, ...] = ()) -> None:
        """Write the ceilings as measured again, and warnings of this sweep. Raises StoreError when the disk does."""
        with _os_errors(self.path):
            self._write(CeilingsAgain(ceilings, warnings, self.environment))

    def append_environment(self, record: EnvironmentRecord) -> None:
        """Write an environment; what is appended from now on was taken there. Raises StoreError when the disk does."""
        with _os_errors(self.path):
            self._write(record)
        self.environment = record.id

    def close(self) -> None:
        """Close the file; what was appended is on disk already."""
        self._file.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, record: Header | Measurement | CeilingsAgain | EnvironmentRecord) -> None:
        self._write_bytes(_encode(record) + b"\n")

    def _write_bytes(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())


def _lock(path: Path, file: BinaryIO) -> None:
    """Keep a second sweep off the file, where the file system can (some cluster file systems cannot)."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{path}: another sweep is writing to it") from None
    except OSError:
        return


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error


def _run(path: Path, contents: _Contents) -> Run:
    measurements, warnings = tuple(contents.measurements), tuple(contents.warnings)
    return Run(str(path), contents.header, measurements, warnings, tuple(contents.again), tuple(contents.more))


def _read(path: Path) -> _Contents:
    with _os_errors(path):
        data = path.read_bytes()
    if not data:
        raise StoreError(f"{path}: empty, not a run file")
    lines = data.split(b"\n")
    tail = lines.pop()  # what follows the last newline: nothing, unless the writer was killed
    warnings: list[str] = []
    size = len(data) - len(tail)
    if tail and _is_json(tail):  # only its newline is missing
        lines.append(tail)
        size = len(data)
    elif tail:
        warnings.append(f"line {len(lines) + 1} is half written (the sweep was killed) and was left out")
    if not lines:
        raise StoreError(f"{path}: line 1: not a run file's header: {_first_words(tail)}")
    header = _parse_header(path, lines[0])
    return _contents(path, header, lines[1:], warnings, size, newline=lines[-1] is not tail)


def _contents(
    path: Path, header: Header, lines: list[bytes], warnings: list[str], size: int, *, newline: bool
) -> _Contents:
    """What the lines after the header hold."""
    measured: list[Measurement] = []
    again: list[CeilingsAgain] = []
    more: list[EnvironmentRecord] = []
    known = {FIRST}
    for number, line in enumerate(lines, start=2):
        record = _parse_line(path, number, line)
        if isinstance(record, EnvironmentRecord):
            if record.id not in known and record.ceilings is None:
                raise StoreError(f"{path}: line {number}: environment {record.id!r} has no ceilings")
            known.add(record.id)
            more.append(record)
        elif record.environment not in known:
            raise StoreError(f"{path}: line {number}: environment {record.environment!r} is none of those before it")
        elif isinstance(record, CeilingsAgain):
            again.append(record)
        else:
            measured.append(record)
    measurements = _put_together(measured, warnings)
    return _Contents(header, measurements, again, more, warnings, size, newline)


def _put_together(lines: list[Measurement], warnings: list[str]) -> list[Measurement]:
    """The lines of each case as one measurement; what was measured in vain is added to the warnings."""
    found: dict[str, list[Measurement]] = {}
    repeated: dict[str, None] = {}
    elsewhere: dict[str, None] = {}
    for line in lines:
        before = found.setdefault(line.case_id, [])
        if any(other.environment != line.environment for other in before):
            elsewhere[line.case_id] = None
        elif any(visited(other) & visited(line) for other in before):
            repeated[line.case_id] = None
        before.append(line)
    if repeated:
        warnings.append(f"measured more than once, the last one counts: {', '.join(repeated)}")
    if elsewhere:
        warnings.append(f"measured in more than one environment, the last one counts: {', '.join(elsewhere)}")
    return [together(case) for case in found.values()]


def _parse_header(path: Path, line: bytes) -> Header:
    try:
        schema = _decode_any_header(line).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StoreError(f"{path}: line 1: not a run file's header: {_first_words(line)}") from None
    if schema > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: line 1: written by a newer powerbench (schema {schema}, this one reads up to {SCHEMA_VERSION})"
        )
    try:
        header = _decode_header(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: line 1: {_one_line(error)}") from None
    _check_ceilings(path, 1, header.ceilings)
    return header


def _check_ceilings(path: Path, number: int, ceilings: Ceilings) -> None:
    fault = ceilings.fault()
    if fault:
        raise StoreError(f"{path}: line {number}: {fault}")


def _parse_line(path: Path, number: int, line: bytes) -> Measurement | CeilingsAgain | EnvironmentRecord:
    try:
        record: Measurement | CeilingsAgain | EnvironmentRecord = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: line {number}: {_one_line(error)}") from None
    if not isinstance(record, Measurement):
        if record.ceilings is not None:
            _check_ceilings(path, number, record.ceilings)
        return record
    fault = _fault(record)
    if fault:
        raise StoreError(f"{path}: line {number}: {fault}")
    return record


def _fault(measurement: Measurement) -> str | None:
    """What contradicts the model's promise: samples exist, positive and finite, exactly where the status is ok.

    A phase, which only such a case has, holds either samples or why there are none.
    """
    if (measurement.status == "ok") != bool(measurement.samples_ms):
        return f"status {measurement.status} with {len(measurement.samples_ms)} samples"
    if measurement.phases and measurement.status != "ok":
        return f"status {measurement.status} with {len(measurement.phases)} phases"
    for phase in measurement.phases:
        if bool(phase.samples_ms) != (phase.message is None):
            return f"phase {phase.name!r} has to hold either samples or a message"
    if len({phase.name for phase in measurement.phases}) < len(measurement.phases):
        return "two phases have the same name"
    parts = (measurement.samples_ms, measurement.wall_ms, *(phase.samples_ms for phase in measurement.phases))
    if not all(0 < sample < math.inf for samples in parts for sample in samples):
        return "a sample is not a positive, finite time"
    if not all(value is None or math.isfinite(value) for value in (measurement.error, measurement.tolerance)):
        return "error and tolerance have to be finite"
    if measurement.rounds and sum(one.samples for one in measurement.rounds) != len(measurement.samples_ms):
        return "the rounds do not add up to the samples"
    if not all(one.samples > 0 for one in measurement.rounds):
        return "a round has no samples"
    if not all(one.sm_mhz is None or 0 < one.sm_mhz < math.inf for one in measurement.rounds):
        return "the clock of a round is not positive"
    problem = measurement.case.problem
    sizes = (problem.batch, problem.seqlen, problem.heads, problem.kv_heads, problem.head_dim, problem.value_dim)
    return None if min(sizes) > 0 else "a size of the problem is not positive"


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first_words(line: bytes) -> str:
    """The start of a line, printable whatever it holds."""
    return repr(line[:40].decode("ascii", "replace")) + ("..." if len(line) > 40 else "")
