"""GGUF files: the header read quickly and checked fully, and tensors turned back into numbers.

The format is ggml's "GGUF" specification, versions 2 and 3: magic, version, counts, key-value pairs, tensor descriptions, aligned
data. Everything that a header promises is held against the size of the file before any weight is read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.core.errors import DataError

_HINT = "get the file again; a download that was cut short looks like this"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_PAIRS = 100_000
_MOST_TENSORS = 1_000_000


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor's bytes are. ``shape`` is in NumPy's order, slowest first; ``type`` is ggml's number of the format."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Gguf:
    """A checked header. ``metadata`` holds the key-value pairs; tensors are read one at a time with ``read``."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32, dequantised."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        place = self.tensors[name]
        raw = np.memmap(self.path, dtype=np.uint8, mode="r", offset=place.offset, shape=(place.size_bytes,))
        kind = GGMLQuantizationType(place.type)
        if kind == GGMLQuantizationType.F32:
            values = raw.view(np.float32)
        elif kind == GGMLQuantizationType.F16:
            values = raw.view(np.float16).astype(np.float32)
        else:
            values = dequantize(raw.reshape(prod(place.shape[:-1]), -1), kind)
        return np.array(values, dtype=np.float32).reshape(place.shape)  # a copy: the file's pages are read-only

    @property
    def quantization(self) -> str:
        """The format that most weights are in, for example ``Q4_1``."""
        from gguf import GGMLQuantizationType

        sizes: dict[int, int] = {}
        for place in self.tensors.values():
            if len(place.shape) > 1:
                sizes[place.type] = sizes.get(place.type, 0) + prod(place.shape)
        return str(GGMLQuantizationType(max(sizes, key=lambda kind: sizes[kind])).name) if sizes else "F32"


def read_header(path: Path) -> Gguf:
    """Read and check a GGUF header. Raises DataError that names the file and what is wrong with it."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise DataError(f"{path}: not a GGUF file (it does not start with GGUF)", hint=_HINT)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (struct.error, UnicodeDecodeError, _BrokenError) as error:
        raise DataError(f"{path}: the GGUF header is damaged or cut short ({error})", hint=_HINT) from error


class _BrokenError(Exception):
    """The header contradicts itself or the file."""


class _Cursor:
    """Reads values one after another, never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.end = data, 4, len(data)

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        if length > self.end - self.at:
            raise _BrokenError(f"a text of {length} bytes at {self.at}")
        value = self.data[self.at : self.at + length]
        self.at += length
        return value.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _BrokenError(f"value type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[inner])
            if count * size > self.end - self.at:
                raise _BrokenError(f"an array of {count} values at {self.at}")
            values = list(struct.unpack_from(f"<{count}{_SCALARS[inner]}", self.data, self.at))
            self.at += count * size
            return values
        if inner != _STRING or count * 8 > self.end - self.at:
            raise _BrokenError(f"an array of {count} values of type {inner} at {self.at}")
        return [self.text() for _ in range(count)]


def _parse(path: Path, data: mmap.mmap) -> Gguf:
    cursor = _Cursor(data)
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise DataError(f"{path}: GGUF version must be 2 or 3; got {version}")
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    if pair_count > _MOST_PAIRS or tensor_count > _MOST_TENSORS:
        raise _BrokenError(f"{pair_count} metadata pairs and {tensor_count} tensors")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"))
    found = [_description(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _BrokenError(f"alignment {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {each.name: _placed(path, each, start, cursor.end) for each in found}
    return Gguf(path, version, metadata, tensors)


def _description(cursor: _Cursor) -> TensorPlace:
    name, dimensions = cursor.text(), cursor.scalar("I")
    if not 1 <= dimensions <= 8:
        raise _BrokenError(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))
    return TensorPlace(name, shape[::-1], cursor.scalar("I"), cursor.scalar("Q"), 0)


def _placed(path: Path, found: TensorPlace, start: int, end: int) -> TensorPlace:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(found.type)]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path}: tensor {found.name!r} is in a format that is not known (number {found.type})"
        ) from error
    if found.shape[-1] % block:
        raise _BrokenError(f"tensor {found.name!r} has rows of {found.shape[-1]}, not a multiple of {block}")
    needed = prod(found.shape) // block * size
    if start + found.offset + needed > end:
        raise _BrokenError(f"tensor {found.name!r} ends at byte {start + found.offset + needed}, the file has {end}")
    return TensorPlace(found.name, found.shape, found.type, start + found.offset, needed)
