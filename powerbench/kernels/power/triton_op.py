"""Power attention in Triton as PyTorch sees it: two operators, the shapes of their results, and their gradients.

`torch.ops.powerbench.power_attention` and `power_attention_backward` are custom operators. Tracers (torch.compile,
torch.export, fake tensors) and dispatch modes (selective checkpointing) see one operator where there are launches that
they could not look into. Operators return tensors, never None: what a call does not have, such as gates, a state, or
anything saved when nothing is to be differentiated, is a tensor of shape [0] among their results. No result shares
memory with an input or with another result.

PyTorch's way into a custom operator costs the host 15 us, and 90 us for a forward and a backward call that autograd
records: as much as several launches. Calls that nobody watches therefore go through an `autograd.Function` made of the
same parts, at 5 and 35 us (torch 2.13, one core of an AMD EPYC).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.utils._python_dispatch import _get_current_dispatch_mode

from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.sizes import state_sizes
from powerbench.kernels.power.state import PowerState
from powerbench.kernels.power.tiling import chunks
from powerbench.kernels.power.torch_backend import needs_grad
from powerbench.kernels.power.triton_backend import forward_launches, operand_dtypes
from powerbench.kernels.power.triton_backward import triton_backward

Maybe = Tensor | None
# y; s and z of the final state; then what is kept for the backward pass: den, r, a (`triton_backend.Forward`)
Results = tuple[Tensor, Maybe, Maybe, Maybe, Maybe, Maybe]
# of q, k, v, log_g, and of s and z of the initial state
Gradients = tuple[Tensor, Tensor, Tensor, Maybe, Maybe, Maybe]

OPTIONS = "int p, SymInt chunk_size, int d_tile, float scale, bool normalize, bool return_state"


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    *,
    p: int,
    chunk_size: int,
    d_tile: int,
    scale: float,
    normalize: bool,
    initial_state: PowerState | None,
    return_state: bool,
) -> tuple[Tensor, PowerState | None]:
    """y [B, T, H, e] in q's dtype, and the state at the end of the sequence (float32) if asked; differentiable.

    Arguments and errors are those of `forward_launches`. Where a gradient may be asked for, den float32 [B, T, H]
    (normalised), the gates' sums a and the states R that come into the chunks (`triton_backend`) are kept beside q, k,
    v, log_g, y and the final state. First derivatives only: asking for second ones, or for forward mode, raises
    RuntimeError.
    """
    s, z = (None, None) if initial_state is None else initial_state
    save = needs_grad(q, k, v, log_g, initial_state)
    run = _forward_op if watched(q, k, v) else _Eager.apply
    y, s, z, *_ = run(q, k, v, log_g, s, z, p, chunk_size, d_tile, scale, normalize, return_state, save)
    return y, PowerState(s, z) if return_state else None


def watched(*tensors: Tensor) -> bool:
    """Whether somebody beside autograd must see the call as an operator: a tracer, a mode, a subclass of Tensor."""
    if torch.compiler.is_compiling():
        return True
    return any(type(x) is not Tensor for x in tensors) or _get_current_dispatch_mode() is not None


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Maybe, s: Maybe, z: Maybe,
    p: int, chunk_size: int, d_tile: int, scale: float, normalize: bool, return_state: bool, save: bool,
) -> Results:  # fmt: skip
    done = forward_launches(
        q, k, v, log_g, p=p, chunk_size=chunk_size, d_tile=d_tile, scale=scale, normalize=normalize,
        initial_state=_state(s, z), return_state=return_state, save=save,
    )  # fmt: skip
    kept = (done.den, done.r, done.a) if save else (None, None, None)
    return done.y, *(done.state or (None, None)), *kept


def _backward(
    dy: Tensor, ds: Maybe, dz: Maybe, q: Tensor, k: Tensor, v: Tensor, log_g: Maybe,
    y: Tensor, s: Maybe, z: Maybe, den: Maybe, r: Maybe, a: Maybe,
    p: int, chunk_size: int, d_tile: int, scale: float, normalize: bool, return_state: bool, initial: bool,
) -> Gradients:  # fmt: skip
    *of_inputs, of_state = triton_backward(
        dy, _state(ds, dz), q, k, v, log_g, y, den, r, a, _state(s, z),
        p=p, chunk_size=chunk_size, d_tile=d_tile, scale=scale, normalize=normalize, initial=initial,
        return_state=return_state,
    )  # fmt: skip
    return *of_inputs, *(of_state or (None, None))


@torch.library.custom_op(
    "powerbench::power_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor? log_g, Tensor? s, Tensor? z, {OPTIONS}, bool save)"
    " -> (Tensor y, Tensor s_end, Tensor z_end, Tensor den, Tensor r, Tensor a)",
)
def _forward_op(q: Tensor, *others: object) -> tuple[Tensor, ...]:
    return _tensors(_forward(q, *others), q)


@torch.library.custom_op(
    "powerbench::power_attention_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor? ds_end, Tensor? dz_end, Tensor q, Tensor k, Tensor v, Tensor? log_g, Tensor y,"
    f" Tensor? s_end, Tensor? z_end, Tensor? den, Tensor? r, Tensor? a, {OPTIONS}, bool initial)"
    " -> (Tensor dq, Tensor dk, Tensor dv, Tensor dlog_g, Tensor ds, Tensor dz)",
)
def _backward_op(dy: Tensor, *others: object) -> tuple[Tensor, ...]:
    return _tensors(_backward(dy, *others), dy)


@_forward_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Maybe, s: Maybe, z: Maybe,
    p: int, chunk_size: int, d_tile: int, scale: float, normalize: bool, return_state: bool, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)
    n_incoming = N - (1 if s is None else 0)
    sizes = state_sizes(p, d, e, d_tile, with_z=normalize or return_state)
    s_end = z_end = den = r = a = None
    if return_state:
        flat = q.new_empty(B, Hk, sizes.elements, dtype=torch.float32)
        s_end = flat[..., : sizes.z_start].unflatten(-1, (sizes.rows, sizes.width))  # a view, as `unflatten_state` does
        z_end = q.new_empty(B, Hk, sizes.rows, dtype=torch.float32)
    if save and normalize:
        den = q.new_empty(B, T, H, dtype=torch.float32)
    if save and n_incoming > 0:
        r = q.new_empty(B, Hk, n_incoming, sizes.elements, dtype=operand_dtypes(q.dtype)[2])
    if save and log_g is not None:
        a = q.new_empty(2, B, Hk, N, C, dtype=torch.float32)
    return _tensors((q.new_empty(B, T, H, e), s_end, z_end, den, r, a), q)


@_backward_op.register_fake
def _(
    dy: Tensor, ds: Maybe, dz: Maybe, q: Tensor, k: Tensor, v: Tensor, log_g: Maybe,
    y: Tensor, s: Maybe, z: Maybe, den: Maybe, r: Maybe, a: Maybe,
    p: int, chunk_size: int, d_tile: int, scale: float, normalize: bool, return_state: bool, initial: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    B, Hk, d, e = q.shape[0], k.shape[2], q.shape[3], v.shape[3]
    of_s = of_z = None
    if initial:
        rows = tspow_dim(d, p, d_tile)
        of_s = q.new_empty(B, Hk, rows, e, dtype=torch.float32)
        of_z = q.new_empty(B, Hk, rows, dtype=torch.float32)
    of_inputs = (None if x is None else x.new_empty(x.shape) for x in (q, k, v, log_g))
    return _tensors((*of_inputs, of_s, of_z), dy)


def _setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
    """Keeps what the backward pass reads; `inputs` and `output` are those of `_forward`, or of its operator."""
    y, *rest = output
    s, z, den, r, a = (_present(x) for x in rest)
    ctx.options = inputs[6:-1]
    ctx.initial = inputs[4] is not None
    ctx.save_for_backward(*inputs[:4], y, s, z, den, r, a)
    ctx.set_materialize_grads(False)  # or the chunk states would get gradients of zeros, as large as they are
    differentiable = 1 if s is None else 3
    ctx.mark_non_differentiable(*(x for x in output[differentiable:] if x is not None))


def _differentiate(ctx: FunctionCtx, dy: Maybe, ds: Maybe, dz: Maybe, *_: Maybe) -> tuple[Maybe, ...]:
    """Gradients of `_forward`'s tensors; None for its options."""
    q, k, v, log_g, y, s, z, *kept = ctx.saved_tensors
    if dy is None:  # y is not part of the loss
        dy = torch.zeros_like(y)
    if ds is not None or dz is not None:
        ds, dz = (torch.zeros_like(x) if dx is None else dx for x, dx in ((s, ds), (z, dz)))
    # with create_graph an operator always: it is what refuses to be differentiated again
    run = _backward_op if torch.is_grad_enabled() or watched(dy, q, k, v) else _backward
    gradients = run(dy, ds, dz, q, k, v, log_g, y, s, z, *kept, *ctx.options, ctx.initial)
    return *(_present(x) for x in gradients), *(None for _ in ctx.options), None


def _refuse(ctx: FunctionCtx, *_: Maybe) -> None:
    raise RuntimeError(
        "power_attention's Triton backend has first derivatives only, and its gradients were differentiated again; use "
        'backend="torch" for second derivatives'
    )


_forward_op.register_autograd(_differentiate, setup_context=_setup_context)
_backward_op.register_autograd(_refuse)


class _Eager(torch.autograd.Function):
    """The forward operator without the operator."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: object) -> Results:
        output = _forward(*inputs)
        if inputs[-1]:
            _setup_context(ctx, inputs, output)  # as a method of its own it would cost 30 us more
        return output

    backward = staticmethod(_differentiate)


def _state(s: Maybe, z: Maybe) -> PowerState | None:
    return None if s is None or z is None else PowerState(s, z)


def _tensors(values: tuple[Maybe, ...], like: Tensor) -> tuple[Tensor, ...]:
    """An operator's results: each None becomes a tensor of shape [0] of its own."""
    return tuple(like.new_empty(0) if x is None else x for x in values)


def _present(x: Maybe) -> Maybe:
    """A result of `_tensors` back as it was; what is really there has more than one dimension."""
    return None if x is None or x.ndim == 1 else x
