"""Pictures and scans: what OCR reads, and what is said when it is not installed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw, ImageFont

from luthier.core.errors import DataError, MissingExtraError
from luthier.knowledge.parse import parse_bytes
from luthier.knowledge.parsers import _ocr, image, pdf
from luthier.knowledge.parsers._layout import Piece

CHINESE_FONTS = ("NotoSansCJK", "NotoSerifCJK", "wqy", "SourceHanSans", "simsun", "PingFang", "Arial Unicode")


def picture(*lines: str, kind: str = "PNG", font: str | None = None) -> bytes:
    """Black lines of text on white."""
    drawn = Image.new("RGB", (400, 40 + 50 * len(lines)), "white")
    letters = ImageFont.truetype(font, 30) if font else ImageFont.load_default(30)
    for number, line in enumerate(lines):
        ImageDraw.Draw(drawn).text((20, 20 + 50 * number), line, fill="black", font=letters)
    out = io.BytesIO()
    drawn.save(out, kind)
    return out.getvalue()


def scanned(make: SimpleNamespace, jpeg: bytes, layer: str = "") -> bytes:
    """A PDF page that shows a picture, with invisible text over it."""
    with Image.open(io.BytesIO(jpeg)) as found:
        width, height = found.size
    content = f"q 500 0 0 {500 * height // width} 50 300 cm /I Do Q"
    content += f" BT 3 Tr /F 12 Tf 50 300 Td ({layer}) Tj ET" if layer else ""
    head = (
        f"<< /Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB /BitsPerComponent 8"
    )
    data: bytes = make.join_pdf(
        [
            "<< /Type /Catalog /Pages 2 0 R >>",
            "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /XObject << /I 5 0 R >> /Font << /F 6 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
            f"{head} /Filter /DCTDecode /Length {len(jpeg)} >>\nstream\n{jpeg.decode('latin-1')}\nendstream",
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        ],
        "/Root 1 0 R",
    )
    return data


@pytest.fixture
def without_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were not installed."""
    for module in (image, pdf):
        monkeypatch.setattr(module, "APART", False)
        monkeypatch.setattr(module, "reader", lambda: None)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """OCR that finds the same two lines in every picture, and the sizes of the pictures that it was given."""
    seen: list[tuple[int, int]] = []

    def fake(shown: Image.Image) -> list[Piece]:
        seen.append(shown.size)
        return [Piece("upper line of text", 10, 10, 200, 30), Piece("下面一行", 10, 400, 200, 420)]

    for module in (image, pdf):
        monkeypatch.setattr(module, "APART", False)
        monkeypatch.setattr(module, "reader", lambda: fake)
    yield seen


def test_real_ocr_reads_a_picture_and_a_scan(make: SimpleNamespace) -> None:
    pytest.importorskip("rapidocr")
    document = parse_bytes(picture("Violin repair"), "bill.png")
    assert document.text == "Violin repair"
    assert document.blocks[0].page == 1 and document.blocks[0].place == "read by OCR"
    data = scanned(make, picture("Violin repair", "costs 120 euros", kind="JPEG"))
    scan = parse_bytes(data, "scan.pdf", options={"pdf": {"dpi": 72}})
    assert "Violin repair" in scan.text and "120 euros" in scan.text and not scan.warnings
    left, top, right, bottom = scan.blocks[0].box or (0, 0, 0, 0)
    assert 50 <= left < right <= 550 and 300 < top < bottom < 500  # the picture's place on the page, in points


def test_real_ocr_reads_chinese() -> None:
    pytest.importorskip("rapidocr")
    folders = [Path("/usr/share/fonts"), Path("/System/Library/Fonts")]
    fonts = [
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob("*.*t[tc]*")
        if path.name.startswith(CHINESE_FONTS)
    ]
    if not fonts:
        pytest.skip("no Chinese font on this machine")
    assert "小提琴" in parse_bytes(picture("小提琴维修", font=str(fonts[0])), "bill.png").text


def test_without_ocr_a_picture_is_refused_with_the_command_to_type(without_ocr: None) -> None:
    with pytest.raises(MissingExtraError) as raised:
        parse_bytes(picture("text"), "bill.png")
    assert raised.value.hint == "pip install 'luthier[ocr]'"


def test_without_ocr_a_scan_gives_a_warning_with_the_command(make: SimpleNamespace, without_ocr: None) -> None:
    document = parse_bytes(scanned(make, picture("text", kind="JPEG")), "scan.pdf")
    assert document.blocks == ()
    assert document.warnings == ("page 1: a picture without text; to read it: pip install 'luthier[ocr]'",)


def test_ocr_can_be_declined_and_is_bounded(make: SimpleNamespace, read: list[tuple[int, int]]) -> None:
    data = scanned(make, picture("text", kind="JPEG"))
    for options in ({"ocr": False}, {"most_scans": 0}):
        document = parse_bytes(data, "scan.pdf", options={"pdf": options})
        assert document.warnings == ("page 1: a picture without text; left out (pdf: ocr, most_scans)",)
    assert read == []


def test_a_layer_of_recognised_text_is_read_anew_or_kept(make: SimpleNamespace, read: list[tuple[int, int]]) -> None:
    data = scanned(make, picture("text", kind="JPEG"), layer="w0rds that another pr0gram read")
    assert parse_bytes(data, "scan.pdf").text == "upper line of text\n\n下面一行"
    assert [(abs(width - 1667) < 2, abs(height - 2222) < 2) for width, height in read] == [
        (True, True)
    ]  # at 200 dots an inch
    kept = parse_bytes(data, "scan.pdf", options={"pdf": {"ocr": False}})
    assert "w0rds that another" in kept.text and not kept.warnings


def test_all_pages_of_a_tiff_are_read_and_a_moving_picture_once(read: list[tuple[int, int]]) -> None:
    frames = [Image.new("RGB", (300, 500), "white") for _ in range(3)]
    for kind, pages in (("TIFF", 3), ("GIF", 1)):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=[frame.point(lambda _: 9) for frame in frames[1:]])
        document = parse_bytes(out.getvalue(), "fax")
        assert document.pages == pages and {block.page for block in document.blocks} == set(range(1, pages + 1))


def test_a_turned_photograph_is_set_upright(read: list[tuple[int, int]]) -> None:
    turned, out = Image.new("RGB", (400, 100), "white"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(out, "JPEG", exif=exif)
    parse_bytes(out.getvalue(), "photo.jpg")
    assert read == [(100, 400)]


def test_enormous_and_damaged_pictures(read: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match=r"big\.png has 400 x 90 pixels; at most 1,000"):
        parse_bytes(picture("text"), "big.png", options={"image": {"most_pixels": 1000}})
    for data in (picture("text")[:60], b"\x89PNG\r\n\x1a\n" + bytes(50)):
        with pytest.raises(DataError, match=r"cut\.png is no picture that can be read"):
            parse_bytes(data, "cut.png")
    assert read == []


def test_an_enormous_page_is_drawn_small(make: SimpleNamespace, read: list[tuple[int, int]]) -> None:
    data = scanned(make, picture("text", kind="JPEG")).replace(b"[0 0 600 800]", b"[0 0 14400 14400]")
    parse_bytes(data, "poster.pdf")
    (size,) = read
    assert size[0] * size[1] <= _ocr.MOST_PIXELS * 1.01
