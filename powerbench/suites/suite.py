"""The `Suite`: which cases a sweep covers, and what each device gets where the user does not choose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, product
from typing import TYPE_CHECKING, Any

import msgspec

from powerbench.problem import Case, Params, Problem
from powerbench.suites.grammar import SelectorError
from powerbench.suites.keys import attribute, parse

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


class Suite(msgspec.Struct, frozen=True, rename={"pass_": "pass"}):
    """Selectors of a sweep; their product, less what no kernel takes, is its cases. None: the device's default.

    A suite of `blocks` is the union of their cases; of its own selectors only dtype and kernels count, theirs together.
    `minutes`: predicted for one NVIDIA H200 (`tests/test_presets.py`). `shows`: what to look for on the page.
    """

    name: str = "sweep"
    purpose: str = ""
    shows: str = ""
    minutes: int | None = None
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
    blocks: tuple[Suite, ...] = ()
    kernels_from: str = "--kernels"  # where the names stand, for whoever knows which there are

    @property
    def parts(self) -> tuple[Suite, ...]:
        """Suites without blocks whose union this is."""
        return self.blocks or (self,)

    def of_blocks(self, blocks: tuple[Suite, ...]) -> Suite:
        """This suite as the union of `blocks`; None among their dtypes or kernels: the device's default for all."""
        return msgspec.structs.replace(
            self,
            blocks=blocks,
            dtype=_union(block.dtype for block in blocks),
            kernels=_union(block.kernels for block in blocks),
        )

    def override(self, selectors: Mapping[str, Any]) -> Suite:
        """This suite with some selectors replaced, each given as text (see `powerbench.suites.grammar`) or a bool."""
        parsed = {key: parse(key, value, _option(key)) for key, value in selectors.items()}
        if "batch" in parsed and "tokens" in parsed:
            raise SelectorError("--batch and --tokens exclude each other: one keeps B, the other B*T constant")
        given = parsed.keys() & {"batch", "tokens"}
        if given:
            parsed |= dict.fromkeys({"batch", "tokens"} - given)  # the suite's own must not outlive its opposite
        blocks = tuple(block.override(selectors) for block in self.blocks)
        values = {attribute(key): value for key, value in parsed.items()}
        if "kernels" in parsed:
            values["kernels_from"] = _option("kernels")
        return msgspec.structs.replace(self, **values, blocks=blocks)

    def on(self, device_type: str) -> Suite:
        """This suite with the device's defaults where it leaves a choice."""
        if self.blocks:
            return self.of_blocks(tuple(block.on(device_type) for block in self.blocks))
        defaults = DEVICE_DEFAULTS[device_type]
        filled = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        return msgspec.structs.replace(self, **filled, kernels=self.kernels or AUTO_KERNELS[device_type])

    def check(self, where: str = "") -> None:
        """Raise SelectorError where selectors contradict each other, on every device alike.

        `where`: the file they stand in; empty: they are options.
        """
        for block in self.blocks:
            block.check(where)
        if self.blocks:
            return
        for tile in self.d_tile:
            if tile is not None and all(d % tile for d in self.head_dim):
                dims = " or ".join(map(str, self.head_dim))
                fits = sorted({t for d in self.head_dim for t in range(1, d + 1) if d % t == 0})
                name = f"{where}: d_tile" if where else _option("d_tile")
                allowed = ", ".join(map(str, fits))
                raise SelectorError(f"{name}: {tile} does not divide head dimension {dims}; allowed are {allowed}")
        if self.heads and self.kv_heads and all(h % kv for h, kv in product(self.heads, self.kv_heads)):
            name = f"{where}: kv_heads" if where else _option("kv_heads")
            raise SelectorError(f"{name}: {_listed(self.kv_heads)} divides none of heads {_listed(self.heads)}")

    def problems(self) -> Iterator[Problem]:
        """The problems, each once, block by block and in each smallest context first. Call it on what `on` returned."""
        if self.blocks:
            yield from dict.fromkeys(chain.from_iterable(block.problems() for block in self.blocks))
            return
        assert self.ctx
        assert self.heads
        assert self.dtype
        tokens = self.tokens or max(self.ctx)
        found = False
        grid = product(self.dtype, self.head_dim, self.heads, self.batch or (None,), sorted(self.ctx))
        for dtype, head_dim, heads, given, ctx in grid:
            for value_dim, kv_heads in product(self.value_dim or (head_dim,), self.kv_heads or (heads,)):
                if heads % kv_heads:
                    continue
                found = True
                batch = given or max(1, tokens // ctx)
                yield Problem(batch, ctx, heads, kv_heads, head_dim, value_dim, dtype, self.gated)  # type: ignore[arg-type]
        if not found:
            assert self.kv_heads
            raise SelectorError(f"--kv-heads: {_listed(self.kv_heads)} divides none of heads {_listed(self.heads)}")

    def cases(self, kernels: Sequence[Kernel], device_type: str) -> list[Case]:
        """Every case, problem by problem so that its contestants share inputs, each once, in a fixed order."""
        cases: dict[Problem, dict[Case, None]] = {problem: {} for problem in self.problems()}
        for block in self.parts:
            # Of a suite without blocks `kernels` are those that it names.
            named = [k for k in kernels if not self.blocks or {k.name, k.family} & set(block.kernels or ())]
            for problem in block.problems():
                cases[problem].update(dict.fromkeys(block._of_problem(problem, named, device_type)))
        return list(chain.from_iterable(cases.values()))

    def _of_problem(self, problem: Problem, kernels: Sequence[Kernel], device_type: str) -> Iterator[Case]:
        for kernel, pass_ in product(kernels, self.pass_):
            for p, tile, chunk in product(self.p, self.d_tile, self.chunk):
                wanted = Params(
                    p if "p" in kernel.takes else None,
                    tile if "d_tile" in kernel.takes else None,
                    chunk if "chunk_size" in kernel.takes else None,
                )
                params, _ = kernel.settle(problem, wanted, pass_, device_type)  # type: ignore[arg-type]
                yield Case(problem, kernel.name, params, pass_)  # type: ignore[arg-type]


def _union(values: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """All that are named, once; None where one leaves it to the device."""
    found = list(values)
    if None in found:
        return None
    return tuple(dict.fromkeys(chain.from_iterable(value for value in found if value)))


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
