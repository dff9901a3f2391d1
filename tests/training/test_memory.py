"""The peak of memory is measured anew after a reset."""

from __future__ import annotations

import ctypes
import resource
import sys

import psutil
import pytest
import torch

from luthier.training.memory import kept_heap, peak_mb, reset_peak

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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept_while_entered_and_given_back_after() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2_000_000) for _ in range(30)]  # 240 MB, 59 thousand pages
        del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() > 30_000
    with kept_heap():
        faults()
        assert faults() < 10_000
        held = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss < held - 150e6
