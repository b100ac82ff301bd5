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
