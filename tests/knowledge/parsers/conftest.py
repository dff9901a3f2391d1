"""Small files of every format, made here: English and Chinese in each."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

Run = tuple[float, float, float, str]
"""Left, baseline from below, size, text."""


def make_pdf(pages: Sequence[Sequence[Run]], *, title: str = "") -> bytes:
    """A PDF written by hand: Helvetica for Latin letters, an unembedded Chinese font with its predefined encoding for the rest."""
    fonts = (
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        "<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H /DescendantFonts [5 0 R] >>",
        "<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light /CIDSystemInfo << /Registry (Adobe) /Ordering (GB1)"
        " /Supplement 2 >> /DW 1000 >>",
    )
    kids = " ".join(f"{7 + 2 * number} 0 R" for number in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>", *fonts]
    objects.append(f"<< /Title ({title}) >>")
    for number, runs in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {8 + 2 * number} 0 R"
            " /Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>"
        )
        content = "\n".join(_shown(run) for run in runs)
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    return join_pdf(objects)


def join_pdf(objects: Sequence[str], trailer: str = "/Root 1 0 R /Info 6 0 R") -> bytes:
    """Objects, numbered from 1, as a file with its table of places."""
    out, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    end += f"trailer\n<< /Size {len(objects) + 1} {trailer} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + end.encode("latin-1")


def _shown(run: Run) -> str:
    left, low, size, text = run
    if text.isascii():
        escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        return f"BT /F1 {size} Tf {left} {low} Td ({escaped}) Tj ET"
    return f"BT /F2 {size} Tf {left} {low} Td <{text.encode('utf-16-be').hex()}> Tj ET"


def make_zip(parts: Mapping[str, str | bytes]) -> bytes:
    """A zip archive in memory."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def replaced_in_zip(data: bytes, name: str, change: Callable[[str], str]) -> bytes:
    """The archive with one of its text parts changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {each: archive.read(each) for each in archive.namelist()}
    return make_zip({**parts, name: change(parts[name].decode("utf-8")).encode("utf-8")})


def make_docx() -> bytes:
    """Headings, a list, a table with merged cells, a header, in both languages."""
    from docx import Document

    document = Document()
    document.core_properties.title = "Violin care 小提琴保养"
    document.sections[0].header.paragraphs[0].text = "Workshop handbook"
    document.add_heading("Cleaning", 1)
    document.add_paragraph("Wipe the rosin from the strings after playing.")
    document.add_paragraph("soft cloth", "List Bullet")
    document.add_paragraph("no alcohol", "List Bullet")
    document.add_heading("琴弓", 2)
    document.add_paragraph("演奏后请放松弓毛,并把琴弓放回琴盒。")
    table = document.add_table(3, 2)
    for row, cells in enumerate((("Part", "Price"), ("E string | steel", "12.50"), ("松香", "8.00"))):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def make_pptx() -> bytes:
    """Two slides: text boxes out of order, a table, notes."""
    from pptx import Presentation
    from pptx.util import Pt

    deck = Presentation()
    deck.core_properties.title = "Quarterly report"
    first = deck.slides.add_slide(deck.slide_layouts[5])
    first.shapes.title.text = "Repairs in spring"
    for top, text in ((300, "second paragraph"), (200, "first paragraph")):
        box = first.shapes.add_textbox(Pt(50), Pt(top), Pt(300), Pt(50))
        box.text_frame.text = text
    first.notes_slide.notes_text_frame.text = "Mention the new lathe."
    second = deck.slides.add_slide(deck.slide_layouts[5])
    second.shapes.title.text = "价格表"
    table = second.shapes.add_table(2, 2, Pt(50), Pt(200), Pt(300), Pt(80)).table
    for row, cells in enumerate((("部件", "价格"), ("琴弦", "十二元"))):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    out = io.BytesIO()
    deck.save(out)
    return out.getvalue()


def make_xlsx() -> bytes:
    """Two sheets; the first holds two tables with an empty row between."""
    import datetime

    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Prices"
    for row in (
        ["part", "price"],
        ["string", 12.5],
        ["rosin", 8],
        [],
        ["day", "open"],
        [datetime.date(2024, 3, 1), True],
    ):
        sheet.append(row)
    chinese = book.create_sheet("库存")
    for row in (["名称", "数量"], ["琴弓", 30]):
        chinese.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def make_epub(chapters: Mapping[str, str], *, title: str = "The workshop") -> bytes:
    """A book of these chapters (file name -> body)."""
    items = "".join(
        f'<item id="c{n}" href="{name}" media-type="application/xhtml+xml"/>' for n, name in enumerate(chapters)
    )
    order = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    container = '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        f"<dc:title>{title}</dc:title></metadata><manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    pages = {
        f"OPS/{name}": f'<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
        for name, body in chapters.items()
    }
    return make_zip(
        {"mimetype": "application/epub+zip", "META-INF/container.xml": container, "OPS/book.opf": package, **pages}
    )


MAIL = (
    b"From: Ana <ana@example.com>\r\nTo: shop@example.com\r\nDate: Fri, 01 Mar 2024 10:00:00 +0000\r\n"
    b"Subject: =?utf-8?b?5bCP5o+Q55C0?= repair\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=cut\r\n\r\n"
    b"--cut\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nThe bridge is broken.\r\n\r\n"
    + "请尽快修理。".encode()
    + b"\r\n--cut\r\nContent-Type: text/csv\r\nContent-Disposition: attachment; filename=parts.csv\r\n\r\npart,price\r\nbridge,30\r\n--cut--\r\n"
)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """What builds files: ``pdf join_pdf zip replaced docx pptx xlsx epub mail``."""
    return SimpleNamespace(
        pdf=make_pdf, join_pdf=join_pdf, zip=make_zip, replaced=replaced_in_zip, docx=make_docx, pptx=make_pptx,
        xlsx=make_xlsx, epub=make_epub, mail=MAIL,
    )  # fmt: skip


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """A good file for each parser that needs no extra, by file name."""
    english, chinese = "The bow is kept in its case overnight.", "琴弓晚上放在琴盒里。"
    return {
        "a.pdf": make_pdf([[(72, 700, 12, english)], [(72, 700, 12, chinese)]], title="Care"),
        "a.docx": make_docx(),
        "a.pptx": make_pptx(),
        "a.xlsx": make_xlsx(),
        "a.epub": make_epub(
            {"one.xhtml": f"<h1>One</h1><p>{english}</p>", "two.xhtml": f"<h1>二</h1><p>{chinese}</p>"}
        ),
        "a.eml": MAIL,
        "a.html": f"<html><head><title>Care</title></head><body><h1>Bow</h1><p>{english}</p><p>{chinese}</p></body></html>".encode(),
        "a.md": f"# Bow\n\n{english}\n\n## 琴弓\n\n{chinese}\n".encode(),
        "a.csv": "part,price\nbow,100\n琴弓,100\n".encode(),
        "a.txt": f"{english}\n\n{chinese}\n".encode(),
        "a.py": f"def bow():\n    return {english!r}\n\n\n# {chinese}\nCASE = 1\n".encode(),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Write a file into a folder of the test's own."""

    def put(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return put
