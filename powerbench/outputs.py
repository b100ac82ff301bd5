"""Files that commands write: never in the place of what they read, whole or not at all, and only where files are.

A command names its outputs and its inputs to `check` before any work, and writes by `write` or `append`. A link is
followed: its target is written. A regular file is replaced by a complete new one, under the same name and mode; what
is no regular file (a FIFO, a terminal, /dev/stdout) is written to as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from powerbench.errors import UserError

PathLike = str | os.PathLike[str]

PREFIX = ".powerbench-"  # of a file that is not complete yet, in the folder of what it becomes


class OutputError(UserError):
    """A file that must not or cannot be written; the message is one line that names it and says why."""


def shown(path: PathLike) -> str:
    """A path as text that every output can hold: bytes that are no UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check(outputs: Mapping[str, PathLike | None], inputs: Iterable[PathLike], folders: Iterable[str] = ()) -> None:
    """Raise OutputError where an output cannot be written, is one of the inputs, or is another output too.

    `outputs`: paths by the option that names them; None: not asked for. `folders`: those options that name folders.
    """
    read = _identities(inputs)
    seen: dict[object, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        with _os_errors(path):
            if not os.fspath(path):
                raise OutputError(f"{option}: '' is no file name")
            if option in folders:
                _check_folder(option, path)
            else:
                _check_file(option, path)
                _refuse_inputs(path, read, f"{option}: ")
            same = _identity(path) or os.path.realpath(path)
            if same in seen and same != _identity(os.devnull):
                raise OutputError(f"{option}: {shown(path)} is the file of {seen[same]} too; name another")
            seen[same] = option


def write(path: PathLike, content: str | bytes, *, inputs: Iterable[PathLike] = ()) -> None:
    """Write a file, with its folder; text as UTF-8. A regular file appears whole, on disk, or stays as it was.

    Raises OutputError, where it is one of `inputs` too.
    """
    data = _bytes(content)
    with _os_errors(path):
        _refuse_inputs(path, _identities(inputs))
        there, target = _stat(path), Path(os.path.realpath(path))
        if there is None:
            _replace(target, data, there)
        elif not stat.S_ISREG(there.st_mode):
            _write_into(path, data)
        elif (descriptor := _standard(there)) is not None:
            _write_all(descriptor, data)
        elif _identity(target) != _identity(path):  # by /proc an open file that has no name any more
            _write_into(path, data, os.O_TRUNC)
        else:
            _replace(target, data, there)


def append(path: PathLike, text: str) -> None:
    """Add to the end of a file, which is made, with its folder, where there is none. Raises OutputError."""
    with _os_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _write_into(path, _bytes(text), os.O_CREAT | os.O_APPEND)


def make_folder(path: PathLike) -> None:
    """Make a folder for outputs, with those above it. Raises OutputError."""
    with _os_errors(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def sync_folder(folder: PathLike) -> None:
    """Wait until the names in a folder are on disk, where the file system can."""
    with contextlib.suppress(OSError):  # some network file systems refuse to open or to sync a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(target: Path, data: bytes, there: os.stat_result | None) -> None:
    """A new file beside the target, complete and on disk, takes its name. `there`: what has that name now."""
    if there is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _rename_complete(target, data, there)
    except OSError as error:
        if there is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY):
            raise
        # a file that may be written in a folder that may not, or a mount of its own, as containers are given files
        _write_into(target, data, os.O_TRUNC)


def _rename_complete(target: Path, data: bytes, there: os.stat_result | None) -> None:
    descriptor, draft = tempfile.mkstemp(prefix=PREFIX, dir=target.parent)
    try:
        try:
            _write_all(descriptor, data)
            _take_mode(descriptor, there)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    sync_folder(target.parent)


def _take_mode(descriptor: int, there: os.stat_result | None) -> None:
    """Mode and, where it may, owner of the file that is replaced; else the mode of any new file."""
    if there is None:
        umask = os.umask(0o077)
        os.umask(umask)
        os.fchmod(descriptor, 0o666 & ~umask)
        return
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, there.st_uid, there.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(there.st_mode))


def _write_into(path: PathLike, data: bytes, flags: int = 0) -> None:
    """Write to what is there, without another one in its place."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | flags, 0o666)
    try:
        _write_all(descriptor, data)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _standard(there: os.stat_result) -> int | None:
    """Standard output or error, where this is the file that it goes to: another in its place would lose the rest."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), there):
                if stream is not None:
                    stream.flush()
                return descriptor
    return None


def _check_file(option: str, path: PathLike) -> None:
    there = _stat(path)
    if os.fspath(path).endswith(os.sep) or (there is not None and stat.S_ISDIR(there.st_mode)):
        raise OutputError(f"{option}: {shown(path)} is a folder; name a file")
    if there is None:
        _check_room(Path(os.path.realpath(path)).parent)
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _check_folder(option: str, path: PathLike) -> None:
    there = _stat(path)
    if there is not None and not stat.S_ISDIR(there.st_mode):
        raise OutputError(f"{option}: {shown(path)} is not a folder")
    _check_room(Path(os.path.realpath(path)))


def _check_room(folder: Path) -> None:
    """Raise OSError where no file can be made in this folder, or the folder itself cannot be made."""
    for above in (folder, *folder.parents):
        there = _stat(above)
        if there is None:
            continue
        if not stat.S_ISDIR(there.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return


def _identities(paths: Iterable[PathLike]) -> dict[object, PathLike]:
    """Regular files by device and inode, so that links are seen through; what is none cannot be overwritten."""
    found: dict[object, PathLike] = {}
    for path in paths:
        with contextlib.suppress(OSError):  # what cannot be read is told by its reader
            there = os.stat(path)
            if stat.S_ISREG(there.st_mode):
                found[there.st_dev, there.st_ino] = path
    return found


def _identity(path: PathLike) -> object | None:
    there = _stat(path)
    return None if there is None else (there.st_dev, there.st_ino)


def _refuse_inputs(path: PathLike, read: Mapping[object, PathLike], option: str = "") -> None:
    same = _identity(path)
    if same is not None and same in read:
        name = shown(read[same])
        again = "" if shown(path) == name else f", which is {name}"
        raise OutputError(f"{option}{shown(path)}{again} is an input of this command; name another file")


def _stat(path: PathLike) -> os.stat_result | None:
    """None where there is no such file, or a link to none."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _os_errors(path: PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {shown(path)}: {error.strerror or error}") from None
    except ValueError as error:  # a null character
        if isinstance(error, UserError):
            raise
        raise OutputError(f"cannot write {shown(path)!r}: {error}") from None
