"""Runs a generated Python program in a process of its own that may do almost nothing.

What it may not: open sockets, start processes, signal others, read files outside Python's own library, write outside an empty folder of
its own, use more time, memory, disk or output than it is given, see the user's environment. A program passes only when it runs to
its end: the token that proves it is handed out there, so leaving early or printing "passed" proves nothing.

How, on Linux: a seccomp filter on system calls and a Landlock rule set on files (both without privileges); resource limits; root
becomes nobody, or loses every capability; the watching thread kills at the time limit and removes the folder. What a kernel lacks
is said by ``describe``. Elsewhere (macOS) there are the limits, a Python audit hook against sockets and processes, and the
clean environment; files of the user can be read there.

What it is not: a virtual machine. It holds accidents and plain attacks; a hole in the kernel, or a program written against this very
harness (it shares an interpreter with it), can get past. Do not run programs of people who wish you ill with it: use a
machine of its own for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import StoreError

Status = Literal["passed", "failed", "timeout", "disk", "output", "killed"]
"""failed: it raised, or left before its end. disk, output: it went over that limit. killed: it died of a signal or of its CPU limit."""

_CHILD = Path(__file__).with_name("_sandbox_child.py")
_NOBODY = 65534
_TICK_S = 0.02
_MOST_FILES = 1000
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@dataclass(frozen=True)
class Limits:
    """What a program may use. ``cpu_s`` is computing, ``wall_s`` waiting included (a busy machine makes programs wait).

    ``memory_mb`` is address space, interpreter included; ``disk_mb`` all files of its folder together; ``output_kb`` what it
    prints.
    """

    cpu_s: int = 4
    wall_s: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 16
    output_kb: int = 256


@dataclass(frozen=True)
class Outcome:
    """How a program ended. ``reason`` says why it did not pass; ``output`` is the start of what it printed."""

    status: Status
    reason: str = ""
    output: str = ""
    seconds: float = 0.0
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.status == "passed"


def run_program(program: str, limits: Limits | None = None, *, without: Collection[str] = ()) -> Outcome:
    """Run ``program`` and wait for it. ``without`` leaves layers of protection away (tests of the others).

    Raises StoreError when the machine cannot start it (no space for the folder, no more processes).
    """
    limits = limits or Limits()
    with _folder() as folder, _Pipes() as pipes:
        start = time.perf_counter()
        process = _start(program, limits, folder, pipes, without)
        try:
            status, output, verdict = _watch(process, folder, limits, pipes)
        except BaseException:  # Ctrl-C while it runs
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
    said = _read(verdict)
    missing = {str(k): str(v) for k, v in dict(said.get("missing") or {}).items()}
    if status is None and said.get("status") == "passed" and said.get("token") == pipes.token:
        return Outcome("passed", "", output, seconds, missing)
    status, reason = _why(status, process.returncode, said, limits)
    return Outcome(status, reason, output, seconds, missing)


def run_programs(programs: Sequence[str], limits: Limits | None = None, *, workers: int | None = None) -> list[Outcome]:
    """Run several, ``workers`` (the cores) at once; outcomes in order."""
    workers = min(workers or len(_cores()), max(len(programs), 1))
    with ThreadPoolExecutor(workers, thread_name_prefix="luthier-sandbox") as pool:
        return list(pool.map(lambda program: run_program(program, limits), programs))


@dataclass(frozen=True)
class Protection:
    """What the sandbox holds back on this machine, and ``missing``: what it cannot, in words."""

    held: tuple[str, ...]
    missing: tuple[str, ...]


_LAYERS = {
    "seccomp": (
        "the network, other processes and signals (seccomp)",
        "the network and other processes are held back by Python's audit hook only, which native code can go around",
    ),
    "landlock": ("files outside its own folder (Landlock)", "files that this user may read can be read"),
    "user": ("administrator rights", "programs keep this user's administrator rights"),
    "limits": (
        "more time, memory, disk and output than they are given",
        "memory and time are not limited by the system",
    ),
    "parent": ("outliving Luthier", "a program may run on to its time limit when Luthier is killed"),
}


def describe() -> Protection:
    """Run an empty program and say which layers took effect (for ``luthier doctor``)."""
    outcome = run_program("", Limits(wall_s=30.0))
    if not outcome.passed:
        return Protection((), (f"programs do not run at all: {outcome.reason}",))
    held = tuple(good for name, (good, _) in _LAYERS.items() if name not in outcome.missing)
    missing = tuple(f"{bad}: {outcome.missing[n]}" for n, (_, bad) in _LAYERS.items() if n in outcome.missing)
    return Protection(held, missing)


# ---- starting


class _Pipes:
    """The token's pipe and the verdict's; the program's ends are closed here once it runs."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(32)
        self.token_read, token_write = os.pipe()
        self.verdict_read, self.verdict_write = os.pipe()
        os.write(token_write, self.token.encode("ascii"))
        os.close(token_write)

    def __enter__(self) -> _Pipes:
        return self

    def started(self) -> None:
        """Leave the program's ends to it."""
        os.close(self.token_read)
        os.close(self.verdict_write)
        self.token_read = self.verdict_write = -1

    def __exit__(self, *_: object) -> None:
        for fd in (self.token_read, self.verdict_write, self.verdict_read):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """An empty folder that only the program's user may enter, removed with everything that was put in it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="luthier-program-"))
    except OSError as error:
        raise StoreError(f"no folder for a program to run in: {error}", hint="free space, or set TMPDIR") from error
    try:
        if _user() is not None:
            os.chown(folder, _NOBODY, _NOBODY)
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        except (OSError, RecursionError):  # nested deeper than a path may be long
            subprocess.run(["rm", "-rf", "--", str(folder)], check=False, capture_output=True)


def _start(
    program: str, limits: Limits, folder: Path, pipes: _Pipes, without: Collection[str]
) -> subprocess.Popen[bytes]:
    flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]
    command = [sys.executable, *flags, str(_CHILD), str(pipes.token_read), str(pipes.verdict_write)]
    clean = {"HOME": str(folder), "TMPDIR": str(folder), "PATH": "/nowhere", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    job = {
        "program": program,
        "cpu_s": limits.cpu_s,
        "memory_mb": limits.memory_mb,
        "disk_mb": limits.disk_mb,
        "folder": str(folder),
        "readable": _readable(),
        "devices": _DEVICES,
        "uid": _user(),
        "parent": os.getpid(),
        "without": sorted(without),
    }
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=clean,
            pass_fds=(pipes.token_read, pipes.verdict_write),
            start_new_session=True,
        )
    except OSError as error:
        raise StoreError(f"a program could not be started: {error}") from error
    pipes.started()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps(job).encode("utf-8", "surrogatepass"))
    return process


@cache
def _readable() -> list[str]:
    """Python's own library, the libraries of its installation, and the system's."""
    found = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib", *_SYSTEM}
    return sorted(path for path in found if path and Path(path).exists())


@cache
def _user() -> int | None:
    """Who root becomes: nobody, unless nobody could not read Python or enter the folder (None; None for others than root)."""
    if os.geteuid() != 0:
        return None
    needed = (Path(sysconfig.get_path("stdlib")), Path(tempfile.gettempdir()).resolve())
    open_to_all = all(path.stat().st_mode & 0o001 for needs in needed for path in (needs, *needs.parents))
    return _NOBODY if open_to_all else None


def _cores() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


# ---- watching


def _watch(
    process: subprocess.Popen[bytes], folder: Path, limits: Limits, pipes: _Pipes
) -> tuple[Status | None, str, bytes]:
    """Wait for the end or a broken limit, then kill what is left. Returns (limit that was broken, output, verdict)."""
    assert process.stdout is not None
    streams = {process.stdout.fileno(): bytearray(), pipes.verdict_read: bytearray()}
    most = {process.stdout.fileno(): limits.output_kb << 10, pipes.verdict_read: 1 << 16}
    deadline = time.monotonic() + limits.wall_s
    status: Status | None = None
    with selectors.DefaultSelector() as selector:
        for fd in streams:
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        look = 0.0
        while status is None and selector.get_map() and not _ended(process):
            for key, _ in selector.select(_TICK_S):
                if not _drain(key.fd, streams[key.fd], most[key.fd]):
                    selector.unregister(key.fd)
            now = time.monotonic()
            if now >= deadline:
                status = "timeout"
            elif any(len(streams[fd]) > most[fd] for fd in streams):
                status = "output"
            elif now >= look:
                look, status = now + _TICK_S, "disk" if _too_big(folder, limits.disk_mb << 20) else None
    if status is None and not _ended(process):  # it closed its pipes and goes on
        status = _wait(process, deadline)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for fd, buffer in streams.items():
        _drain(fd, buffer, most[fd])
    output = bytes(streams[process.stdout.fileno()][: limits.output_kb << 10]).decode("utf-8", "replace")
    process.stdout.close()
    return status, output, bytes(streams[pipes.verdict_read])


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; where the system can, without giving its process id back yet (its group is to be killed first)."""
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(process: subprocess.Popen[bytes], deadline: float) -> Status | None:
    while not _ended(process):
        if time.monotonic() >= deadline:
            return "timeout"
        time.sleep(_TICK_S / 4)
    return None


def _drain(fd: int, buffer: bytearray, most: int) -> bool:
    """Read what is there, up to a little over ``most``; False at the end."""
    while len(buffer) <= most:
        try:
            piece = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not piece:
            return False
        buffer += piece
    return True


def _too_big(folder: Path, most: int) -> bool:
    """Whether the files below ``folder`` take more than ``most`` bytes, or are too many or too deep to look through."""
    total = count = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            return True
        if total > most or count > _MOST_FILES:
            return True
    return False


# ---- reading


def _read(verdict: bytes) -> dict[str, Any]:
    try:
        said = json.loads(verdict)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _why(status: Status | None, code: int, said: dict[str, Any], limits: Limits) -> tuple[Status, str]:
    if status == "timeout":
        return status, f"it ran for more than {limits.wall_s:g} s"
    if status == "disk":
        return status, f"it wrote more than {limits.disk_mb} MB, or more than {_MOST_FILES} files"
    if status == "output":
        return status, f"it printed more than {limits.output_kb} kB"
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "killed", f"it computed for more than {limits.cpu_s} s, or the system killed it"
    if code < 0:
        return "killed", f"it died of signal {signal.Signals(-code).name}"
    if said.get("status") in ("failed", "exited"):
        return "failed", str(said.get("error"))
    return "failed", f"it ended before its tests were over (exit status {code})"
