"""`powerbench list kernels`: what each contestant can do, which version is installed, and how to get it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from powerbench.kernels.kernel import Kernel
from powerbench.kernels.table import available
from powerbench.printable import printable

SWEEPS = ("p", "d_tile", "chunk_size")


def print_kernels(out: Console) -> None:
    """Two tables: what can run, a line a kernel; and what each is. Asks no GPU: the limits are those of the sources."""
    kernels = list(available().values())
    out.print(_capabilities(kernels))
    out.print()
    out.print(_descriptions(kernels))
    out.print()
    out.print(
        "gates: applies log_g; the others compute the same problem without. GQA: fewer key/value heads. "
        "d: head dimension of q and k. What a case is refused for stands in its row: powerbench sweep --dry-run.",
        soft_wrap=True,
    )


def _capabilities(kernels: list[Kernel]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "version", "passes", "gates", "GQA", "dtypes", "d", "sweeps"):
        table.add_column(column, overflow="fold")
    for kernel in kernels:
        support = kernel.support
        table.add_row(
            kernel.name,
            kernel.version() or "not installed",
            ", ".join(kernel.passes),
            "yes" if kernel.gated else "no",
            "yes" if support.grouped else "no",
            ", ".join(support.dtypes),
            support.head_dims,
            ", ".join(name for name in SWEEPS if name in kernel.takes),
        )
    return table


def _descriptions(kernels: list[Kernel]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "family", "what it is", "how to get it"):
        table.add_column(column, overflow="fold")
    for kernel in kernels:
        texts = kernel.name, kernel.family, kernel.summary, kernel.support.install
        table.add_row(*(Text(printable(text)) for text in texts))  # brackets are no markup: pip install powerbench[gpu]
    return table
