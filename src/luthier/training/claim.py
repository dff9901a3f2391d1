"""One tuning of a name at a time: a lock file that the kernel frees when its process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from luthier.core.errors import ConflictError
from luthier.store.home import disk_errors

if TYPE_CHECKING:
    from luthier.store.database import Store


@contextmanager
def claim(store: Store, name: str) -> Iterator[None]:
    """Hold ``name`` for this process. Raises ConflictError that names the process which holds it already."""
    place = store.home.runs / f".{name}.lock"
    with disk_errors(place):
        descriptor = os.open(place, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConflictError(
                f"{name!r} is being tuned by process {holder}",
                hint="wait for it, or give this run another name: name=OTHER",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)
