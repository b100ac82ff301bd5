"""The table of contestants: complete, consistent, open to other packages."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint

import pytest

from powerbench.cost import Cost, Launch
from powerbench.errors import UserError
from powerbench.kernels import entries, table
from powerbench.kernels.ledger import softmax_launches
from powerbench.kernels.softmax import softmax_reference
from powerbench.kernels.window import equal_state_window
from powerbench.plan import plan
from powerbench.problem import DTYPES, Case, Params, Problem
from powerbench.suites import Suite
from tests.fakes import CEILINGS, CPU, THEIRS, fake, raising


def entry(monkeypatch, value):
    point = EntryPoint("theirs", value, entries.GROUP)
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


CASE = Case(Problem(1, 64, 2, 2, 8, 8, "fp32", False), "theirs", Params(), "fwd")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tests.fakes:PROBLEM", "is no powerbench Kernel but of type Problem"),
        ("tests.fakes:THIEF", "adds a kernel 'power-torch', but that name is taken"),
        ("tests.hostile_kernels:OF_A_FAMILY", "adds a kernel 'power', but that name is taken"),
        ("not_a_module_at_all:X", "does not load: ModuleNotFoundError: No module named"),
        ("tests.fakes:NOT_THERE", "does not load: AttributeError: .* has no attribute 'NOT_THERE'"),
        ("tests.hostile_imports.raises_oserror:X", "does not load: OSError: .*libnothing"),
        ("tests.hostile_imports.calls_exit:X", "does not load: SystemExit: 3"),
        ("tests.hostile_imports.raises_interrupt:X", "does not load: Interrupt: not the user's"),
        ("tests.hostile_imports.raises_unreadable:X", "does not load: UnreadableError: its message cannot be read"),
        ("tests.hostile_kernels:NAMED_WITH_A_NEWLINE", "has a name that is none"),
        ("tests.hostile_kernels:NAMED_BY_A_NUMBER", "has a name that is none"),
        ("tests.hostile_kernels:WITHOUT_LAUNCHES", "has no usable launches, support, tuning_seconds"),
        ("no colon at all", "does not load"),
    ],
)
def test_a_bad_entry_point_costs_its_row(monkeypatch, value, message):
    """All others are there, and it says in its row what is wrong; no command ends for it."""
    entry(monkeypatch, value)
    rows = table.available()
    assert [name for name in rows if name not in {kernel.name for kernel in table.KERNELS}] == ["theirs"]
    reason = rows["theirs"].refusal(CASE, "cpu")
    assert reason.startswith(f"entry point {value} of group powerbench.kernels ")
    assert re.search(message, reason)
    assert "\n" not in reason
    assert table.select(("theirs", "sdpa-cpu"))[0].installed() is None


def test_ctrl_c_while_packages_are_imported_is_the_users(monkeypatch):
    entry(monkeypatch, "tests.hostile_imports.waits_for_ctrl_c:X")
    with pytest.raises(KeyboardInterrupt):
        table.available()


@pytest.mark.parametrize(
    ("wanted", "answer", "message"),
    [
        (Params(p=2), Params(p=100_000), "resolve answers p = 100000 where p = 2 was asked for"),
        (Params(p=2), Params(), "resolve answers p = None where p = 2 was asked for"),
        (Params(), Params(p=100_000), "resolve chooses p = 100000; a kernel may choose up to 4"),
        (Params(), Params(p=10**30), r"resolve answers p = 10+; allowed are 1 to 2147483648"),
        (Params(), Params(chunk_size=0), "resolve answers chunk_size = 0; allowed are"),
        (Params(), Params(d_tile=2.0), "resolve answers d_tile = 2.0; allowed are"),
        (Params(), None, "resolve answers with a NoneType, not with Params"),
        (Params(), SystemExit(3), "resolve of fake raises SystemExit: 3"),
    ],
)
def test_parameters_are_those_asked_for(wanted, answer, message):
    def resolve(*_):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    kernel = fake("fake", resolve=resolve, takes=frozenset({"p"}))
    assert kernel.settle(CASE.problem, wanted, "fwd", "cpu")[0] == wanted
    suite = Suite(ctx=(64,), heads=(2,), head_dim=(8,), dtype=("fp32",), p=(wanted.p,), kernels=("fake",)).on("cpu")
    (item,) = plan(suite, [kernel], CPU, CEILINGS)
    assert item.case.params == wanted
    assert re.match(message, item.reason)


@pytest.mark.parametrize("p", [None, 1, 2, 4, 7])
def test_a_degree_asked_for_is_taken(p):
    kernel = fake("fake", resolve=lambda problem, wanted, pass_, device_type: wanted, takes=frozenset({"p"}))
    assert kernel.settle(CASE.problem, Params(p=p), "fwd", "cpu") == (Params(p=p), None)


@pytest.mark.parametrize("changes", [
    {"unsupported": raising(SystemExit(3))},
    {"launches": raising(RuntimeError("no ledger"))},
    {"launches": lambda case: None},
    {"launches": lambda case: (Launch("forward", Cost(1, 1, float("nan"))),)},
    {"launches": lambda case: (Launch("forward", Cost(1, 1, -5)),)},
    {"launches": lambda case: (Launch("forward", Cost(1, 10**30, 5)),)},
    {"launches": lambda case: ("forward",)},
    {"workspace_bytes": lambda case: "large"},
    {"workspace_bytes": lambda case: -1},
    {"workspace_bytes": raising(OSError("gone"))},
])  # fmt: skip
def test_a_record_that_does_not_answer_costs_its_row(changes):
    suite = Suite(ctx=(64,), heads=(2,), head_dim=(8,), dtype=("fp32",)).on("cpu")
    bad, good = plan(suite, [fake("bad", **changes), fake("good")], CPU, CEILINGS)
    (what,) = changes
    assert bad.reason.startswith(f"{what} of bad ")
    assert good.reason is None


def test_a_version_that_raises_is_said():
    assert fake("bad", version=raising(SystemExit(3))).installed() == "version of bad raises SystemExit: 3"


def test_the_claims_of_another_package_are_told_from_powerbenchs_own():
    ours = {"reference": softmax_reference, "launches": softmax_launches}
    assert fake("a").claims("fwd") is None, "no entry point"
    assert fake("a", provider="mine 1.0").claims("fwd") == "reference and ledger of mine 1.0"
    assert fake("a", provider="mine 1.0", reference=softmax_reference).claims("fwd") == "ledger of mine 1.0"
    assert fake("a", provider="mine 1.0", **ours).claims("fwd") is None
    posing = raising(RuntimeError("never called"))
    posing.__module__, posing.__name__ = softmax_reference.__module__, softmax_reference.__name__
    assert fake("a", provider="mine 1.0", **ours | {"reference": posing}).claims("fwd") == "reference of mine 1.0"
