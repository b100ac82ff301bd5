"""The Triton backend inside PyTorch: autograd, torch.compile, checkpointing, autocast, CUDA graphs.

Whether the kernels are right is for test_triton and test_triton_backward; here, whether everything reaches them and
comes back. Without a GPU they run under Triton's interpreter.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from power_oracle import error, inputs  # noqa: E402

from powerbench.kernels.power import triton_op  # noqa: E402
from powerbench.kernels.power.feature_map import tspow_dim  # noqa: E402
from powerbench.kernels.power.op import PowerState, power_attention  # noqa: E402
from powerbench.kernels.power.reference import attention_form  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FORWARD, BACKWARD = torch.ops.powerbench.power_attention.default, torch.ops.powerbench.power_attention_backward.default
NAMES = "q", "k", "v", "log_g", "s", "z"
# d_tile = 1: no two rows of a state stand for the same thing, which the kernels would treat alike, the definition not
triton_attention = partial(power_attention, chunk_size=8, d_tile=1, backend="triton")


def make(T=20, *, p=2, B=1, H=2, Hk=1, d=16, e=16, gated=True, state=False, dtype=torch.float32, device=DEVICE, seed=0):
    """q, k, v, log_g, s and z as leaves that ask for gradients; None for what is not there."""
    leaves = [*inputs(B, T, H, Hk, d, e, dtype, gated, device, seed), None, None]
    if state:
        before = inputs(B, 30, H, Hk, d, e, dtype, device=device, seed=seed + 1)
        leaves[4:] = (x.clone() for x in triton_attention(*before, p=p, return_state=True)[1])
    return [x if x is None else x.requires_grad_() for x in leaves]


def call(q, k, v, log_g, s=None, z=None, *, attention=triton_attention, **options):
    """`power_attention` of six tensors: y, or y, s and z."""
    result = attention(q, k, v, log_g, initial_state=None if s is None else PowerState(s, z), **options)
    return (result[0], *result[1]) if options.get("return_state") else (result,)


def gradients(outputs, leaves, **options):
    """Of all outputs, in random directions that depend on the shapes alone."""
    generator = torch.Generator().manual_seed(2)
    pairs = [(x, torch.randn(x.shape, generator=generator).to(x)) for x in outputs]
    outputs, directions = zip(*[(x, dx) for x, dx in pairs if x.requires_grad], strict=True)
    return torch.autograd.grad(outputs, [x for x in leaves if x is not None], directions, **options)


def expected(leaves, *, p=2, return_state=False):
    """Outputs and gradients of the definition in float64."""
    doubles = [x if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in leaves]

    def attention(*args, **options):
        y, state = attention_form(*args, p=p, normalize=p % 2 == 0, **options)
        return y if state is None else (y, state)

    return call(*doubles, attention=attention, return_state=return_state), doubles


def strided(x):
    """The same numbers, heads before time in memory."""
    return x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()


def equal(got, want):
    return all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


# --- autograd ---


@pytest.mark.parametrize(
    ("p", "gated", "state"), [(1, True, False), (1, False, True), (2, True, True), (2, False, False)]
)
def test_gradients(p, gated, state):
    leaves = make(p=p, gated=gated, state=state)
    outputs = call(*leaves, p=p, return_state=state)
    wanted, doubles = expected(leaves, p=p, return_state=state)
    for got, want in zip(outputs, wanted, strict=True):
        assert error(got.detach(), want.detach()) < 1e-5
    for got, want in zip(gradients(outputs, leaves), gradients(wanted, doubles), strict=True):
        assert error(got.detach(), want.detach()) < 1e-5


@pytest.mark.parametrize("wanted", range(6), ids=NAMES)
def test_any_single_input_may_ask_for_gradients(wanted):
    leaves = [x.detach() for x in make(p=1, state=True)]
    leaves[wanted].requires_grad_()
    reference, doubles = expected(leaves, p=1, return_state=True)
    (got,) = gradients(call(*leaves, p=1, return_state=True), leaves[wanted : wanted + 1])
    (want,) = gradients(reference, doubles[wanted : wanted + 1])
    assert error(got.detach(), want.detach()) < 1e-5


@pytest.mark.parametrize("output", range(3), ids=["y", "s", "z"])
def test_the_loss_may_be_of_any_single_output(output):
    leaves = make(p=1, state=True)
    got = gradients(call(*leaves, p=1, return_state=True)[output : output + 1], leaves)
    reference, doubles = expected(leaves, p=1, return_state=True)
    want = gradients(reference[output : output + 1], doubles, allow_unused=True)
    for x, y in zip(got, want, strict=True):
        assert not x.any() if y is None else error(x, y) < 1e-5


def test_no_gradients_are_made_up(monkeypatch):
    """A state that is not part of the loss has no gradient, rather than zeros that take memory and a reverse scan."""
    seen = []
    triton_backward = triton_op.triton_backward

    def recorded(dy, dstate, *args, **options):
        seen.append(dstate)
        return triton_backward(dy, dstate, *args, **options)

    monkeypatch.setattr(triton_op, "triton_backward", recorded)
    leaves = make(p=1)
    gradients(call(*leaves, p=1, return_state=True)[:1], leaves)
    assert seen == [None]


def test_strided_inputs_and_an_expanded_gradient():
    leaves = make(p=1, Hk=2, B=2)[:4]
    others = [strided(x) for x in leaves]
    got, want = (torch.autograd.grad(call(*x, p=1)[0].sum(), x) for x in (others, leaves))
    assert equal(got, want)


def test_second_derivatives_are_refused():
    for watched in (False, True):
        leaves = make(p=1)[:4]
        attention = torch.compile(call, backend="eager", fullgraph=True) if watched else call
        (y,) = attention(*leaves, p=1)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)  # alone this is fine
        assert all(x.isfinite().all() for x in first)
        with pytest.raises(RuntimeError, match=r"first derivatives only.*use backend=\"torch\""):
            torch.autograd.grad(first[0].sum(), leaves)


def test_forward_mode_is_refused():
    q, k, v, log_g = (x.detach() for x in make(p=1)[:4])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        call(forward_ad.make_dual(q, q), k, v, log_g, p=1)


# --- what is kept ---


def kept(run):
    """Elements of each storage that autograd keeps for the backward pass of run()."""
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()
    return sorted(storages.values()), result


@pytest.mark.parametrize("operator", [False, True])
def test_kept_are_inputs_outputs_and_chunk_states(monkeypatch, operator):
    monkeypatch.setattr(triton_op, "watched", lambda *_: operator)
    leaves = make(T=20, e=32)[:4]
    sizes, (y,) = kept(lambda: call(*leaves))
    den, gates = 20 * 2, 2 * 3 * 8  # sums of gates are pairs, chunks of 8
    chunk_states = 2 * (tspow_dim(16, 2, 1) * 32 + 16 * 16)  # nothing comes into the first chunk
    assert sizes == sorted([x.numel() for x in (*leaves, y)] + [den, gates, chunk_states])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_without_gradients(monkeypatch, mode):
    made = []

    def recorded(*args, **options):
        done = forward_launches(*args, **options)
        made.append((done.den, *(weakref.ref(x) for x in (done.r, done.a))))
        return done

    forward_launches = triton_op.forward_launches
    monkeypatch.setattr(triton_op, "forward_launches", recorded)
    leaves = make(p=2)
    with mode():
        y, *state = call(*leaves, return_state=True)
    assert not y.requires_grad
    assert not any(x.requires_grad for x in state)
    ((den, r, a),) = made
    assert den is None
    assert r() is None
    assert a() is None


def test_the_operator_makes_only_what_is_asked_for():
    q, k, v, log_g, *_ = (x if x is None else x.detach() for x in make())
    for return_state, save in [(False, False), (True, False), (False, True), (True, True)]:
        y, s, z, den, r, a = FORWARD(q, k, v, log_g, None, None, 2, 8, 1, 0.25, True, return_state, save)
        assert y.shape == (1, 20, 2, 16)
        assert {x.numel() > 0 for x in (s, z)} == {return_state}
        assert {x.numel() > 0 for x in (den, r, a)} == {save}


# --- the operators, and compiling ---

CASES = [(1, False, False, False), (1, True, True, True), (2, True, False, False), (2, False, True, True)]


def opcheck(leaves, options, tests):
    """Of both operators; strides of the results do not follow those of the inputs."""
    leaves = [*(strided(x) for x in leaves[:3]), *leaves[3:]]
    check = partial(torch.library.opcheck, test_utils=tests)
    check(FORWARD, (*leaves, *options, True))
    constants = [x if x is None else x.detach() for x in leaves]
    check(FORWARD, (*constants, *options, False))
    y, *rest = FORWARD(*constants, *options, True)
    s, z, den, r, a = (x if x.numel() else None for x in rest)
    ds, dz = (x if x is None else torch.randn_like(x) for x in (s, z))
    kept = y, s, z, den, r, a
    check(BACKWARD, (torch.randn_like(y), ds, dz, *constants[:4], *kept, *options, leaves[4] is not None))


SHAPES = ["test_schema", "test_faketensor"]  # shapes, strides, dtypes; nothing shared, nothing changed
TRACING = ["test_autograd_registration", "test_aot_dispatch_dynamic"]  # with symbolic sizes


@pytest.mark.parametrize(("p", "gated", "initial", "return_state"), CASES)
def test_opcheck(p, gated, initial, return_state):
    leaves = make(9, p=p, B=2, gated=gated, state=initial)
    slow = p == 2 and initial  # tracing would take a minute
    opcheck(leaves, (p, 8, 1, 0.25, p % 2 == 0, return_state), SHAPES if slow else SHAPES + TRACING)


def compare(compiled, leaves, **options):
    """Bits of outputs and gradients, compiled and not."""
    got, want = compiled(*leaves, **options), call(*leaves, **options)
    assert equal(got, want)
    assert equal(gradients(got, leaves), gradients(want, leaves))


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("state", [False, True])
def test_compiled_is_eager(dynamic, state):
    """One graph, no break, at one length after the other: the second time sizes are symbols, d and e are not."""
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for T in (20, 9, 7):
        compare(compiled, make(T, p=1, state=state), p=1, return_state=state)
    compare(compiled, make(9, p=1, B=2, H=4, Hk=2, d=32, state=state), p=1, return_state=state)
    compare(compiled, make(9))


def test_compiled_with_sizes_left_open():
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for T in (20, 9):
        compare(compiled, make(T, p=1), p=1, chunk_size=None, d_tile=None)


def test_compiled_without_gradients():
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    leaves = make(p=1)
    with torch.no_grad():
        assert equal(compiled(*leaves, p=1), call(*leaves, p=1))


def test_export():
    class Model(torch.nn.Module):
        def forward(self, q, k, v, log_g):
            return call(q, k, v, log_g, p=1)

    leaves = make(p=1)[:4]
    program = torch.export.export(Model(), tuple(leaves), strict=False)
    assert [node.target for node in program.graph.nodes].count(FORWARD) == 1
    assert equal(program.module()(*leaves), call(*leaves, p=1))


@pytest.mark.parametrize("inside", [True, False], ids=["in their mode", "by themselves"])
def test_fake_tensors_get_shapes_without_a_launch(monkeypatch, inside):
    monkeypatch.setattr(triton_op, "forward_launches", None)
    mode = torch._subclasses.FakeTensorMode()
    q, k, v, log_g = (mode.from_tensor(x.detach()) for x in make()[:4])
    with mode if inside else nullcontext():
        y, s, z = call(q, k, v, log_g, return_state=True)
    assert (y.shape, y.dtype) == ((1, 20, 2, 16), q.dtype)
    assert (s.shape, z.shape) == ((1, 1, 136, 16), (1, 1, 136))


def test_parameters_are_tensors():
    leaves = make(p=1)[:4]
    parameters = [torch.nn.Parameter(x.detach()) for x in leaves]
    got, want = call(*parameters, p=1), call(*leaves, p=1)
    assert equal(got, want)
    assert equal(gradients(got, parameters), gradients(want, leaves))


# --- checkpointing ---


def counted(monkeypatch):
    """How often the forward launches were made: a list that grows."""
    runs = []
    forward_launches = triton_op.forward_launches
    monkeypatch.setattr(
        triton_op, "forward_launches", lambda *args, **options: runs.append(1) or forward_launches(*args, **options)
    )
    return runs


def test_checkpoint(monkeypatch):
    leaves = make(p=1, state=True)
    want = call(*leaves, p=1, return_state=True)
    runs = counted(monkeypatch)
    sizes, got = kept(lambda: checkpoint(partial(call, p=1, return_state=True), *leaves, use_reentrant=False))
    assert [n for n in sizes if n] == sorted(x.numel() for x in leaves)  # torch may keep an empty marker
    assert equal(got, want)
    assert equal(gradients(got, leaves), gradients(want, leaves))
    assert len(runs) == 2


def test_selective_checkpointing_can_keep_the_operator(monkeypatch):
    """Dispatch modes see the operator: its results are saved, everything else is computed again."""
    leaves = make(p=1)[:4]

    def policy(_, op, *args, **options):
        return CheckpointPolicy.MUST_SAVE if op is FORWARD else CheckpointPolicy.PREFER_RECOMPUTE

    def model(q, *others):
        return call(q * 2, *others, p=1)

    want = model(*leaves)
    runs = counted(monkeypatch)
    got = checkpoint(
        model, *leaves, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, policy)
    )
    assert equal(gradients(got, leaves), gradients(want, leaves))
    assert len(runs) == 1


# --- autocast ---


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast(compiled):
    """q, k, v run in bfloat16 whatever they are, log_g and the state in float32; gradients have the inputs' dtypes."""
    torch._dynamo.reset()
    leaves = make(p=1, state=True)
    leaves[1] = leaves[1].detach().half().requires_grad_()
    run = torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        outputs = run(*leaves, p=1, return_state=True)
    assert [x.dtype for x in outputs] == [torch.bfloat16, torch.float32, torch.float32]
    found = gradients(outputs, leaves)
    assert [x.dtype for x in found] == [x.dtype for x in leaves]
    low = [x.detach().bfloat16().requires_grad_() for x in leaves[:3]] + leaves[3:]
    by_hand = call(*low, p=1, return_state=True)
    assert equal(outputs, by_hand)
    assert equal(found, (x.to(leaf.dtype) for x, leaf in zip(gradients(by_hand, low), leaves, strict=True)))


def test_autocast_is_off_inside(monkeypatch):
    inside = []
    forward_launches = triton_op.forward_launches

    def recorded(*args, **options):
        inside.append(torch.is_autocast_enabled(DEVICE))
        return forward_launches(*args, **options)

    monkeypatch.setattr(triton_op, "forward_launches", recorded)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        call(*make(p=1), p=1)
        assert torch.is_autocast_enabled(DEVICE)
    assert inside == [False]


# --- on a GPU, as it is used ---

on_gpu = partial(triton_attention, chunk_size=512, d_tile=16)
big = partial(make, 2000, H=4, Hk=2, d=64, e=64, dtype=torch.bfloat16)


def with_state(leaves):
    """The leaves, continuing from a state that suits `on_gpu`."""
    inputs = [x.detach() for x in leaves[:4]]
    return [*leaves[:4], *(x.clone().requires_grad_() for x in on_gpu(*inputs, return_state=True)[1])]


def step(leaves):
    """Outputs and gradients of a training step."""
    outputs = call(*leaves, attention=on_gpu, return_state=True)
    return *outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])


@pytest.mark.gpu
@needs_cuda
def test_auto_trains_with_triton(monkeypatch):
    runs = counted(monkeypatch)
    leaves = big()[:4]
    outputs = call(*leaves, attention=power_attention)
    assert all(x.isfinite().all() for x in gradients(outputs, leaves))
    assert len(runs) == 1


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_on_the_gpu(mode):
    """With work around the operator for the compiler to fuse. The eager call also puts tables on the device."""
    torch._dynamo.reset()

    def model(q, *others):
        y, s, z = call(q * 2, *others, attention=on_gpu, return_state=True)
        return y * 0.5, s, z

    leaves = with_state(big())
    want = model(*leaves)
    wanted = gradients(want, leaves)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):  # with reduce-overhead the first warms up, the second records a CUDA graph, the third replays it
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(*leaves)
        found = gradients(got, leaves)
        for x, y in zip((*got, *found), (*want, *wanted), strict=True):
            assert error(x.detach(), y.detach().double()) < 1e-3


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_cuda_graph(backward):
    leaves = with_state(big())

    def run():
        if backward:
            return step(leaves)
        with torch.no_grad():
            return call(*leaves, attention=on_gpu, return_state=True)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = run()
    with torch.no_grad():
        for x, other in zip(leaves, with_state(big(seed=7)), strict=True):
            x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert equal(held, run())


@pytest.mark.gpu
@needs_cuda
def test_never_waits_for_the_gpu():
    leaves = with_state(big())
    step(leaves)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_cuda
def test_same_bits_every_time():
    leaves = with_state(big())
    first = step(leaves)
    for _ in range(3):
        assert equal(step(leaves), first)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("T", "initial", "return_state"), [(2000, False, False), (2000, True, True), (300, True, False)]
)
def test_opcheck_of_the_kernels_for_the_gpu(dtype, T, initial, return_state):
    leaves = make(T, B=2, H=4, Hk=2, d=64, e=64, dtype=dtype)
    opcheck(with_state(leaves) if initial else leaves, (2, 512, 16, 0.125, True, return_state), SHAPES)
