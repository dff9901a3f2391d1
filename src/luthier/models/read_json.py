"""JSON files that others may have made, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises DataError that names the file when it is missing, damaged or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object; got {type(value).__name__}")
    return value
