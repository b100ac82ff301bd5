"""Shapes of transformers: presets of well-known models in models.toml, a user's own TOML file, or options."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

from powerbench.bounds import LARGEST
from powerbench.suites.grammar import SelectorError, toml

_PRESETS = Path(__file__).with_name("models.toml")
DEFAULT = "llama-8b"
REQUIRED = ("layers", "d_model", "heads", "d_ff", "vocab")


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a dense decoder: all that its weights' and its state's FLOPs depend on. All counts, no units.

    q and the output are heads * head_dim wide, k and v kv_heads * head_dim. The MLP has `mlp_matrices` of
    d_model x d_ff: 3 with a gate (SwiGLU, GeGLU), 2 without. `window` and `full_every` say what attention the model
    has itself: a sliding window in every layer, or in all but one of each `full_every`; neither: full attention.
    """

    name: str = "custom"
    layers: int
    d_model: int
    heads: int
    kv_heads: int = 0  # 0: as heads
    head_dim: int = 0  # 0: d_model / heads
    d_ff: int
    vocab: int
    mlp_matrices: int = 3
    tied: bool = False  # one matrix is both embedding and output
    window: int | None = None
    full_every: int | None = None
    parameters: int | None = None  # the published total
    source: str = ""

    def attention_weights(self, kv_heads: int) -> int:
        """Parameters of one layer's q, k, v and output projections."""
        return self.d_model * self.head_dim * (2 * self.heads + 2 * kv_heads)

    @property
    def other_weights(self) -> int:
        """Parameters that multiply an activation, but for the projections of attention: the MLPs and the output.

        The embedding is a look-up; norms and biases (0.01 % of GPT-2 XL) multiply no matrix.
        """
        return self.layers * self.mlp_matrices * self.d_model * self.d_ff + self.vocab * self.d_model

    @property
    def weights(self) -> int:
        """Parameters that multiply an activation, with the model's own key/value heads."""
        return self.layers * self.attention_weights(self.kv_heads) + self.other_weights

    @property
    def counted_parameters(self) -> int:
        """All parameters of matrices: `weights`, and the embedding where it is not the output's matrix too."""
        return self.weights + (0 if self.tied else self.vocab * self.d_model)

    @property
    def text(self) -> str:
        """The shape in words, without the name."""
        return (
            f"{self.layers} layers, width {self.d_model}, {self.heads} heads over {self.kv_heads} of k and v, "
            f"head dimension {self.head_dim}, MLP {self.mlp_matrices} x {self.d_ff}, vocabulary {self.vocab}"
        )


def presets() -> dict[str, Model]:
    """The presets by name, in the order of models.toml: by size."""
    tables = tomllib.loads(_PRESETS.read_text(encoding="utf-8"))
    return {name: _checked({"name": name, **table}, "models.toml") for name, table in tables.items()}


@cache
def smallest_with(heads: int, kv_heads: int, head_dim: int) -> str | None:
    """The smallest preset whose attention layers have this shape; None: there is none."""
    shape = (heads, kv_heads, head_dim)
    return next((name for name, one in presets().items() if shape == (one.heads, one.kv_heads, one.head_dim)), None)


def chosen(name_or_file: str | None, shape: Mapping[str, int]) -> Model:
    """A preset, or the table of a TOML file, with the keys of `shape` in the place of its own; or `shape` alone.

    With neither, the preset DEFAULT. A key that `shape` does not name stays as it was, head_dim and kv_heads too.
    Raises SelectorError, one line that names the option or the file and key.
    """
    if name_or_file is None and not shape:
        return presets()[DEFAULT]
    if name_or_file is None:
        missing = [f"--{key.replace('_', '-')}" for key in REQUIRED if key not in shape]
        if missing:
            raise SelectorError(f"a shape of one's own needs {', '.join(missing)} too, or a --preset to start from")
        return _checked(shape, "model shape")
    table = msgspec.structs.asdict(load(name_or_file))
    if shape:
        table |= {"name": f"{table['name']}, changed", "parameters": None, "source": ""}
    return _checked({**table, **shape}, name_or_file)


def load(name_or_file: str) -> Model:
    """A preset by name, or the one table of keys in a TOML file. Raises SelectorError as `chosen`."""
    found = presets()
    if name_or_file in found:
        return found[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".toml":
        raise SelectorError(f"--preset: {name_or_file!r} is neither a TOML file nor one of {', '.join(found)}")
    return _checked({"name": path.stem, **toml(path, name_or_file)}, name_or_file)


def _checked(table: Mapping[str, object], where: str) -> Model:
    """The model with its defaults filled in. Raises SelectorError where keys are missing, unknown or contradict."""
    try:
        model = msgspec.convert(dict(table), Model)
    except msgspec.ValidationError as error:
        allowed = ", ".join(field.name for field in msgspec.structs.fields(Model))
        raise SelectorError(f"{where}: {error}; keys are {allowed}") from None
    heads, kv_heads = model.heads, model.kv_heads or model.heads
    sizes = {key: getattr(model, key) for key in (*REQUIRED, "window", "full_every")}
    for key, value in sizes.items():
        if value is not None and value < 1:
            raise SelectorError(f"{where}: {key} is {value}; it must be at least 1")
    for key, value in msgspec.structs.asdict(model).items():
        if key in LARGEST and value is not None and value > LARGEST[key]:
            raise SelectorError(f"{where}: {key} is {value}; it must be at most {LARGEST[key]}")
    if model.mlp_matrices not in (2, 3):
        raise SelectorError(f"{where}: mlp_matrices is {model.mlp_matrices}; it must be 2, or 3 with a gate")
    if kv_heads < 1 or heads % kv_heads:
        allowed = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise SelectorError(f"{where}: kv_heads is {kv_heads}; for {heads} heads it must be one of {allowed}")
    if model.head_dim < 0 or (not model.head_dim and model.d_model % heads):
        raise SelectorError(
            f"{where}: head_dim has to be given, and positive: d_model {model.d_model} is no multiple of heads {heads}"
        )
    if model.full_every and not model.window:
        raise SelectorError(f"{where}: full_every needs window: the other layers' sliding window, in tokens")
    return msgspec.structs.replace(model, kv_heads=kv_heads, head_dim=model.head_dim or model.d_model // heads)
