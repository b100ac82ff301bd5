"""The `Suite`: which cases a sweep covers, and what each device gets where the user does not choose."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from powerbench.problem import DTYPES, PASSES, Case, Params, Problem
from powerbench.suites.grammar import SelectorError, count, counts, counts_or_auto, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powerbench.kernels.kernel import Kernel

# What a selector means where neither the command line nor the suite names it. The CPU's are sized so that a sweep of
# its defaults, or of one context up to 64k, ends within two minutes on two cores.
DEVICE_DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"ctx": (1024, 2048, 4096, 8192, 16384), "heads": (1,), "dtype": ("fp32",)},
    "cuda": {"ctx": (1024, 2048, 4096, 8192, 16384, 32768, 65536), "heads": (8,), "dtype": ("bf16",)},
}
AUTO_KERNELS: dict[str, tuple[str, ...]] = {
    "cpu": ("power-torch", "linear-torch", "sdpa-cpu"),
    "cuda": ("power-triton", "linear-triton", "sdpa-flash", "sdpa-cudnn", "flash", "fla"),
}

# key -> parser of its text; the one table behind the command line's options and the TOML keys
_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "p": counts,
    "ctx": counts,
    "chunk": counts_or_auto,
    "d_tile": counts_or_auto,
    "head_dim": counts,
    "value_dim": counts,
    "heads": counts,
    "kv_heads": counts,
    "batch": counts,
    "tokens": count,
    "dtype": lambda text, name: words(text, name, DTYPES),
    "pass": lambda text, name: words(text, name, PASSES),
    "kernels": words,
}
_PLAIN = {"name": str, "purpose": str, "gated": bool}


class Suite(msgspec.Struct, frozen=True, rename={"pass_": "pass"}):
    """Selectors of a sweep; their product, less what no kernel takes, is its cases. None: the device's default."""

    name: str = "sweep"
    purpose: str = ""
    p: tuple[int, ...] = (2,)
    ctx: tuple[int, ...] | None = None
    chunk: tuple[int | None, ...] = (None,)
    d_tile: tuple[int | None, ...] = (None,)
    head_dim: tuple[int, ...] = (64,)
    value_dim: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    kv_heads: tuple[int, ...] | None = None
    batch: tuple[int, ...] | None = None
    tokens: int | None = None
    dtype: tuple[str, ...] | None = None
    pass_: tuple[str, ...] = ("fwd",)
    kernels: tuple[str, ...] | None = None
    gated: bool = True

    def override(self, selectors: Mapping[str, Any]) -> Suite:
        """This suite with some selectors replaced, each given as text (see `powerbench.suites.grammar`) or a bool."""
        parsed = {key: _parse(key, value, f"--{key.replace('_', '-')}") for key, value in selectors.items()}
        if "batch" in parsed and "tokens" in parsed:
            raise SelectorError("--batch and --tokens exclude each other: one keeps B, the other B*T constant")
        given = parsed.keys() & {"batch", "tokens"}
        if given:
            parsed |= dict.fromkeys({"batch", "tokens"} - given)  # the suite's own must not outlive its opposite
        return msgspec.structs.replace(self, **{"pass_" if key == "pass" else key: v for key, v in parsed.items()})

    def on(self, device_type: str) -> Suite:
        """This suite with the device's defaults where it leaves a choice."""
        defaults = DEVICE_DEFAULTS[device_type]
        filled = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        return msgspec.structs.replace(self, **filled, kernels=self.kernels or AUTO_KERNELS[device_type])

    def check(self) -> None:
        """Raise SelectorError where selectors contradict each other, on every device alike."""
        for tile in self.d_tile:
            if tile is not None and all(d % tile for d in self.head_dim):
                dims = " or ".join(map(str, self.head_dim))
                fits = sorted({t for d in self.head_dim for t in range(1, d + 1) if d % t == 0})
                raise SelectorError(
                    f"--d-tile: {tile} does not divide head dimension {dims}; allowed are {', '.join(map(str, fits))}"
                )

    def problems(self) -> Iterator[Problem]:
        """The problems, smallest context first. Call it on what `on` returned."""
        assert self.ctx
        assert self.heads
        assert self.dtype
        tokens = self.tokens or max(self.ctx)
        grid = product(self.dtype, self.head_dim, self.heads, self.batch or (None,), sorted(self.ctx))
        found = False
        for dtype, head_dim, heads, given, ctx in grid:
            for value_dim, kv_heads in product(self.value_dim or (head_dim,), self.kv_heads or (heads,)):
                if heads % kv_heads:
                    continue
                found = True
                batch = given or max(1, tokens // ctx)
                yield Problem(batch, ctx, heads, kv_heads, head_dim, value_dim, dtype, self.gated)  # type: ignore[arg-type]
        if not found:
            raise SelectorError(f"--kv-heads: {self.kv_heads} divides none of --heads {self.heads}")

    def cases(self, kernels: Sequence[Kernel], device_type: str) -> list[Case]:
        """Every case, problem by problem so that its contestants share inputs, each once, in a fixed order."""
        cases: dict[Case, None] = {}
        for problem in self.problems():
            for kernel, pass_ in product(kernels, self.pass_):
                for p, tile, chunk in product(self.p, self.d_tile, self.chunk):
                    wanted = Params(
                        p if "p" in kernel.takes else None,
                        tile if "d_tile" in kernel.takes else None,
                        chunk if "chunk_size" in kernel.takes else None,
                    )
                    params = kernel.resolved(problem, wanted, pass_, device_type)
                    cases[Case(problem, kernel.name, params, pass_)] = None  # type: ignore[arg-type]
        return list(cases)


def _parse(key: str, value: Any, name: str) -> Any:
    """One selector's value from TOML or from the command line. Raises SelectorError with `name` in it."""
    if key in _PLAIN:
        if not isinstance(value, _PLAIN[key]):
            raise SelectorError(f"{name}: {value!r} must be a {'text' if _PLAIN[key] is str else 'true or false'}")
        return value
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SelectorError(f"{name}: {value!r} must be a number, a text such as '1k..64k', or a list of them")
    return _PARSERS[key](str(value), name)


def chosen(selectors: Mapping[str, Any]) -> Suite:
    """The suite of the command line: the one its `suite` names, or none, with the other selectors replaced.

    Raises SelectorError, one line that names the option or the file, for anything that is bad whatever the device.
    """
    rest = dict(selectors)
    suite = (load(rest.pop("suite")) if "suite" in rest else Suite()).override(rest)
    suite.check()
    return suite


def presets() -> dict[str, Path]:
    """The preset suites by name: the TOML files beside this module."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def load(name_or_file: str) -> Suite:
    """A preset by name or a user's TOML file, strictly validated.

    Raises SelectorError, one line with the file, the key and what is allowed.
    """
    path = presets().get(name_or_file, Path(name_or_file))
    if path.suffix != ".toml":
        raise SelectorError(f"--suite: {name_or_file!r} is neither a TOML file nor one of {', '.join(presets())}")
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SelectorError(f"{name_or_file}: {reason}") from None
    allowed = [*_PLAIN, *_PARSERS]
    parsed = {}
    for key, value in data.items():
        if key not in allowed:
            raise SelectorError(f"{name_or_file}: unknown key {key!r}; allowed are {', '.join(allowed)}")
        parsed["pass_" if key == "pass" else key] = _parse(key, value, f"{name_or_file}: {key}")
    if parsed.get("batch") and parsed.get("tokens"):
        raise SelectorError(f"{name_or_file}: batch and tokens exclude each other")
    return Suite(**{"name": path.stem, **parsed})
