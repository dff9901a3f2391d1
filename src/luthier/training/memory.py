"""The process's peak of resident memory (or the accelerator's), measured over a stretch of work."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_CLEAR_PEAK = "5"  # proc(5), /proc/pid/clear_refs: "reset the peak resident set size to the process's current value"


def reset_peak(device: torch.device) -> None:
    """Start measuring anew. Where the system cannot (not Linux), the peak is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    control = Path("/proc/self/clear_refs")
    if control.exists():
        try:
            control.write_text(_CLEAR_PEAK, encoding="ascii")
        except OSError:  # sandboxes forbid it; the measure is then an upper bound
            return


def peak_mb(device: torch.device) -> float:
    """Peak since ``reset_peak``, in MB (10^6 bytes): memory of the accelerator, or resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
