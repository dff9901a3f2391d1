"""Crashes and full disks for the store's tests."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.store.database import Store, open_store

CRASHING = """
import os, signal, sys, traceback
real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir", "open")}
left = 0

def counted(name):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real[name](*args, **kwargs)
    return call

def body():
    for name in real:
        setattr(os, name, counted(name))
    {code}

{prepare}
for point in range(1, 100):
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        left = point
        try:
            body()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def store(home: Path) -> Store:
    """A store in a private home."""
    return open_store()


@pytest.fixture
def crash_everywhere(home: Path) -> Callable[[str, str], Iterator[int]]:
    """Runs ``code`` in a process killed (SIGKILL) at its first disk operation, then its second, and so on.

    ``prepare`` (imports) runs once; each attempt is a fork of that process.

    Yields after each killed process; ends when one survives.
    """

    def crashes(prepare: str, code: str) -> Iterator[int]:
        script = CRASHING.replace("{code}", code.replace("\n", "\n    ")).replace("{prepare}", prepare)
        pipe = subprocess.PIPE
        driver = subprocess.Popen(
            [sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, env=dict(os.environ), text=True
        )
        try:
            for point in range(1, 100):
                driver.stdin.write("go\n")
                driver.stdin.flush()
                status = int(driver.stdout.readline() or "-1")
                if status == 0:
                    assert point > 1, "the code did no disk operation at all"
                    return
                if status != signal.SIGKILL:
                    driver.kill()
                    raise AssertionError(driver.stderr.read())
                yield point
            raise AssertionError("still crashing after 99 disk operations")
        finally:
            driver.kill()
            driver.communicate()

    return crashes


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a disk with 64 kB: a real one (tmpfs) where we may mount, else writes that raise ENOSPC."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        real = os.fsync

        def no_space(descriptor: int) -> None:
            if os.fstat(descriptor).st_size > 60_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", no_space)
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
