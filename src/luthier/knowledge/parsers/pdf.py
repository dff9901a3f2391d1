"""PDF: text in reading order with its pages and places, columns, headings by size, tables by alignment; scans by OCR."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block, Box
from luthier.core.errors import DataError
from luthier.knowledge.parsers._layout import Piece, body_of, page_blocks, recognised_blocks
from luthier.knowledge.parsers._ocr import INSTALL, MOST_PIXELS, reader
from luthier.knowledge.parsers._parsed import Parsed, ReadImage, alive

MEDIA_TYPES = ("application/pdf",)
SUFFIXES = (".pdf",)
APART = True
"""PDFium can hang on a file of two kilobytes whose forms show one another, and only one thread may use it."""

_FEW = 16
"""Characters; a page with fewer that shows a picture is taken for a scan."""
_MOST_CHARACTERS = 500_000
_MOST_PIECES = 20_000
"""Of a page. Beyond so many runs its text is taken in the file's order."""
_ALEFS = frozenset("\u0622\u0623\u0625\u0627")
_CATALOGUE = re.compile(rb"(\d{1,8})\s+(\d{1,5})\s+obj\b[^>]{0,500}?/Type\s*/Catalog")
_LAM = "\u0644"


class Config(EntryConfig):
    """``timeout_s``: how long a page may take; a file may take sixty times as long. ``password`` opens an encrypted file. ``most_pages`` bounds a
    file. ``ocr``: read pages without text by OCR when it is installed, and scans whose text another program recognised anew; ``most_scans`` of
    them at most. ``dpi`` is the resolution that they are drawn at.
    """

    timeout_s: float = Field(default=60.0, gt=0.0)
    password: str | None = None
    most_pages: int = Field(default=5000, ge=1)
    ocr: bool = True
    most_scans: int = Field(default=500, ge=0)
    dpi: int = Field(default=200, ge=72, le=600)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks page by page. Raises DataError for an encrypted file without its password, a damaged one, or one with too many pages."""
    import pypdfium2

    warnings: list[str] = []
    try:
        pdf = pypdfium2.PdfDocument(data, password=config.password)
    except pypdfium2.PdfiumError as error:
        mended = _with_trailer(data)
        try:
            pdf = pypdfium2.PdfDocument(mended, password=config.password) if mended else None
        except pypdfium2.PdfiumError:
            pdf = None
        if pdf is None:
            raise DataError(_why(name, str(error), config)) from error
        warnings.append("the end of the file is missing; what is before it was read")
    try:
        return _read(pdf, name, config, warnings)
    except pypdfium2.PdfiumError as error:
        raise DataError(f"{name} is damaged: {error}") from error
    finally:
        pdf.close()


def _why(name: str, said: str, config: Config) -> str:
    if "password" in said.lower():
        return f"{name} is encrypted; {'the password is wrong' if config.password else 'it needs a password'}"
    return f"{name} is no PDF that can be read: {said}"


def _with_trailer(data: bytes) -> bytes:
    """A file that was cut off, with a new end that names its catalogue; b"" when that was in the part that is lost."""
    found = _CATALOGUE.search(data)
    if found is None or b"/Encrypt" in data:
        return b""
    return data + b"\nendstream\nendobj\ntrailer\n<< /Root %s %s R >>\n%%%%EOF\n" % found.groups()


@dataclass
class _Page:
    """What was read of a page. ``scan``: it is a picture; ``layer``: with text that another program recognised."""

    pieces: list[Piece]
    size: tuple[float, float] = (0.0, 0.0)
    scan: bool = False
    layer: bool = False
    damaged: bool = False


def _read(pdf: Any, name: str, config: Config, warnings: list[str]) -> Parsed:
    count = len(pdf)
    if count > config.most_pages:
        raise DataError(f"{name} has {count:,} pages; at most {config.most_pages:,} are read (most_pages)")
    pages = [_page(pdf, number, name) for number in range(count)]
    if pages and all(page.damaged for page in pages):
        raise DataError(f"{name} is damaged: none of its {count} pages can be read")
    body = body_of([page.pieces for page in pages])
    scans = [number for number, page in enumerate(pages) if page.scan or page.layer]
    ocr = reader() if config.ocr and scans else None
    recognised = set(scans[: config.most_scans]) if ocr is not None else set()
    blocks: list[Block] = []
    for number, page in enumerate(pages):
        found = _recognised(pdf, number, config.dpi, ocr) if ocr is not None and number in recognised else []
        blocks += found or page_blocks(page.pieces, page.size, body, number + 1)
    warnings += [f"page {number} is damaged and was left out" for number, page in enumerate(pages, 1) if page.damaged]
    lost = [number + 1 for number in scans if number not in recognised and pages[number].scan]
    if lost:
        why = f"to read it: {INSTALL}" if config.ocr and ocr is None else "left out (pdf: ocr, most_scans)"
        listed = ", ".join(map(str, lost[:20])) + (", ..." if len(lost) > 20 else "")
        warnings.append(f"page {listed}: a picture without text; {why}")
    title = str((pdf.get_metadata_dict() or {}).get("Title") or "").strip()
    return Parsed(blocks, title=title, pages=count, warnings=warnings)


def _page(pdf: Any, number: int, name: str) -> _Page:
    import pypdfium2

    try:
        page = pdf[number]
    except pypdfium2.PdfiumError:
        return _Page([], damaged=True)
    try:
        size = page.get_size()
        pieces = _pieces(page, size[1], f"{name}, page {number + 1}")
        few = sum(len(piece.text.strip()) for piece in pieces) < _FEW
        scan = few and _has_picture(page)
        return _Page(pieces, size, scan=scan, layer=not few and _is_hidden(page))
    finally:
        page.close()
        alive()


def _pieces(page: Any, height: float, where: str) -> list[Piece]:
    """Runs of text with their boxes (from the upper left corner), in the file's order."""
    from pypdfium2 import raw

    text = page.get_textpage()
    try:
        count = text.count_chars()
        if count > _MOST_CHARACTERS:
            raise DataError(f"{where} has {count:,} characters; at most {_MOST_CHARACTERS:,} are read of a page")
        boxes = [text.get_rect(index) for index in range(text.count_rects())]
        if len(boxes) > _MOST_PIECES:
            lines = text.get_text_range().split("\r\n")
            return [Piece(line, 0.0, 12.0 * at, 1.0, 12.0 * at + 10) for at, line in enumerate(lines) if line.strip()]
        texts, firsts = _texts(text.raw, count, boxes, raw)
        fonts = [_font_height(text.raw, first, raw) for first in firsts]
    finally:
        text.close()
    pieces = []
    for said, font, (left, bottom, right, top) in zip(texts, fonts, boxes, strict=True):
        if said.strip() and right > left:
            high = max(
                top, bottom + (0.7 * font if top - bottom < 0.2 * font else 0.0)
            )  # a font that is not there has no shapes
            pieces.append(Piece(said, left, height - high, right, height - bottom, font))
    return pieces


def _font_height(handle: Any, index: int, raw: Any) -> float:
    box = raw.FS_RECTF()
    return abs(box.top - box.bottom) if index >= 0 and raw.FPDFText_GetLooseCharBox(handle, index, box) else 0.0


def _texts(handle: Any, count: int, boxes: list[Box], raw: Any) -> tuple[list[str], list[int]]:
    """The characters of each box, and the place of its first. Both come in one order, so a character belongs to the box at hand or to one
    of the next."""
    edges = [ctypes.c_double() for _ in range(4)]
    texts: list[list[str]] = [[] for _ in boxes]
    firsts = [-1] * len(boxes)
    at, last = 0, (0.0, 0.0, 0.0, 0.0)
    for index in range(count):
        character = _character(raw.FPDFText_GetUnicode(handle, index))
        if not character or not raw.FPDFText_GetCharBox(handle, index, *edges):
            continue
        left, right, bottom, top = (edge.value for edge in edges)
        across, down = (left + right) / 2, (bottom + top) / 2
        for ahead in range(at, min(at + 4, len(boxes))):
            box = boxes[ahead]
            if box[0] - 0.5 <= across <= box[2] + 0.5 and box[1] - 0.5 <= down <= box[3] + 0.5:
                at = ahead
                break
        else:
            if character.isspace() or not boxes:
                continue
        own = texts[at]
        firsts[at] = index if firsts[at] < 0 else firsts[at]
        here = (left, right, bottom, top)
        if character == _LAM and here == last and own and own[-1] in _ALEFS:
            own.insert(-1, character)  # one glyph for both: right-to-left text is turned round, this pair must not be
        else:
            own.append(character)
        last = here
    return ["".join(own).encode("utf-16", "surrogatepass").decode("utf-16", "replace") for own in texts], firsts


def _character(code: int) -> str:
    if code in (0x2, 0xFFFE):  # a hyphen at the end of a line
        return "-"
    return chr(code) if code >= 32 else " " if code in (9, 10, 13) else ""


def _has_picture(page: Any) -> bool:
    from pypdfium2 import raw

    return next(iter(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=4)), None) is not None


def _is_hidden(page: Any) -> bool:
    """Whether nearly all text is invisible: what a program recognised in the picture of the page."""
    from pypdfium2 import raw

    modes = [
        raw.FPDFTextObj_GetTextRenderMode(each.raw)
        for each in page.get_objects(filter=[raw.FPDF_PAGEOBJ_TEXT], max_depth=4)
    ]
    hidden = modes.count(raw.FPDF_TEXTRENDERMODE_INVISIBLE)
    return hidden > 0.9 * len(modes) and _has_picture(page)


def _recognised(pdf: Any, number: int, dpi: int, ocr: ReadImage) -> list[Block]:
    page = pdf[number]
    width, height = page.get_size()
    scale = min(dpi / 72, (MOST_PIXELS / max(1.0, width * height)) ** 0.5)
    picture = page.render(scale=scale).to_pil()
    page.close()
    found = ocr(picture)
    alive()
    return recognised_blocks(found, (width, height), number + 1, scale)
