"""The table of contestants: complete, consistent, open to other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from powerbench.errors import UserError
from powerbench.kernels import table
from powerbench.kernels.window import equal_state_window
from powerbench.problem import DTYPES, Case, Params, Problem
from tests.fakes import THEIRS


def entry(monkeypatch, value):
    point = EntryPoint("theirs", value, table.ENTRY_POINT_GROUP)
    monkeypatch.setattr(table, "entry_points", lambda group: [point] if group == point.group else [])


def test_rows_and_families():
    names = [kernel.name for kernel in table.KERNELS]
    assert len(names) == len(set(names))
    expected = {
        "power-triton", "power-torch", "linear-triton", "linear-torch", "sdpa-cpu", "sdpa-flash", "sdpa-cudnn",
        "sdpa-efficient", "sdpa-math", "flash-2", "flash-3", "flash-4", "fla-linear", "fla-simple-gla", "based-fla",
        "flex-power", "window-torch", "window-flex", "window-flash-2", "window-flash-3", "window-flash-4",
        "compile-attention", "compile-chunked", "retention-triton", "retention-cuda",
    }  # fmt: skip
    assert expected <= set(names)
    assert [kernel.name for kernel in table.select(("linear", "sdpa-cpu"))] == [
        "linear-triton", "linear-torch", "sdpa-cpu",
    ]  # fmt: skip
    assert not set(names) & {kernel.family for kernel in table.KERNELS}


@pytest.mark.parametrize("kernel", table.KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_every_record_answers_about_every_case(kernel, device_type):
    """No contestant may raise when asked about a case, whatever is installed here."""
    for pass_ in ("fwd", "bwd", "fwd+bwd"):
        for head_dim in (8, 24, 64, 512):
            problem = Problem(1, 100, 4, 2, head_dim, 64, "bf16", True)
            wanted = Params(d_tile=64 if "d_tile" in kernel.takes and head_dim < 64 else None)  # divides none of these
            params = kernel.resolve(problem, wanted, pass_, device_type)
            case = Case(problem, kernel.name, params, pass_)
            reason = kernel.unsupported(case, device_type)
            assert reason or wanted.d_tile is None
            assert reason is None or (reason and "\n" not in reason)
            if reason is None:
                launches = kernel.launches(case)
                assert launches
                assert all(launch.cost.executed_flops >= launch.cost.useful_flops >= 0 for launch in launches)
                assert all(launch.cost.bytes > 0 for launch in launches)
                assert kernel.workspace_bytes(case) >= 0


# At T = 6000 one chunk is chosen forward and several in training, on a GPU; decoding has the window of a lazy state.
CHUNKS = {"fwd": 6000, "bwd": 1024, "fwd+bwd": 1024, "decode": 64}
RESOLVED = {
    "power-triton": {pass_: Params(2, 8, chunk) for pass_, chunk in CHUNKS.items()},
    "power-torch": {pass_: Params(2, 8, chunk) for pass_, chunk in CHUNKS.items()},
    "compile-chunked": {pass_: Params(2, 8, chunk) for pass_, chunk in CHUNKS.items()},
    "compile-attention": dict.fromkeys(CHUNKS, Params(2)),
    "flex-power": dict.fromkeys(CHUNKS, Params(2)),
    "linear-triton": {pass_: Params(1, 64, 128) for pass_ in CHUNKS} | {"decode": Params(1, 64, 16)},
    "linear-torch": {pass_: Params(1, 64, 128) for pass_ in CHUNKS} | {"decode": Params(1, 64, 16)},
    "fla-linear": dict.fromkeys(CHUNKS, Params(1)),
    "fla-simple-gla": dict.fromkeys(CHUNKS, Params(1)),
    "retention-triton": {pass_: Params(2, chunk_size=1024) for pass_ in CHUNKS} | {"decode": Params(2, chunk_size=512)},
    "retention-cuda": {pass_: Params(2, chunk_size=1024) for pass_ in CHUNKS} | {"decode": Params(2, chunk_size=512)},
}


@pytest.mark.parametrize("kernel", table.KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("pass_", CHUNKS)
def test_what_each_contestant_chooses(kernel, pass_):
    problem = Problem(1, 6000, 2, 2, 64, 64, "bf16", True)
    of_family = {"window": Params(2, window=equal_state_window(2, problem))}
    want = RESOLVED[kernel.name][pass_] if kernel.name in RESOLVED else of_family.get(kernel.family, Params())
    assert kernel.resolve(problem, Params(), pass_, "cuda") == want


def test_on_a_cpu_gradients_change_no_choice():
    problem = Problem(1, 6000, 2, 2, 64, 64, "fp32", True)
    for kernel in table.KERNELS:
        assert len({kernel.resolve(problem, Params(), pass_, "cpu") for pass_ in ("fwd", "bwd", "fwd+bwd")}) == 1


@pytest.mark.parametrize("kernel", table.KERNELS, ids=lambda kernel: kernel.name)
def test_what_is_declared_is_refused_alike(kernel):
    """`list kernels` says how to get each kernel, and promises no dtype, pass or grouping that is refused here."""
    support = kernel.support
    assert support.install
    assert set(support.dtypes) <= set(DTYPES)
    for dtype in DTYPES:
        for kv_heads in (2, 4):
            problem = Problem(1, 64, 4, kv_heads, 16, 16, dtype, True)
            case = Case(problem, kernel.name, kernel.resolve(problem, Params(), "fwd+bwd", "cpu"), "fwd+bwd")
            if kernel.unsupported(case, "cpu") is None:
                assert support.refusal(case) is None
            if support.refusal(case) is None and kernel.name.endswith(("-torch", "sdpa-cpu")):
                assert kernel.unsupported(case, "cpu") is None


def test_select_refuses_with_what_is_allowed():
    with pytest.raises(UserError, match="'nope' is no kernel and no family; families are power, linear, sdpa"):
        table.select(("nope",))
    with pytest.raises(UserError, match=r"mine\.toml: kernels: 'nope' is no kernel"):
        table.select(("nope",), "mine.toml: kernels")


def test_another_package_adds_a_kernel(monkeypatch):
    entry(monkeypatch, "tests.fakes:THEIRS")
    assert table.select(("theirs",)) == [THEIRS]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tests.fakes:PROBLEM", "is no powerbench Kernel"),
        ("tests.fakes:THIEF", "that name is taken"),
        ("not_a_module_at_all:X", "does not load"),
        ("tests.fakes:NOT_THERE", "does not load: .* has no attribute 'NOT_THERE'"),
    ],
)
def test_a_bad_entry_point_is_named(monkeypatch, value, message):
    entry(monkeypatch, value)
    with pytest.raises(UserError, match=message):
        table.available()
