"""A step that walks over a plain bfloat16 state: against the other kernel and PyTorch, and where it is chosen.

Under Triton's interpreter, or on the GPU where there is one. The interpreter truncates to bfloat16 where a GPU rounds:
over several steps a state is held against what `step_kernel` makes of it there, bit for bit. Against PyTorch it is held
step by step, and there against one in float32, for PyTorch reads what it has just rounded and the kernels do not.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from power_inputs import make_inputs, relative_error  # noqa: E402

from powerbench import LazyState, PowerState, power_attention, power_attention_step  # noqa: E402
from powerbench.kernels.power import decode_tiling, triton_decode  # noqa: E402
from powerbench.kernels.power.step_parts import first_tile, walker_of  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("nan_filled_memory"),
    pytest.mark.skipif(
        DEVICE == "cuda" and triton_decode.walking_processors(torch.device("cuda", 0)) == 0, reason="needs TMA"
    ),
]
Y_TOLERANCE = 5e-4 if DEVICE == "cpu" else 2e-3  # float16, as the queries
LAST_PLACE = 2**-7  # of bfloat16: what truncation takes off a number at most
CASES = {  # p, d, e, d_tile, gates, batch, heads, multiprocessors
    "p1": (1, 128, 32, 128, "slow", 5, 2, 1),  # one tile a state; 3 walkers of 10
    "p2": (2, 16, 16, 16, "slow", 3, 2, 2),  # two; 6 of 12
    "p2-ungated": (2, 32, 32, 8, "none", 2, 1, 1),  # five; 3 of 10
    "p2-fast": (2, 32, 64, 8, "fast", 1, 2, 50),  # five; 10 of 10
    "p3": (3, 16, 16, 4, "slow", 2, 1, 2),  # ten; 6 of 20
    "p4": (4, 16, 16, 4, "slow", 1, 1, 50),  # seventy; 70 of 70, more than `combine` adds at once
}
SIZES = {"p": 2, "d_tile": 16}  # of the tests below that need no others: D = 256, two tiles


class Launched:
    """A kernel that notes its name where it is launched."""

    def __init__(self, kernel, names):
        self.kernel, self.names = kernel, names

    def __getitem__(self, grid):
        self.names.append(self.kernel.__name__)
        return self.kernel[grid]


@pytest.fixture
def launched(monkeypatch):
    names: list[str] = []
    for name in ("step_kernel", "walk_kernel"):
        monkeypatch.setattr(triton_decode, name, Launched(getattr(triton_decode, name), names))
    return names


def begin(p, d, e, d_tile, gates="slow", batch=2, heads=2, tokens=4):
    """Inputs of some tokens, q, k, v in float16, and the bfloat16 state that six before them leave."""
    made = make_inputs(6 + tokens, d=d, e=e, heads=heads, kv_heads=heads, batch=batch, gates=gates)
    inputs = [x if x is None else x.to(DEVICE, torch.float16 if i < 3 else torch.float32) for i, x in enumerate(made)]
    past = [x if x is None else x[:, :6] for x in inputs]
    _, state = power_attention(*past, p=p, d_tile=d_tile, return_state=True, backend="torch")
    return [x if x is None else x[:, 6:] for x in inputs], PowerState(state.s.bfloat16(), state.z)


def steps(inputs, state, backend="triton", **options):
    """y of all tokens, one a call, and the state after them."""
    outputs = []
    for t in range(inputs[0].shape[1]):
        token = [x if x is None else x[:, t : t + 1] for x in inputs]
        y, state = power_attention_step(*token, state, backend=backend, **options)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def with_processors(monkeypatch, number):
    monkeypatch.setattr(triton_decode, "walking_processors", lambda _: number)


def same(one, two):
    (y, state), (z, other) = one, two
    return torch.equal(y, z) and torch.equal(state.s, other.s) and torch.equal(state.z, other.z)


@pytest.mark.parametrize("case", CASES)
def test_several_steps_are_those_of_the_other_kernel(monkeypatch, launched, case):
    p, d, e, d_tile, gates, batch, heads, processors = CASES[case]
    inputs, start = begin(p, d, e, d_tile, gates, batch, heads, tokens=2 if p > 2 else 4)
    with_processors(monkeypatch, 0)
    want, end = steps(inputs, start, p=p, d_tile=d_tile)
    with_processors(monkeypatch, processors)
    y, got = steps(inputs, start, p=p, d_tile=d_tile)
    count = inputs[0].shape[1]
    assert launched == ["step_kernel"] * count + ["walk_kernel"] * count
    assert relative_error(y, want) < Y_TOLERANCE
    assert torch.equal(got.z, end.z) if DEVICE == "cpu" else relative_error(got.z, end.z) < 1e-6
    assert torch.equal(got.s, end.s) if DEVICE == "cpu" else relative_error(got.s, end.s) < 1e-3


@pytest.mark.parametrize(
    ("case", "normalize"),  # of odd degree a denominator may be 0
    [(case, on) for case, (p, *_) in CASES.items() for on in (True, False) if p % 2 == 0 or not on],
)
def test_each_step_is_that_of_the_torch_backend(monkeypatch, launched, case, normalize):
    p, d, e, d_tile, gates, batch, heads, processors = CASES[case]
    with_processors(monkeypatch, processors)
    inputs, state = begin(p, d, e, d_tile, gates, batch, heads, tokens=2)
    options = {"p": p, "d_tile": d_tile, "normalize": normalize, "scale": 0.3}
    for t in range(2):
        token = [x if x is None else x[:, t : t + 1] for x in inputs]
        exact = PowerState(state.s.float(), state.z)
        want, end = power_attention_step(*token, exact, backend="torch", **options)
        y, state = power_attention_step(*token, state, backend="triton", **options)
        assert relative_error(y, want) < Y_TOLERANCE
        assert relative_error(state.z, end.z) < 1e-5
        assert (state.s.float() - end.s).abs().le(LAST_PLACE * end.s.abs() + 1e-5).all()
    assert launched == ["walk_kernel"] * 2


def test_tokens_in_bfloat16_at_the_main_problems_sizes(launched):
    inputs, start = begin(2, 64, 64, 8, batch=1, heads=2, tokens=1)
    low = [*(x.bfloat16() for x in inputs[:3]), inputs[3]]
    exact = [*(x.float() for x in low[:3]), inputs[3]]
    want, end = steps(exact, PowerState(start.s.float(), start.z), backend="torch", p=2, d_tile=8)
    y, got = steps(low, start, p=2, d_tile=8)
    assert launched == ["walk_kernel"]
    assert y.dtype is torch.bfloat16
    assert relative_error(y, want) < LAST_PLACE
    assert relative_error(got.s, end.s) < LAST_PLACE
    assert relative_error(got.z, end.z) < 1e-5


def test_same_bits_every_time_and_the_same_state_however_it_is_shared_out(monkeypatch):
    inputs, start = begin(2, 32, 32, 8, batch=3, tokens=2)
    found = []
    for processors in (1, 1, 3, 40):
        with_processors(monkeypatch, processors)
        found.append(steps(inputs, start, p=2, d_tile=8))
    assert same(found[0], found[1])
    for y, state in found[2:]:
        assert torch.equal(state.s, found[0][1].s)
        assert torch.equal(state.z, found[0][1].z)
        assert relative_error(y, found[0][0]) < Y_TOLERANCE


def test_a_hard_reset(monkeypatch):
    inputs, start = begin(2, 16, 16, 16)
    inputs[3][:, 1] = -torch.inf
    found = []
    for processors in (0, 1):
        with_processors(monkeypatch, processors)
        found.append(steps(inputs, start, **SIZES))
    assert relative_error(found[1][0], found[0][0]) < Y_TOLERANCE
    assert relative_error(found[1][1].s, found[0][1].s) < (1e-9 if DEVICE == "cpu" else 1e-3)


def test_a_first_token_at_right_angles_to_its_query(launched):
    """y is its v: a denominator from phi would be float32's rounding, and y another vector."""
    (q, k, v, log_g), start = begin(2, 16, 16, 16, tokens=1)
    along = (q * k).sum(-1, keepdim=True) / (k * k).sum(-1, keepdim=True)
    q = q - 0.999 * along * k
    empty = PowerState(torch.zeros_like(start.s), torch.zeros_like(start.z))
    y, _ = steps([q, k, v, log_g], empty, **SIZES)
    assert relative_error(y, v) < Y_TOLERANCE
    assert launched == ["walk_kernel"]


def test_any_strides_of_the_tokens(launched):
    inputs, start = begin(2, 16, 16, 16, tokens=1)
    packed = torch.cat(inputs[:3], dim=-1)
    parts = [*packed.split(16, dim=-1), inputs[3].movedim(-1, 0).contiguous().movedim(0, -1)]
    far = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in inputs]
    want = steps(inputs, start, **SIZES)
    assert same(steps(parts, start, **SIZES), want)
    assert same(steps(far, start, **SIZES), want)
    assert launched == ["walk_kernel"] * 3


def test_sums_of_keys_that_lie_apart(launched):
    inputs, start = begin(2, 16, 16, 16, tokens=1)
    memory = torch.zeros(2, 2, 300, device=DEVICE)
    z = memory[..., :256].copy_(start.z)
    want = steps(inputs, start, **SIZES)
    assert same(steps(inputs, PowerState(start.s.clone(), z), in_place=True, **SIZES), want)
    assert not memory[..., 256:].any()
    assert launched == ["walk_kernel"] * 2


def test_more_sequences_than_256(launched):
    inputs, start = begin(1, 128, 16, 128, batch=257, heads=1, tokens=1)
    want, end = steps(inputs, PowerState(start.s.float(), start.z), backend="torch", p=1, d_tile=128)
    y, got = steps(inputs, start, p=1, d_tile=128)
    assert relative_error(y, want) < Y_TOLERANCE
    assert relative_error(got.s, end.s) < LAST_PLACE
    assert launched == ["walk_kernel"]


def spaced(state):
    """States that do not lie one behind the other."""
    memory = torch.zeros(*state.s.shape[:2], state.s[0, 0].numel() + 64, dtype=state.s.dtype, device=DEVICE)
    return PowerState(memory[..., :-64].unflatten(-1, state.s.shape[2:]).copy_(state.s), state.z.clone())


def unaligned(state):
    memory = torch.zeros(state.s.numel() + 2, dtype=state.s.dtype, device=DEVICE)
    return PowerState(memory[2:].view(state.s.shape).copy_(state.s), state.z.clone())


FALLBACKS = {
    "float32": lambda state: PowerState(state.s.float(), state.z.clone()),
    "lazy": lambda state: LazyState.begin(state, 16, torch.float16, 4),
    "spaced": spaced,
    "unaligned": unaligned,
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_other_states_are_not_walked_over(launched, kind):
    inputs, start = begin(2, 16, 16, 16, tokens=1)
    want, _ = steps(inputs, PowerState(start.s.float(), start.z), backend="torch", **SIZES)
    y, _ = steps(inputs, FALLBACKS[kind](start), in_place=True, **SIZES)
    assert launched == ["step_kernel"]
    assert relative_error(y, want) < Y_TOLERANCE


def test_several_queries_do_not_walk(launched):
    inputs, start = begin(2, 16, 16, 16, tokens=2)
    power_attention_step(*inputs, start, **SIZES, backend="triton")
    grouped = make_inputs(1, d=16, e=16, heads=4, kv_heads=2, batch=2)
    token = [x.to(DEVICE, torch.float16 if i < 3 else torch.float32) for i, x in enumerate(grouped)]
    power_attention_step(*token, start, **SIZES, backend="triton")
    assert launched == ["step_kernel"] * 2


MAIN = {
    "dim": 2304, "e": 64, "heads": 512, "queries": 1, "itemsize": 2, "lazy": False, "dense": True, "processors": 132,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"dim": 2304 + 64}, {"e": 128}, {"heads": 2**20}, {"queries": 2}, {"itemsize": 4}, {"itemsize": 8}, {"lazy": True},
     {"dense": False}, {"processors": 0}],
    ids=str,
)  # fmt: skip
def test_the_rule(change):
    assert decode_tiling.walks(**MAIN)
    assert not decode_tiling.walks(**MAIN | change)


@triton.jit
def shares_kernel(first_ptr, owner_ptr, tiles, walkers, offset, FIRSTS: tl.constexpr, OWNERS: tl.constexpr):
    """The first tile of each walker, and of one beyond them; the walkers of tiles from `offset` on."""
    w = tl.arange(0, FIRSTS)
    tl.store(first_ptr + w, first_tile(w, tiles, walkers))
    g = offset + tl.arange(0, OWNERS)
    tl.store(owner_ptr + g - offset, walker_of(g, tiles, walkers))


def shares(tiles, walkers, offset=0, number=None):
    number = tiles if number is None else number
    sizes = triton.next_power_of_2(walkers + 1), triton.next_power_of_2(number)
    first, owner = (torch.zeros(size, dtype=torch.int32, device=DEVICE) for size in sizes)
    shares_kernel[(1,)](first, owner, tiles, walkers, offset, *sizes)
    return first[: walkers + 1].tolist(), owner[:number].tolist()


@pytest.mark.parametrize("processors", [1, 7, 132])
@pytest.mark.parametrize(("dim", "heads"), [(2304, 8), (2304, 512), (128, 1), (128, 700), (8960, 3), (256, 41)])
def test_walkers_share_the_tiles(dim, heads, processors):
    way = decode_tiling.walk(dim, heads, processors)
    assert way.walkers <= 3 * processors
    firsts, owners = shares(heads * way.tiles, way.walkers)
    runs = [end - start for start, end in pairwise(firsts)]
    assert min(runs) > 0
    assert max(runs) - min(runs) <= 1
    assert owners == [w for w, run in enumerate(runs) for _ in range(run)]
    assert len(owners) == heads * way.tiles
    met = [len(set(owners[i * way.tiles : (i + 1) * way.tiles])) for i in range(heads)]
    assert max(met) <= way.slots <= max(met) + 1


def test_walkers_share_the_most_tiles():
    """Their number times that of walkers is beyond int32."""
    tiles, walkers = (1 << 31) // decode_tiling.WALK_ROWS - 1, 396
    firsts, owners = shares(tiles, walkers, offset=tiles - 64, number=64)
    assert firsts == [w * tiles // walkers for w in range(walkers + 1)]
    assert owners == [walkers - 1] * 64
