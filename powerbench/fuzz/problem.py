"""One random problem: everything that decides it, as a line such as `p=2,d=16,e=64,dtype=fp16,T=600`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn, get_args, get_type_hints

from powerbench.errors import UserError
from powerbench.kernels.power.feature_map import d_tiles, tspow_dim
from powerbench.problem import DType

DTYPES: tuple[str, ...] = get_args(DType)
GATES = ("none", "zero", "slow", "fast", "reset", "inf")
VALUES = ("plain", "raw", "large")
LAYOUTS = ("contiguous", "heads-first", "packed", "expanded", "strided")
LOSSES = ("none", "y", "state", "both")
DECODING = ("no", "plain", "lazy")
MAX_DEGREE, MAX_STEP = 4, 16


@dataclass(frozen=True)
class FuzzProblem:
    """A call, or a chain of calls, of `power_attention` or `power_attention_step`, and the values it is made on.

    p, d, e, dtype, T, B, H, Hk, normalize: as in `power_attention`.
    chunk, d_tile: 0 leaves the choice to the operator.
    gates: none; zero; slow, logsigmoid(randn + 6.9); fast, logsigmoid(randn); reset and inf: slow, but -20 or -inf at
        about one token of a hundred.
    values: plain, standard normal, but no query is nearly orthogonal to its own key; raw, standard normal; large, the
        same with q and k sixteen times as large.
    scale: of <q, k>, in units of 1 / sqrt(d).
    layout: of q, k, v, log_g and the gradient of y; `LAYOUTS`.
    padding: zero rows of q, k, v on the left, which have no part in the loss.
    initial, final: a state comes in, a state goes out.
    loss: what is differentiated: y, the final state, both; none makes calls without gradients.
    split: tokens of a first call, from whose state a second one goes on; 0 makes one call.
    decode: no; or all tokens go through steps on a plain or a lazy state, `step` tokens each; `window` and low (a
        bfloat16 state) are those of the state.
    seed: of all values.
    """

    p: int = 2
    d: int = 64
    e: int = 64
    dtype: str = "bf16"
    T: int = 128
    chunk: int = 0
    d_tile: int = 0
    B: int = 1
    H: int = 1
    Hk: int = 1
    gates: str = "none"
    normalize: bool = True
    values: str = "plain"
    scale: float = 1.0
    layout: str = "contiguous"
    padding: int = 0
    initial: bool = False
    final: bool = False
    loss: str = "y"
    split: int = 0
    decode: str = "no"
    step: int = 1
    window: int = 16
    low: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            value in allowed or _refuse(f"{name} is {value}; allowed are {', '.join(map(str, allowed))}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            value >= least or _refuse(f"{name} is {value}; it must be at least {least}")
        self.scale > 0 or _refuse(f"scale is {self.scale}; it must be above 0")
        self.H % self.Hk == 0 or _refuse(f"Hk is {self.Hk}; it must divide H = {self.H}")
        tiles = d_tiles(self.d)
        self.d_tile in (0, *tiles) or _refuse(
            f"d_tile is {self.d_tile}; for d = {self.d} it must be one of {', '.join(map(str, tiles))}, or 0"
        )
        self.normalize and self.p % 2 and _refuse(f"normalize is true with p = {self.p}; only even p can be normalised")
        self.split < self.T or _refuse(f"split is {self.split}; it must be below T = {self.T}")
        self.padding <= self.T or _refuse(f"padding is {self.padding}; it must be at most T = {self.T}")
        self.step <= MAX_STEP or _refuse(f"step is {self.step}; it must be at most {MAX_STEP}")
        self.final or self.loss in ("none", "y") or _refuse(f"loss is {self.loss}; without final it must be none or y")
        decodes = self.decode != "no"
        (decodes and (self.loss != "none" or self.split or not self.final)) and _refuse(
            f"decode is {self.decode}; it goes with loss=none, final=true and without split"
        )
        (self.low and not (decodes and self.dtype in ("bf16", "fp16"))) and _refuse(
            "low is true; a bfloat16 state goes with decode=plain or lazy and dtype bf16 or fp16"
        )

    @property
    def gated(self) -> bool:
        """Whether log_g is given."""
        return self.gates != "none"

    def dim(self, d_tile: int) -> int:
        """Rows of a state with the tile size that `d_tile` stands for."""
        return tspow_dim(self.d, self.p, d_tile)

    def text(self) -> str:
        """The problem as `parse` reads it; fields that have their defaults are left out, except the sizes."""
        shown = [f for f in fields(self) if f.name in _SIZES or getattr(self, f.name) != f.default]
        return ",".join(f"{f.name}={_written(getattr(self, f.name))}" for f in shown)

    def but(self, **changes: Any) -> FuzzProblem:
        """The same with other values; UserError where they do not fit each other."""
        return replace(self, **changes)


def parse(text: str) -> FuzzProblem:
    """The problem of a line of `name=value` pairs with commas between. Raises UserError that says what is allowed."""
    types = get_type_hints(FuzzProblem)
    values: dict[str, Any] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        equals or _refuse(f"{pair.strip()!r} is not name=value")
        name in types or _refuse(f"there is no {name!r}; a problem has {', '.join(types)}")
        name in values and _refuse(f"{name} is given twice")
        values[name] = _read(name, value, types[name])
    return FuzzProblem(**values)


_SIZES = ("p", "d", "e", "dtype", "T", "normalize")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "p": tuple(range(1, MAX_DEGREE + 1)), "dtype": DTYPES, "gates": GATES, "values": VALUES, "layout": LAYOUTS,
    "loss": LOSSES, "decode": DECODING,
}  # fmt: skip
_LEAST = {
    "d": 1, "e": 1, "T": 1, "chunk": 0, "B": 1, "H": 1, "Hk": 1, "padding": 0, "split": 0, "step": 1, "window": 1,
    "seed": 0,
}  # fmt: skip


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _read(name: str, value: str, wanted: type) -> Any:
    if wanted is bool:
        value in ("true", "false") or _refuse(f"{name} is {value!r}; it must be true or false")
        return value == "true"
    try:
        return wanted(value)
    except ValueError:
        kind = {int: "an integer", float: "a number"}[wanted]
        raise UserError(f"problem: {name} is {value!r}; it must be {kind}") from None


def _refuse(message: str) -> NoReturn:
    raise UserError(f"problem: {message}")
