"""Mails: heads, bodies, attachments, mails inside of mails."""

from __future__ import annotations

from email.message import EmailMessage
from types import SimpleNamespace

import pytest

from luthier.core.errors import DataError
from luthier.knowledge.parse import parse_bytes


def test_head_text_and_attachment(make: SimpleNamespace) -> None:
    document = parse_bytes(make.mail, "mail.eml")
    assert document.title == "小提琴 repair" and document.meta["from"] == "Ana <ana@example.com>"
    assert document.blocks[0].kind == "heading" and "Date: Fri, 01 Mar 2024" in document.blocks[1].text
    assert "The bridge is broken." in document.text and "请尽快修理。" in document.text
    (table,) = [block for block in document.blocks if block.kind == "table"]
    assert table.place == "attachment parts.csv, rows 1-2" and "| bridge | 30 |" in table.text


def test_html_is_read_when_there_is_no_plain_text() -> None:
    mail = EmailMessage()
    mail["Subject"] = "offer"
    mail.set_content("<h2>价格</h2><p>The <b>bow</b> costs 100.</p>", subtype="html")
    blocks = parse_bytes(bytes(mail), "offer.eml").blocks
    assert [(block.kind, block.text) for block in blocks[1:]] == [
        ("heading", "价格"),
        ("paragraph", "The bow costs 100."),
    ]


def test_attachments_that_cannot_be_read_are_warnings(make: SimpleNamespace) -> None:
    mail = EmailMessage()
    mail["Subject"] = "files"
    mail.set_content("see the files")
    inner = make.zip({"inner.zip": make.zip({"a.txt": "hello"})})
    mail.add_attachment(inner, maintype="application", subtype="zip", filename="nested.zip")
    mail.add_attachment(make.docx(), maintype="application", subtype="octet-stream", filename="care.docx")
    mail.add_attachment(bytes(make.mail), maintype="application", subtype="octet-stream", filename="other.eml")
    document = parse_bytes(bytes(mail), "files.eml")
    assert "Wipe the rosin" in document.text
    assert "nested.zip was left out" in document.warnings[0] and "is a zip archive" in document.warnings[0]
    assert "is a mail inside of another file" in document.warnings[1]


def test_attachments_are_bounded() -> None:
    mail = EmailMessage()
    mail["Subject"] = "many"
    mail.set_content("see the files")
    for number in range(5):
        mail.add_attachment(f"text {number}", filename=f"{number}.txt")
    document = parse_bytes(bytes(mail), "many.eml", options={"eml": {"attachments": 2}})
    assert "text 1" in document.text and "text 2" not in document.text
    assert document.warnings == ("3 attachments were left out",)


def test_mails_inside_of_mails_end_somewhere() -> None:
    mail = EmailMessage()
    mail["Subject"] = "level 0"
    mail.set_content("deepest words")
    for level in range(1, 8):
        outer = EmailMessage()
        outer["Subject"] = f"level {level}"
        outer.set_content(f"words of {level}")
        outer.add_attachment(mail)
        mail = outer
    document = parse_bytes(bytes(mail), "deep.eml")
    assert "words of 7" in document.text and "words of 4" in document.text and "deepest" not in document.text
    assert document.warnings == ("a mail inside of it was left out: too deep",)


def test_an_unknown_charset_and_a_broken_head_cost_only_themselves() -> None:
    data = b"Subject: =?x-nothing?b?!!!?=\r\nFrom: \xff\xfe\r\nContent-Type: text/plain; charset=x-nothing\r\n\r\nstill here\r\n"
    assert "still here" in parse_bytes(data, "odd.eml").text


def test_what_has_no_head_is_no_mail() -> None:
    with pytest.raises(DataError, match=r"odd\.eml is no mail"):
        parse_bytes(b"\r\njust some text\r\n", "odd.eml")
