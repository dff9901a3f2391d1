"""What a file is, what is refused and why, and how much of it is read."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.knowledge import parse
from luthier.knowledge.parse import parse_bytes, parse_file


def _zip(parts: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_a_file_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "说明.txt"
    path.write_text("琴弓晚上放在琴盒里,琴弦要擦干净。", encoding="utf-8")
    document = parse_file(path)
    assert (document.source, document.title, document.language) == (str(path), "说明.txt", "zh")
    import hashlib

    assert document.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The bow is kept in its case overnight, and the strings are wiped.", "en"),
        ("Der Bogen liegt über Nacht im Kasten, und die Saiten werden abgewischt.", "de"),
        ("琴弓晚上放在琴盒里,琴弦要擦干净。", "zh"),
        ("弓は夜の間ケースに入れておきます。弦はきれいに拭いてください。", "ja"),
        ("short", ""),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert parse_bytes(text.encode(), "a.txt").language == language


@pytest.mark.parametrize("data", [b"", b"\n \t\r\n", b"\xef\xbb\xbf", b"\0" * 100])
def test_empty_files_are_documents_without_text(data: bytes) -> None:
    document = parse_bytes(data, "empty.pdf")
    assert (document.blocks, document.warnings) == ((), ("the file is empty",))


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(InputError, match=path.name):
            parse_file(path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match=r"pipe\.txt is not a file"):
        parse_file(tmp_path / "pipe.txt")  # reading it would wait for ever


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(b"")
    os.truncate(path, parse.MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(DataError, match=r"big\.txt has 209,715,201 bytes; at most 209,715,200"):
        parse_file(path)
    monkeypatch.setattr(parse, "MOST_CHARACTERS", 10)
    with pytest.raises(DataError, match="more than 10 characters"):
        parse_bytes(b"twelve signs", "a.txt")


@pytest.mark.parametrize(
    ("data", "error", "reason"),
    [
        (b"\x1f\x8b\x08\0rest", UnsupportedError, "is an archive (gzip)"),
        (b"7z\xbc\xaf\x27\x1c\0", UnsupportedError, "is an archive (7z)"),
        (b"Rar!\x1a\x07\0", UnsupportedError, "is an archive (rar)"),
        (b"BZh91AY&SY\0\0", UnsupportedError, "is an archive (bzip2)"),
        (b"\x7fELF\x02\x01", UnsupportedError, "is a program"),
        (b"MZ\x90\0\x03", UnsupportedError, "is a program"),
        (b"SQLite format 3\0", UnsupportedError, "is a database"),
        (b"{\\rtf1 text}", UnsupportedError, "is RTF"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), UnsupportedError, "is in an old Office format"),
        (b"\xd0\xcf\x11\xe0" + bytes(600) + "EncryptedPackage".encode("utf-16-le"), DataError, "is encrypted"),
        (b"PK\x03\x04 and no more", DataError, "is damaged"),
        (_zip({"a.txt": b"text"}), UnsupportedError, "is a zip archive"),
        (_zip({"inner.zip": _zip({"inner.zip": b"text"})}), UnsupportedError, "is a zip archive"),
        (_zip({"../outside.txt": b"text"}), UnsupportedError, "is a zip archive"),
        (_zip({"mimetype": b"application/vnd.oasis.opendocument.text"}), UnsupportedError, "is an OpenDocument file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["thing.txt", "thing.docx", "thing"])
def test_what_is_refused_says_what_it_is(data: bytes, error: type[Exception], reason: str, name: str) -> None:
    with pytest.raises(error) as raised:
        parse_bytes(data, name)
    assert str(raised.value).startswith(f"{name} {reason}")


@pytest.mark.parametrize(
    "text", ["BM is a company", "MZ the letters", "PAR1 one", "Rar!ity", "GIF8 me", "BZh no", "What %PDF-1.7 means"]
)
def test_words_that_look_like_magic_numbers_are_text(text: str) -> None:
    assert parse_bytes(text.encode(), "notes.txt").text == text


def test_encrypted_archives_are_refused() -> None:
    data = bytearray(_zip({"word/document.xml": b"<x/>"}))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    with pytest.raises(DataError, match=r"a\.docx is encrypted"):
        parse_bytes(bytes(data), "a.docx")


def test_archives_that_unpack_to_too_much_are_refused_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = _zip({"word/document.xml": bytes(20 * 2**20)})
    assert len(bomb) < 100_000
    monkeypatch.setattr(parse, "MOST_XML", 2**20)
    with pytest.raises(DataError, match="unpacks to 20,971,520 bytes of XML; at most 1,048,576"):
        parse_bytes(bomb, "bomb.docx")
    monkeypatch.setattr(parse, "MOST_UNPACKED", 2**20)
    with pytest.raises(DataError, match="unpacks to 20,971,520 bytes; at most 1,048,576"):
        parse_bytes(_zip({"word/media.bin": bytes(20 * 2**20)}), "bomb.docx")
    monkeypatch.setattr(parse, "MOST_PARTS", 5)
    with pytest.raises(DataError, match="unpacks to 10 parts; at most 5"):
        parse_bytes(_zip({f"word/{n}": b"" for n in range(10)}), "bomb.docx")


def test_an_archive_that_understates_its_size_gives_no_more_than_it_states() -> None:
    data = bytearray(_zip({"word/document.xml": b"<a>" + b" " * 5_000_000 + b"</a>"}))
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(mark) + place
        data[at : at + 4] = (10).to_bytes(4, "little")
    with pytest.raises(DataError, match=r"a\.docx"):
        parse_bytes(bytes(data), "a.docx")


def test_control_characters_and_halves_of_characters_are_taken_out() -> None:
    document = parse_bytes(b"bell\x07 and\x0b tab\there\n", "a.txt")
    assert document.text == "bell and tab\there"
    assert parse_bytes(b'{"a": "\xed\xa0\x80 x"}', "a.json").text.encode("utf-8")


def test_urls_and_media_types_choose_the_parser() -> None:
    assert parse_bytes(b"# Bow\n\ntext", "https://example.com/a.md?raw=1#top").blocks[0].kind == "heading"
    assert (
        parse_bytes(b"# Bow\n\ntext", "https://example.com/a", media_type="text/markdown; charset=utf-8").blocks[0].kind
        == "heading"
    )
    assert parse_bytes(b"a,b\n1,2", "https://example.com/a", media_type="text/csv").blocks[0].kind == "table"
    assert parse_bytes(b"# Bow", "https://example.com/a.pdf", media_type="application/pdf").meta["parser"] == "text"


def test_wrong_options_are_named() -> None:
    with pytest.raises(InputError, match="passwort"):
        parse_bytes(b"%PDF-1.7\n", "a.pdf", options={"pdf": {"passwort": "x"}})
