"""Random problems: what is drawn, what they are held against, and that they find what is planted."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from powerbench.cli import cli
from powerbench.errors import UserError
from powerbench.fuzz.calls import class_sums, d_tile_of, results, wanted
from powerbench.fuzz.check import CANCELLED, ROW, check, judge, terms, tolerance
from powerbench.fuzz.draw import CPU, GPU, INTERPRETER, groups, limits
from powerbench.fuzz.inputs import make_values
from powerbench.fuzz.problem import FuzzProblem, parse
from powerbench.fuzz.shrink import shrink
from powerbench.kernels.power.reference import chunked_form, recurrent_form
from tests.planted_fuzz import SITE

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cpu")


def drawn(number, bounds, seed=0):
    return [problem for group in groups(seed, number, bounds, {}) for problem in group]


@pytest.mark.parametrize("bounds", [GPU, CPU, INTERPRETER], ids=["gpu", "cpu", "interpreter"])
def test_the_text_of_a_problem_is_the_problem(bounds):
    for problem in drawn(300, bounds):
        assert parse(problem.text()) == problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p=2,d", "'d' is not name=value"),
        ("p=2,heads=3", "there is no 'heads'; a problem has p, d, e"),
        ("p=2,p=2", "p is given twice"),
        ("p=5", "p is 5; allowed are 1, 2, 3, 4"),
        ("T=x", "T is 'x'; it must be an integer"),
        ("T=0", "T is 0; it must be at least 1"),
        ("scale=-1", "scale is -1.0; it must be above 0"),
        ("scale=nan", "scale is nan; it must be above 0"),
        ("normalize=yes", "normalize is 'yes'; it must be true or false"),
        ("dtype=bfloat16", "dtype is bfloat16; allowed are bf16, fp16, fp32, fp64"),
        ("H=3,Hk=2", "Hk is 2; it must divide H = 3"),
        ("d=16,d_tile=3", "d_tile is 3; for d = 16 it must be one of 1, 2, 4, 8, 16, or 0"),
        ("p=3,normalize=true", "normalize is true with p = 3; only even p can be normalised"),
        ("loss=state", "loss is state; without final it must be none or y"),
        ("T=4,split=4", "split is 4; it must be below T = 4"),
        ("decode=lazy", "decode is lazy; it goes with loss=none, final=true and without split"),
        ("low=true", "low is true; a bfloat16 state goes with decode=plain or lazy and dtype bf16 or fp16"),
    ],
)
def test_a_line_that_is_no_problem_is_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(text)


def test_a_seed_draws_the_same_problems_and_another_one_others():
    assert drawn(60, GPU, 1) == drawn(60, GPU, 1)
    assert drawn(60, GPU, 1)[:45] == drawn(45, GPU, 1)  # the last group is cut, no other
    assert not set(drawn(60, GPU, 1)) & set(drawn(60, GPU, 2))


def test_a_group_differs_in_nothing_that_kernels_are_compiled_for():
    constants = (
        "p",
        "d",
        "e",
        "dtype",
        "d_tile",
        "normalize",
        "gated",
        "initial",
        "final",
        "loss",
        "decode",
        "step",
        "low",
    )
    for group in groups(0, 2000, GPU, {}):
        assert len({tuple(getattr(problem, name) for name in constants) for problem in group}) == 1
        assert len({problem.T > problem.chunk > 0 for problem in group if problem.decode == "no"}) <= 1


def test_everything_is_drawn():
    problems = drawn(4000, GPU)
    for name in (
        "p",
        "dtype",
        "gates",
        "values",
        "layout",
        "normalize",
        "initial",
        "final",
        "loss",
        "decode",
        "step",
        "low",
    ):
        missing = {getattr(FuzzProblem, name), *_choices(name)} - {getattr(problem, name) for problem in problems}
        assert missing <= {"fp64"}, name
    assert {16, 32, 64, 128} < {problem.d for problem in problems}  # and others, of the PyTorch backend
    assert max(problem.T for problem in problems) > 4096
    assert min(problem.T for problem in problems) == 1
    assert any(problem.T > 4 * problem.chunk > 0 for problem in problems)
    assert any(problem.split for problem in problems)
    assert any(problem.padding for problem in problems)
    walked = (x for x in problems if x.decode == "plain" and x.low and x.step == 1 and x.Hk == x.H)
    assert any(x.dim(x.d_tile or 8) % 128 == 0 and x.e <= 64 for x in walked)


def _choices(name):
    from powerbench.fuzz.problem import _CHOICES

    return _CHOICES.get(name, ())


def test_what_is_drawn_can_be_narrowed():
    only = {"p": (3,), "d": (32,), "dtype": ("fp16",), "d_tile": (0, 8)}
    for group in groups(0, 200, GPU, only):
        for problem in group:
            assert (problem.p, problem.d, problem.dtype) == (3, 32, "fp16")


REFERENCES = [
    "p=2,d=8,e=4,dtype=fp64,T=37,B=2,H=4,Hk=2,gates=slow,normalize=true,initial=true,final=true,loss=both,d_tile=4",
    "p=3,d=6,e=5,dtype=fp64,T=40,H=3,Hk=3,gates=fast,normalize=false,final=true,loss=both,d_tile=2,scale=0.5",
    "p=1,d=8,e=8,dtype=fp64,T=30,gates=reset,normalize=false,initial=true,final=true,loss=state,d_tile=8",
    "p=4,d=4,e=4,dtype=fp64,T=20,normalize=true,initial=true,final=true,loss=both,d_tile=1",
]


@pytest.mark.parametrize("form", [chunked_form, recurrent_form])
@pytest.mark.parametrize("text", REFERENCES)
def test_the_reference_is_that_of_the_project(text, form, monkeypatch):
    """Also where its blocks are of a few rows."""
    problem = parse(text)
    values = make_values(problem, problem.d_tile, DEVICE)
    monkeypatch.setattr("powerbench.fuzz.exact.BLOCK_ELEMENTS", 2**10)
    want = wanted(problem, values, problem.d_tile)
    options = {"chunk_size": 7} if form is chunked_form else {}

    def attention(*inputs, p, chunk_size, d_tile, scale, normalize, initial_state, return_state, backend):
        return form(
            *inputs, p=p, d_tile=d_tile, scale=scale, normalize=normalize, initial_state=initial_state,
            return_state=return_state, **options,
        )  # fmt: skip

    monkeypatch.setattr("powerbench.fuzz.calls.power_attention", attention)
    got = results(problem, values, problem.d_tile, "torch")
    assert (
        got.keys() == want.keys() == {"y", "s", "z", "dq", "dk", "dv", "ds", "dz"} - _absent(problem) | _gate(problem)
    )
    for name, x in got.items():
        torch.testing.assert_close(x, want[name], rtol=1e-8, atol=1e-10, msg=name)


def _absent(problem):
    return set() if problem.initial else {"ds", "dz"}


def _gate(problem):
    return {"dlog_g"} if problem.gated else set()


def test_a_row_without_weights_is_zero_and_has_no_gradient():
    problem = parse("p=2,d=4,e=4,dtype=fp64,T=9,padding=3,gates=slow")
    want = wanted(problem, make_values(problem, 4, DEVICE), 4)
    assert all(x.isfinite().all() for x in want.values())
    assert all(want[name][:, :3].abs().max() == 0 for name in ("y", "dq", "dk", "dv"))


@pytest.mark.parametrize("text", [
    "p=2,d=16,e=8,T=300,H=2,gates=slow", "p=1,d=16,e=16,T=300,normalize=false,gates=fast",
    "p=3,d=8,e=16,T=200,normalize=false,gates=reset", "p=4,d=16,e=16,T=200", "p=2,d=16,e=8,T=300,H=4,values=raw",
])  # fmt: skip
@pytest.mark.parametrize("state", ["", ",initial=true,final=true,loss=both"])
def test_an_ordinary_result_is_not_small_beside_its_terms(text, state):
    """So that it is judged by its own norm: the terms matter below a share of CANCELLED."""
    problem = parse(text + state)
    values = make_values(problem, d_tile_of(problem, DEVICE), DEVICE)
    want, norms = (
        wanted(problem, values, d_tile_of(problem, DEVICE)),
        terms(problem, values, d_tile_of(problem, DEVICE)),
    )
    for name, norm in norms.items():
        if name in want:
            assert want[name].norm() > CANCELLED * norm.norm(), name


def judged(text, change):
    """A right problem's tensors after `change`, as they are judged."""
    problem = parse(text)
    d_tile = d_tile_of(problem, DEVICE)
    values = make_values(problem, d_tile, DEVICE)
    want = wanted(problem, values, d_tile)
    got = {name: x.float() for name, x in want.items()}
    change(got)
    return problem, judge(problem, values, d_tile, got, want, lambda: None)


def test_one_wrong_row_of_many_is_wrong():
    def change(got):
        got["y"][0, 700] = 0

    problem, found = judged("p=2,d=16,e=16,dtype=bf16,T=1500,gates=slow", change)
    assert found["y"].error < 0.03
    assert found["y.row"].error > ROW * tolerance(problem)
    assert {name for name, x in found.items() if not x.right} == {"y.row"}


def test_a_gradient_that_is_zero_has_its_terms_to_be_judged_by():
    """One token, normalised: y = v whatever q and k are."""
    text = "p=2,d=16,e=16,dtype=bf16,T=1"
    _, found = judged(text, lambda got: got["dq"].add_(1e-3))
    assert found["dq"].right
    assert found["dq"].by == "tolerance, of terms"
    _, found = judged(text, lambda got: got["dq"].add_(1.0))
    assert not found["dq"].right


def test_a_right_result_beyond_its_dtype_is_not_judged():
    problem, found = judged("p=4,d=16,e=16,dtype=fp16,T=64,values=large,normalize=false", lambda got: None)
    assert "y" in found  # in float32 it has a place
    values = make_values(problem, 4, DEVICE)
    want = wanted(problem, values, 4)
    half = {name: x.half() for name, x in want.items()}
    assert "y" not in judge(problem, values, 4, half, want, lambda: None)


def test_a_gradient_of_a_state_is_one_of_its_classes():
    problem = parse("p=2,d=4,e=2,d_tile=4")
    gradient = torch.randn(1, 1, 16, 2)
    moved = gradient.clone()
    moved[:, :, 1] += 5  # the rows (0, 1) and (1, 0)
    moved[:, :, 4] -= 5
    torch.testing.assert_close(class_sums(gradient, problem, 4), class_sums(moved, problem, 4), atol=1e-6, rtol=0)
    moved[:, :, 0] += 1
    assert (class_sums(gradient, problem, 4) - class_sums(moved, problem, 4)).abs().max() > 0.9


def test_smaller_problems_fail_too():
    problem = drawn(1, CPU)[0].but(p=2, d=16, d_tile=0, T=100, split=0, padding=0, H=6, Hk=3, decode="no", low=False)
    small = shrink(problem, lambda other: other.T > 30 and other.H > 1 and other.seed == problem.seed)
    assert (small.T, small.H) == (31, 2)
    assert parse(small.text()) == small
    assert small.layout == "contiguous"


def test_it_judges_what_the_operator_does():
    line = check(
        parse("p=2,d=8,e=8,dtype=bf16,T=30,chunk=8,gates=slow,final=true,loss=both,split=11,seed=4"), DEVICE, "auto"
    )
    assert (line["status"], line["message"], line["backend"]) == ("right", "", "torch")
    assert line["tensors"].keys() == {"y", "y.row", "s", "z", "dq", "dq.row", "dk", "dk.row", "dv", "dv.row", "dlog_g"}


# The command.


@pytest.fixture
def verify():
    """Runs `powerbench verify` with these arguments: exit status and output."""

    def run(*arguments):
        done = CliRunner().invoke(cli, ["verify", "--device", "cpu", *arguments])
        if isinstance(done.exception, UserError):
            return 2, str(done.exception)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return run


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Plant a fault in every worker that is started from now on; None: none."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
    return lambda name: monkeypatch.setenv("PLANTED", name or "")


def printed(output):
    """The first command of a problem that was made small, without its name and device, and that problem."""
    words = shlex.split(re.search(r"smaller, and \w+ too:\n(.*)", output)[1])
    assert words[:4] == ["powerbench", "verify", "--device", "cpu"]
    return words[4:], parse(words[words.index("--problem") + 1])


@pytest.mark.parametrize(
    ("fault", "message", "smallest"),
    [
        ("wrong dk", "dk: error 0.5, allowed", {"T": 9, "H": 1, "B": 1, "gates": "none", "layout": "contiguous"}),
        ("nan", "y: not finite", {"T": 1, "gates": "zero"}),
        ("other bits", "y: not the same bits twice", {}),
        ("aborts", "SIGABRT: terminate called after a planted fault", {"split": 0, "padding": 0}),
        ("raises", "RuntimeError: a planted fault", {"H": 2, "T": 1}),
    ],
)
def test_a_planted_fault_is_found_made_small_and_repeated(plant, verify, fault, message, smallest):
    plant(fault)
    status, output = verify(
        "--random",
        "12",
        "--seed",
        "5",
        "--workers",
        "1",
        "--dtype",
        "fp32",
        "--p",
        "2",
        *(["--max-seconds", "40"] if fault == "aborts" else []),
    )  # a process for each try
    assert status == 1
    assert message in output
    arguments, problem = printed(output)
    assert {name: getattr(problem, name) for name in smallest} == smallest
    status, output = verify(*arguments)
    assert status == 1
    assert message.split(",")[0] in output
    plant(None)
    status, output = verify(*arguments)
    assert status == 0, output
    assert "1 of 1 problems" in output
    assert "1 right" in output


@pytest.mark.parametrize(("fault", "status"), [("hangs", "timeout"), ("strikes", "died")])
def test_a_process_that_is_lost_costs_its_problem_alone(plant, verify, tmp_path, fault, status):
    plant(fault)
    problems = [f"p=2,d=8,e=8,dtype=fp32,T={T}" for T in (5, 30, 6)]
    asked = [word for text in problems for word in ("--problem", text)]
    code, output = verify(*asked, "--workers", "1", "--timeout", "10", "--log", str(tmp_path / "log"))
    assert code == 1
    assert f"2 right, 1 {status}" in output.replace(f"1 {status}, 2 right", f"2 right, 1 {status}")
    assert ("no answer within 10 s" if fault == "hangs" else "SIGSEGV") in output
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[0]["torch"] == torch.__version__
    assert [line["status"] for line in lines[1:]] == ["right", status, "right"]
    assert [parse(line["problem"]).T for line in lines[1:]] == [5, 30, 6]


def test_the_log_is_appended_to_and_time_is_kept(verify, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"kept": true}\n')
    _, output = verify("--random", "100000", "--max-seconds", "15", "--workers", "1", "--seed", "1", "--log", str(log))
    assert " of 100000 problems in " in output
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0] == {"kept": True}
    assert all(line["seed"] == 1 for line in lines[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random", "3", "--problem", "p=2"], "--random and --problem exclude each other"),
        (["--random", "3", "--ctx", "1k"], "--ctx does not go with --random; what is drawn can be narrowed by --p"),
        (["--problem", "p=2", "--p", "2"], "--p does not go with --problem"),
        (["--random", "3", "--p", "5"], "--p is 5; it must be from 1 to 4"),
        (["--random", "3", "--dtype", "fp8"], "--dtype: 'fp8' is not one of bf16, fp16, fp32, fp64"),
        (["--problem", "p=7"], "problem: p is 7; allowed are 1, 2, 3, 4"),
        (["--random", "3", "--log", "/no/such/folder/log"], "cannot write /no/such/folder/log"),
        (["--workers", "3"], "--workers goes with --random or --problem"),
        (["--log", "x"], "--log goes with --random or --problem"),
    ],
)
def test_what_makes_no_sense_is_one_line(verify, arguments, message):
    status, output = verify(*arguments)
    assert status == 2
    assert message in output


def test_what_is_drawn_depends_on_who_runs_it():
    assert limits("cuda", "auto") is limits("cuda", "torch") is GPU
    assert {problem.d for problem in drawn(2000, limits("cuda", "triton"))} == {16, 32, 64, 128}
    assert limits("cpu", "auto") is limits("cpu", "torch") is CPU
    assert limits("cpu", "triton") is INTERPRETER
    assert not {"bf16"} & set(INTERPRETER.dtypes)


@pytest.mark.timeout(600)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels are compiled: powerbench verify --random")
@pytest.mark.parametrize("seed", [21, 22])
def test_random_problems_on_interpreted_kernels(verify, seed):
    pytest.importorskip("triton")
    status, output = verify("--backend", "triton", "--random", "100", "--seed", str(seed), "--workers", "1")
    assert status == 0, output
    assert "100 right" in output
