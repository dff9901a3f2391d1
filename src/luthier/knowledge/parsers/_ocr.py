"""Optical character recognition by RapidOCR, when it is installed (``pip install 'luthier[ocr]'``)."""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from luthier.knowledge.parsers._layout import Piece
from luthier.knowledge.parsers._parsed import ReadImage

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "pip install 'luthier[ocr]'"
MOST_PIXELS = 25_000_000
"""A larger picture is made smaller before it is read."""
_lock = threading.Lock()  # RapidOCR's sessions are used by one thread at a time


@lru_cache(maxsize=1)
def reader() -> ReadImage | None:
    """What reads pictures, or None when the extra is not installed. Its models come with the package; nothing is downloaded."""
    try:
        from rapidocr import RapidOCR
    except ImportError:
        return None
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    engine = RapidOCR(params={"Global.log_level": "error"})

    def read(picture: Image) -> list[Piece]:
        shrunk = min(1.0, (MOST_PIXELS / max(1, picture.width * picture.height)) ** 0.5)
        if shrunk < 1.0:
            picture = picture.resize((max(1, int(picture.width * shrunk)), max(1, int(picture.height * shrunk))))
        with _lock:
            found: Any = engine(picture.convert("RGB"))
        pieces = []
        for text, corners in zip(found.txts or (), found.boxes if found.boxes is not None else (), strict=False):
            across, down = [float(x) / shrunk for x, _ in corners], [float(y) / shrunk for _, y in corners]
            if text.strip():
                pieces.append(Piece(text.strip(), min(across), min(down), max(across), max(down)))
        return pieces

    return read
