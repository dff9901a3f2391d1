"""What this machine is, and what will be fast on it.

Everything is read from the operating system; torch is not imported. Figures of speed are estimates from the CPU's instruction
sets and cores, calibrated on one machine; ``benchmarks/`` measures the real ones.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import LuthierError

Verdict = Literal["good", "fair", "poor", "broken"]
"""good: fast or in order. fair: works, could be better. poor: slow here. broken: must be put right."""

FEATURES: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "dot product",
    "sve": "SVE",
    "bf16": "Arm BF16",
    "i8mm": "i8mm",
}
"""Flags of /proc/cpuinfo that matter for speed, and what people call them."""

_MACOS_FLAGS = {"hw.optional.neon": "asimd", "hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_I8MM": "i8mm"}
_LEAST_DISK = 5_000_000_000
_FLOPS_PER_CORE = {"bf16": 117e9, "avx512": 77e9, "simd": 38e9, "none": 8e9}  # calibrated on Zen 5 cores
_BANDWIDTH_PER_CORE, _MOST_BANDWIDTH = 8e9, 40e9


@dataclass(frozen=True)
class Cpu:
    """``cores`` physical, ``usable`` what this process may use (affinity and container limits); ``features`` are flag names."""

    model: str
    cores: int
    usable: int
    features: tuple[str, ...]

    @property
    def native_bf16(self) -> bool:
        """Whether it multiplies bf16 itself."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(self.features))

    @property
    def kind(self) -> str:
        """The row of the speed table: bf16, avx512, simd or none."""
        if self.native_bf16:
            return "bf16"
        if "avx512f" in self.features:
            return "avx512"
        return "simd" if {"avx2", "asimd"} & set(self.features) else "none"


@dataclass(frozen=True)
class Gpu:
    """One accelerator. ``memory_bytes`` is 0 where it shares the machine's memory."""

    name: str
    memory_bytes: int
    driver: str = ""


@dataclass(frozen=True)
class Machine:
    """The hardware. Sizes in bytes; ``memory_bytes`` is what a process may use (container limits included)."""

    cpu: Cpu
    memory_bytes: int
    free_memory_bytes: int
    swap_bytes: int
    gpus: tuple[Gpu, ...]
    system: str

    @property
    def room_bytes(self) -> int:
        """The memory that weights can take: the largest GPU's, else the machine's."""
        return max((gpu.memory_bytes for gpu in self.gpus if gpu.memory_bytes), default=self.memory_bytes)


@dataclass(frozen=True)
class Finding:
    """One line of ``luthier doctor``: ``advice`` says what it means here and what to do."""

    topic: str
    found: str
    verdict: Verdict
    advice: str = ""


@dataclass(frozen=True)
class Expectation:
    """How one kind of work will go here. ``estimate`` is in tokens a second."""

    work: str
    verdict: Verdict
    estimate: float
    why: str


@dataclass(frozen=True)
class Report:
    """Everything that ``luthier doctor`` shows."""

    machine: Machine
    findings: tuple[Finding, ...]
    expectations: tuple[Expectation, ...] = field(default=())

    @property
    def broken(self) -> bool:
        """Whether anything must be put right."""
        return any(finding.verdict == "broken" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def examine(root: Path | str | None = None, *, port: int = 8000) -> Report:
    """Look at the machine, the installation and the store at ``root``."""
    machine = probe()
    findings = [
        _cpu(machine.cpu),
        _memory(machine),
        _gpu(machine.gpus),
        *_installation(machine.cpu),
        *_store(root),
        _port(port),
    ]
    return Report(machine, tuple(findings), tuple(expectations(machine)))


def probe() -> Machine:
    """Read the hardware."""
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit = _memory_limit() or memory.total
    return Machine(
        cpu=probe_cpu(),
        memory_bytes=min(memory.total, limit),
        free_memory_bytes=free_memory_bytes(),
        swap_bytes=swap.total,
        gpus=probe_gpus(),
        system=f"{platform.system()} {platform.machine()}",
    )


def free_memory_bytes() -> int:
    """What this process may still take of the machine's memory."""
    import psutil

    memory = psutil.virtual_memory()
    return min(memory.available, _memory_limit() or memory.total)


def _memory_limit() -> int | None:
    return _container_limit("memory.max", "memory/memory.limit_in_bytes")


def probe_cpu(cpuinfo: str | None = None) -> Cpu:
    """Read the processor; ``cpuinfo`` is the text of /proc/cpuinfo (read when not given, sysctl on macOS)."""
    import psutil

    if cpuinfo is None and sys.platform == "darwin":
        model, flags = _sysctl("machdep.cpu.brand_string"), {f for k, f in _MACOS_FLAGS.items() if _sysctl(k) == "1"}
    else:
        text = _read("/proc/cpuinfo") if cpuinfo is None else cpuinfo
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines()) if v}
        model = fields.get("model name") or platform.processor() or platform.machine()
        flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        usable = min(usable, max(1, round(int(quota[0]) / int(quota[1]))))
    return Cpu(model, psutil.cpu_count(logical=False) or usable, usable, tuple(f for f in FEATURES if f in flags))


def probe_gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs by nvidia-smi, and Apple's own."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return (Gpu("Apple GPU (shares the machine's memory)", 0),)
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(text)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's ``name, MiB, driver`` lines; lines that are not of this form are left out."""
    rows = [[part.strip() for part in line.rsplit(",", 2)] for line in text.splitlines()]
    return tuple(Gpu(r[0], int(r[1]) << 20, r[2]) for r in rows if len(r) == 3 and r[1].isdigit())


def expectations(machine: Machine) -> list[Expectation]:
    """What to expect of typical work: memory by arithmetic, tokens a second estimated from the CPU."""
    cpu, out = machine.cpu, []
    flops = cpu.usable * _FLOPS_PER_CORE[cpu.kind]
    bandwidth = min(cpu.usable * _BANDWIDTH_PER_CORE, _MOST_BANDWIDTH)
    fast_gpu = any(gpu.memory_bytes for gpu in machine.gpus)
    for work, parameters, bytes_each, cost in (
        ("classify with MiniLM (22M), full fine-tuning", 22e6, 16, 6),
        ("SmolLM2-135M, LoRA", 135e6, 3, 4),
        ("SmolLM2-135M, full fine-tuning", 135e6, 16, 6),
        ("a 1B model, LoRA", 1e9, 3, 4),
        ("a 7B model, LoRA", 7e9, 3, 4),
        ("answer with a 135M model (llama.cpp, Q8)", 135e6, 1.1, 0),
        ("answer with a 7B model (llama.cpp, Q4)", 7e9, 0.6, 0),
    ):
        needs = parameters * bytes_each * 1.1 + 0.7e9
        rate = flops / (cost * parameters) if cost else bandwidth / (parameters * bytes_each)
        if needs > machine.room_bytes:
            out.append(Expectation(work, "poor", 0.0, f"needs about {needs / 1e9:.0f} GB of memory; not here"))
            continue
        if fast_gpu:
            out.append(Expectation(work, "good", 0.0, "on the GPU"))
            continue
        good, fair = (200.0, 25.0) if cost else (20.0, 5.0)
        verdict: Verdict = "good" if rate >= good else "fair" if rate >= fair else "poor"
        out.append(Expectation(work, verdict, rate, f"about {_rounded(rate)} tokens/s on this CPU (estimate)"))
    return out


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on ``port``."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError:
            return False
    return True


def _cpu(cpu: Cpu) -> Finding:
    named = ", ".join(FEATURES[flag] for flag in cpu.features) or "no vector instructions that matter"
    found = f"{cpu.model}: {cpu.usable} of {cpu.cores} cores usable; {named}"
    if cpu.usable > cpu.cores:
        found = f"{cpu.model}: {cpu.cores} cores, {cpu.usable} threads; {named}"
    if cpu.native_bf16:
        return Finding("CPU", found, "good", "fast here: bf16 training and serving run in hardware")
    if cpu.kind == "none":
        return Finding("CPU", found, "poor", "slow here: no AVX2 or NEON; use another machine for training")
    return Finding("CPU", found, "fair", "fp32 here (bf16 would be emulated): about half the speed of a CPU with bf16")


def _memory(machine: Machine) -> Finding:
    found = f"{_gb(machine.free_memory_bytes)} free of {_gb(machine.memory_bytes)}; swap {_gb(machine.swap_bytes)}"
    if machine.free_memory_bytes < 3e9:
        return Finding("Memory", found, "poor", "tight: close other programs, or lower train.max_tokens_per_batch")
    most = machine.free_memory_bytes / 3.3
    return Finding("Memory", found, "good", f"enough for LoRA on models up to about {_billions(most)} parameters")


def _gpu(gpus: Sequence[Gpu]) -> Finding:
    if not gpus:
        return Finding("GPU", "none", "fair", "small models are fine on the CPU; from 1B on a GPU saves hours")
    found = "; ".join(f"{g.name}" + (f", {_gb(g.memory_bytes)}" if g.memory_bytes else "") for g in gpus)
    build = _version("torch")
    if any(gpu.memory_bytes for gpu in gpus) and "+cpu" in build:
        return Finding(
            "GPU", found, "fair", f"not used: torch {build} is a CPU build; install the CUDA build of this version"
        )
    if not any(gpu.memory_bytes for gpu in gpus):
        return Finding("GPU", found, "fair", "device=mps uses it; the default is the CPU")
    return Finding("GPU", found, "good", "fast here: used by default")


def _installation(cpu: Cpu) -> list[Finding]:
    threads = os.environ.get("OMP_NUM_THREADS") or str(min(cpu.cores, cpu.usable))
    names = ("torch", "transformers", "peft", "xllamacpp")
    missing = [name for name in names if not _version(name)]
    found = f"Python {platform.python_version()}, Luthier {_version('luthier') or 'from source'}, " + ", ".join(
        f"{name} {_version(name) or 'missing'}" for name in names
    )
    out = [
        Finding("Software", found, "broken", f"pip install {' '.join(missing)}")
        if missing
        else Finding("Software", f"{found}; {threads} torch threads", "good")
    ]
    have: list[str] = []
    lack: list[str] = []
    for extra, packages in sorted(extras().items()):
        (lack if any(not _version(package) for package in packages) else have).append(extra)
    if have or lack:
        said = f"installed: {', '.join(have) or 'none'}; not installed: {', '.join(lack) or 'none'}"
        advice = f"optional, when you need one: pip install 'luthier[{lack[0]}]'" if lack else ""
        out.append(Finding("Extras", said, "good", advice))
    return out


def extras(package: str = "luthier") -> dict[str, list[str]]:
    """Optional extras of an installed package and the packages of each; ``dev`` is left out."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return {}
    out: dict[str, list[str]] = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if match and match[2] != "dev":
            out.setdefault(match[2], []).append(match[1])
    return out


def _store(root: Path | str | None) -> list[Finding]:
    from luthier.store.artifacts import clean_staging
    from luthier.store.database import open_store
    from luthier.store.runs import recover

    try:
        store = open_store(root)
        recovered, cleaned = recover(store), clean_staging(store)
    except LuthierError as error:
        return [Finding("Store", error.message, "broken", error.hint or "")]
    free = shutil.disk_usage(store.home.root).free
    disk = Finding("Disk", f"{_gb(free)} free at {store.home.root}", "good")
    if free < _LEAST_DISK:
        disk = Finding(
            "Disk", disk.found, "poor", "a run of a small model takes 1 GB; free space, or move LUTHIER_HOME"
        )
    done = [
        f"{len(recovered)} run{'' if len(recovered) == 1 else 's'} of dead processes marked interrupted"
        if recovered
        else "",
        f"{cleaned} half-written folders removed" if cleaned else "",
    ]
    found = f"{store.engine.url.render_as_string()}, schema {store.version()}"
    advice = "; ".join(each for each in done if each)
    return [disk, Finding("Store", found, "good", advice or "in order"), _models(store)]


def _models(store: Any) -> Finding:
    from luthier.models.inventory import KNOWN
    from luthier.store.artifacts import path_of
    from luthier.store.models import list_models

    found = list_models(store)
    for record in found:
        if record.kind == "endpoint":
            continue
        try:
            path_of(store, record.digest)
        except LuthierError as error:
            return Finding("Models", error.message, "broken", error.hint or "")
    bases = [record.name for record in found if record.kind == "base"]
    missing = [name for name in KNOWN if name not in bases]
    others = len(found) - len(bases)
    said = f"{', '.join(bases) or 'no base model yet'}" + (
        f"; {others} adapters, exports and endpoints" if others else ""
    )
    if missing:
        return Finding("Models", said, "good" if bases else "fair", f"luthier pull {missing[0]}")
    return Finding("Models", said, "good", "files present and of the right size")


def _port(port: int) -> Finding:
    if port_is_free(port):
        return Finding("Port", f"{port} is free", "good", "luthier serve will listen there")
    return Finding("Port", f"{port} is in use", "fair", f"luthier serve MODEL --port {port + 1}")


def _container_limit(*names: str) -> int | None:
    for name in names:
        text = _read(f"/sys/fs/cgroup/{name}").strip()
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _billions(count: float) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def _rounded(rate: float) -> str:
    """Two significant digits: it is an estimate."""
    if rate < 1:
        return f"{rate:.1f}"
    digits = max(len(str(int(rate))) - 2, 0)
    return f"{round(rate, -digits):,.0f}"
