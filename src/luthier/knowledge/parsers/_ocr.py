"""Optical character recognition by RapidOCR, when it is installed (``pip install 'luthier[ocr]'``)."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from luthier.knowledge.parsers._parsed import ReadImage

_lock = threading.Lock()  # RapidOCR's sessions are used by one thread at a time


@lru_cache(maxsize=1)
def reader() -> ReadImage | None:
    """What reads images, or None when the extra is not installed. Its models come with the package; nothing is downloaded."""
    try:
        from rapidocr import RapidOCR
    except ImportError:
        return None
    engine = RapidOCR()

    def read(image: bytes) -> list[str]:
        with _lock:
            found: Any = engine(image)
        return [line.strip() for line in found.txts or () if line.strip()]

    return read
