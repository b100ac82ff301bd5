"""Every output that was asked for, from one comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from rich.console import Console

from powerbench import outputs
from powerbench.check.model import Comparison
from powerbench.check.outputs.json import to_json
from powerbench.check.outputs.junit import junit
from powerbench.check.outputs.markdown import markdown
from powerbench.check.outputs.terminal import print_comparison
from powerbench.errors import UserError
from powerbench.streams import write_json

FORMATS: dict[str, Callable[[Comparison], str]] = {"json": to_json, "junit": junit, "markdown": markdown}
STDOUT = "-"
SUMMARY = "GITHUB_STEP_SUMMARY"


def write(comparison: Comparison, files: Mapping[str, str | None], console: Console) -> None:
    """The files by format and the job's summary on GitHub, then the table, unless a format goes to standard output.

    Raises UserError where a file cannot be written, after all else was.
    """
    asked = {format_: file for format_, file in files.items() if file is not None}
    texts = {format_: FORMATS[format_](comparison) for format_ in asked}
    failed = []
    for format_, file in asked.items():
        if file != STDOUT:
            failed += _failure(partial(outputs.write, file, texts[format_]))
    summary = summary_file()
    if summary and summary != asked.get("markdown"):
        failed += _failure(partial(outputs.append, summary, markdown(comparison)))
    if STDOUT not in asked.values():
        print_comparison(comparison, console)
    for format_, file in asked.items():
        if file == STDOUT:
            (write_json if format_ == "json" else console.file.write)(texts[format_])
    if failed:
        console.file.flush()
        raise failed[0]


def check_files(files: Mapping[str, str | None], inputs: Iterable[str]) -> None:
    """Raise UserError, before any work, where a file cannot be written or is one of the inputs."""
    named = {f"--{format_}": file for format_, file in files.items() if file != STDOUT}
    if sum(file == STDOUT for file in files.values()) > 1:
        raise UserError("standard output, -, takes one of --json, --junit and --markdown")
    summary = summary_file()
    if summary and summary not in named.values():
        named[SUMMARY] = summary
    outputs.check(named, inputs)


def summary_file() -> str | None:
    """Where GitHub wants the summary of the job."""
    return os.environ.get(SUMMARY) or None


def _failure(write: Callable[[], None]) -> list[UserError]:
    try:
        write()
    except UserError as error:
        return [error]
    return []
