"""Without a GPU, Triton kernels run under Triton's interpreter, which must be chosen before anything imports triton."""

from __future__ import annotations

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


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
