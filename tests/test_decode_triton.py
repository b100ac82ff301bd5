"""`power_attention_step` in Triton against the PyTorch backend, which `test_decode` holds against the definition.

Under Triton's interpreter, or on the GPU where there is one. Everything that torch.empty hands out is filled with nan
first, so that a partial sum nobody wrote shows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("nan_filled_memory")

from power_inputs import make_inputs, relative_error  # noqa: E402

from powerbench import LazyState, PowerState, fold_lazy_state, power_attention, power_attention_step  # noqa: E402
from powerbench.kernels.power import decode_tiling, triton_decode  # noqa: E402
from powerbench.kernels.power.feature_map import feature_map, tspow_dim  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-4 if DEVICE == "cpu" else 5e-3}


def cast(inputs, dtype):
    return [
        x if x is None else x.to(DEVICE, dtype if i < 3 else torch.float32) for i, x in enumerate(inputs)
    ]  # log_g stays float32


def part(inputs, first, end):
    return [x if x is None else x[:, first:end] for x in inputs]


def check(inputs, *, split, sizes, p, d_tile, window=None, normalize=None, s_dtype=torch.float32, tolerance=None):
    """Both backends take the same steps from the same prefilled state: same y, same state."""
    options = {"p": p, "d_tile": d_tile, "normalize": normalize}
    _, start = power_attention(*part(inputs, 0, split), return_state=True, backend="torch", **options)
    found = []
    for backend in ("torch", "triton"):
        state = PowerState(start.s.to(s_dtype, copy=True), start.z.clone())
        if window:
            state = LazyState.begin(state, inputs[0].shape[-1], inputs[0].dtype, window)
        outputs, first = [], split
        for size in sizes:
            y, state = power_attention_step(
                *part(inputs, first, first + size), state, in_place=True, backend=backend, **options
            )
            outputs.append(y)
            first += size
        count = state.count.tolist() if window else None
        state = fold_lazy_state(state, p=p, d_tile=d_tile) if window else state
        found.append((torch.cat(outputs, dim=1), state, count))
    (want, end, counts), (y, got, counted) = found
    tolerance = tolerance or TOLERANCE[y.dtype]
    assert y.dtype == want.dtype
    assert counted == counts
    assert relative_error(y, want) < tolerance
    assert relative_error(got.s, end.s) < tolerance
    assert relative_error(got.z, end.z) < tolerance


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("gates", ["none", "slow", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_token_a_call(window, gates, dtype):
    inputs = cast(make_inputs(11, d=16, e=16, heads=2, kv_heads=2, batch=2, gates=gates), dtype)
    check(inputs, split=6, sizes=[1] * 5, p=2, d_tile=4, window=window)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes"), [(2, 2, [3, 1, 2]), (4, 2, [1, 2]), (3, 1, [1, 1]), (1, 1, [5, 16])]
)
def test_a_few_tokens_a_call_and_grouped_heads(window, sizes, heads, kv_heads):
    inputs = cast(make_inputs(26, d=16, e=32, heads=heads, kv_heads=kv_heads, batch=2), torch.float32)
    check(inputs, split=5, sizes=sizes, p=2, d_tile=8, window=window)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(("p", "d_tile", "normalize"), [(1, 16, False), (2, 1, False), (2, 16, True), (3, 2, False)])
def test_degrees_and_tiles(p, d_tile, normalize, window):
    inputs = cast(make_inputs(6, d=16, e=16, heads=2, kv_heads=1), torch.float32)
    check(inputs, split=3, sizes=[1, 1, 1], p=p, d_tile=d_tile, normalize=normalize, window=window)


@pytest.mark.parametrize("d_tile", [1, 8])
def test_degree_4(d_tile):
    inputs = cast(make_inputs(4, d=16, e=16), torch.float32)
    check(inputs, split=2, sizes=[1, 1], p=4, d_tile=d_tile, window=1)


@pytest.mark.parametrize(("d", "e", "d_tile"), [(64, 64, 8), (128, 16, 128), (32, 128, 4)])
def test_head_dimensions(d, e, d_tile):
    inputs = cast(make_inputs(4, d=d, e=e), torch.float32)
    check(inputs, split=2, sizes=[1, 1], p=2, d_tile=d_tile, window=2)


@pytest.mark.parametrize("window", [None, 2])
def test_a_bfloat16_state(window):
    """Sums before the rounding differ in their last bits, so that a state's may differ by one of bfloat16's."""
    inputs = cast(make_inputs(9, d=16, e=16, heads=2, kv_heads=1), torch.float16)
    check(inputs, split=6, sizes=[1, 1, 1], p=2, d_tile=4, window=window, s_dtype=torch.bfloat16, tolerance=1e-2)


def test_sequences_of_different_age():
    inputs = cast(make_inputs(12, d=16, e=16, heads=2, kv_heads=1, batch=3), torch.float32)
    options = {"p": 2, "d_tile": 4}
    _, start = power_attention(*part(inputs, 0, 4), return_state=True, backend="torch", **options)
    found = []
    for backend in ("torch", "triton"):
        state = LazyState.begin(PowerState(start.s.clone(), start.z.clone()), 16, torch.float32, 4)
        state.count.copy_(torch.tensor([0, 3, 1]))  # the windows hold what follows; the first nothing
        for b, n in enumerate((0, 3, 1)):
            state.k[b, :n], state.v[b, :n] = inputs[1][b, 4 : 4 + n], inputs[2][b, 4 : 4 + n]
            state.a[b, :n] = inputs[3][b, 4 : 4 + n].cumsum(0)
        outputs = []
        for t in range(7, 12):
            y, state = power_attention_step(*part(inputs, t, t + 1), state, in_place=True, backend=backend, **options)
            outputs.append(y)
        found.append((torch.cat(outputs, dim=1), state))
    (want, end), (y, got) = found
    assert relative_error(y, want) < 1e-6
    assert got.count.tolist() == end.count.tolist()
    assert relative_error(got.state.s, end.state.s) < 1e-6


class FrontOnly:
    """`step_kernel` launched with its first programs only: what those do alone."""

    def __init__(self, kernel, programs):
        self.kernel, self.programs = kernel, programs

    def __getitem__(self, grid):
        return lambda *args, **options: self.kernel[(self.programs(options),)](*args, **options)


def aged(inputs, counts, window, dtype=torch.float32):
    """A lazy state after 6 tokens, and what the windows hold next: `counts` tokens of each sequence."""
    _, start = power_attention(*part(inputs, 0, 6), p=2, d_tile=4, return_state=True, backend="torch")
    state = LazyState.begin(PowerState(start.s.to(dtype), start.z), 16, inputs[0].dtype, window)
    state.count.copy_(torch.tensor(counts))
    for b, n in enumerate(counts):
        state.k[b, :n], state.v[b, :n] = inputs[1][b, 6 : 6 + n], inputs[2][b, 6 : 6 + n]
        state.a[b, :n] = inputs[3][b, 6 : 6 + n].cumsum(0)
    return state


@pytest.mark.parametrize(("size", "kv_heads"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("due", ["", "4", "03", "014", "01234"])
def test_who_folds_first_changes_no_bit(monkeypatch, due, size, kv_heads):
    """Some of five sequences are due: by the first programs or not, each is moved on once, before its tile is read."""
    window = 5
    inputs = cast(make_inputs(14, d=16, e=16, heads=2, kv_heads=kv_heads, batch=5), torch.float32)
    counts = [window - size if str(b) in due else max(0, window - size - 1 - b % 2) for b in range(5)]

    def step(backend, front):
        monkeypatch.setattr(triton_decode, "front_sequences", lambda *_: front)
        state = aged(inputs, counts, window)
        return power_attention_step(
            *part(inputs, 12 - size, 12), state, p=2, d_tile=4, in_place=True, backend=backend
        )  # fmt: skip

    want, end = step("torch", 0)
    y, got = step("triton", 0)
    assert relative_error(y, want) < TOLERANCE[torch.float32]
    assert relative_error(got.state.s, end.state.s) < TOLERANCE[torch.float32]
    assert got.count.tolist() == end.count.tolist()
    for front in (1, 2, 7):
        first, moved = step("triton", front)
        assert torch.equal(first, y)
        assert torch.equal(moved.state.s, got.state.s)
        assert torch.equal(moved.state.z, got.state.z)
        assert moved.count.tolist() == end.count.tolist()


@pytest.mark.parametrize(("front", "due", "taken"), [(2, "", ""), (2, "2", "2"), (2, "013", "13"), (1, "03", "3")])
def test_the_first_programs_take_the_last_that_are_due(monkeypatch, front, due, taken):
    inputs = cast(make_inputs(14, d=16, e=16, heads=2, kv_heads=2, batch=4), torch.float32)
    counts = [3 if str(b) in due else b % 3 for b in range(4)]
    heads, programs = 2, decode_tiling.split(tspow_dim(16, 2, 4), 16, 8, 1, True, 4).programs
    assert programs > 1
    monkeypatch.setattr(triton_decode, "front_sequences", lambda *_: front)
    kernel = FrontOnly(triton_decode.step_kernel, lambda options: options["FRONT"] * heads * programs)
    monkeypatch.setattr(triton_decode, "step_kernel", kernel)
    state = aged(inputs, counts, 4)
    before = state.state.s.clone()
    power_attention_step(*part(inputs, 9, 10), state, p=2, d_tile=4, in_place=True, backend="triton")
    assert "".join(str(b) for b in range(4) if not torch.equal(state.state.s[b], before[b])) == taken


def test_first_programs_only_where_not_all_run_at_once():
    assert decode_tiling.front_sequences(1, 8 * 73, 64) == 0
    assert decode_tiling.front_sequences(4, 8 * 19, 64) == 0
    assert decode_tiling.front_sequences(16, 8 * 19, 64) == decode_tiling.LEAST_FRONT


@pytest.mark.parametrize(
    ("batch", "window", "front"), [(64, 64, 2), (129, 64, 3), (256, 64, 4), (1024, 64, 4), (64, 1, 4)]
)
def test_first_programs_take_as_many_as_are_due_within_bounds(batch, window, front):
    assert decode_tiling.front_sequences(batch, 8 * 19, window) == front


def test_a_lazy_state_in_16_bits_is_read_in_as_many_bytes():
    wide, narrow = (decode_tiling.split(2304, 64, 512, 1, True, itemsize) for itemsize in (4, 2))
    assert narrow.rows == 2 * wide.rows
    assert decode_tiling.split(2304, 64, 512, 1, False, 2) == decode_tiling.split(2304, 64, 512, 1, False, 4)


def test_any_strides():
    inputs = cast(make_inputs(5, d=16, e=16, heads=2, kv_heads=2, batch=2), torch.float32)
    _, state = power_attention(*part(inputs, 0, 4), p=2, d_tile=4, return_state=True, backend="torch")
    token = part(inputs, 4, 5)
    want, end = power_attention_step(*token, state, p=2, d_tile=4, backend="triton")
    far = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in token]
    memory = torch.zeros(2, 2, state.s.shape[2] * 20, device=DEVICE)  # heads contiguous, apart
    s = memory[..., : state.s[0, 0].numel()].unflatten(-1, state.s.shape[2:]).copy_(state.s)
    moved = PowerState(s, state.z.clone())
    y, got = power_attention_step(*far, moved, p=2, d_tile=4, in_place=True, backend="triton")
    assert torch.equal(y, want)
    assert torch.equal(got.s, end.s)
    assert not memory[..., state.s[0, 0].numel() :].any()


def test_a_hard_reset():
    inputs = cast(make_inputs(8, d=16, e=16), torch.float32)
    inputs[3][:, 6] = -torch.inf
    for window in (None, 3):
        check(inputs, split=4, sizes=[1, 1, 1, 1], p=2, d_tile=4, window=window)


@pytest.mark.parametrize(
    ("d", "dtype", "named"), [(24, torch.float32, "head dimension of q and k is 24"), (16, torch.float64, "float64")]
)
def test_refuses_what_the_kernels_lack(d, dtype, named):
    inputs = [x.to(DEVICE, dtype) for x in make_inputs(1, d=d, e=16)]
    with pytest.raises(ValueError, match=named):
        power_attention_step(*inputs[:3], p=2, backend="triton")


@pytest.mark.parametrize(("lazy", "itemsize"), [(False, 4), (True, 4), (True, 2)])
@pytest.mark.parametrize("queries", [1, 4, 64])
@pytest.mark.parametrize(
    ("dim", "e", "heads"), [(2304, 64, 8), (2304, 64, 512), (2304, 64, 2048), (16, 16, 1), (2080, 128, 33)]
)
def test_a_split_covers_the_state(dim, e, heads, queries, lazy, itemsize):
    cut = decode_tiling.split(dim, e, heads, queries, lazy, itemsize)
    covered = cut.rows * cut.tiles
    assert covered * (cut.programs - 1) < dim <= covered * cut.programs
    assert cut.rows % decode_tiling.piece(cut.rows, e) == 0


@pytest.mark.parametrize(("d", "p", "d_tile"), [(128, 2, 1), (16, 4, 4), (64, 1, 64), (32, 3, 8)])
def test_packed_indices_are_those_of_the_feature_map(d, p, d_tile):
    packed = decode_tiling.packed_indices(d, p, d_tile)
    assert len(packed) == tspow_dim(d, p, d_tile)
    unpacked = np.stack([packed >> (7 * i) & 127 for i in range(p)], axis=1)
    assert np.array_equal(unpacked, feature_map(d, p, d_tile).indices)
