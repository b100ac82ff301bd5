"""Tables that outlive a call are real tensors, whoever made the first call: a tracer, a transform, inference mode."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from power_inputs import make_inputs, relative_error
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from powerbench import power_attention, power_attention_step
from powerbench.kernels.power import tables
from powerbench.kernels.power.reference import attention_form

# chunks, so that the multiplicities of a state's rows are read
chunked = partial(power_attention, p=2, chunk_size=8, d_tile=2, backend="torch")


@pytest.fixture(autouse=True)
def no_tables():
    """Nothing is kept from before, nor afterwards."""
    tables._kept.cache_clear()
    torch._dynamo.reset()
    yield
    tables._kept.cache_clear()


def trains():
    """An ordinary call is right, and so are its gradients."""
    inputs = [x.requires_grad_() for x in make_inputs(20, d=4, e=3)]
    y = chunked(*inputs)
    assert type(y) is torch.Tensor
    want = attention_form(*inputs, p=2, normalize=True)[0]
    assert relative_error(y, want) < 1e-12
    dy = torch.ones_like(y)
    for got, expected in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, inputs, dy), strict=True):
        assert relative_error(got, expected) < 1e-10


class Model(torch.nn.Module):
    def forward(self, q, k, v, log_g):
        return chunked(q, k, v, log_g)


def exported(strict):
    inputs = make_inputs(20, d=4, e=3)
    program = torch.export.export(Model(), tuple(inputs), strict=strict)
    got, want = program.module()(*inputs), attention_form(*inputs, p=2, normalize=True)[0]
    assert relative_error(got, want) < 1e-12


def proxies(mode):
    inputs = make_inputs(20, d=4, e=3)
    graph = make_fx(chunked, tracing_mode=mode)(*inputs)
    want = attention_form(*inputs, p=2, normalize=True)[0]
    assert relative_error(graph(*inputs), want) < 1e-12


def fake(inside):
    mode = FakeTensorMode()
    inputs = [mode.from_tensor(x) for x in make_inputs(20, d=4, e=3)]
    with mode if inside else nullcontext():
        y = chunked(*inputs)
    assert isinstance(y, FakeTensor)
    assert y.shape == (1, 20, 1, 3)


def flops_of_fakes():
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        q, k, v = (torch.empty(1, 20, 1, n) for n in (4, 4, 3))
        chunked(q, k, v)
    assert counter.get_total_flops() > 0


def flops():
    with FlopCounterMode(display=False) as counter:
        chunked(*make_inputs(20, d=4, e=3))
    assert counter.get_total_flops() > 0


def without_autograd(mode):
    with mode():
        chunked(*make_inputs(20, d=4, e=3))


def compiled(backend, gradients):
    run = torch.compile(chunked, backend=backend, fullgraph=True)
    inputs = make_inputs(20, d=4, e=3)
    if gradients:
        [x.requires_grad_() for x in inputs]
    y = run(*inputs)
    assert relative_error(y, attention_form(*inputs, p=2, normalize=True)[0]) < 1e-12
    if gradients:
        y.sum().backward()


def differentiated():
    q, *others = make_inputs(20, d=4, e=3)
    got = torch.func.grad(lambda q: chunked(q, *others).sum())(q)
    q.requires_grad_()
    (want,) = torch.autograd.grad(attention_form(q, *others, p=2, normalize=True)[0].sum(), q)
    assert relative_error(got, want) < 1e-10


def mapped():
    inputs = [torch.stack([x, 2 * x]) for x in make_inputs(20, d=4, e=3)]
    got = torch.func.vmap(chunked)(*inputs)
    assert relative_error(got[1], attention_form(*(x[1] for x in inputs), p=2, normalize=True)[0]) < 1e-12


def functionalized():
    inputs = make_inputs(20, d=4, e=3)
    got = torch.func.functionalize(chunked)(*inputs)
    assert relative_error(got, attention_form(*inputs, p=2, normalize=True)[0]) < 1e-12


def on_meta():
    inputs = make_inputs(20, d=4, e=3)
    with torch.device("meta"):
        y = chunked(*inputs)
    torch.set_default_device("meta")
    try:
        chunked(*inputs)
    finally:
        torch.set_default_device(None)
    assert y.device.type == "cpu"
    assert chunked(*(x.to("meta") for x in inputs)).device.type == "meta"


class Wrapping(TorchDispatchMode):
    """A mode of somebody who hands out tensors of his own."""

    class Tensor(torch.Tensor):
        pass

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.as_subclass(self.Tensor) if isinstance(result, torch.Tensor) else result


def wrapped():
    with Wrapping():
        chunked(*make_inputs(20, d=4, e=3))


def stepped(mode):
    with mode():
        state = None
        for t in range(3):
            _, state = power_attention_step(
                *(x[:, t : t + 1] for x in make_inputs(3, d=4, e=3)), state, p=2, d_tile=2, backend="torch"
            )


FIRST = {
    "export": partial(exported, False), "strict export": partial(exported, True),
    "make_fx": partial(proxies, "real"), "make_fx of fakes": partial(proxies, "fake"),
    "make_fx of symbols": partial(proxies, "symbolic"),
    "fakes in their mode": partial(fake, True), "fakes by themselves": partial(fake, False),
    "flops of fakes": flops_of_fakes, "flops": flops,
    "no_grad": partial(without_autograd, torch.no_grad),
    "inference": partial(without_autograd, torch.inference_mode),
    "a step in inference": partial(stepped, torch.inference_mode), "a step of fakes": partial(stepped, FakeTensorMode),
    "compile": partial(compiled, "eager", False), "compile to train": partial(compiled, "aot_eager", True),
    "grad": differentiated, "vmap": mapped, "functionalize": functionalized, "meta": on_meta,
    "a mode that wraps": wrapped,
}  # fmt: skip


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_an_ordinary_call_does_not_depend_on_who_called_first(first):
    first()
    trains()


@pytest.mark.parametrize("later", FIRST.values(), ids=FIRST)
def test_whoever_calls_later_finds_what_is_kept(later):
    trains()
    later()
    trains()


def test_what_is_kept_is_a_plain_tensor():
    """Also where it is made while somebody else's mode is on, or under inference mode."""
    with torch.inference_mode(), Wrapping(), torch.device("meta"):
        table = tables.on_device(torch.device("cpu"), np.eye, 3)
    assert type(table) is torch.Tensor
    assert table.device.type == "cpu"
    assert not table.is_inference()
    assert tables.on_device(torch.device("cpu"), np.eye, 3) is table


def test_tables_are_copies_and_are_copied_once():
    made = []

    def make(n):
        made.append(np.arange(n))
        return made[-1]

    first, again = (tables.on_device(torch.device("cpu"), make, 3) for _ in range(2))
    assert first is again
    assert len(made) == 1
    made[0][0] = 7
    assert first.tolist() == [0, 1, 2]


def test_tables_in_a_tuple_keep_its_type_and_dtypes():
    from powerbench.kernels.power import symmetric

    t = symmetric._tables(4, 2, 2, torch.device("cpu"))
    assert type(t) is symmetric._Tables
    assert {x.dtype for x in t.rounds} == {torch.int64}
    assert [x.dtype for x in t[:5]] == [torch.int64, torch.float32, torch.float32, torch.int64, torch.int64]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_capture_before_any_call_says_what_to_do():
    inputs = [x.cuda() for x in make_inputs(20, d=4, e=3)]
    torch.matmul(inputs[0], inputs[0].mT)  # cuBLAS needs its workspace first
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="make one call of the same sizes"), torch.cuda.graph(graph):
        chunked(*inputs)
    torch.cuda.synchronize()
    chunked(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = chunked(*inputs)
    graph.replay()
    assert relative_error(y, chunked(*inputs)) < 1e-12
