"""The peak of memory is measured anew after a reset."""

from __future__ import annotations

import ctypes
import os
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


SHAPES = """
import ctypes, luthier, torch
class Held(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
told = ctypes.CDLL(None).mallinfo2
told.restype = Held
def held(rows):
    for n in rows:
        torch.ones(n, 256, dtype=torch.bfloat16) @ weight
    return told().uordblks
weight = torch.ones(256, 256, dtype=torch.bfloat16)
print(-held(range(64, 264)) + held(range(264, 464)))
"""


def _told(code: str, **limits: str) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")} | limits
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, capture_output=True, check=True, timeout=120, env=environment).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc")
def test_products_of_ever_new_shapes_take_no_more_memory() -> None:
    assert _told(SHAPES) < 5e6, "without a limit 110 MB"


def test_a_limit_that_the_environment_sets_stays() -> None:
    code = "import os, luthier; print(os.environ['LRU_CACHE_CAPACITY'])"
    assert (_told(code), _told(code, LRU_CACHE_CAPACITY="7")) == (128, 7)


LEFT = """
import psutil, torch
from luthier.training.memory import give_back
blocks = [torch.ones(20_000) for _ in range(3_000)]  # 240 MB in pieces of the heap
fence = torch.ones(20_000)  # what is in use above them keeps glibc from giving them back by itself
del blocks
before = psutil.Process().memory_info().rss
give_back()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_that_was_freed_is_given_back() -> None:
    assert _told(LEFT) > 150e6
