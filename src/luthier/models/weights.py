"""safetensors files: a cheap check that a file is whole, and reading one with errors that name it.

The format (huggingface/safetensors, "Format"): 8 bytes little-endian header length, a JSON header that gives each tensor's
``data_offsets``, then the data. A file that was cut short is found from the header alone, without reading the weights.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError

if TYPE_CHECKING:
    import torch

AGAIN = "Tune again (luthier tune RUN.yaml) or restore the artifact from a copy."
"""What to do about a damaged file of what tuning made."""

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_LONGEST_HEADER = 100_000_000  # the format's own limit, in bytes


def check_file(path: Path) -> dict[str, Any]:
    """Read and check the header of one safetensors file; returns it (tensor name -> dtype, shape, data_offsets).

    Raises DataError that names the file when it is missing, not in the format, or shorter than its header promises.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise DataError(f"{path}: not a whole safetensors file ({size} bytes)", hint=_HINT)
            header: dict[str, Any] = json.loads(stream.read(length))
            promised = (
                8 + length + max((t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"), default=0)
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint=_HINT) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: the safetensors header is damaged", hint=_HINT) from error
    if promised != size:
        raise DataError(f"{path}: the safetensors header promises {promised} bytes; the file has {size}", hint=_HINT)
    return header


_HINT = "Get it again: luthier pull NAME for a base model, luthier tune RUN.yaml for an adapter."


def check_folder(folder: Path) -> None:
    """Check every ``*.safetensors`` file of a model folder, and that there is one."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: holds no .safetensors weights", hint=_HINT)
    for path in files:
        check_file(path)


def entries(path: Path) -> dict[str, tuple[str, int]]:
    """Tensor's name -> the format's name of its type and the number of its entries, from the header of one file."""
    header = check_file(path).items()
    return {name: (tensor["dtype"], prod(tensor["shape"])) for name, tensor in header if name != "__metadata__"}


def dtypes(folder: Path) -> Counter[str]:
    """Type -> number of entries that have it, over all files of a model folder."""
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        for dtype, size in entries(path).values():
            found[dtype] += size
    return found


def missing_weights(folder: Path, wanted: str) -> str:
    """What is said of a folder without the file ``wanted``, and of a pickled one that it has instead."""
    pickled = next((path.name for kind in ("*.bin", "*.pt") for path in sorted(folder.glob(kind))), None)
    why = f"; {pickled} is pickled and never loaded: it can run code" if pickled else ""
    return f"{folder}: {wanted} is missing{why}"


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one file, on the CPU. Raises DataError that names the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_file(path)
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: {error}", hint=_HINT) from error


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write contiguous CPU copies of ``tensors``. Raises StoreError when the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from luthier.core.errors import StoreError
    from luthier.store.home import disk_error

    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, str(path), metadata={"format": "pt"})
    except OSError as error:
        raise disk_error(path, error) from error
    except SafetensorError as error:  # it has what the system said in words alone
        said = _SYSTEM_ERROR.search(str(error))
        if said is None:
            raise StoreError(f"cannot write {path}: {error}") from error
        number = int(said[1])
        size = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
        raise disk_error(path, OSError(number, os.strerror(number)), size) from error
