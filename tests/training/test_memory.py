"""The peak of memory is measured anew after a reset."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from luthier.training.memory import peak_mb, reset_peak

CPU = torch.device("cpu")


def test_a_large_allocation_shows() -> None:
    reset_peak(CPU)
    before = peak_mb(CPU)
    block = torch.ones(60_000_000)  # 240 MB
    assert peak_mb(CPU) > before + 150
    del block


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak")
def test_reset_forgets_what_was_freed() -> None:
    block = torch.ones(100_000_000)
    high = peak_mb(CPU)
    del block
    reset_peak(CPU)
    assert peak_mb(CPU) < high - 200


HEAP = """
import resource, psutil, torch
from luthier.training.memory import kept_heap
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2_000_000) for _ in range(30)]  # 240 MB, 59 thousand pages
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
usual = faults()
with kept_heap():
    faults()
    kept, held = faults(), psutil.Process().memory_info().rss
print(usual, kept, held - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept_while_entered_and_given_back_after() -> None:
    said = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True, timeout=120).stdout
    usual, kept, given_back = map(int, said.split())
    assert usual > 30_000
    assert kept < 3_000
    assert given_back > 150e6
