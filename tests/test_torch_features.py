"""What PyTorch can do with an operator: transforms of torch.func, compiled steps, states as objects, numbers of numpy.

Triton's kernels run under the interpreter, or on the GPU where there is one.
"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from power_inputs import make_inputs, relative_error  # noqa: E402

from powerbench import LazyState, PowerState, fold_lazy_state, power_attention, power_attention_step  # noqa: E402
from powerbench.kernels.power.reference import attention_form  # noqa: E402

CHUNKS = [3, 100]  # several, and one
in_torch = partial(power_attention, p=2, d_tile=2, backend="torch")


def small(T=10, **sizes):
    return make_inputs(T, **{"d": 4, "e": 3, "heads": 2, "kv_heads": 1} | sizes)


def definition(*inputs):
    return attention_form(*inputs, p=2, normalize=True)[0]


def tokens(inputs, first, end):
    return [x[:, first:end] for x in inputs]


def close(got, want, bound=1e-9):
    got, want = (x if isinstance(x, tuple | list) else [x] for x in (got, want))
    return all((x - y).norm() <= bound * max(y.norm(), 1) for x, y in zip(got, want, strict=True))


# --- torch.func ---


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_grad(chunk_size):
    inputs = small()
    run = partial(in_torch, chunk_size=chunk_size)
    for argument in range(4):
        got = torch.func.grad(lambda *x: run(*x).square().sum(), argnums=argument)(*inputs)
        assert close(got, torch.func.grad(lambda *x: definition(*x).square().sum(), argnums=argument)(*inputs))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_vmap_and_vmap_of_vmap(chunk_size):
    run = partial(in_torch, chunk_size=chunk_size)
    many = [torch.stack([x, x.flip(1), 0.5 * x]) for x in small()]
    want = torch.stack([definition(*(x[i] for x in many)) for i in range(3)])
    assert close(torch.func.vmap(run)(*many), want)
    nested = [x[:, None].expand(-1, 2, *x.shape[1:]) for x in many]
    assert close(torch.func.vmap(torch.func.vmap(run))(*nested)[:, 1], want)
    only_q = torch.func.vmap(run, in_dims=(0, None, None, None))(many[0], *(x[0] for x in many[1:]))
    assert close(only_q[1], definition(many[0][1], *(x[0] for x in many[1:])))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_gradients_of_each_sample(chunk_size):
    """What torch.func is used for most: vmap of grad."""
    run = partial(in_torch, chunk_size=chunk_size)
    many = [torch.stack([x, x.flip(1)]) for x in small()]
    got = torch.func.vmap(torch.func.grad(lambda *x: run(*x).square().sum(), argnums=1))(*many)
    want = torch.func.grad(lambda *x: definition(*x).square().sum(), argnums=1)(*(x[1] for x in many))
    assert close(got[1], want)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("state", [False, True])
def test_forward_mode(chunk_size, state):
    inputs = small()
    tangents = [torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3)) for x in inputs]
    before = in_torch(*small(seed=2), return_state=True)[1] if state else None

    def run(*x):
        return in_torch(*x, chunk_size=chunk_size, initial_state=before)

    def want(*x):
        return attention_form(*x, p=2, normalize=True, d_tile=2, initial_state=before)[0]

    y, dy = torch.func.jvp(run, tuple(inputs), tuple(tangents))
    assert close([y, dy], torch.func.jvp(want, tuple(inputs), tuple(tangents)))
    with forward_ad.dual_level():
        y = run(*(forward_ad.make_dual(x, dx) for x, dx in zip(inputs, tangents, strict=True)))
        assert close(forward_ad.unpack_dual(y).tangent, dy)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_jacobians_and_hessians(chunk_size):
    q, k, v, log_g = small(5, d=2, e=2, heads=1)

    def run(attention):
        return lambda k: attention(q, k, v, log_g).square().sum()

    got, want = run(partial(in_torch, d_tile=1, chunk_size=chunk_size)), run(definition)
    assert close(torch.func.hessian(got)(k), torch.func.hessian(want)(k), 1e-8)
    assert close(torch.func.jacrev(torch.func.jacrev(got))(k), torch.func.hessian(want)(k), 1e-8)
    assert close(torch.autograd.functional.hessian(got, k), torch.func.hessian(want)(k), 1e-8)


def test_functional_call_and_linearize():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, q, k, v, log_g):
            return in_torch(self.project(q), k, v, log_g, chunk_size=4)

    model, inputs = Model(), small()
    parameters = dict(model.named_parameters())
    got = torch.func.grad(lambda p: torch.func.functional_call(model, p, tuple(inputs)).square().sum())(parameters)
    model(*inputs).square().sum().backward()
    assert all(close(got[name], x.grad) for name, x in parameters.items())
    q, *others = inputs
    _, tangent_map = torch.func.linearize(lambda q: in_torch(q, *others, chunk_size=4), q)
    assert close(tangent_map(q), torch.func.jvp(lambda q: definition(q, *others), (q,), (q,))[1])


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_the_triton_backend_refuses_transforms(transform):
    inputs = [x.float().to(DEVICE) for x in small(d=16, e=16)]
    run = partial(power_attention, chunk_size=4, d_tile=1, backend="triton")
    calls = {
        "vmap": lambda: torch.func.vmap(run)(*(x[None] for x in inputs)),
        "grad": lambda: torch.func.grad(lambda q: run(q, *inputs[1:]).sum())(inputs[0]),
        "jvp": lambda: torch.func.jvp(run, tuple(inputs), tuple(inputs)),
    }
    with pytest.raises(ValueError, match=r'under a transform of torch\.func.*use backend="torch"'):
        calls[transform]()


def test_the_triton_backend_refuses_tangents_of_any_input():
    q, k, v, log_g = (x.float().to(DEVICE) for x in small(d=16, e=16))
    run = partial(power_attention, chunk_size=4, d_tile=1, backend="triton")
    state = run(q, k, v, log_g, return_state=True)[1]
    with forward_ad.dual_level():
        assert run(q, k, v, log_g).isfinite().all()  # a level alone is no tangent
        with pytest.raises(NotImplementedError, match=r'no jvp: use backend="torch"'):
            run(q, k, v, forward_ad.make_dual(log_g, log_g))
        with pytest.raises(NotImplementedError, match="no jvp"):
            run(q, k, v, log_g, initial_state=PowerState(forward_ad.make_dual(state.s, state.s), state.z))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_transforms_on_a_gpu():
    inputs = [x.float().cuda() for x in small(d=16, e=16)]
    got = torch.func.grad(lambda q: power_attention(q, *inputs[1:], chunk_size=4).square().sum())(inputs[0])
    want = torch.func.grad(lambda q: definition(q, *inputs[1:]).square().sum())(inputs[0])
    assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_step_refuses_transforms(backend):
    inputs = tokens([x.float().to(DEVICE) for x in small(d=16, e=16)], 0, 1)
    with pytest.raises(ValueError, match=r"a step was called under a transform of torch\.func"):
        torch.func.vmap(lambda q: power_attention_step(q, *inputs[1:], d_tile=1, backend=backend)[0])(inputs[0][None])


def test_compiled_transforms():
    torch._dynamo.reset()
    inputs = small()

    def loss(q, *others):
        return in_torch(q, *others, chunk_size=4).square().sum()

    got = torch.compile(torch.func.grad(loss), backend="aot_eager")(*inputs)
    assert close(got, torch.func.grad(lambda *x: definition(*x).square().sum())(*inputs))


# --- compiling ---


def test_one_graph_with_several_feature_maps():
    torch._dynamo.reset()
    inputs = small()

    def model(*inputs):
        return sum(
            in_torch(*inputs, p=p, d_tile=d_tile, chunk_size=4) for p, d_tile in [(2, 2), (2, 4), (3, 1), (4, 2)]
        )

    want = model(*inputs)
    leaves = [x.requires_grad_() for x in small()]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert close(compiled(*inputs), want)
    got = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    assert close(list(got), list(torch.autograd.grad(model(*leaves).square().sum(), leaves)))


def snapshot(state):
    return [x.clone() for x in ([*state.state, *state[1:]] if isinstance(state, LazyState) else state)]


def same(state):
    """Another state with the same numbers."""
    if isinstance(state, PowerState):
        return PowerState(*(x.clone() for x in state))
    return LazyState(same(state.state), *(x.clone() for x in state[1:]))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_step_is_the_step(compiler, backend, window, in_place):
    """One graph without breaks; the state that came in is moved on, through every fold of its window, or stays."""
    torch._dynamo.reset()
    inputs = [x.float().to(DEVICE) for x in small(14, d=16, e=16, heads=2, kv_heads=2, batch=2)]
    _, state = power_attention(*tokens(inputs, 0, 6), d_tile=4, return_state=True, backend="torch")
    if window:
        state = LazyState.begin(state, 16, torch.float32, window)
        state.count.copy_(torch.tensor([0, 1]))
    step = partial(power_attention_step, d_tile=4, in_place=in_place, backend=backend)
    compiled = torch.compile(step, backend=compiler, fullgraph=True)
    mine, theirs = same(state), same(state)
    for first, end in [(6, 7), (7, 8), (8, 9), (9, 11), (11, 14)]:
        want, after = step(*tokens(inputs, first, end), mine)
        before = snapshot(theirs)
        got, moved = compiled(*tokens(inputs, first, end), theirs)
        assert relative_error(got, want) < 1e-6
        found = snapshot(theirs if in_place else moved)
        assert all((x - y).abs().max() < 1e-5 for x, y in zip(found, snapshot(after), strict=True))
        if not in_place:
            assert all(torch.equal(x, y) for x, y in zip(snapshot(theirs), before, strict=True))
        mine, theirs = after, moved


def test_a_compiled_call_without_gradients_is_one_graph():
    torch._dynamo.reset()
    inputs = small()
    compiled = torch.compile(partial(in_torch, chunk_size=4), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert close(compiled(*inputs), definition(*inputs))


def test_a_step_can_be_exported():
    inputs = [x.float() for x in small(7, d=16, e=16)]
    _, state = power_attention(*tokens(inputs, 0, 6), d_tile=4, return_state=True, backend="torch")

    class Step(torch.nn.Module):
        def forward(self, q, k, v, log_g, s, z):
            y, end = power_attention_step(q, k, v, log_g, PowerState(s, z), d_tile=4, backend="torch")
            return y, *end

    token = tokens(inputs, 6, 7)
    got = torch.export.export(Step(), (*token, *state), strict=False).module()(*token, *state)
    want, end = power_attention_step(*token, state, d_tile=4, backend="torch")
    assert close(list(got), [want, *end], 1e-6)


def test_opcheck_of_the_step():
    inputs = [x.float().to(DEVICE) for x in small(7, d=16, e=16, heads=2, kv_heads=2)]
    _, state = power_attention(*tokens(inputs, 0, 6), d_tile=4, return_state=True, backend="torch")
    power_attention_step(*tokens(inputs, 6, 7), state, d_tile=4, backend="triton")
    lazy = LazyState.begin(state, 16, torch.float32, 3)
    for window in ([None] * 4, lazy[1:]):
        torch.library.opcheck(
            torch.ops.powerbench.power_attention_step.default,
            (*tokens(inputs, 6, 7), *state, *window, 2, 4, 0.25, True),
            test_utils=["test_schema", "test_faketensor"],
        )


# --- states ---


def states():
    inputs = small()
    state = in_torch(*inputs, return_state=True)[1]
    lazy = LazyState.begin(state, 4, torch.float64, 4)
    power_attention_step(*tokens(inputs, 0, 1), lazy, d_tile=2, in_place=True, backend="torch")
    return [state, lazy]


def through_torch(state, **options):
    file = io.BytesIO()
    torch.save({"state": state}, file)
    file.seek(0)
    return torch.load(file, **options)["state"]


@pytest.mark.parametrize(
    "through",
    [
        through_torch, partial(through_torch, weights_only=True), partial(through_torch, mmap=False),
        partial(through_torch, map_location="cpu"), copy.copy, copy.deepcopy,
        lambda x: pickle.loads(pickle.dumps(x)), lambda x: tree_map(torch.clone, x), lambda x: x._replace(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lazy", [0, 1])
def test_states_come_through_as_what_they_are(through, lazy):
    state = states()[lazy]
    got = through(state)
    assert type(got) is type(state)
    assert all(torch.equal(x, y) for x, y in zip(snapshot(got), snapshot(state), strict=True))
    power_attention_step(*tokens(small(), 1, 2), got, d_tile=2, backend="torch")


def test_a_file_of_states_loads_in_another_process(tmp_path):
    """With the package imported, which knows the types, and the default of torch.load, weights alone."""
    torch.save(states(), tmp_path / "states.pt")
    code = (
        "import sys, torch; from powerbench import LazyState, PowerState; state, lazy = torch.load(sys.argv[1]); "
        "assert type(state) is PowerState and type(lazy) is LazyState and type(lazy.state) is PowerState"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "states.pt")], check=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda state, lazy: lazy, "initial_state is LazyState; it must be a PowerState.* fold_lazy_state"),
        (lambda state, lazy: PowerState(state.s, None), "initial_state.z is NoneType; it must be a tensor"),
        (lambda state, lazy: PowerState(None, state.z), "initial_state.s is NoneType; it must be a tensor"),
        (lambda state, lazy: PowerState([1.0], state.z), "initial_state.s is list; it must be a tensor"),
        (lambda state, lazy: tuple(state), "initial_state is tuple"),
        (lambda state, lazy: state.s, "initial_state is Tensor"),
        (lambda state, lazy: (), "initial_state is tuple"),
        (lambda state, lazy: 0, "initial_state is int"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_is_no_state_is_refused(wrong, message, backend):
    inputs = [x.float().to(DEVICE) for x in small(d=16, e=16)]
    state = power_attention(*inputs, d_tile=4, return_state=True, backend="torch")[1]
    lazy = LazyState.begin(state, 16, torch.float32)
    with pytest.raises(ValueError, match=message):
        power_attention(*inputs, d_tile=4, initial_state=wrong(state, lazy), backend=backend)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda state, lazy: PowerState(state.s, None), "state.z is NoneType"),
        (lambda state, lazy: lazy._replace(state=None), "state.state is NoneType"),
        (lambda state, lazy: lazy._replace(state=lazy), "state.state is LazyState"),
        (lambda state, lazy: lazy._replace(k=None), "state.k is NoneType; it must be a tensor"),
        (lambda state, lazy: lazy._replace(k=lazy.k[0]), r"state.k is \[64, 1, 16\]"),
        (lambda state, lazy: lazy._replace(count=0), "state.count is int; it must be a tensor"),
    ],
)
def test_what_is_no_state_is_refused_by_a_step(wrong, message):
    inputs = [x.float() for x in small(d=16, e=16)]
    state = power_attention(*inputs, d_tile=4, return_state=True, backend="torch")[1]
    state = wrong(state, LazyState.begin(state, 16, torch.float32))
    with pytest.raises(ValueError, match=message):
        power_attention_step(*tokens(inputs, 0, 1), state, d_tile=4, backend="torch")
    if isinstance(state, LazyState):
        with pytest.raises(ValueError, match=message):
            fold_lazy_state(state, d_tile=4)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("field", ["s", "z", "a"])
def test_a_step_refuses_a_state_that_requires_grad(backend, field):
    inputs = [x.float().to(DEVICE) for x in small(d=16, e=16)]
    state = power_attention(*inputs, d_tile=4, return_state=True, backend="torch")[1]
    lazy = LazyState.begin(state, 16, torch.float32)
    state = state if field in "sz" else lazy
    getattr(state, field).requires_grad_()
    step = partial(power_attention_step, *tokens(inputs, 0, 1), state, d_tile=4, backend=backend)
    with pytest.raises(ValueError, match="the state requires grad, and a step is not differentiable"):
        step()
    if field not in "sz":
        with pytest.raises(ValueError, match="the state requires grad"):
            fold_lazy_state(lazy, d_tile=4)
    with torch.no_grad():
        step()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_step_in_place_refuses_memory_that_sequences_share(backend):
    inputs = [x.float().to(DEVICE) for x in small(d=16, e=16, batch=2)]
    state = power_attention(*inputs, d_tile=4, return_state=True, backend="torch")[1]
    shared = PowerState(state.s[:1].expand_as(state.s), state.z)
    with pytest.raises(ValueError, match="s of the state has strides"):
        power_attention_step(*tokens(inputs, 0, 1), shared, d_tile=4, in_place=True, backend=backend)
    y, _ = power_attention_step(*tokens(inputs, 0, 1), shared, d_tile=4, backend=backend)  # copied: as any other
    assert y.isfinite().all()


# --- numbers ---


def test_numbers_of_numpy_are_numbers():
    inputs = small(d=8)
    want, end = power_attention(*inputs, p=2, chunk_size=4, d_tile=2, scale=0.5, normalize=False, return_state=True)
    got, state = power_attention(
        *inputs, p=np.int64(2), chunk_size=np.int32(4), d_tile=np.uint8(2), scale=np.float32(0.5),
        normalize=np.bool_(False), return_state=True,
    )  # fmt: skip
    assert torch.equal(got, want)
    token = tokens(inputs, 0, 1)
    want, _ = power_attention_step(*token, end, p=2, d_tile=2, scale=0.5)
    got, _ = power_attention_step(*token, state, p=np.int64(2), d_tile=np.int64(2), scale=np.float64(0.5))
    assert torch.equal(got, want)
    lazy = LazyState.begin(state, np.int64(8), torch.float64, np.int64(4))
    assert torch.equal(fold_lazy_state(lazy, p=np.int64(2), d_tile=np.int64(2)).s, state.s)


def test_numbers_of_numpy_reach_the_kernels():
    inputs = [x.float().to(DEVICE) for x in small(d=16, e=16)]
    options = {"p": np.int64(2), "chunk_size": np.int64(4), "d_tile": np.int64(4), "scale": np.float64(0.25)}
    y = power_attention(*inputs, backend="triton", **options)
    assert relative_error(y, definition(*(x.double() for x in inputs))) < 1e-5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("p", np.float64(2)), ("p", np.bool_(True)), ("p", torch.tensor(2)), ("p", np.array(2)), ("p", "2"),
        ("chunk_size", True), ("chunk_size", np.float32(4)), ("chunk_size", np.int64(0)),
        ("chunk_size", torch.tensor(4)),
        ("d_tile", np.int64(3)), ("d_tile", True), ("scale", True), ("scale", np.float32(np.nan)), ("scale", 1 + 0j),
        ("scale", np.float64(-1)), ("scale", torch.tensor(0.5)), ("normalize", np.int64(1)), ("normalize", "no"),
    ],
)  # fmt: skip
def test_what_is_no_such_number_is_refused(option, value):
    with pytest.raises(ValueError, match=f"^{option} is "):
        power_attention(*small(d=8), **{option: value})


@pytest.mark.parametrize("window", [0, -1, 2.5, True, None, "4"])
def test_a_window_is_an_integer(window):
    with pytest.raises(ValueError, match=r"^window is .*; it must be an integer of at least 1"):
        LazyState.begin(states()[0], 4, torch.float64, window)


# --- others ---


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_around_the_operator(reentrant):
    leaves = [x.requires_grad_() for x in small()]
    y = checkpoint(partial(in_torch, chunk_size=4), *leaves, use_reentrant=reentrant)
    got = torch.autograd.grad(y.square().sum(), leaves) if not reentrant else None
    want = torch.autograd.grad(definition(*leaves).square().sum(), leaves)
    if reentrant:
        y.square().sum().backward()
        got = [x.grad for x in leaves]
    assert close(list(got), list(want))


def test_devices_that_do_not_match_are_named():
    q, k, v, log_g = small()
    state = in_torch(q, k, v, log_g, return_state=True)[1]
    with pytest.raises(ValueError, match="k is on meta; it must be on q's device, cpu"):
        in_torch(q, k.to("meta"), v, log_g)
    with pytest.raises(ValueError, match=r"initial_state\.z is on meta; it must be on q's device, cpu"):
        in_torch(q, k, v, log_g, initial_state=PowerState(state.s, state.z.to("meta")))
