"""Another commit's kernels under this checkout's ruler: folders from which `python -m powerbench` measures either.

For powerbench's own repository such a folder is a copy of this package in which `kernels` is the other commit's, so
that nothing that measures differs between the two sides. The record that contestants fill in (`kernels/kernel.py`)
counts as ruler: a field added since, with a default, does no harm. For a repository that adds kernels by the entry
point group `powerbench.kernels`, the folder is this package, and the other commit's tree comes before all installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from powerbench import turns
from powerbench.check.scratch import WORKTREE, holds_worktree_of
from powerbench.errors import UserError
from powerbench.processes import child

PACKAGE = Path(__file__).resolve().parents[1]
LEFT_OUT = ("__pycache__", "*.pyc")
RECORD = Path("kernels") / "kernel.py"
SECONDS = 300.0  # to import torch and every contestant on a slow disk

# All that measures is imported, and what a suite asks of contestants is asked.
PROBE = """
import powerbench.session
from powerbench.kernels.table import available
from powerbench.suites.suite import Suite

Suite().on("cpu").cases(list(available().values()), "cpu")
"""


@dataclass(frozen=True)
class Tree:
    """One side: what to call it, the folder to run in, folders to import from, and its own caches."""

    label: str
    folder: Path
    paths: tuple[Path, ...]

    def python(self, *arguments: str, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run Python on this side, and wait for it."""
        command = [sys.executable, *arguments]
        with child(
            command, cwd=self.folder, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            said, errors = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(command, process.returncode, said, errors)

    def start(
        self, *arguments: str, errors: IO[bytes], turn: tuple[int, int]
    ) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Python on this side, its standard error into a file, with this place in a ring of turns."""
        return child(
            [sys.executable, *arguments], cwd=self.folder, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=turn,
            env=self._environment() | {turns.VARIABLE: "{},{}".format(*turn)},
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        caches = {name: str(self.folder / "cache" / name.lower()) for name in ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH")}
        caches["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "cache" / "inductor")
        found = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        path = os.pathsep.join(map(str, (self.folder, *self.paths, *found)))  # its own package comes first
        return {**os.environ, **caches, "PYTHONPATH": path, "POWERBENCH_COMMIT": self.label}


def this_tree(folder: Path) -> Tree:
    """The code as it is now, changes that are not committed included."""
    repository = _repository()
    if repository is None:
        return _tree("this", folder, PACKAGE / "kernels", ())
    label = _git(repository, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*", or_else="this")
    kernels = repository / "powerbench" / "kernels"
    if kernels.exists():
        return _tree(label, folder, kernels, ())
    return _tree(label, folder, PACKAGE / "kernels", _sources(repository))


@contextmanager
def tree_of(ref: str, folder: Path) -> Iterator[Tree]:
    """The code of a commit, in a git worktree that is removed afterwards.

    Raises UserError where the current folder is in no repository, for what is no commit of it, and for a commit whose
    kernels the present ruler cannot measure.
    """
    repository = _repository()
    if repository is None:
        raise UserError("--against: the current folder is in no git repository, so there is no other commit to measure")
    commit = _git(repository, "rev-parse", "--verify", "--quiet", "--short=12", f"{ref}^{{commit}}", or_else="")
    if not commit:
        raise UserError(f"--against: {ref!r} is no commit of {repository}")
    worktree = folder / WORKTREE
    holds_worktree_of(folder, repository)
    _git(repository, "worktree", "add", "--detach", "--force", str(worktree), commit)
    try:
        if (repository / "powerbench" / "kernels").exists():
            kernels = worktree / "powerbench" / "kernels"
            if not kernels.exists():
                raise UserError(f"--against: {commit} holds no powerbench/kernels")
            tree = _tree(commit, folder / "tree", kernels, ())
        else:
            tree = _tree(commit, folder / "tree", PACKAGE / "kernels", _sources(worktree))
        _probe(tree)
        yield tree
    finally:
        _git(repository, "worktree", "remove", "--force", str(worktree))


def _probe(tree: Tree) -> None:
    """Raise UserError where the present ruler cannot measure the tree's kernels."""
    done = tree.python("-c", PROBE, timeout_s=SECONDS)
    if done.returncode:
        raise UserError(f"--against: the present ruler cannot measure {tree.label}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """What a failed process said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("powerbench: error: ")[:300] if lines else "it said nothing"


def _tree(label: str, folder: Path, kernels: Path, paths: tuple[Path, ...]) -> Tree:
    ignore = shutil.ignore_patterns(*LEFT_OUT)
    package = folder / "powerbench"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns(*LEFT_OUT, "kernels"))
    shutil.copytree(kernels, package / "kernels", ignore=ignore)
    shutil.copyfile(PACKAGE / RECORD, package / RECORD)
    return Tree(label, folder, paths)


def _sources(repository: Path) -> tuple[Path, ...]:
    """Where a repository keeps its packages: in src, or at its top."""
    return (repository / "src", repository)


def _repository() -> Path | None:
    """The git repository of the current folder."""
    top = _git(Path.cwd(), "rev-parse", "--show-toplevel", or_else="")
    return Path(top) if top else None


def _git(folder: Path, *arguments: str, or_else: str | None = None) -> str:
    """What git prints. Raises UserError with git's own words, unless `or_else` stands for a failure."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"git: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout.strip()
    if or_else is None:
        raise UserError(f"git {arguments[0]}: {last_line(done.stderr)}")
    return or_else
