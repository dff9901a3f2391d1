"""Artifacts: folders of weights under the digest of what they hold.

A folder enters whole (hashed, flushed, renamed) or not at all. Its file list with sizes and hashes is kept beside the files, so
that damage is noticed cheaply at each use and located exactly by ``verify``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from luthier.core.digest import digest_json
from luthier.core.errors import StoreError
from luthier.store.database import Store, models
from luthier.store.home import disk_error, disk_errors, file_sha256, sync_folder, write_atomic
from luthier.store.tables import files as tenant_files

LIST_NAME = ".files.json"
"""The file list inside each artifact: {relative name: {"sha256", "bytes"}}. Not part of the digest."""

_ORPHAN_S = 3600.0


@contextmanager
def staged(store: Store) -> Iterator[Path]:
    """A private folder to fill and hand to ``put``. It is removed at the end, whatever happens.

    It holds a file lock for as long as the process lives; folders whose lock nobody holds (their process was killed) are
    removed first.
    """
    clean_staging(store)
    place = store.home.staging / f"{os.getpid()}-{secrets.token_hex(6)}"
    content = place / "content"
    with disk_errors(place):
        place.mkdir()
        descriptor = os.open(place / "lock.new", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (place / "lock.new").rename(place / "lock")  # appears locked: a cleaner never sees it free
        content.mkdir()
        yield content
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_error(content, error) from error
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def clean_staging(store: Store) -> int:
    """Remove staging folders whose process is dead; returns how many."""
    removed = 0
    for place in store.home.staging.iterdir():
        if place.is_dir() and _abandoned(place):
            shutil.rmtree(place, ignore_errors=True)
            removed += 1
    return removed


def _abandoned(place: Path) -> bool:
    try:
        descriptor = os.open(place / "lock", os.O_RDWR)
    except FileNotFoundError:  # killed in the few instructions before the lock, or just now being made
        try:
            return time.time() - place.stat().st_mtime > _ORPHAN_S
        except FileNotFoundError:
            return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def put(store: Store, folder: Path, *, beside: str | None = None) -> tuple[str, int]:
    """Move ``folder`` into the store; returns (digest, bytes). Files that the artifact ``beside`` has too are on the disk once, where it can link.

    The digest is over the sorted (relative name, sha256) pairs, so equal content has one home and putting it again is free. An
    artifact that is there already but damaged is replaced. Raises StoreError for an empty folder, a link in it, or a full disk.
    """
    listed = _list(folder)
    digest = digest_json([[name, entry["sha256"]] for name, entry in sorted(listed.items())])
    size = sum(int(entry["bytes"]) for entry in listed.values())
    target = store.home.artifacts / digest
    with disk_errors(target, size):
        write_atomic(folder / LIST_NAME, json.dumps(listed, indent=1, sort_keys=True))
        if target.exists() and _damage(target, deep=True) is None:
            shutil.rmtree(folder)
            return digest, size
        folder = _same_disk(store, folder)
        if beside is not None:
            _link_equal(folder, listed, path_of(store, beside))
        _replace(store, folder, target)
        sync_folder(target.parent)
    return digest, size


def _list(folder: Path) -> dict[str, dict[str, str | int]]:
    """Hash and flush every file of ``folder``."""
    listed: dict[str, dict[str, str | int]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StoreError(f"an artifact holds plain files only; {path} is a link")
        if path.is_dir() or name == LIST_NAME:
            continue
        with disk_errors(path):
            listed[name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if not listed:
        raise StoreError(f"an artifact needs at least one file; {folder} is empty")
    for inner in {path.parent for path in map(folder.joinpath, listed)} | {folder}:
        sync_folder(inner)
    return listed


def _link_equal(folder: Path, listed: Mapping[str, Mapping[str, Any]], other: Path) -> None:
    """Files of ``folder`` whose bytes ``other`` has under the same name become links to those. Nothing in an artifact is ever written again."""
    theirs = json.loads((other / LIST_NAME).read_text(encoding="utf-8"))
    for name, entry in listed.items():
        if name in theirs and theirs[name]["sha256"] == entry["sha256"]:
            aside = folder / f"{name}.link"
            try:
                os.link(other / name, aside)
            except OSError:  # a disk without hard links keeps its copy
                return
            aside.replace(folder / name)


def _same_disk(store: Store, folder: Path) -> Path:
    """``folder``, or a copy in staging when a rename could not reach the store."""
    if folder.stat().st_dev == store.home.artifacts.stat().st_dev:
        return folder
    copy = store.home.staging / f"{os.getpid()}-{secrets.token_hex(6)}"
    shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    return copy


def _replace(store: Store, folder: Path, target: Path) -> None:
    """Rename ``folder`` to ``target``; a damaged or half-removed ``target`` is moved out of the way first."""
    for _ in range(2):
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if _damage(target, deep=True) is None:  # another process put the same content meanwhile
            shutil.rmtree(folder)
            return
        old = store.home.staging / f"damaged-{secrets.token_hex(6)}"
        target.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    raise StoreError(f"cannot replace {target}: another process keeps writing it", hint="run the command again")


def path_of(store: Store, digest: str) -> Path:
    """The folder of an artifact, its files present and of the right size.

    Raises StoreError that names what is missing and how to get it back.
    """
    folder = store.home.artifacts / digest
    damage = _damage(folder, deep=False)
    if damage:
        raise _damaged(store, digest, damage)
    return folder


def verify(store: Store, digest: str) -> None:
    """Hash every file again. Raises StoreError naming the first one that differs."""
    damage = _damage(store.home.artifacts / digest, deep=True)
    if damage:
        raise _damaged(store, digest, damage)


def files(store: Store, digest: str) -> dict[str, int]:
    """The files of an artifact and their sizes in bytes."""
    listed = json.loads((path_of(store, digest) / LIST_NAME).read_text(encoding="utf-8"))
    return {name: int(entry["bytes"]) for name, entry in listed.items()}


def parts_in(meta: Mapping[str, Any] | None) -> list[str]:
    """Digests of the adapters that a model is built on, as its row says."""
    return [str(part["digest"]) for part in (meta or {}).get("parts") or ()]


def discard_unused(store: Store, digest: str) -> bool:
    """Remove an artifact unless a model or a tenant's file uses it, or a model is built on it; returns whether it went. One rename first, so that
    nobody sees half of it."""
    folder = store.home.artifacts / digest
    old = store.home.staging / f"discarded-{secrets.token_hex(6)}"
    with store.write() as connection:  # nobody begins to use it between the question and the rename
        used = connection.execute(select(func.count()).where(models.c.digest == digest)).scalar_one()
        used = used or connection.execute(select(func.count()).where(tenant_files.c.digest == digest)).scalar_one()
        used = used or any(digest in parts_in(meta) for meta in connection.execute(select(models.c.meta)).scalars())
        if used or not digest or not folder.exists():
            return False
        with disk_errors(folder):
            folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)
    return True


def _damage(folder: Path, *, deep: bool) -> str | None:
    """What is wrong with an artifact, None when nothing is."""
    try:
        listed = json.loads((folder / LIST_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{folder / LIST_NAME} is missing" if folder.is_dir() else f"{folder} is missing"
    except (OSError, ValueError) as error:
        return f"{folder / LIST_NAME} cannot be read ({error})"
    for name, entry in sorted(listed.items()):
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path} has {size:,} bytes instead of {entry['bytes']:,}"
        if deep and file_sha256(path) != entry["sha256"]:
            return f"{path} has changed (its sha256 differs)"
    if deep and digest_json([[name, entry["sha256"]] for name, entry in sorted(listed.items())]) != folder.name:
        return f"{folder / LIST_NAME} has changed"
    return None


def _damaged(store: Store, digest: str, damage: str) -> StoreError:
    with store.read() as connection:
        rows = connection.execute(select(models.c.name, models.c.kind).where(models.c.digest == digest)).all()
    names = {row.kind: row.name for row in rows}
    if "base" in names:
        return StoreError(f"model {names['base']!r} is damaged: {damage}", hint=f"luthier pull {names['base']} --force")
    if rows:
        return StoreError(
            f"{rows[0].kind} {rows[0].name!r} is damaged: {damage}",
            hint=f"make it again: `luthier lineage {rows[0].name}` shows what made it",
        )
    return StoreError(f"artifact {digest[:12]} is damaged: {damage}", hint="luthier models")
