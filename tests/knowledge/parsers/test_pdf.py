"""PDF: pages, places, columns, tables, headings; scans; what is damaged, locked or enormous."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from luthier.core.errors import DataError
from luthier.knowledge.parse import parse_bytes
from luthier.knowledge.parsers import pdf

LEFT = [
    "Wood for the back is maple and it",
    "dries for ten years under the",
    "roof of the shop before it is",
    "carved with a gouge.",
]
RIGHT = [
    "Wood for the top is spruce and",
    "it comes from trees that grew",
    "slowly at a thousand metres",
    "above the sea.",
]


def test_pages_positions_and_both_languages(make: SimpleNamespace) -> None:
    data = make.pdf(
        [[(72, 700, 12, "The bow is kept in its case.")], [(72, 700, 12, "琴弓晚上放在琴盒里。")]], title="Care"
    )
    document = parse_bytes(data, "care.pdf")
    assert (document.title, document.pages, document.media_type) == ("Care", 2, "application/pdf")
    assert [(block.text, block.page) for block in document.blocks] == [
        ("The bow is kept in its case.", 1),
        ("琴弓晚上放在琴盒里。", 2),
    ]
    left, top, right, bottom = document.blocks[0].box or (0, 0, 0, 0)
    assert 70 <= left <= 75 and 200 < right < 240  # 28 letters of 12 points from x = 72
    assert 85 <= top < bottom <= 105  # the baseline is 100 points below the upper edge of the page


def test_columns_are_read_one_after_the_other(make: SimpleNamespace) -> None:
    runs = [(60, 700 - 14 * at, 11, line) for at, line in enumerate(LEFT)]
    runs += [(330, 700 - 14 * at, 11, line) for at, line in enumerate(RIGHT)]
    runs.sort(key=lambda run: -run[1])  # the file holds them line by line across both columns
    text = parse_bytes(make.pdf([runs]), "wood.pdf").text
    assert " ".join(LEFT) in " ".join(text.split())
    assert text.index("carved with a gouge") < text.index("Wood for the top")


def test_headings_are_told_by_their_size(make: SimpleNamespace) -> None:
    body = [(72, 600 - 14 * at, 11, line) for at, line in enumerate(LEFT)]
    blocks = parse_bytes(make.pdf([[(72, 700, 24, "Wood"), (72, 650, 15, "The back"), *body]]), "wood.pdf").blocks
    assert [(block.kind, block.text) for block in blocks[:2]] == [("heading", "Wood"), ("heading", "The back")]
    assert 0 < blocks[0].level < blocks[1].level
    assert blocks[2].kind == "paragraph"


def test_aligned_cells_are_a_table(make: SimpleNamespace) -> None:
    rows = [("Part", "Wood", "Price"), ("Top", "spruce", "200"), ("Back", "maple", "350"), ("Peg", "ebony", "12")]
    runs = [
        (80 + 150 * column, 700 - 16 * row, 11, cell)
        for row, cells in enumerate(rows)
        for column, cell in enumerate(cells)
    ]
    (table,) = [block for block in parse_bytes(make.pdf([runs]), "parts.pdf").blocks if block.kind == "table"]
    assert table.text.splitlines()[0] == "| Part | Wood | Price |"
    assert "| Back | maple | 350 |" in table.text


def test_both_letters_of_an_arabic_ligature_keep_their_order() -> None:
    boxes = [(0.0, 0.0, 100.0, 10.0)]
    # PDFium turns right-to-left text round, and with it the two letters that one glyph stands for
    letters = [("ش", 80), ("م", 70), ("ا", 60), ("ل", 60), ("ا", 40), ("ل", 30)]
    assert pdf._texts(None, len(letters), boxes, _Letters(letters))[0] == ["شملاال"]


class _Letters:
    """PDFium's two functions over letters that are all 8 points wide."""

    def __init__(self, letters: list[tuple[str, int]]) -> None:
        self._letters = letters

    def FPDFText_GetUnicode(self, handle: object, index: int) -> int:
        return ord(self._letters[index][0])

    def FPDFText_GetCharBox(self, handle: object, index: int, *edges: object) -> int:
        left = self._letters[index][1]
        for edge, value in zip(edges, (left, left + 8, 1, 9), strict=True):
            edge.value = value  # type: ignore[attr-defined]
        return 1


def test_overlapping_runs_do_not_repeat_letters(make: SimpleNamespace) -> None:
    runs = [(72, 700, 12, "abcdef"), (100, 700, 12, "ghijkl")]  # the second begins before the first ends
    text = parse_bytes(make.pdf([runs]), "overlap.pdf").text
    assert sorted(letter for letter in text if letter.isalpha()) == sorted("abcdefghijkl")


def test_damaged_files_say_why(make: SimpleNamespace) -> None:
    good = make.pdf([[(72, 700, 12, "text")]])
    for data in (good[:40], b"%PDF-1.7\n" + b"\xff" * 500):
        with pytest.raises(DataError, match=r"cut\.pdf is no PDF that can be read"):
            parse_bytes(data, "cut.pdf")


def test_a_file_without_its_table_of_places_is_mended(make: SimpleNamespace) -> None:
    good = make.pdf([[(72, 700, 12, "The bow is kept in its case.")]])
    document = parse_bytes(good[: good.index(b"xref")], "cut.pdf")
    assert "kept in its case" in document.text
    assert document.warnings == ("the end of the file is missing; what is before it was read",)


def test_a_locked_file_needs_its_password() -> None:
    data = _encrypted("The bow is kept in its case.", b"spruce")
    with pytest.raises(DataError, match=r"locked\.pdf is encrypted; it needs a password"):
        parse_bytes(data, "locked.pdf")
    with pytest.raises(DataError, match="the password is wrong"):
        parse_bytes(data, "locked.pdf", options={"pdf": {"password": "maple"}})
    assert "kept in its case" in parse_bytes(data, "locked.pdf", options={"pdf": {"password": "spruce"}}).text


def test_the_number_of_pages_is_bounded(make: SimpleNamespace) -> None:
    data = make.pdf([[(72, 700, 12, "a page")]] * 3)
    with pytest.raises(DataError, match=r"has 3 pages; at most 2 are read \(most_pages\)"):
        parse_bytes(data, "long.pdf", options={"pdf": {"most_pages": 2}})


def test_the_text_of_a_page_is_bounded(make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "APART", False)
    monkeypatch.setattr(pdf, "_MOST_CHARACTERS", 10)
    with pytest.raises(DataError, match=r"long\.pdf, page 1 has 20 characters"):
        parse_bytes(make.pdf([[(72, 700, 12, "x" * 20)]]), "long.pdf")


def test_a_page_of_too_many_runs_is_read_in_the_order_of_the_file(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf, "APART", False)
    monkeypatch.setattr(pdf, "_MOST_PIECES", 1)
    text = parse_bytes(make.pdf([[(72, 600, 12, "below"), (72, 700, 12, "above")]]), "runs.pdf").text
    assert "below" in text and "above" in text


def _encrypted(text: str, password: bytes) -> bytes:
    """A PDF under standard security, revision 2 (RC4, 40 bits): ISO 32000-1, algorithms 2, 3 and 4."""
    import hashlib
    import struct

    padding = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
    padded, identity, allowed = (password + padding)[:32], b"0123456789abcdef", -4
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + struct.pack("<i", allowed) + identity).digest()[:5]
    user = _rc4(key, padding)
    own = hashlib.md5(key + struct.pack("<I", 4)[:3] + b"\0\0").digest()[:10]
    content = _rc4(own, f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode())
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P %d >>"
        % (owner.hex().encode(), user.hex().encode(), allowed),
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    names = (identity.hex().encode(),) * 2
    end = b"xref\n0 7\n0000000000 65535 f \n%strailer\n<< /Size 7 /Root 1 0 R /Encrypt 6 0 R /ID [<%s> <%s>] >>\n"
    return out + end % (table, *names) + b"startxref\n%d\n%%%%EOF\n" % len(out)


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
