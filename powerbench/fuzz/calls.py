"""The calls of a random problem, by a backend of the operator or by the reference: results and gradients by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from powerbench.fuzz.exact import State, exact
from powerbench.fuzz.inputs import TORCH_DTYPES, Values
from powerbench.fuzz.problem import FuzzProblem
from powerbench.kernels.power.choose import choose_d_tile
from powerbench.kernels.power.decode import LazyState, fold_lazy_state, power_attention_step
from powerbench.kernels.power.feature_map import feature_map, tspow_dim
from powerbench.kernels.power.op import Backend, PowerState, power_attention

Results = dict[str, Tensor]  # y, s, z; dq, dk, dv, dlog_g, and ds, dz of the initial state
Attention = Callable[..., tuple[Tensor, State | None]]
Parts = tuple[Tensor | None, ...]


def d_tile_of(problem: FuzzProblem, device: torch.device) -> int:
    """The tile size that the problem's states have."""
    return problem.d_tile or choose_d_tile(problem.p, problem.d, device.type)


def results(problem: FuzzProblem, values: Values, d_tile: int, backend: Backend) -> Results:
    """What the operator returns, and its gradients."""
    if problem.decode != "no":
        return _steps(problem, values, d_tile, backend)

    def attention(*inputs: Tensor | None, state: State | None, final: bool) -> tuple[Tensor, State | None]:
        done = power_attention(
            *inputs,
            p=problem.p,
            chunk_size=problem.chunk or None,
            d_tile=problem.d_tile or None,
            scale=problem.scale * problem.d**-0.5,
            normalize=problem.normalize,
            initial_state=None if state is None else PowerState(*state),
            return_state=final,
            backend=backend,
        )
        return done if final else (done, None)

    return _differentiated(problem, values, attention, problem.split)


def wanted(problem: FuzzProblem, values: Values, d_tile: int) -> Results:
    """The same by `exact`, in one call whatever the splits and steps."""

    def attention(*inputs: Tensor | None, state: State | None, final: bool) -> tuple[Tensor, State | None]:
        scale = problem.scale * problem.d**-0.5
        return exact(*inputs, state, p=problem.p, d_tile=d_tile, scale=scale, normalize=problem.normalize, final=final)

    return _differentiated(problem, doubled(values), attention, 0)


def doubled(values: Values) -> Values:
    """The same in float64."""
    return Values(**{name: _double(x) for name, x in vars(values).items()})


def _double(x: Tensor | State | None) -> Tensor | State | None:
    return tuple(map(_double, x)) if isinstance(x, tuple) else x if x is None else x.double()


def _differentiated(problem: FuzzProblem, values: Values, attention: Attention, split: int) -> Results:
    """y and the state of one call, or of two on the parts of a split sequence; and their gradients."""
    inputs = {"q": values.q, "k": values.k, "v": values.v, "log_g": values.log_g}
    inputs |= dict(zip(("s", "z"), values.state or (None, None), strict=True))
    leaves = {name: x.detach().requires_grad_(problem.loss != "none") for name, x in inputs.items() if x is not None}
    state = (leaves["s"], leaves["z"]) if values.state else None
    ys = []
    for start, end in ((0, split), (split, problem.T)):
        if start < end:
            part = (leaves[n][:, start:end] if n in leaves else None for n in ("q", "k", "v", "log_g"))
            y, state = attention(*part, state=state, final=problem.final or end < problem.T)
            ys.append(y)
    found = {"y": ys[0] if len(ys) == 1 else torch.cat(ys, dim=1)}
    if problem.final:
        assert state is not None
        found |= {"s": state[0], "z": state[1]}
    if problem.loss == "none":
        return found
    losses = [(found["y"], values.dy)] if problem.loss in ("y", "both") else []
    if values.dstate is not None:
        losses += zip((found["s"], found["z"]), values.dstate, strict=True)
    outputs, incoming = zip(*losses, strict=True)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), incoming, allow_unused=True)
    found = {name: x.detach() for name, x in found.items()}
    return found | {
        f"d{name}": torch.zeros_like(leaf) if x is None else x
        for (name, leaf), x in zip(leaves.items(), gradients, strict=True)
    }


def class_sums(gradient: Tensor, problem: FuzzProblem, d_tile: int) -> Tensor:
    """The gradient of a state [B, Hk, D, ...] in float64, summed over the rows that stand for one multiset of indices.

    These rows are equal in every state, so that a change of one alone means nothing; how a backend shares the gradient
    out between them is its own affair.
    """
    indices = np.sort(feature_map(problem.d, problem.p, d_tile).indices.astype(np.int64), axis=1)
    keys = indices @ problem.d ** np.arange(problem.p, dtype=np.int64)
    classes = torch.from_numpy(np.unique(keys, return_inverse=True)[1].reshape(-1)).to(gradient.device)
    shape = (*gradient.shape[:2], int(classes.max()) + 1, *gradient.shape[3:])
    return gradient.new_zeros(shape, dtype=torch.float64).index_add_(2, classes, gradient.double())


def _steps(problem: FuzzProblem, values: Values, d_tile: int, backend: Backend) -> Results:
    """All tokens through `power_attention_step`, in place for every other seed."""
    in_place = problem.seed % 2 == 1
    state: PowerState | LazyState = _first_state(problem, values, d_tile)
    if in_place:
        state = PowerState(state.s.clone(), state.z.clone())
    before = [x.clone() for x in state]
    begun = state
    if problem.decode == "lazy":
        state = LazyState.begin(state, problem.d, values.q.dtype, problem.window)
    ys = []
    for start in range(0, problem.T, problem.step):
        part = (None if x is None else x[:, start : start + problem.step] for x in _tokens(values))
        y, state = power_attention_step(
            *part, state, p=problem.p, d_tile=problem.d_tile or None, scale=problem.scale * problem.d**-0.5,
            normalize=problem.normalize, in_place=in_place, backend=backend,
        )  # fmt: skip
        ys.append(y)
    if not in_place and not all(torch.equal(x, y) for x, y in zip(begun, before, strict=True)):
        raise AssertionError("the state that came in was changed, without in_place")
    if isinstance(state, LazyState):
        state = fold_lazy_state(state, p=problem.p, d_tile=problem.d_tile or None)
    return {"y": torch.cat(ys, dim=1), "s": state.s, "z": state.z}


def _tokens(values: Values) -> Parts:
    return values.q, values.k, values.v, values.log_g


def _first_state(problem: FuzzProblem, values: Values, d_tile: int) -> PowerState:
    if values.state is None:
        shape = problem.B, problem.Hk, tspow_dim(problem.d, problem.p, d_tile)
        wide = torch.promote_types(TORCH_DTYPES[problem.dtype], torch.float32)
        s, z = (torch.zeros(*shape, *rest, dtype=wide, device=values.q.device) for rest in ((problem.e,), ()))
    else:
        s, z = values.state
    return PowerState(s.to(torch.bfloat16) if problem.low else s, z)
