"""Pictures: the text in them, by OCR."""

from __future__ import annotations

import io
from itertools import islice

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError, MissingExtraError
from luthier.knowledge.parsers._layout import recognised_blocks
from luthier.knowledge.parsers._ocr import INSTALL, reader
from luthier.knowledge.parsers._parsed import Parsed, alive

MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/tiff", "image/bmp", "image/webp")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp")
APART = True
"""The models that read take half a gigabyte, and code that unpacks pictures has died of bad ones before."""


class Config(EntryConfig):
    """``timeout_s``: how long a page may take. ``most_pixels`` bounds what is unpacked, ``most_pages`` a TIFF of several pages."""

    timeout_s: float = Field(default=60.0, gt=0.0)
    most_pixels: int = Field(default=100_000_000, ge=1)
    most_pages: int = Field(default=200, ge=1)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """The text in a picture, its boxes in pixels. Raises MissingExtraError without OCR, DataError for a damaged or enormous picture."""
    from PIL import Image, ImageOps, ImageSequence

    blocks: list[Block] = []
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if width * height > config.most_pixels:
                raise DataError(f"{name} has {width} x {height} pixels; at most {config.most_pixels:,} are read")
            read = reader()
            if read is None:
                raise MissingExtraError(f"{name} is a picture; its text is read by OCR", hint=INSTALL)
            several = (
                int(getattr(picture, "n_frames", 1)) if picture.format == "TIFF" else 1
            )  # a moving GIF has frames too
            for number, page in enumerate(islice(ImageSequence.Iterator(picture), min(several, config.most_pages)), 1):
                upright = ImageOps.exif_transpose(page)
                blocks += recognised_blocks(read(upright), upright.size, number, 1.0)
                alive()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no picture that can be read: {error}") from error
    warnings = [f"only {config.most_pages} of {several} pages were read"] if several > config.most_pages else []
    return Parsed(blocks, pages=several, warnings=warnings)
