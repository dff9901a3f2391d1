"""The home folder: where everything that Luthier keeps lives, and how a file gets there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from luthier.core.errors import StoreError


@dataclass(frozen=True)
class Home:
    """The places of one installation, all below ``root``."""

    root: Path

    @property
    def database_url(self) -> str:
        """``LUTHIER_DATABASE_URL``, or the SQLite file in this home."""
        return os.environ.get("LUTHIER_DATABASE_URL") or f"sqlite:///{self.root / 'luthier.db'}"

    @property
    def artifacts(self) -> Path:
        """Weights and other large things, one folder a digest."""
        return self.root / "artifacts"

    @property
    def runs(self) -> Path:
        """One folder a run: configuration, metrics, records, environment."""
        return self.root / "runs"

    @property
    def downloads(self) -> Path:
        """Fetched archives, kept so that nothing is fetched twice."""
        return self.root / "downloads"

    @property
    def staging(self) -> Path:
        """Half-written folders of living processes."""
        return self.root / "staging"


def home(root: Path | str | None = None) -> Home:
    """The home at ``root``, ``LUTHIER_HOME`` or ``~/.luthier``; its folders are made when they are missing.

    Raises StoreError when the place cannot be made or written.
    """
    chosen = Path(root or os.environ.get("LUTHIER_HOME") or Path.home() / ".luthier").expanduser().absolute()
    found = Home(chosen)
    for folder in (found.artifacts, found.runs, found.downloads, found.staging):
        if not folder.is_dir():
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
    if not os.access(chosen, os.W_OK | os.X_OK):
        raise StoreError(
            f"LUTHIER_HOME must be a folder that can be written; got {chosen}",
            hint="choose another: export LUTHIER_HOME=/a/folder/of/yours",
        )
    return found


@contextmanager
def disk_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, no permission) into a StoreError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error, needed_bytes) from error


def disk_error(path: Path, error: OSError, needed_bytes: int | None = None) -> StoreError:
    """The StoreError for an OSError at ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needs = f"; {needed_bytes:,} bytes were to be written" if needed_bytes is not None else ""
        return StoreError(
            f"the disk is full: cannot write {path}{needs}",
            hint="free space there (`luthier doctor` shows how much is left), or set LUTHIER_HOME to a folder on a larger disk",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(
            f"cannot write {path}: {error.strerror}",
            hint="make it writable, or choose another home: export LUTHIER_HOME=/a/folder/of/yours",
        )
    return StoreError(f"cannot use {path}: {error.strerror or error}", hint="check the disk and LUTHIER_HOME")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new one, also after a crash.

    Written beside, flushed to the disk, renamed over, and the folder flushed. Raises StoreError when the disk refuses.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    with disk_errors(path, len(data)):
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            sync_folder(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path | str) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_id_lock = threading.Lock()
_last_us = 0


def new_id(prefix: str) -> str:
    """A fresh identifier that sorts by time: prefix, microseconds, and 32 random bits.

    Two of one process sort in the order they were made, also within a microsecond or when the clock steps back.
    """
    global _last_us
    with _id_lock:
        _last_us = max(_last_us + 1, time.time_ns() // 1_000)
        made = _last_us
    return f"{prefix}_{made:013x}{secrets.token_hex(4)}"


def now() -> str:
    """UTC, ISO-8601 with milliseconds: ``2026-01-31T09:30:00.000Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
