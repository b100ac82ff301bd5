"""What a sweep covers: the selector grammar, the `Suite`, and presets as TOML files beside this one."""

from powerbench.suites.files import chosen, load, presets
from powerbench.suites.grammar import SelectorError
from powerbench.suites.suite import Suite

__all__ = ["SelectorError", "Suite", "chosen", "load", "presets"]
