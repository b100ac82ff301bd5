"""Random problems, in groups that need the same compiled kernels: compiling is most of what a problem costs on a GPU.

A group fixes whatever kernels are compiled for: p, d, e, d_tile, dtype, gates or none, normalisation, states in and
out, what is differentiated, one chunk or several, the size of the tiles that follows from the chunk, and what Triton
specialises integers on (divisible by 16 or not, equal to 1 or not). Its problems differ in all that is left: lengths,
chunks of that size, batch, heads, strides, kinds of gates, values, splits, padding. The same seed draws the same
problems, whatever the number of processes and however fast they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from powerbench.fuzz.problem import FuzzProblem
from powerbench.kernels.power.choose import choose_d_tile
from powerbench.kernels.power.feature_map import d_tiles, tspow_dim
from powerbench.kernels.power.tiling import HEAD_DIMS


@dataclass(frozen=True)
class Limits:
    """What is drawn for a device and backend. `group`: problems of a group.

    odd_dims: head dimensions that the PyTorch backend alone takes; share_odd: of the groups.
    chunks: (smallest, largest) size of a chunk, for each size of tiles, with its share.
    decoded: tokens of a decoded sequence at most, beside four steps.
    pairs: B * H * T^2 at most; work: B * H * T * D * (e + 1) at most; state: D * (e + 1) at most, of one state, and
        STATES times as much of all chunks, sequences and heads.
    """

    dims: tuple[int, ...]
    dtypes: dict[str, float]
    chunks: dict[tuple[int, int], float]
    group: int
    longest: int
    pairs: float
    work: float
    state: float
    odd_dims: tuple[int, ...] = ()
    share_odd: float = 0.0
    heads: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    batches: tuple[int, ...] = (1, 1, 2, 3)
    share_one_chunk: float = 0.35
    decoded: int = 40


STATES = 64
ODD_DIMS = (1, 3, 8, 24, 40, 80, 96)
GPU = Limits(
    dims=HEAD_DIMS, odd_dims=ODD_DIMS, share_odd=0.04, dtypes={"bf16": 0.55, "fp16": 0.25, "fp32": 0.2},
    chunks={(1, 16): 0.08, (17, 32): 0.08, (33, 64): 0.12, (65, 128): 0.17, (129, 2048): 0.55},
    group=20, longest=10_000, pairs=2**28, work=1e11, state=2**23,
)  # fmt: skip
CPU = Limits(
    dims=(4, 16, 32), odd_dims=(1, 3, 8, 24), share_odd=0.3,
    dtypes={"bf16": 0.3, "fp16": 0.2, "fp32": 0.4, "fp64": 0.1},
    chunks={(1, 16): 0.4, (17, 64): 0.4, (65, 300): 0.2}, group=4, longest=700, pairs=2**20, work=3e8, state=2**18,
)  # fmt: skip
# Triton's interpreter takes a millisecond an operation, and gives garbage for products in bfloat16. A state of degree 3
# takes it seconds: there p = 3 and 4 are drawn without one.
INTERPRETER = Limits(
    dims=(16,),
    dtypes={"fp16": 0.5, "fp32": 0.5},
    chunks={(8, 16): 1.0},
    group=1,
    longest=40,
    pairs=2**10,
    work=6e4,
    state=2**13,
    heads=(1, 2),
    batches=(1, 1, 2),
    share_one_chunk=0.6,
    decoded=4,
)


def limits(device: str, backend: str) -> Limits:
    """What to draw for problems on a device ("cpu" or "cuda") by a backend ("auto", "torch" or "triton")."""
    if device == "cuda":
        return replace(GPU, share_odd=0.0) if backend == "triton" else GPU
    return INTERPRETER if backend == "triton" else CPU


def groups(seed: int, number: int, bounds: Limits, only: dict[str, tuple[Any, ...]]) -> Iterator[list[FuzzProblem]]:
    """`number` problems in groups. only: values to choose from, for p, d, e, dtype and d_tile (d_tile 0: any)."""
    for first in range(0, number, bounds.group):
        random = Random(f"powerbench {seed} {first // bounds.group}")
        common = _Group(random, bounds, only)
        yield [common.problem(random) for _ in range(min(bounds.group, number - first))]


class _Group:
    """What the problems of one group have in common."""

    def __init__(self, random: Random, bounds: Limits, only: dict[str, tuple[Any, ...]]) -> None:
        self.bounds = bounds
        self.decodes = random.random() < 0.18
        self.grad = not self.decodes and random.random() < 0.9
        self.gated = random.random() < 0.75
        self.chunk_range = _weighted(random, bounds.chunks)
        self.aligned = random.random() < 0.4  # lengths and chunks are multiples of 16
        self.one_chunk = random.random() < bounds.share_one_chunk
        self.initial = random.random() < 0.35
        self.final = self.decodes or random.random() < 0.4
        self.splits = not self.decodes and self.final and random.random() < 0.3
        self.one_kv_head, self.one_query = random.random() < 0.4, random.random() < 0.5
        self.steps = self._steps(random) if self.decodes else {}
        self.sizes = self._sizes(random, only)
        self.loss = random.choice(("y", "state", "both", "both")) if self.final and self.grad else "y"

    def _steps(self, random: Random) -> dict[str, Any]:
        if random.random() < 0.25:  # what `decode_tiling.walks` wants
            self.one_query = True
            return {"decode": "plain", "step": 1, "low": True}
        low = random.random() < 0.4
        return {
            "decode": random.choice(("plain", "lazy")), "step": _weighted(random, {1: 0.6, 2: 0.15, 5: 0.15, 16: 0.1}),
            "low": low,
        }  # fmt: skip

    def _sizes(self, random: Random, only: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
        """p, d, e, dtype, d_tile and normalize: drawn again until a state is small enough, where there is one."""
        bounds = self.bounds
        odd = random.random() < bounds.share_odd
        dims = bounds.odd_dims + bounds.dims if odd else bounds.dims
        for _ in range(1000):
            p = random.choice(only.get("p") or (1, 2, 2, 2, 3, 3, 4))
            d, e = random.choice(only.get("d") or dims), random.choice(only.get("e") or dims)
            dtype = random.choice(only["dtype"]) if "dtype" in only else _weighted(random, bounds.dtypes)
            tiles = [x for x in d_tiles(d) if x in only["d_tile"] or 0 in only["d_tile"]] if "d_tile" in only else None
            d_tile = random.choice(tiles if tiles is not None else [0, *d_tiles(d)]) if tiles != [] else 0
            if not self._has_state() or _state_elements(p, d, e, d_tile) <= bounds.state:
                break
        normalize = p % 2 == 0 and random.random() < 0.75
        low = self.steps.get("low", False)
        self.steps = {**self.steps, "low": low and dtype in ("bf16", "fp16")} if self.decodes else {}
        return {"p": p, "d": d, "e": e, "dtype": dtype, "d_tile": d_tile, "normalize": normalize}

    def problem(self, random: Random) -> FuzzProblem:
        """One of the group."""
        lengths = self._lengths(random)
        T = lengths["T"]
        gates = _weighted(random, {"slow": 4, "fast": 2, "zero": 1, "reset": 2, "inf": 1}) if self.gated else "none"
        values = _weighted(random, {"plain": 8, "raw": 1, "large": 1})
        if values == "large" and not self.sizes["normalize"]:
            values = "plain"  # its sums would be beyond float16
        padding = random.randrange(T) if T > 1 and random.random() < 0.08 else 0
        split = random.randrange(1, T) if self.splits and T > 1 else 0
        return FuzzProblem(
            **self.sizes, **lengths, **self._heads(random, **lengths), **self.steps, gates=gates, values=values,
            scale=_weighted(random, {1.0: 8, 0.5: 1, 1.7: 1}), initial=self.initial, final=self.final,
            layout=_weighted(random, {"contiguous": 5, "heads-first": 2, "packed": 2, "expanded": 1, "strided": 1}),
            loss="none" if not self.grad else self.loss, padding=padding, split=split, seed=random.randrange(2**31),
        )  # fmt: skip

    def _lengths(self, random: Random) -> dict[str, Any]:
        """T and chunk."""
        least, most = self.chunk_range
        longest = min(self.bounds.longest, int(self.bounds.pairs**0.5))
        if self.decodes:
            step = self.steps["step"]
            T = random.randint(1, min(longest, 4 * step + self.bounds.decoded))
            return {
                "T": T,
                "window": random.choice((step, step + 3, 8, 16, 64)) if self.steps["decode"] == "lazy" else 16,
            }
        chunk = self._multiple(_log_uniform(random, least, min(most, longest)), random)
        if self.one_chunk:
            auto = chunk <= 1000 and not self.initial and not self.final and random.random() < 0.3
            return {"T": chunk, "chunk": 0 if auto else chunk + random.choice((0, 0, 1, 5, 1000))}
        number = random.randint(2, 4) if random.random() < 0.8 else random.randint(5, 20)
        last = random.randint(1, chunk)
        T = self._multiple(min(longest, (number - 1) * chunk + last), random)
        return {"T": max(T, chunk + 1), "chunk": chunk}

    def _multiple(self, length: int, random: Random) -> int:
        """The length, as a multiple of 16 where the group has those, else none."""
        if self.aligned and self.chunk_range[1] >= 16:
            return max(16, length // 16 * 16)
        return length if length % 16 or length < 16 else length - random.randint(1, 15)

    def _has_state(self) -> bool:
        return not self.one_chunk or self.initial or self.final

    def _heads(self, random: Random, T: int, chunk: int = 0, **_: int) -> dict[str, Any]:
        """B, H and Hk, as large as the length leaves room for."""
        bounds = self.bounds
        Hk = 1 if self.one_kv_head else random.choice([h for h in bounds.heads if h > 1])
        group = 1 if self.one_query else random.choice((2, 3, 4))
        B = random.choice(bounds.batches)
        state = _state_elements(*(self.sizes[name] for name in ("p", "d", "e", "d_tile"))) if self._has_state() else 0
        states = state * -(-T // (chunk or T))
        for smaller in ({}, {"B": 1}, {"group": min(group, 2)}, {"Hk": min(Hk, 2)}, {"group": 1}, {"Hk": 1}):
            B, Hk, group = smaller.get("B", B), smaller.get("Hk", Hk), smaller.get("group", group)
            H = Hk * group
            fits = bounds.pairs >= B * H * T**2 and B * H * T * state <= bounds.work
            if fits and B * Hk * states <= STATES * bounds.state:
                break
        return {"B": B, "H": H, "Hk": Hk}


def _state_elements(p: int, d: int, e: int, d_tile: int) -> int:
    return tspow_dim(d, p, d_tile or choose_d_tile(p, d, "cuda")) * (e + 1)


def _weighted(random: Random, shares: dict[Any, float]) -> Any:
    return random.choices(list(shares), list(shares.values()))[0]


def _log_uniform(random: Random, least: int, most: int) -> int:
    drawn: float = least * (most / least) ** random.random()
    return min(most, max(least, round(drawn)))
