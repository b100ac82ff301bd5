"""Temporary folders of the gate, which go away: if their process was killed, when the next one is made."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "powerbench-check-"
LOCK = "lock"  # held as long as the process lives; it holds the repository of the worktree, if there is one
WORKTREE = "worktree"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed afterwards. Those that killed processes left are removed first."""
    prune()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, (Path(name) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def holds_worktree_of(folder: Path, repository: Path) -> None:
    """Note whose worktree the folder is to hold, so that it can be removed from there too."""
    if (folder / LOCK).exists():
        (folder / LOCK).write_text(str(repository), encoding="utf-8", errors="surrogateescape")


def prune() -> None:
    """Remove the folders whose lock nobody holds, and their worktrees; what cannot be removed stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+", errors="surrogateescape") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            repository = lock.read()
            if repository:
                remove = ["worktree", "remove", "--force", str(folder / WORKTREE)]
                subprocess.run(["git", "-C", repository, *remove], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)
