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

from powerbench.bounds import MOST_MHZ, MOST_WORK, Count, fault_of_times
from powerbench.errors import UserError
from powerbench.results.model import SCHEMA_VERSION, CeilingsAgain, Header, Measurement, Run
from powerbench.results.visits import together, visited
from powerbench.roofline import Ceilings


class StoreError(UserError):
    """A run file that cannot be read or written; the message is one line: path, line number, what was wrong."""


class _AnyHeader(msgspec.Struct, tag="header", tag_field="type"):
    """What the header of every schema, past and future, is known to hold."""

    schema: Count


class _Contents(NamedTuple):
    header: Header
    measurements: list[Measurement]
    again: list[CeilingsAgain]
    warnings: list[str]
    size: int  # bytes of the file up to the end of its last good line
    newline: bool  # is that line ended


# What decoding raises: RecursionError where a value is nested deeper than any of ours, known field or not.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_HEADER_START = b'{"type":"header",'
_LONGEST_HEADER = 2**22  # bytes
_HALF = (
    "a sweep ended before it had written its header (is the disk full?), and nothing is lost; "
    "the same sweep with --resume starts it over"
)
_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(Measurement | CeilingsAgain).decode
_decode_header = msgspec.json.Decoder(Header).decode
_decode_any_header = msgspec.json.Decoder(_AnyHeader).decode


def load(path: str | os.PathLike[str]) -> Run:
    """Read a run file. Raises StoreError for anything but a good file with at most its last line half written."""
    return _run(Path(path), _read(Path(path)))


def make_room(path: Path) -> None:
    """Make the folder of a run file that is to be. Raises StoreError when that cannot be, or when the file exists."""
    with _os_errors(path):
        _make_folder(path.parent)
        if path.exists():
            raise StoreError(f"{path}: exists already; resume it, or choose another name")


class RunWriter:
    """Appends measurements to a run file, each on disk before `append` returns. Also a context manager.

    Made by `create` or `resume`.
    """

    def __init__(self, path: Path, header: Header, file: BinaryIO) -> None:
        self.path = path
        self.header = header
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
                _sync_folder(path.parent)
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
        try:
            line = _encode(measurement)
            fault = _fault(_decode_line(line))
        except msgspec.DecodeError as error:  # beyond `powerbench.bounds`
            fault = _one_line(error)
        fault = fault or _fault(measurement)  # NaN, which JSON has not
        if fault:
            raise ValueError(f"{measurement.case_id}: {fault}")
        with _os_errors(self.path):
            self._write_bytes(line + b"\n")

    def append_ceilings(self, ceilings: Ceilings, warnings: tuple[str, ...] = ()) -> None:
        """Write the ceilings as measured again, and warnings of this sweep. Raises StoreError when the disk does."""
        with _os_errors(self.path):
            self._write(CeilingsAgain(ceilings, warnings))

    def close(self) -> None:
        """Close the file; what was appended is on disk already."""
        self._file.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, record: Header | Measurement | CeilingsAgain) -> None:
        self._write_bytes(_encode(record) + b"\n")

    def _write_bytes(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())


def _make_folder(folder: Path) -> None:
    """With those above it; the names of new ones are on disk, so that no run file is in a folder that is not."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        _sync_folder(one.parent)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the file system can."""
    with contextlib.suppress(OSError):  # some network file systems refuse to sync a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    measurements, warnings, again = tuple(contents.measurements), tuple(contents.warnings), tuple(contents.again)
    return Run(str(path), contents.header, measurements, warnings, again)


def _read(path: Path) -> _Contents:
    with _os_errors(path):
        data = path.read_bytes()
    if not data:
        raise StoreError(f"{path}: empty: {_HALF}")
    lines = data.split(b"\n")
    tail = lines.pop()  # what follows the last newline: nothing, unless the writer was killed
    warnings: list[str] = []
    size = len(data) - len(tail)
    if tail and _is_json(tail):  # only its newline is missing
        lines.append(tail)
        size = len(data)
    elif tail:
        warnings.append(f"line {len(lines) + 1} is half written (the sweep was killed) and was left out")
    if not lines and _is_half_header(tail):
        raise StoreError(f"{path}: line 1: half a header: {_HALF}")
    if not lines:
        raise StoreError(f"{path}: line 1: not a run file's header: {_first_words(tail)}")
    header = _parse_header(path, lines[0])
    found: dict[str, list[Measurement]] = {}
    seen: dict[str, set[int]] = {}  # visits of a case
    repeated: dict[str, None] = {}
    again: list[CeilingsAgain] = []
    for number, line in enumerate(lines[1:], start=2):
        record = _parse_line(path, number, line)
        if isinstance(record, CeilingsAgain):
            again.append(record)
            continue
        case_id, visits = record.case_id, visited(record)
        if case_id not in found:
            found[case_id], seen[case_id] = [record], set(visits)
            continue
        if not seen[case_id].isdisjoint(visits):
            repeated[case_id] = None
        seen[case_id] |= visits
        found[case_id].append(record)
    if repeated:
        warnings.append(f"measured more than once, the last one counts: {', '.join(repeated)}")
    return _Contents(
        header, [together(case) for case in found.values()], again, warnings, size, newline=lines[-1] is not tail
    )


def _parse_header(path: Path, line: bytes) -> Header:
    try:
        schema = _decode_any_header(line).schema
    except _UNREADABLE:
        raise StoreError(f"{path}: line 1: not a run file's header: {_first_words(line)}") from None
    if schema > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: line 1: written by a newer powerbench (schema {schema}, this one reads up to {SCHEMA_VERSION})"
        )
    try:
        header = _decode_header(line)
    except _UNREADABLE as error:
        raise StoreError(f"{path}: line 1: {_one_line(error)}") from None
    _check_ceilings(path, 1, header.ceilings)
    return header


def _check_ceilings(path: Path, number: int, ceilings: Ceilings) -> None:
    fault = ceilings.fault()
    if fault:
        raise StoreError(f"{path}: line {number}: {fault}")


def _parse_line(path: Path, number: int, line: bytes) -> Measurement | CeilingsAgain:
    try:
        record: Measurement | CeilingsAgain = _decode_line(line)
    except _UNREADABLE as error:
        raise StoreError(f"{path}: line {number}: {_one_line(error)}") from None
    if isinstance(record, CeilingsAgain):
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
    if fault := fault_of_times(*parts):
        return fault
    for launch in measurement.launches:
        if max(launch.cost.useful_flops, launch.cost.executed_flops, launch.cost.bytes) > MOST_WORK:
            return "the work of a launch is more than any machine's"
    if not all(value is None or math.isfinite(value) for value in (measurement.error, measurement.tolerance)):
        return "error and tolerance have to be finite"
    if measurement.rounds and sum(one.samples for one in measurement.rounds) != len(measurement.samples_ms):
        return "the rounds do not add up to the samples"
    if not all(one.samples > 0 for one in measurement.rounds):
        return "a round has no samples"
    if not all(one.sm_mhz is None or 0 < one.sm_mhz <= MOST_MHZ for one in measurement.rounds):
        return "the clock of a round is not positive"
    problem = measurement.case.problem
    sizes = (problem.batch, problem.seqlen, problem.heads, problem.kv_heads, problem.head_dim, problem.value_dim)
    return None if min(sizes) > 0 else "a size of the problem is not positive"


def holds_nothing(path: Path) -> bool:
    """Whether a file is what a sweep leaves that could not write its header: empty, or the beginning of one."""
    with _os_errors(path), path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    return not start or _is_half_header(start)


def start_over(path: Path) -> None:
    """Remove a file that holds nothing. Raises StoreError where another sweep is about to write its header."""
    with _os_errors(path), path.open("r+b") as file:
        _lock(path, file)
        if holds_nothing(path):
            path.unlink()


def _is_half_header(text: bytes) -> bool:
    """One line without its end that begins as a header, and is no JSON yet."""
    begins = text.startswith(_HEADER_START) or _HEADER_START.startswith(text)
    return begins and len(text) < _LONGEST_HEADER and b"\n" not in text and not _is_json(text)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except _UNREADABLE:
        return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first_words(line: bytes) -> str:
    """The start of a line, printable whatever it holds."""
    return repr(line[:40].decode("ascii", "replace")) + ("..." if len(line) > 40 else "")
