"""Numbers that mean a person: payment cards, Chinese resident IDs, US social security numbers, phones.

Each is checked by what its standard says: cards by issuer, length and the Luhn digit (ISO/IEC 7812), resident IDs by region, date and the
check digit of ISO 7064 MOD 11-2 (GB 11643-1999), bank accounts by length and MOD 97-10 (ISO 13616), phones by the numbering plan of their
country (package ``phonenumbers``). Order numbers, dates, versions and hashes are numbers, too: what no standard vouches for is only taken when the words before say
what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING

from luthier.data.pii_text import Span, said_before

if TYPE_CHECKING:
    from phonenumbers import PhoneNumber

REGIONS = ("CN", "US", "GB")
"""Whose numbering plans national phone numbers are read by when nothing else is said."""

_RUN = re.compile(r"\d[\d ().+/\-]*")
_GROUP = re.compile(r"\d+")
_MOST_GROUPS = 8
_DATE = re.compile(
    r"(?:(?:19|20)\d\d([-/. ]?)(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])([-/.])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)?\d\d)(?![-/.]?\d)"
)
_YEARS = re.compile(r"(?:1\d|20)\d\d ?[-/] ?(?:1\d|20)\d\d(?![\d-])")
_VERSION = re.compile(r"(?!\d{3}\.\d{3}\.\d{4}(?!\.?\d))\d{1,4}(?:\.\d{1,4}){2,}(?!\d)")
_CARD_WORDS = re.compile(
    r"(?i)\b(?:cards?|cc|visa|master ?card|amex|maestro|pan)\b|卡号|银行卡|信用卡|储蓄卡|借记卡|卡"
)
_PHONE_WORDS = re.compile(
    r"(?i)\b(?:tel|phones?|telephone|mobile|cell|fax|call(?:ed|ing)?|dial|ring|reach|contact|whatsapp|wechat|sms|answering)\b|电话|手机|"
    r"联系|致电|拨打|传真|热线|微信|来电|座机|號碼|电話"
)
_OTHER_WORDS = re.compile(
    r"(?i)(?:\b(?:order|invoice|ticket|tracking|parcel|case|ref(?:erence)?|serial|sku|isbn|id|version|build|commit|timestamp)\b"
    r"|订单|单号|编号|发票|快递|运单|流水|序列|工单|版本)\W*(?:(?:is|was|no|number|id|号|是|为)\W*){0,2}$"
)
_SSN_WORDS = re.compile(r"(?i)\bssn\b|social security")

_CARD_LENGTHS: tuple[tuple[int, int, frozenset[int]], ...] = tuple(
    (low, high, frozenset(lengths))
    for low, high, lengths in (
        (400000, 499999, (13, 16, 19)),  # Visa
        (510000, 559999, (16,)), (222100, 272099, (16,)),  # Mastercard
        (340000, 349999, (15,)), (370000, 379999, (15,)),  # American Express
        (300000, 305999, (14, 16, 19)), (309500, 309599, (14, 16, 19)), (360000, 369999, (14, 16, 19)), (380000, 399999, (14, 16, 19)),  # Diners
        (352800, 358999, (16, 17, 18, 19)), (180000, 180099, (15,)), (213100, 213199, (15,)),  # JCB
        (601100, 601199, (16, 19)), (644000, 659999, (16, 19)),  # Discover
        (620000, 629999, (16, 17, 18, 19)),  # UnionPay
        (220000, 220499, (16, 17, 18, 19)),  # Mir
        (501800, 501899, tuple(range(12, 20))), (502000, 502099, tuple(range(12, 20))), (503800, 503899, tuple(range(12, 20))),
        (589300, 589399, tuple(range(12, 20))), (630400, 630499, tuple(range(12, 20))), (675900, 676399, tuple(range(12, 20))),  # Maestro
    )
)  # fmt: skip

_CN_PROVINCES = frozenset(
    str(code)
    for codes in (
        range(11, 16),
        range(21, 24),
        range(31, 38),
        range(41, 47),
        range(50, 55),
        range(61, 66),
        (71, 81, 82, 83),
    )
    for code in codes
)
_CN_ID = re.compile(r"(?<![0-9A-Za-z])(\d{6})([ -]?)(\d{8})\2(\d{3}[\dXx])(?![0-9A-Za-z])")

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28,
    "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26,
    "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
_IBAN = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}\d{2}(?=[ 0-9A-Za-z])")


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of those before (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(digits: str, *, any_issuer: bool = False) -> bool:
    """Whether these are the digits of a payment card: known issuer, its length, Luhn. ``any_issuer``: 12 to 19 digits with Luhn."""
    if not 12 <= len(digits) <= 19 or len(set(digits)) == 1 or not luhn(digits):
        return False
    first = int(digits[:6])
    return any_issuer or any(low <= first <= high and len(digits) in lengths for low, high, lengths in _CARD_LENGTHS)


def is_resident_id(text: str) -> bool:
    """Whether these 18 characters are a Chinese resident ID (GB 11643-1999)."""
    if len(text) != 18 or text[:2] not in _CN_PROVINCES:
        return False
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    if not 1890 <= born.year <= date.today().year:
        return False
    check = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(text[:17])) % 11
    return "10X98765432"[check] == text[17].upper()


def is_iban(text: str) -> bool:
    """Whether this is an IBAN without spaces (ISO 13616): its country's length, MOD 97-10."""
    text = text.upper()
    if IBAN_LENGTHS.get(text[:2]) != len(text) or not text.isalnum():
        return False
    return int("".join(str(int(each, 36)) for each in text[4:] + text[:4])) % 97 == 1


def is_ssn(digits: str) -> bool:
    """Whether nine digits can be a US social security number: no area 000, 666 or 900 and above, no group 00, no serial 0000."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return len(digits) == 9 and area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


@lru_cache(maxsize=8192)
def is_phone(text: str, regions: tuple[str, ...]) -> bool:
    """Whether the numbering plan of one of ``regions`` (or of the country that ``+`` names) has this number.

    Where national numbers are dialled with a 0 before them, one without it counts only when it is a kind that has none.
    """
    import phonenumbers

    for region in (None,) if text.startswith("+") else regions:
        try:
            number = phonenumbers.parse(text, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number) and (region is None or _dialled(text, number, region)):
            return True
    return False


def _dialled(text: str, number: PhoneNumber, region: str) -> bool:
    from phonenumbers import PhoneMetadata, PhoneNumberType, number_type

    plan = PhoneMetadata.metadata_for_region(region)
    if plan is None or plan.national_prefix != "0" or text.lstrip("(").startswith("0"):
        return True
    free = (PhoneNumberType.TOLL_FREE, PhoneNumberType.SHARED_COST, PhoneNumberType.UAN, PhoneNumberType.PREMIUM_RATE)
    kind = number_type(number)
    return kind in free or (region == "CN" and kind == PhoneNumberType.MOBILE)


def find_ibans(text: str, start: int, end: int) -> Iterator[Span]:
    """IBANs, in one piece or in groups of four. ``text`` is plain."""
    for found in _IBAN.finditer(text, start, end):
        length = IBAN_LENGTHS.get(found[0][:2].upper())
        if length is None:
            continue
        at, letters = found.start(), ""
        while at < end and len(letters) < length:
            if text[at] == " " and letters and len(letters) % 4 == 0:
                at += 1
            if at >= end or not (text[at].isascii() and text[at].isalnum()):
                break
            letters += text[at]
            at += 1
        follows = at < end and text[at].isascii() and text[at].isalnum()
        if not follows and is_iban(letters):
            yield Span("IBAN", found.start(), at)


def find_numbers(text: str, start: int, end: int, regions: tuple[str, ...]) -> Iterator[Span]:
    """Resident IDs, cards, social security numbers and phones among the runs of digits. ``text`` is plain."""
    for found in _CN_ID.finditer(text, start, end):
        if is_resident_id(found[1] + found[3] + found[4]):
            yield Span("CN_ID", found.start(), found.end())
    for run in _RUN.finditer(text, start, end):
        groups = [each.span() for each in _GROUP.finditer(text, run.start(), run.end())]
        if sum(last - first for first, last in groups) >= 7:
            yield from _in_run(text, groups, start, end, regions)


def _in_run(
    text: str, groups: Sequence[tuple[int, int]], start: int, end: int, regions: tuple[str, ...]
) -> Iterator[Span]:
    """Left to right: at each group of digits the first kind that fits, longest first; then on behind it."""
    at = 0
    while at < len(groups):
        span, skip = _at(text, groups[at : at + _MOST_GROUPS], start, end, regions)
        if span is not None:
            yield span
        at += skip


def _at(
    text: str, groups: Sequence[tuple[int, int]], start: int, end: int, regions: tuple[str, ...]
) -> tuple[Span | None, int]:
    first = groups[0][0]
    if first > 0 and text[first - 1].isalnum() and text[first - 1].isascii():
        return None, 1
    for pattern in (_DATE, _YEARS, _VERSION):
        other = pattern.match(text, first, groups[-1][1])
        if other is not None and (pattern is _DATE or not said_before(text, first, _PHONE_WORDS)):
            return None, sum(1 for group in groups if group[1] <= other.end())
    most = _window(text, groups, end)
    for count in range(most, 0, -1):
        last = groups[count - 1][1]
        if sum(high - low for low, high in groups[:count]) < max(7, 2 * count):  # a list of small numbers
            continue
        digits = "".join(text[low:high] for low, high in groups[:count])
        if 12 <= len(digits) <= 19 and is_card(digits, any_issuer=said_before(text, first, _CARD_WORDS)):
            return Span("CARD", first, last), count
        if len(digits) == 9 and _ssn(text, groups[:count], digits):
            return Span("SSN", first, last), count
        if len(digits) <= 17:
            begin = _phone(text, groups[:count], digits, start, regions)
            if begin is not None:
                return Span("PHONE", begin, last), count
    return None, 1


def _window(text: str, groups: Sequence[tuple[int, int]], end: int) -> int:
    """How many groups may belong together: at most 19 digits, gaps of at most three characters, no letter right behind."""
    count, digits = 0, 0
    for index, (low, high) in enumerate(groups):
        digits += high - low
        if digits > 19 or (index and low - groups[index - 1][1] > 3):
            break
        if high < end and text[high].isalnum() and text[high].isascii():
            break
        count = index + 1
    return count


def _ssn(text: str, groups: Sequence[tuple[int, int]], digits: str) -> bool:
    first, last = groups[0][0], groups[-1][1]
    if not is_ssn(digits):
        return False
    lengths = [high - low for low, high in groups]
    if lengths == [3, 2, 4] and re.fullmatch(r"\d{3}([- ])\d\d\1\d{4}", text[first:last]):
        return True
    return len(groups) == 1 and said_before(text, first, _SSN_WORDS)


def _phone(
    text: str, groups: Sequence[tuple[int, int]], digits: str, start: int, regions: tuple[str, ...]
) -> int | None:
    """Where a phone number of these groups begins (its ``+`` or bracket belongs to it), or None when it is none."""
    first, last = groups[0][0], groups[-1][1]
    begin = first
    while begin > start and begin > first - 2 and text[begin - 1] in "(+":
        begin -= 1
    written = text[begin:last]
    if written.count("(") != written.count(")"):
        if "(" in text[first:last] or ")" in text[first:last]:
            return None
        begin, written = first, text[first:last]
    said = said_before(text, begin, _PHONE_WORDS)
    if "+" in written[:2]:
        number = "+" + digits
        return begin if is_phone(number, ()) or (said and len(digits) <= 15) else None
    if said_before(text, begin, _OTHER_WORDS):
        return None
    if said and len(digits) <= 15:
        return begin
    if len(groups) == 1:  # nothing but digits: only Chinese mobile numbers are told from other numbers by themselves
        mobile = "CN" in regions and len(digits) == 11 and digits[0] == "1"
        return begin if mobile and is_phone(digits, ("CN",)) else None
    return begin if is_phone(written, regions) else None
