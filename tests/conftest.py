"""Without a GPU, Triton kernels run under Triton's interpreter, which must be chosen before anything imports triton.

And tests that interrupt what they start find it interruptible.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a script, which children inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def install(monkeypatch):
    """Make a stand-in for nvidia-ml-py (`tests.test_nvml.library`) what `import pynvml` finds; None: nothing."""
    return lambda lib: monkeypatch.setitem(sys.modules, "pynvml", lib)


@pytest.fixture
def nan_filled_memory(monkeypatch):
    """torch.empty hands out nan: a sum that nobody wrote shows."""
    make = torch.empty

    def made(*args, **options):
        x = make(*args, **options)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", made)
