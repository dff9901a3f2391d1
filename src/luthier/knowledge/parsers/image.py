"""Pictures: the text in them, by OCR."""

from __future__ import annotations

import io

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError, MissingExtraError
from luthier.knowledge.parsers._ocr import reader
from luthier.knowledge.parsers._parsed import Parsed

MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/tiff", "image/bmp", "image/webp")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp")


class Config(EntryConfig):
    """``most_pixels`` bounds what is unpacked."""

    most_pixels: int = Field(default=100_000_000, ge=1)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """The lines of text in a picture. Raises MissingExtraError without OCR, DataError for a damaged or enormous picture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if width * height > config.most_pixels:
                raise DataError(f"{name} has {width} x {height} pixels; at most {config.most_pixels:,} are read")
            page = io.BytesIO()
            picture.convert("RGB").save(page, "PNG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no picture that can be read: {error}") from error
    read = reader()
    if read is None:
        raise MissingExtraError(f"{name} is a picture; its text is read by OCR", hint="pip install 'luthier[ocr]'")
    lines = read(page.getvalue())
    return Parsed([Block("\n".join(lines), page=1, place="read by OCR")] if lines else [], pages=1)
