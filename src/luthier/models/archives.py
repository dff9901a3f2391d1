"""Unpacking wheels and zip files that somebody else made: bounded, and never outside the target."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from luthier.core.errors import DataError, InputError
from luthier.core.run import Progress, no_progress
from luthier.models.sources import require_space
from luthier.store.home import disk_errors

MOST_MEMBERS = 10_000
MOST_BYTES = 1 << 40
MOST_RATIO = 200  # weights do not compress; a member that grows more than this is a bomb
_RATIO_FROM = 10_000_000
_CHUNK = 1 << 20


def unpack(archive: Path, inner: str, target: Path, progress: Progress = no_progress, *, stage: str = "unpack") -> Path:
    """Unpack ``inner`` (a file or folder of the archive) into ``target``; returns the file or folder.

    Without ``inner`` the archive must hold exactly one model: one ``.gguf`` file or one folder with a ``config.json`` beside
    weights. Raises DataError for a damaged archive, InputError for names that leave ``target``, links, or absurd sizes.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {info.filename: info for info in opened.infolist() if not info.is_dir()}
            _check(archive, list(members.values()))
            chosen = inner or _only_model(archive, list(members))
            wanted = [i for n, i in members.items() if n == chosen or n.startswith(chosen + "/") or chosen == "."]
            if not wanted:
                raise InputError(f"{archive.name} has no {inner!r}; it has: {', '.join(sorted(members)[:12])}")
            total = sum(info.file_size for info in wanted)
            with disk_errors(target):
                target.mkdir(parents=True, exist_ok=True)
            require_space(target, total)
            done = 0
            for info in wanted:
                for written in _write(opened, info, target / info.filename):
                    done += written
                    progress(stage, done, total)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive}: damaged or not a zip archive ({error})", hint="get the file again") from error
    return target / chosen


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MOST_MEMBERS or sum(info.file_size for info in members) > MOST_BYTES:
        raise InputError(
            f"{archive.name} is too large: at most {MOST_MEMBERS:,} files and {MOST_BYTES:,} bytes are unpacked"
        )
    for info in members:
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in path.parts[0]:
            raise InputError(
                f"{archive.name} holds {info.filename!r}, which would leave the folder it is unpacked into"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{archive.name} holds {info.filename!r}, a link; only plain files are unpacked")
        if info.file_size > _RATIO_FROM and info.file_size > MOST_RATIO * max(info.compress_size, 1):
            raise InputError(
                f"{archive.name} holds {info.filename!r}, which grows {info.file_size:,} bytes out of {info.compress_size:,}"
            )
        if info.flag_bits & 1:
            raise InputError(f"{archive.name} holds {info.filename!r}, which is encrypted")


def _only_model(archive: Path, names: list[str]) -> str:
    folders = {
        str(PurePosixPath(n).parent) for n in names if PurePosixPath(n).name in ("config.json", "adapter_config.json")
    }
    with_weights = {str(PurePosixPath(n).parent) for n in names if n.endswith(".safetensors")}
    found = sorted(folders & with_weights) + sorted(n for n in names if n.endswith(".gguf"))
    if len(found) != 1:
        listed = ", ".join(found) or "no model"
        raise InputError(
            f"{archive.name} must hold one model when no #PATH is given; it holds {listed}", hint="add #PATH"
        )
    return found[0]


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, to: Path) -> Iterator[int]:
    """Copy one member, stopping when it is longer than it said; yields the bytes of each piece."""
    left = info.file_size
    with disk_errors(to, info.file_size):
        to.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, to.open("xb") as sink:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise InputError(f"{info.filename!r} is longer than the archive says")
                sink.write(chunk)
                yield len(chunk)


def copy_model(folder: Path, target: Path, patterns: list[str]) -> None:
    """Copy the files of a model folder that match ``patterns``, also one level down (``1_Pooling/config.json``); never pickles."""
    for pattern in patterns:
        for path in sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")]):
            relative = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                to = target / relative
                with disk_errors(to, path.stat().st_size):
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
