"""Every output that was asked for, from one comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from powerbench.check.model import Comparison
from powerbench.check.outputs.json import to_json
from powerbench.check.outputs.junit import junit
from powerbench.check.outputs.markdown import markdown
from powerbench.check.outputs.terminal import print_comparison
from powerbench.errors import UserError

FORMATS: dict[str, Callable[[Comparison], str]] = {"json": to_json, "junit": junit, "markdown": markdown}
STDOUT = "-"


def write(comparison: Comparison, files: Mapping[str, str | None], console: Console) -> None:
    """The table, unless another format goes to standard output; the files by format; and the job's summary on GitHub.

    Raises UserError where a file cannot be written.
    """
    asked = {format_: file for format_, file in files.items() if file is not None}
    if STDOUT not in asked.values():
        print_comparison(comparison, console)
    for format_, file in asked.items():
        text = FORMATS[format_](comparison)
        if file == STDOUT:
            console.file.write(text)
        else:
            _write(Path(file), text, "w")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        _write(Path(summary), markdown(comparison), "a")


def _write(path: Path, text: str, mode: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
