"""From the options of `powerbench wsfr`, as text, to the analysis they ask for."""

from __future__ import annotations

from collections.abc import Mapping

from powerbench.bounds import LARGEST
from powerbench.errors import UserError
from powerbench.models import chosen
from powerbench.reports.wsfr_rows import Analysis
from powerbench.suites.grammar import count, counts
from powerbench.wsfr import variants

_SHAPE = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab", "mlp_matrices")
_SIZES = ("window", "full_every", "chunk")


def analysis(selected: Mapping[str, str]) -> Analysis:
    """`selected` holds the options by name, with `-` as `_`: ctx, p, mode and dtype always, the others where given.

    Raises UserError, one line that names the option, what it was and what is allowed.
    """
    numbers = {
        name: count(selected[name], _option(name), LARGEST[name]) for name in (*_SHAPE, *_SIZES) if name in selected
    }
    model = chosen(selected.get("preset"), {name: numbers[name] for name in _SHAPE if name in numbers})
    if "chunk" in numbers and selected["mode"] == "decode":
        raise UserError("--chunk: decoding goes token by token and has no chunks; it goes with --mode prefill")
    sizes = {name: numbers[name] for name in _SIZES if name in numbers}
    degrees = counts(selected["p"], "--p", LARGEST["p"])
    contexts = counts(selected["ctx"], "--ctx")
    return Analysis(model, variants(model, degrees, **sizes), contexts, selected["mode"], selected["dtype"])  # type: ignore[arg-type]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
