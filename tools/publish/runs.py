"""The published run files, and which of them tells what."""

from __future__ import annotations

import shlex
from functools import cached_property
from pathlib import Path

import msgspec

from powerbench.reports.curves import Group, groups
from powerbench.reports.index import page_names
from powerbench.reports.rows import Row, rows
from powerbench.results.model import Run
from powerbench.results.store import load

FOLDERS = ("h200", "cpu")

# What each part of the text is read from: the first of these runs that exists, and holds what the part asks for.
SOURCES: dict[str, tuple[str, ...]] = {
    "contexts": ("h200/paper", "h200/context"),
    "wide heads": ("h200/crossover", "h200/context-d128"),
    "refined": ("h200/refine-d128",),
    "sizes": ("h200/paper", "h200/context", "h200/crossover", "h200/context-d128", "h200/degree", "h200/p3-d32"),
    "crossings": ("h200/crossover", "h200/paper", "h200/context", "h200/context-d128"),
    "windows": ("h200/paper", "h200/degree", "h200/heads", "h200/models"),
    "fla": ("h200/fla-shapes",),
    "decoding": ("h200/decode",),
    "cpu": ("cpu/context",),
    "cpu at 64k": ("cpu/p2-64k",),
}

LONG = 65536


class Published:
    """The run files below `root`/results; each is read once. Names are those of SOURCES: h200/context."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._groups: dict[str, list[Group]] = {}

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All of them by name, the folders in the order of FOLDERS. Their paths are relative to the root."""
        found = {}
        for folder in FOLDERS:
            for path in sorted((self.root / "results" / folder).glob("*.jsonl")):
                where = path.relative_to(self.root).as_posix()
                found[f"{folder}/{path.stem}"] = msgspec.structs.replace(load(path), path=where)
        return found

    @cached_property
    def _pages(self) -> dict[str, str]:
        return dict(zip(self.runs, page_names(list(self.runs.values())), strict=True))

    def page(self, name: str) -> str:
        """The page of a run, from the root."""
        return f"reports/{self._pages[name]}.html"

    def have(self, topic: str) -> list[str]:
        """The names of a topic's runs that exist, the best first."""
        return [name for name in SOURCES[topic] if name in self.runs]

    def groups(self, name: str) -> list[Group]:
        """A run's settings."""
        if name not in self._groups:
            self._groups[name] = groups(rows(self.runs[name]))
        return self._groups[name]

    def group(self, name: str, pass_: str, head_dim: int) -> Group | None:
        """The setting with eight heads, no grouping, bf16 and gates; None where the run lacks it."""
        wanted = (pass_, "bf16", head_dim, head_dim, 8, 8, True)
        for group in self.groups(name):
            one = group.setting
            if (one.pass_, one.dtype, one.head_dim, one.value_dim, one.heads, one.kv_heads, one.gated) == wanted:
                return group
        return None

    def row(self, name: str, kernel: str, p: int | None, head_dim: int, ctx: int, pass_: str) -> Row | None:
        """The fastest trusted row of a contestant in that setting; None without one."""
        group = self.group(name, pass_, head_dim)
        curves = group.curves if group else []
        return next((c.points.get(ctx) for c in curves if (c.kernel, c.p) == (kernel, p) and ctx in c.points), None)


def command(run: Run) -> str:
    """The command that made a run, without the name of its file."""
    words = shlex.split(run.header.command)
    for option in ("-o", "--output"):
        if option in words:
            place = words.index(option)
            del words[place : place + 2]
    return shlex.join(words)
