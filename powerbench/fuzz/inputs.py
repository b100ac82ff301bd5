"""The values of a random problem: tensors of its dtype and strides on a device, the same on every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from powerbench.fuzz.exact import State, exact
from powerbench.fuzz.problem import FuzzProblem

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
OWN_SCORE = (
    0.5  # of a query with its own key at least, in units of what is usual: 1 / <q, k> bounds errors of gradients
)
LARGE = 16.0
RESETS = 0.01  # of the tokens
PAST_TOKENS = 48  # of which an initial state is made


@dataclass(frozen=True)
class Values:
    """Inputs and the gradients that come in; log_g and the states in float32 (float64 for fp64). None: has none."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None
    state: State | None
    dy: Tensor
    dstate: State | None


def make_values(problem: FuzzProblem, d_tile: int, device: torch.device) -> Values:
    """All values of a problem. d_tile: the one that its states have."""
    random = torch.Generator().manual_seed(problem.seed)
    dtype = TORCH_DTYPES[problem.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    B, T, H, Hk = problem.B, problem.T, problem.H, problem.Hk
    size = LARGE if problem.values == "large" else 1.0

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    q, k, v = normal(B, T, H, problem.d), normal(B, T, Hk, problem.d), normal(B, T, Hk, problem.e)
    dy = normal(B, T, H, problem.e)
    log_g = _gates(problem, normal(B, T, Hk), torch.rand(B, T, Hk, generator=random))
    if problem.layout == "expanded":
        k, v, dy = (x[:, :, :1].expand_as(x).clone() for x in (k, v, dy))
        log_g = None if log_g is None else log_g[:, :, :1].expand_as(log_g)
    if problem.values != "raw":
        q = _away_from_orthogonal(q, k)
    for x in (q, k, v, dy):
        x[:, : problem.padding] = 0.0
    q, k, v, dy = lay_out(problem.layout, [x.to(device) for x in (size * q, size * k, v, dy)], dtype)
    if log_g is not None:
        (log_g,) = lay_out(problem.layout, [log_g.to(device, wide)], wide)
    state = dstate = None
    if problem.initial:
        past_k, past_v = normal(B, PAST_TOKENS, Hk, problem.d).double(), normal(B, PAST_TOKENS, Hk, problem.e).double()
        state = _past(problem, d_tile, (size * past_k).to(device), past_v.to(device))
        state = state[0].to(wide), state[1].to(wide)
    if problem.final and problem.loss in ("state", "both"):
        dim = problem.dim(d_tile)
        share = (dim * problem.e) ** -0.5  # so that gradients through the state are of the size of those through y
        dstate = tuple((share * normal(B, Hk, dim, *rest)).to(device, wide) for rest in ((problem.e,), ()))
    return Values(q, k, v, log_g, state, dy, dstate)


def _gates(problem: FuzzProblem, raw: Tensor, chance: Tensor) -> Tensor | None:
    if problem.gates == "none":
        return None
    if problem.gates == "zero":
        return torch.zeros_like(raw)
    log_g = logsigmoid(raw if problem.gates == "fast" else raw + 6.9)
    if problem.gates in ("reset", "inf"):
        chance[:, problem.T // 2] = 0.0  # at least one, also in a short sequence
        log_g = log_g.masked_fill(chance < RESETS, -20.0 if problem.gates == "reset" else -torch.inf)
    return log_g


def _away_from_orthogonal(q: Tensor, k: Tensor) -> Tensor:
    own = torch.nn.functional.normalize(k, dim=-1).repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    along = (q * own).sum(-1, keepdim=True)
    wanted = torch.where(along < 0, along.clamp(max=-OWN_SCORE), along.clamp(min=OWN_SCORE))
    return q + own * (wanted - along)


def _past(problem: FuzzProblem, d_tile: int, k: Tensor, v: Tensor) -> State:
    _, state = exact(
        k, k, v, None, None, p=problem.p, d_tile=d_tile, scale=1.0, normalize=False, final=True
    )  # fmt: skip
    assert state is not None
    return state


def lay_out(layout: str, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The same values [B, T, heads, ...] in `dtype`, in memory as the layout says."""
    if layout == "heads-first":
        return [x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    if layout == "packed":  # as one projection makes q, k and v; rows with a gap between them
        flat = [x.to(dtype).flatten(2) for x in tensors]
        whole = torch.cat([*flat, flat[0][..., :1].expand(*flat[0].shape[:2], 16)], dim=-1)
        parts = whole.split([*(x.shape[-1] for x in flat), 16], dim=-1)
        return [part.view(x.shape) for part, x in zip(parts, tensors, strict=False)]
    if layout == "strided":
        return [x.to(dtype).repeat_interleave(2, dim=-1)[..., ::2] for x in tensors]
    if layout == "expanded":
        return [_expanded(x.to(dtype)) for x in tensors]
    return [x.to(dtype).contiguous() for x in tensors]


def _expanded(x: Tensor) -> Tensor:
    """Where all heads are equal, one of them seen as many."""
    one = x[:, :, :1].contiguous()
    return one.expand_as(x) if torch.equal(one.expand_as(x), x) else x.contiguous()
