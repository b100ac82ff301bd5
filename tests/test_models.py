"""Model shapes: the presets against what was published, a user's own, and bad ones."""

from __future__ import annotations

import pytest

from powerbench.errors import UserError
from powerbench.models import DEFAULT, chosen, load, presets

SHAPE = {"layers": 2, "d_model": 8, "heads": 2, "d_ff": 16, "vocab": 10}


@pytest.mark.parametrize("name", presets())
def test_a_preset_has_the_published_number_of_parameters(name):
    """Norms and biases are not counted, nor GPT-2's learned positions (1024 x d_model): 0.8 % of its smallest."""
    model = presets()[name]
    positions = 1024 * model.d_model if name.startswith("gpt2") else 0
    assert model.parameters is not None
    assert model.counted_parameters + positions == pytest.approx(model.parameters, rel=1e-3)
    assert model.counted_parameters + positions <= model.parameters
    assert model.source


def test_the_presets_span_1b_to_70b_and_name_their_own_attention():
    sizes = {name: model.parameters for name, model in presets().items()}
    assert min(sizes["llama-1b"], sizes["gpt2-xl"]) < 1.6e9
    assert sizes["llama-70b"] > 70e9
    assert (presets()["gemma-3-27b"].window, presets()["gemma-3-27b"].full_every) == (1024, 6)
    assert (presets()["mistral-7b"].window, presets()["mistral-7b"].full_every) == (4096, None)
    assert chosen(None, {}) == presets()[DEFAULT]


def test_weights_by_hand():
    """Two layers of q, k, v, o (8 x 8 each) and three 8 x 16 of the MLP, and the output 10 x 8; untied: it twice."""
    model = chosen(None, SHAPE)
    assert (model.kv_heads, model.head_dim) == (2, 4)
    assert model.weights == 2 * (4 * 64 + 3 * 128) + 80
    assert model.counted_parameters == model.weights + 80
    assert chosen(None, {**SHAPE, "kv_heads": 1}).weights == model.weights - 2 * 2 * 8 * 4
    assert chosen(None, {**SHAPE, "mlp_matrices": 2}).weights == model.weights - 2 * 128
    assert chosen(None, {**SHAPE, "head_dim": 8}).weights == model.weights + 2 * 4 * 64


def test_options_override_a_preset_which_then_says_so():
    changed = chosen("llama-8b", {"layers": 16})
    assert (changed.layers, changed.kv_heads, changed.name) == (16, 8, "llama-8b, changed")
    assert changed.parameters is None
    assert chosen("llama-8b", {}) == presets()["llama-8b"]


def test_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("layers = 2\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\nwindow = 4\n")
    assert (load(str(path)).name, load(str(path)).window) == ("mine", 4)
    assert chosen(str(path), {"heads": 1, "kv_heads": 1, "head_dim": 8}).head_dim == 8


BAD = [
    ({"layers": 2}, "--d-model, --heads, --d-ff, --vocab"),
    ({**SHAPE, "kv_heads": 3}, "kv_heads is 3; for 2 heads it must be one of 1, 2"),
    ({**SHAPE, "heads": 3}, "head_dim has to be given, and positive: d_model 8 is no multiple of heads 3"),
    ({**SHAPE, "mlp_matrices": 4}, "mlp_matrices is 4; it must be 2, or 3 with a gate"),
]


@pytest.mark.parametrize(("shape", "message"), BAD)
def test_a_bad_shape_is_one_line(shape, message):
    with pytest.raises(UserError) as error:
        chosen(None, shape)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BAD_FILES = [
    ("layers = 2\n", "missing required field `d_model`"),
    ("layers = 2\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\nwidth = 3\n", "unknown field `width`"),
    ('layers = "two"\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\n', "Expected `int`, got `str` - at `$.layers`"),
    ("layers = 0\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\n", "layers is 0; it must be at least 1"),
    ("layers = 2\nd_model = 8\nheads = 0\nd_ff = 16\nvocab = 10\n", "heads is 0; it must be at least 1"),
    ("layers = 2\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\nfull_every = 2\n", "full_every needs window"),
    ("layers = 2\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\nkv_heads = -2\n", "kv_heads is -2"),
    ("layers = ", "mine.toml: "),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["llama", "missing.toml"])
def test_no_such_model(name):
    with pytest.raises(UserError, match=r"neither a TOML file nor one of gpt2, .*llama-70b|No such file"):
        load(name)
