"""JSON: the comparison as it is, with the exit status and what follows from it."""

from __future__ import annotations

import msgspec

from powerbench.check.model import Comparison
from powerbench.printable import printable_json

SCHEMA_VERSION = 1


def to_json(comparison: Comparison) -> str:
    """Indented; the names are those of `powerbench.check.model` and a contract."""
    content = {
        "schema": SCHEMA_VERSION,
        "exit_status": comparison.exit_status,
        "summary": comparison.summary,
        "counts": comparison.counts,
        **msgspec.structs.asdict(comparison),
    }
    return printable_json(msgspec.json.format(msgspec.json.encode(content), indent=2).decode()) + "\n"
