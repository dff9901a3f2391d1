"""PDF: text in reading order with its pages and places, columns, headings by size, tables by alignment; scans by OCR."""

from __future__ import annotations

import io
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError
from luthier.knowledge.parsers._layout import Piece, page_blocks
from luthier.knowledge.parsers._ocr import reader
from luthier.knowledge.parsers._parsed import Parsed, ReadImage

MEDIA_TYPES = ("application/pdf",)
SUFFIXES = (".pdf",)

_FEW = 16
"""Characters; a page with fewer that shows a picture is taken for a scan."""


class Config(EntryConfig):
    """``password`` opens an encrypted file. ``most_pages`` bounds a file. ``ocr``: read pages without text by OCR when it is installed.

    ``dpi`` is the resolution that pages are drawn at for OCR.
    """

    password: str | None = None
    most_pages: int = Field(default=5000, ge=1)
    ocr: bool = True
    dpi: int = Field(default=200, ge=72, le=600)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks page by page. Raises DataError for an encrypted file without its password, a damaged one, or one with too many pages."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(io.BytesIO(data), password=config.password)
    except pypdfium2.PdfiumError as error:
        raise DataError(*_why(name, str(error), config)) from error
    try:
        return _read(pdf, name, config)
    except pypdfium2.PdfiumError as error:
        raise DataError(f"{name} is damaged: {error}") from error
    finally:
        pdf.close()


def _why(name: str, said: str, config: Config) -> tuple[str]:
    if "password" in said.lower():
        return (f"{name} is encrypted; {'the password is wrong' if config.password else 'it needs a password'}",)
    return (f"{name} is no PDF that can be read: {said}",)


def _read(pdf: Any, name: str, config: Config) -> Parsed:
    import pypdfium2

    count = len(pdf)
    if count > config.most_pages:
        raise DataError(f"{name} has {count:,} pages; at most {config.most_pages:,} are read (most_pages)")
    pages: list[list[Piece]] = []
    sizes: list[tuple[float, float]] = []
    scans: list[int] = []
    broken: list[int] = []
    for number in range(count):
        try:
            page = pdf[number]
        except pypdfium2.PdfiumError:
            broken.append(number + 1)
            pages.append([])
            sizes.append((0.0, 0.0))
            continue
        size = page.get_size()
        pieces = _pieces(page, size[1])
        if sum(len(piece.text.strip()) for piece in pieces) < _FEW and _has_picture(page):
            scans.append(number)
        pages.append(pieces)
        sizes.append(size)
        page.close()
    if broken and len(broken) == count:
        raise DataError(f"{name} is damaged: none of its {count} pages can be read")
    warnings = [f"page {number} is damaged and was left out" for number in broken]
    body = _body_size(pages)
    blocks: list[Block] = []
    ocr = reader() if config.ocr and scans else None
    for number, (pieces, size) in enumerate(zip(pages, sizes, strict=True)):
        if number in scans and ocr is not None:
            blocks += _recognised(pdf, number, config.dpi, ocr)
        else:
            blocks += page_blocks(pieces, size, body, number + 1)
    if scans and ocr is None:
        listed = ", ".join(str(number + 1) for number in scans[:20])
        warnings.append(f"page {listed}: a picture without text; to read it: pip install 'luthier[ocr]'")
    title = str((pdf.get_metadata_dict() or {}).get("Title") or "").strip()
    return Parsed(blocks, title=title, pages=count, warnings=warnings)


def _pieces(page: Any, height: float) -> list[Piece]:
    """Runs of text with their boxes (from the upper left corner), in the file's order."""
    text = page.get_textpage()
    try:
        out = []
        for index in range(text.count_rects()):
            left, bottom, right, top = text.get_rect(index)
            said = text.get_text_bounded(left, bottom, right, top).replace("\r\n", "\n").replace("\ufffe", "-")
            if said.strip() and right > left and top > bottom:
                out.append(Piece(said.strip("\n"), left, height - top, right, height - bottom))
        return out
    finally:
        text.close()


def _has_picture(page: Any) -> bool:
    from pypdfium2 import raw

    return next(iter(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=4)), None) is not None


def _body_size(pages: list[list[Piece]]) -> float:
    """The usual height of a line, by characters."""
    heights: dict[float, int] = {}
    for pieces in pages:
        for piece in pieces:
            height = round(piece.bottom - piece.top, 1)
            heights[height] = heights.get(height, 0) + len(piece.text)
    if not heights:
        return 10.0
    half, seen = sum(heights.values()) / 2, 0
    for height in sorted(heights):
        seen += heights[height]
        if seen >= half:
            return height
    return 10.0


def _recognised(pdf: Any, number: int, dpi: int, ocr: ReadImage) -> list[Block]:
    image = io.BytesIO()
    page = pdf[number]
    page.render(scale=dpi / 72).to_pil().convert("RGB").save(image, "PNG")
    page.close()
    lines = ocr(image.getvalue())
    return [Block("\n".join(lines), page=number + 1, place="read by OCR")] if lines else []
