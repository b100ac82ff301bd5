"""A run file, a kernel package and a TOML file whose every text is as bad as can be, for trying on every command."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import msgspec

from powerbench.nvml import Facts
from powerbench.problem import Params
from powerbench.results.model import CeilingsAgain, Measurement, Phase, Round, Run
from powerbench.results.store import _encode
from powerbench.roofline import Ceiling
from tests import runs

# Clipboard, title and screen of a terminal; its eight-bit escapes; an interrupt; reversed and hidden text; a workflow's
# commands; HTML, a link, a mention; a formula; a value of plotly's trace; a half of a surrogate pair cannot be in JSON.
WORST = (
    "=1+2\x1b]52;c;ZXZpbA==\x07\x1b]0;title\x1b\\\x1b[2J\x9b31m\x03\r\n::error file=a::b\n##[error]c\u2028"
    "\u202eevil\u200b\ufeff\U000e0041\u3164\x00\x7f @octocat https://evil.example #12 [a](javascript:b) ![c](d) "
    '<a href="https://evil.example">e</a>%{meta.kernel}`;touch pwned;$(touch pwned)`\'"|$x_{$[/red][bold]'
)
HEADER_FIELDS = ("command", "suite", "started")


def run() -> Run:
    """Every text of a run file is WORST, with something before it where that decides what is done with it."""
    base = runs.header()
    gpu = Facts(**dict.fromkeys([f.name for f in msgspec.structs.fields(Facts) if f.type in (str, str | None)], WORST))
    environment = msgspec.structs.replace(
        base.environment, device=WORST, device_type=WORST, os=WORST, python=WORST, cpu=WORST, driver=WORST,
        packages={WORST: WORST}, commit=WORST, powerbench=WORST, cuda=WORST, gpu=gpu, warnings=(WORST,),
    )  # fmt: skip
    measured = (
        Ceiling("matmul", 10**9, (1.0,), WORST, WORST, WORST),
        Ceiling("copy", 10**9, (1.0,), WORST, WORST),
    )
    ceilings = msgspec.structs.replace(base.ceilings, source=WORST, measured=measured)
    header = msgspec.structs.replace(
        base, environment=environment, ceilings=ceilings, **dict.fromkeys(HEADER_FIELDS, WORST)
    )
    found: list[Measurement] = []
    for ctx in (1024, 2048, 4096):
        for name, params, ms in ((f"sdpa-{WORST}", Params(), 2.0), (f"power-{WORST}", Params(2, 16, 256), 1.5)):
            one = runs.measurement(
                name, ctx, ms * ctx, params=params, flops=1e6, config={WORST: WORST}, timer_reason=WORST,
                rounds=(Round(7, 1e3, 1.0, 1.0, (WORST, "hw slowdown")),),
            )  # fmt: skip
            one = msgspec.structs.replace(one, timer=WORST, stop=WORST, order=WORST)
            one = runs.with_phases(one, scale=1e-3, hostile=WORST)
            found.append(msgspec.structs.replace(one, phases=(*one.phases, Phase(WORST, message=WORST))))
    found.append(runs.measurement(WORST, 1024, None, status="failed", message=WORST))
    return runs.run(found, header, [WORST])


def write(of: Run, path: Path) -> Path:
    """As a file, with a line of ceilings at its end."""
    lines = [of.header, *of.measurements, CeilingsAgain(of.header.ceilings, (WORST,))]
    path.write_bytes(b"".join(_encode(line) + b"\n" for line in lines))
    return path


def toml(path: Path) -> Path:
    """A model's shape of that name."""
    name = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in WORST)
    path.write_text(f'name = "{name}"\nlayers = 2\nd_model = 8\nheads = 2\nd_ff = 16\nvocab = 10\n')
    return path


def package(folder: Path) -> Path:
    """A folder for PYTHONPATH with an installed package that adds a kernel whose every text is WORST."""
    info = folder / "hostile-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[powerbench.kernels]\nhostile = hostile_kernel:KERNEL\n")
    (folder / "hostile_kernel.py").write_text(
        "import dataclasses\n"
        "from powerbench.kernels.power.contestants import POWER_KERNELS\n"
        "from powerbench.kernels.kernel import Kernel\n"
        f"WORST = {WORST!r}\n"
        "like = next(one for one in POWER_KERNELS if one.name == 'power-torch')\n"
        "support = dataclasses.replace(like.support, install=WORST, head_dims=WORST)\n"
        "KERNEL = dataclasses.replace(like, name='hostile' + WORST, family='hostile', summary=WORST, support=support,\n"
        "                             version=lambda: WORST)\n"
    )
    return folder


def faults(text: str, newlines: str = "\n") -> set[str]:
    """What of a text a terminal, a reader or a runner of jobs would be led by."""
    found = {
        f"{ord(char):#x} {unicodedata.category(char)}"
        for char in set(text)
        if char not in newlines
        and (unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cs") or char in "\u3164\u115f\u2800")
    }
    found |= {"workflow command" for line in text.split("\n") if line.strip().startswith("::") or "##[" in line}
    return found
