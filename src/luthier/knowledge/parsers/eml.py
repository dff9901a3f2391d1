"""Mails (RFC 5322, MIME): the head, the text, and the attachments that can be parsed."""

from __future__ import annotations

from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage, MIMEPart

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.core.errors import DataError, LuthierError
from luthier.knowledge.parsers._html import html_blocks
from luthier.knowledge.parsers._parsed import Parsed
from luthier.knowledge.parsers._text import paragraphs

MEDIA_TYPES = ("message/rfc822",)
SUFFIXES = (".eml",)

SHOWN = ("From", "To", "Cc", "Date", "Subject")


class Config(EntryConfig):
    """``attachments``: how many are parsed (0: none); ``depth``: mails inside of mails that are opened."""

    attachments: int = Field(default=20, ge=0)
    depth: int = Field(default=3, ge=0)


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """The subject as heading, the head's lines, the text, then each attachment under its name. Raises DataError for what is no mail."""
    message = message_from_bytes(data, policy=policy.default)
    if not message.keys():
        raise DataError(f"{name} is no mail: it has no head")
    subject = str(message.get("Subject") or "").strip()
    blocks = [Block(subject, "heading", 1)] if subject else []
    head = [f"{key}: {value}" for key in SHOWN[:-1] if (value := str(message.get(key) or "").strip())]
    blocks += [Block("\n".join(head))] if head else []
    blocks += _body(message, name)
    warnings: list[str] = []
    attached = list(message.iter_attachments()) if message.is_multipart() else []
    for part in attached[: config.attachments]:
        blocks += _attachment(part, name, config, warnings)
    if len(attached) > config.attachments:
        warnings.append(f"{len(attached) - config.attachments} attachments were left out")
    meta = {key.lower(): str(message.get(key)) for key in SHOWN if message.get(key)}
    return Parsed(blocks, title=subject, meta=meta, warnings=warnings)


def _body(message: EmailMessage, name: str) -> list[Block]:
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return []
    text = _content(part)
    if not text.strip():
        return []
    return html_blocks(text, name)[1] if part.get_content_type() == "text/html" else paragraphs(text)


def _content(part: MIMEPart) -> str:
    try:
        return str(part.get_content())
    except (LookupError, UnicodeDecodeError):  # a charset that nobody knows
        return bytes(part.get_payload(decode=True) or b"").decode("utf-8", "replace")


def _attachment(part: MIMEPart, name: str, config: Config, warnings: list[str]) -> list[Block]:
    from luthier.knowledge.parse import parse_bytes

    if part.get_content_type() == "message/rfc822":
        inner = part.get_content()
        data, called = bytes(inner), "mail"
        if config.depth < 1:
            warnings.append("a mail inside of it was left out: too deep")
            return []
        parsed = parse(data, f"{name}: mail", config.model_copy(update={"depth": config.depth - 1}))
        warnings += parsed.warnings
        return [replace(block, place=_place(called, block.place)) for block in parsed.blocks]
    called = part.get_filename() or part.get_content_type()
    try:
        document = parse_bytes(bytes(part.get_payload(decode=True) or b""), called, nested=True)
    except LuthierError as error:
        warnings.append(f"attachment {called} was left out: {error.message}")
        return []
    warnings += [f"attachment {called}: {each}" for each in document.warnings]
    heading = Block(called, "heading", 2, place=f"attachment {called}")
    return [heading, *(replace(block, place=_place(called, block.place)) for block in document.blocks)]


def _place(attachment: str, place: str) -> str:
    return ", ".join(filter(None, (f"attachment {attachment}", place)))
