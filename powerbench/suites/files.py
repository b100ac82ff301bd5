"""Suites in TOML files: the presets beside this module, and a user's own, strictly validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from powerbench.suites.grammar import SelectorError, toml
from powerbench.suites.keys import DESCRIPTIONS, SELECTORS, attribute, parse
from powerbench.suites.suite import Suite

BLOCK = "block"
MODEL = "model"  # in the place of these keys, a model of `powerbench list models`
OF_MODEL = ("heads", "kv_heads", "head_dim")
OPPOSITE = {"batch": "tokens", "tokens": "batch"}


def presets() -> dict[str, Path]:
    """The preset suites by name: the TOML files beside this module."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def chosen(selectors: Mapping[str, Any]) -> Suite:
    """The suite of the command line: the one its `suite` names, or none, with the other selectors replaced.

    Raises SelectorError, one line that names the option or the file, for anything that is bad whatever the device.
    """
    rest = dict(selectors)
    suite = (load(rest.pop("suite")) if "suite" in rest else Suite()).override(rest)
    suite.check()
    return suite


def load(name_or_file: str) -> Suite:
    """A preset by name or a user's TOML file.

    Raises SelectorError, one line with the file, the key (and which block it is in) and what is allowed.
    """
    path = presets().get(name_or_file, Path(name_or_file))
    if path.suffix != ".toml":
        raise SelectorError(f"--suite: {name_or_file!r} is neither a TOML file nor one of {', '.join(presets())}")
    data = toml(path, name_or_file)
    blocks = data.pop(BLOCK, [])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise SelectorError(f"{name_or_file}: {BLOCK} must be written as [[{BLOCK}]], once for each block")
    shared = _values(data, (*DESCRIPTIONS, *SELECTORS, MODEL), name_or_file, f", and tables [[{BLOCK}]]")
    whole = Suite(**{"name": path.stem, "kernels_from": f"{name_or_file}: kernels", **shared})
    parts = []
    for number, table in enumerate(blocks, 1):
        where = f"{name_or_file}: {BLOCK} {number}"
        own = _values(table, (*SELECTORS, MODEL), where)
        for key in OF_MODEL if MODEL in data and MODEL not in table else ():
            if key in table:
                raise SelectorError(f"{where}: {key} and the {MODEL} above the blocks exclude each other")
        inherited = {key: value for key, value in shared.items() if OPPOSITE.get(key) not in own}
        parts.append(Suite(**{"name": path.stem, **inherited, **own}))
        parts[-1].check(where)
    whole = whole.of_blocks(tuple(parts)) if parts else whole
    whole.check(name_or_file)
    return whole


def _values(table: Mapping[str, Any], allowed: tuple[str, ...], where: str, more: str = "") -> dict[str, Any]:
    """The keys of a file or of one block as attributes of a `Suite`."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in allowed:
            raise SelectorError(f"{where}: unknown key {key!r}; allowed are {', '.join(allowed)}{more}")
        found |= (
            _of_model(value, table, where) if key == MODEL else {attribute(key): parse(key, value, f"{where}: {key}")}
        )
    if "batch" in found and "tokens" in found:
        raise SelectorError(f"{where}: batch and tokens exclude each other")
    return found


def _of_model(name: Any, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The attention of a model: its heads and their width."""
    from powerbench.models import presets as models  # noqa: PLC0415  which itself reads the selector grammar

    shapes = models()
    if not isinstance(name, str) or name not in shapes:
        raise SelectorError(f"{where}: {MODEL}: {name!r} is not one of {', '.join(shapes)}")
    for key in OF_MODEL:
        if key in table:
            raise SelectorError(f"{where}: {MODEL} and {key} exclude each other")
    return {key: (getattr(shapes[name], key),) for key in OF_MODEL}
