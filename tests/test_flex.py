"""FlexAttention's contestants, uncompiled: their mathematics, their mask, and when they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from powerbench import gate
from powerbench.bench import make_inputs
from powerbench.kernels import flex, packages, window
from powerbench.problem import Case, Params, Problem

KERNELS = {kernel.name: kernel for kernel in (*flex.FLEX_KERNELS, *window.WINDOW_KERNELS)}
CPU = torch.device("cpu")


def make_case(name="flex-power", pass_="fwd", params=None, **changes):
    fields = {"batch": 2, "seqlen": 150, "heads": 4, "kv_heads": 2, "head_dim": 16, "value_dim": 16, "dtype": "fp64"}
    return Case(Problem(**{**fields, "gated": True, **changes}), name, params or Params(p=2), pass_)


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention as torch runs it without compiling: the same scores and mask, in plain products."""
    monkeypatch.setattr(flex, "compiled", lambda function: function)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("p", [2, 4])
def test_power_is_power_attention(p, gated, uncompiled):
    case = make_case(gated=gated, params=Params(p=p))
    inputs = make_inputs(case.problem, CPU, 0)
    kernel = KERNELS["flex-power"]
    assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < (1e-5 if gated else 1e-9)  # float32 gates


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("wide", [1, 40, 128, 150])
def test_window_is_the_window(wide, uncompiled):
    case = make_case("window-flex", params=Params(p=2, window=wide))
    inputs = make_inputs(case.problem, CPU, 0)
    kernel = KERNELS["window-flex"]
    assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < 1e-9


def dense(q, k, v, score_mod=lambda s, b, h, i, j: s, block_mask=None, enable_gqa=False):
    """What flex_attention means, by its documentation, with gradients: torch's own has none on a CPU."""
    groups = q.shape[1] // k.shape[1]
    assert enable_gqa or groups == 1
    scores = torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(groups, 1)) / q.shape[-1] ** 0.5
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in scores.shape), indexing="ij")
    scores = score_mod(scores, b, h, i, j).masked_fill(~block_mask.mask_mod(b, h, i, j), float("-inf"))
    return scores.softmax(-1) @ v.repeat_interleave(groups, 1)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("p", [2, 4])
def test_gradients_of_power(p, gated, uncompiled, monkeypatch):
    monkeypatch.setattr(flex, "flex_attention", dense)
    case = make_case(pass_="fwd+bwd", gated=gated, params=Params(p=p), seqlen=40)
    inputs, kernel = make_inputs(case.problem, CPU, 0), KERNELS["flex-power"]
    assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < (1e-5 if gated else 1e-9)


def test_a_score_of_zero_has_a_gradient(uncompiled, monkeypatch):
    monkeypatch.setattr(flex, "flex_attention", dense)
    case = make_case(batch=1, seqlen=8, gated=False)
    inputs = make_inputs(case.problem, CPU, 0)
    q = inputs.q.clone()
    q[:, 4, :, 1:], inputs.k[:, 2, :, 0] = 0.0, 0.0  # the score of query 4 and key 2 vanishes, others do not
    q.requires_grad_()
    KERNELS["flex-power"].prepare(case)(q, inputs.k, inputs.v, None).sum().backward()
    assert bool(q.grad.isfinite().all())


@pytest.mark.parametrize("seqlen", [1, 127, 128, 300, 1024, 1100])
@pytest.mark.parametrize("wide", [None, 1, 100, 128, 129, 500])
def test_blocks_are_those_that_torch_finds(seqlen, wide):
    mask = flex.block_mask(seqlen, wide, CPU)
    want = create_block_mask(
        lambda b, h, i, j: (j <= i) & (i - j < (wide or seqlen)), None, None, seqlen, seqlen, device="cpu"
    )
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(want, name)), name
    assert torch.equal(mask.to_dense(), want.to_dense())
    assert mask.seq_lengths == want.seq_lengths


def test_reasons(monkeypatch):
    kernel = KERNELS["flex-power"]
    assert kernel.resolve(make_case().problem, Params(), "fwd", "cuda") == Params(p=2)
    assert "even degrees only" in kernel.unsupported(make_case(params=Params(p=3)), "cuda")
    assert "at most 4" in kernel.unsupported(make_case(params=Params(p=6)), "cuda")
    assert kernel.unsupported(make_case(), "cpu") == "needs a CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernel.unsupported(make_case(), "cuda") == "fp64 is not supported (bf16, fp16, fp32)"
    assert kernel.unsupported(make_case(dtype="bf16"), "cuda") is None
    monkeypatch.setattr(flex, "find_spec", lambda name: None)
    assert kernel.unsupported(make_case(dtype="bf16"), "cuda").startswith("triton is not installed")


def test_each_case_compiles_anew():
    """torch gives up on a code object after eight shapes; the ninth case must not run uncompiled, or raise."""

    def double(x):
        return x * 2

    seen = []
    for n in range(1, 14):
        function = packages.compiled(double)
        assert torch.equal(function(torch.ones(n)), torch.full((n,), 2.0))
        seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert seen == list(range(seen[0], seen[0] + 13))


def test_a_compiled_backward_runs_again():
    """On what the forward pass saved, which torch else refuses where it had planned to overwrite it."""
    function = packages.compiled(lambda x, w: torch.nn.functional.gelu(x @ w).softmax(-1))
    x, w = (torch.randn(8, 8, requires_grad=True) for _ in range(2))
    y = function(x, w)
    first, second = (torch.autograd.grad(y, x, torch.eye(8), retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch._functorch.config.donated_buffer
