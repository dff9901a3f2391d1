"""Every parser: good files give blocks of both languages with places; cut, changed and mixed-up bytes give a document or an error that names the file."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core import catalog
from luthier.core.document import Document
from luthier.core.errors import DataError, LuthierError
from luthier.knowledge.parse import parse_bytes

WITHOUT_EXTRA = sorted(set(catalog.names("parsers")) - {"image"})
MOST_S = 20.0


def test_every_parser_has_a_file_here(files: dict[str, bytes]) -> None:
    used = {parse_bytes(data, name).meta["parser"] for name, data in files.items()}
    assert used == set(WITHOUT_EXTRA)


@pytest.mark.parametrize("parser", catalog.names("parsers"))
def test_an_entry_says_what_it_reads(parser: str) -> None:
    entry = catalog.load("parsers", parser)
    assert entry.module.SUFFIXES and entry.module.MEDIA_TYPES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in entry.module.SUFFIXES)
    with pytest.raises(LuthierError, match="nonsense"):
        entry.configure({"nonsense": 1})


def test_suffixes_and_media_types_belong_to_one_parser() -> None:
    for constant in ("SUFFIXES", "MEDIA_TYPES"):
        listed = [
            each
            for name in catalog.names("parsers")
            for each in getattr(catalog.load("parsers", name).module, constant)
        ]
        assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    "name", ["a.pdf", "a.docx", "a.pptx", "a.xlsx", "a.epub", "a.eml", "a.html", "a.md", "a.csv", "a.txt", "a.py"]
)
class TestFormat:
    def test_both_languages_and_a_position(self, files: dict[str, bytes], name: str) -> None:
        document = parse_bytes(files[name], f"/shelf/{name}")
        assert any("\u4e00" <= character <= "\u9fff" for character in document.text)
        assert any(character.isascii() and character.isalpha() for character in document.text)
        positioned = [block for block in document.blocks if block.page or block.place or block.kind == "heading"]
        assert positioned and document.title
        assert all(block.text.strip() for block in document.blocks) and not document.warnings

    def test_the_content_decides_not_the_name(self, files: dict[str, bytes], name: str) -> None:
        right = parse_bytes(files[name], name)
        if name in ("a.md", "a.csv", "a.txt", "a.py", "a.eml"):
            # text has no mark of its own: a wrong name costs structure, never words
            wrong = parse_bytes(files[name], "renamed.pdf")
            assert wrong.meta["parser"] == "text" and wrong.text
        else:
            wrong = parse_bytes(files[name], "renamed.txt")
            assert (wrong.blocks, wrong.meta["parser"]) == (right.blocks, right.meta["parser"])

    def test_cut_anywhere(self, files: dict[str, bytes], name: str) -> None:
        whole = files[name]
        for part in (0.02, 0.2, 0.5, 0.8, 0.97):
            _bounded(whole[: int(len(whole) * part)], name)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_changed_bytes_never_do_anything_else(files: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    bytes_ = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(bytes_) - 1))
        piece = data.draw(st.binary(min_size=0, max_size=6))
        bytes_[at : at + data.draw(st.integers(0, 6))] = piece
    _bounded(bytes(bytes_), data.draw(st.sampled_from([name, "a.pdf", "a.txt", "noname"])))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    head=st.sampled_from(
        [
            b"",
            b"%PDF-1.7\n",
            b"PK\x03\x04",
            b"\xff\xfe",
            b"<html>",
            b"BM",
            b"\x1f\x8b",
            b"From: a\n",
            b"\xd0\xcf\x11\xe0",
        ]
    ),
    body=st.binary(max_size=400),
    suffix=st.sampled_from(
        [suffix for name in WITHOUT_EXTRA for suffix in catalog.load("parsers", name).module.SUFFIXES]
    ),
)
def test_random_bytes_never_do_anything_else(head: bytes, body: bytes, suffix: str) -> None:
    if not head.startswith(b"BM") or b"\0" not in head + body:
        _bounded(head + body, f"random{suffix}")


def _bounded(data: bytes, name: str) -> None:
    started = time.perf_counter()
    try:
        assert isinstance(parse_bytes(data, name), Document)
    except LuthierError as error:
        assert name in error.message
    assert time.perf_counter() - started < MOST_S


def test_entities_of_office_files_are_not_expanded(make: SimpleNamespace) -> None:
    entities = '<!ENTITY e0 "bomb">' + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    head = f'<!DOCTYPE x [<!ENTITY file SYSTEM "file:///etc/passwd">{entities}]>'
    for name, data, part in (
        ("a.docx", make.docx(), "word/document.xml"), ("a.pptx", make.pptx(), "ppt/slides/slide1.xml"),
        ("a.xlsx", make.xlsx(), "xl/worksheets/sheet1.xml"),
    ):  # fmt: skip

        def change(text: str) -> str:
            end = text.index("?>") + 2 if text.startswith("<?xml") else 0
            body = text[end:]
            for tag in ("</w:t>", "</a:t>", "</t>", "</v>"):
                body = body.replace(tag, f"&e9;&file;{tag}", 1)
            return text[:end] + head + body

        started = time.perf_counter()
        try:
            text = parse_bytes(make.replaced(data, part, change), name).text
        except DataError as error:
            text = error.message
        assert len(text) < 5000 and "root:" not in text and time.perf_counter() - started < MOST_S
