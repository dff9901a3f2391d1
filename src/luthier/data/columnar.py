"""Tables with types into rows: Parquet files and hub datasets, whose class numbers become names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, MissingExtraError, OfflineError

if TYPE_CHECKING:
    from luthier.data.files import Row


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a Parquet file, read in pieces, with their numbers. Raises DataError for a file that is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = _class_names(json.loads((table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")))
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, _named(row, names)
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def hub_rows(name: str) -> Iterator[tuple[int, Row]]:
    """Rows of ``hub:org/name[/config][:split]`` (split ``train`` by default); code of the dataset's own is never run.

    Raises MissingExtraError without the ``datasets`` library, OfflineError when the hub cannot be reached, DataError for an unknown
    dataset.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{name} needs the package 'datasets', which is not installed.", hint="pip install 'luthier[hub]'"
        ) from error
    address, _, split = name.removeprefix("hub:").partition(":")
    parts = address.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise DataError(f"a hub dataset is written hub:org/name[/config][:split]; got {name!r}")
    try:
        found = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split or "train")
    except (ConnectionError, TimeoutError) as error:
        raise OfflineError(
            f"cannot reach the hub for {name}: {error}", hint="fetch it where there is a network, and read it as a file"
        ) from error
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot read {name}: {error}") from error
    names = {field: f.names for field, f in found.features.items() if isinstance(f, datasets.ClassLabel)}
    for number, row in enumerate(found, 1):
        yield number, _named(row, names)


def _class_names(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of class numbers, as hub datasets write them into Parquet files."""
    features = metadata.get("info", {}).get("features", {})
    return {k: f["names"] for k, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}


def _named(row: Mapping[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    out = {key: _plain(value) for key, value in row.items()}
    for field, known in names.items():
        value = out.get(field)
        if isinstance(value, int) and 0 <= value < len(known):
            out[field] = known[value]
    return out


def _plain(value: Any) -> Any:
    """The value as JSON knows it: empty members of structures are left out, dates and decimals become text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool | bytes) else str(value)
