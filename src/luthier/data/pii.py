"""Personal data and secrets in a text, found by form and checked by what the standards say, without a model.

``find`` says where they are, ``redact`` writes ``[KIND]`` instead, ``scan`` does for a text that is still growing what ``find`` does for a whole
one. English and Chinese: full-width digits and other scripts' digits count as digits, and no spaces are needed around a number in Chinese
text. Names and postal addresses have no form that could be checked: they are not found here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator

from luthier.core.errors import InputError, did_you_mean
from luthier.data.pii_numbers import IBAN_LENGTHS, REGIONS, find_ibans, find_numbers
from luthier.data.pii_secrets import find_secrets, open_secret
from luthier.data.pii_text import BREAKS, KEPT, KINDS, Span, plain, said_before

__all__ = ["KEPT", "KINDS", "REGIONS", "Span", "check_kinds", "find", "find_from", "redact", "scan"]

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+'\-])[A-Za-z0-9_\u00c0-\u024f][A-Za-z0-9._%+'\-\u00c0-\u024f]{0,63}@"
    r"(?:[A-Za-z0-9\u00c0-\u024f](?:[A-Za-z0-9\u00c0-\u024f\-]{0,61}[A-Za-z0-9\u00c0-\u024f])?\.){1,8}(?:xn--[a-z0-9\-]{2,59}|[A-Za-z]{2,24})(?![A-Za-z@])"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![0-9A-Za-z:])")
_VERSION_WORDS = re.compile(r"(?i)\b(?:v|ver|version|release|build)[\s.:=]*(?:is\s)?$|版本[号\s.:=]*$")
_PLATE_PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_PLATE = re.compile(
    rf"[{_PLATE_PROVINCES}][A-HJ-NP-Z][·.\-]?[A-HJ-NP-Z0-9]{{4,5}}[A-HJ-NP-Z0-9挂学警港澳](?![0-9A-Za-z])"
)
_PASSPORT = re.compile(r"(?<![0-9A-Za-z])(?:[A-Z]\d{7,8}|[A-Z]{2}\d{7}|\d{9})(?![0-9A-Za-z])")
_PASSPORT_WORDS = re.compile(r"(?i)passport|护照|通行证")
_MOST = 4096
_IN_NUMBER = r"\d ().+/\-"
_BLOB = re.compile(rf"[^{BREAKS}]+(?:(?<=[{_IN_NUMBER}]) +(?=[{_IN_NUMBER}])[^{BREAKS}]+)*")
"""What stands between breaks; groups of digits belong together over spaces. A longer one than ``_MOST`` is read in parts."""

_MAY_GO_ON = re.compile(rf"[{_IN_NUMBER}] *\Z")
_IBAN_OPEN = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}\d{2}(?: [0-9A-Za-z]{4}){0,8}(?: [0-9A-Za-z]{0,3})?\Z")


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds as given. Raises InputError that names the one that is none."""
    chosen = tuple(kinds)
    for kind in chosen:
        if kind not in KINDS:
            raise InputError(f"kinds: {kind!r} is not known. {did_you_mean(kind, KINDS)}")
    return chosen


def find(text: str, kinds: Collection[str] = KINDS, regions: tuple[str, ...] = REGIONS) -> list[Span]:
    """The personal data and secrets in ``text``, in order, without overlaps (what overlaps is one span).

    ``regions`` (ISO 3166, two letters) are those whose national phone numbers are known; numbers with ``+`` always are.
    """
    return find_from(text, 0, kinds, regions)


def find_from(text: str, start: int, kinds: Collection[str] = KINDS, regions: tuple[str, ...] = REGIONS) -> list[Span]:
    """``find`` from a cut on: what remains when a growing text has ended."""
    form = plain(text)
    return [span for part in _parts(form, start, len(form)) for span in _found(form, *part, kinds, regions)]


def redact(text: str, kinds: Collection[str] = KINDS, regions: tuple[str, ...] = REGIONS) -> str:
    """``text`` with ``[KIND]`` in place of what ``find`` finds."""
    out, at = [], 0
    for span in find(text, kinds, regions):
        out += [text[at : span.start], f"[{span.kind}]"]
        at = span.end
    return "".join([*out, text[at:]])


def scan(
    text: str, start: int = 0, kinds: Collection[str] = KINDS, regions: tuple[str, ...] = REGIONS
) -> tuple[list[Span], int]:
    """What is sure of a text that goes on: the spans in ``text[start:cut]``, and ``cut``.

    Nothing that follows can change them, or make anything before ``cut`` a part of a span. ``start`` is 0 or an earlier cut, and ``text``
    may leave out what lies more than ``KEPT`` characters before it. The spans up to the last cut, and then those that ``find_from`` finds
    from there, are those that it finds in the whole text.
    """
    form = plain(text)
    cut = _settled(form, start)
    spans: list[Span] = []
    if cut == start:
        return spans, cut
    for low, high in _parts(form, start, len(form)):
        spans += _found(form, low, high, kinds, regions)
    for span in reversed(spans):
        if span.end > cut > span.start:
            cut = span.start
    return [span for span in spans if span.end <= cut], cut


def _parts(form: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """``start`` to ``end``, cut inside of what is longer than ``_MOST`` without a break."""
    at = start
    if end - start > _MOST:
        for blob in _BLOB.finditer(form, start, end):
            for cut in range(blob.start() + _MOST, blob.end(), _MOST):
                yield at, cut
                at = cut
    yield at, end


def _settled(form: str, start: int) -> int:
    """The end of what cannot be a part of anything that ends later."""
    cut = end = len(form)
    first, last = _last_blob(form, start)
    if last == end or _MAY_GO_ON.match(form, last - 1):
        cut = first + (last - first - 1) // _MOST * _MOST
    if cut > start and form[cut - 1] in _PLATE_PROVINCES:
        cut -= 1
    opened = _IBAN_OPEN.search(form, max(start, end - 48))
    if opened is not None and form[opened.start() : opened.start() + 2].upper() in IBAN_LENGTHS:
        cut = min(cut, opened.start())
    secret = open_secret(form, start)
    return cut if secret is None else min(cut, secret)


def _last_blob(form: str, start: int) -> tuple[int, int]:
    first = last = 0
    for blob in _BLOB.finditer(form, start):
        first, last = blob.span()
    return first, max(1, last)


def _found(form: str, start: int, end: int, kinds: Collection[str], regions: tuple[str, ...]) -> list[Span]:
    spans = sorted(
        (each for each in _candidates(form, start, end, kinds, regions) if each.kind in kinds),
        key=lambda each: (each.start, -each.end),
    )
    out: list[Span] = []
    for span in spans:
        if out and span.start < out[-1].end:
            last = out[-1]
            strongest = max(last, span, key=lambda each: (each.kind == "SECRET", each.end - each.start))
            out[-1] = Span(strongest.kind, last.start, max(last.end, span.end))
        else:
            out.append(span)
    return out


def _candidates(form: str, start: int, end: int, kinds: Collection[str], regions: tuple[str, ...]) -> Iterator[Span]:
    if "SECRET" in kinds:
        yield from find_secrets(form, start, end)
    if "EMAIL" in kinds and "@" in form:
        yield from (Span("EMAIL", *found.span()) for found in _EMAIL.finditer(form, start, end))
    if "IBAN" in kinds:
        yield from find_ibans(form, start, end)
    addresses = list(_addresses(form, start, end))
    yield from addresses
    if not {"PHONE", "CARD", "CN_ID", "SSN"}.isdisjoint(kinds):
        taken = [(each.start, each.end) for each in addresses]
        for span in find_numbers(form, start, end, regions):
            if not any(low <= span.start < high for low, high in taken):
                yield span
    if "PLATE" in kinds:
        for found in _PLATE.finditer(form, start, end):
            if sum(each.isdigit() for each in found[0]) >= 2:
                yield Span("PLATE", *found.span())
    if "PASSPORT" in kinds:
        for found in _PASSPORT.finditer(form, start, end):
            if said_before(form, found.start(), _PASSPORT_WORDS):
                yield Span("PASSPORT", *found.span())


def _addresses(form: str, start: int, end: int) -> Iterator[Span]:
    for found in _IPV4.finditer(form, start, end):
        if _is_address(found[0]) and not said_before(form, found.start(), _VERSION_WORDS):
            yield Span("IP", *found.span())
    for found in _IPV6.finditer(form, start, end):
        groups = [each for each in found[0].split(":") if each]
        if len(groups) >= 3 and any(each.isdigit() for each in found[0]) and _is_address(found[0]):
            yield Span("IP", *found.span())


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or text == "255.255.255.255")
