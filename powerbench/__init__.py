"""powerbench: how fast long-context attention really is, and power attention kernels of its own.

`power_attention`, `power_attention_step` and their states are loaded on first use, so that `import powerbench` needs no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from powerbench._version import __version__

if TYPE_CHECKING:
    from powerbench.kernels.power.decode import LazyState, fold_lazy_state, power_attention_step
    from powerbench.kernels.power.op import PowerState, power_attention

__all__ = ["LazyState", "PowerState", "__version__", "fold_lazy_state", "power_attention", "power_attention_step"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from powerbench.kernels.power import decode, op  # noqa: PLC0415  torch is heavy: only who uses it pays

        return getattr(op if name == "power_attention" else decode, name)
    raise AttributeError(f"module 'powerbench' has no attribute {name!r}")
