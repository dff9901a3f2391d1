"""The peak of memory is measured anew after a reset."""

from __future__ import annotations

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
