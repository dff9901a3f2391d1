"""Secrets in a text: keys and tokens by the prefixes of those who give them out, private keys, logins in URLs, named passwords."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from luthier.data.pii_text import BREAKS, CONTEXT, Span, said_before

MOST_PEM = 20_000
_PEM_BEGIN = r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
_PEM = re.compile(_PEM_BEGIN + rf"(?:(?!-----)[\s\S]){{0,{MOST_PEM}}}(?:-----END [A-Z0-9 ]{{1,60}}-----)?")
_PEM_OPENING = "-----BEGIN "

_PREFIXED = re.compile(
    r"(?<![0-9A-Za-z_])(?:"
    r"sk-[A-Za-z0-9_\-]{16,256}"  # OpenAI, Anthropic, DeepSeek and others
    r"|lth_[A-Za-z0-9_\-]{20,128}"  # ours
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"  # AWS
    r"|AIza[A-Za-z0-9_\-]{35}|ya29\.[A-Za-z0-9_\-]{20,512}"  # Google
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_\-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9\-]{10,256}|xapp-[A-Za-z0-9\-]{10,256}"  # Slack
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_\-]{40,512}|dop_v1_[a-f0-9]{64}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"
    r"|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,256}|whsec_[A-Za-z0-9+/=]{24,128}"  # Stripe
    r"|SG\.[A-Za-z0-9_\-]{16,64}\.[A-Za-z0-9_\-]{16,64}"  # SendGrid
    r"|LTAI[A-Za-z0-9]{12,30}|AKID[A-Za-z0-9]{32}"  # Alibaba Cloud, Tencent Cloud
    r"|eyJ[A-Za-z0-9_\-]{8,2048}\.[A-Za-z0-9_\-]{8,2048}(?:\.[A-Za-z0-9_\-]{0,1024}){1,3}"  # JSON web tokens (RFC 7519)
    r")(?![0-9A-Za-z])"
)
_LOGIN = re.compile(r"(?<![0-9A-Za-z])[A-Za-z][A-Za-z0-9+.\-]{1,20}://([^\s/@:?#]{0,128}:[^\s/@]{1,256})@")
_PARAMETER = re.compile(
    r"(?i)[?&;](?:access_?token|api_?key|apikey|auth|key|token|sig|signature|secret|client_secret|passwd|password|pwd)=([^\s&#\"'<>]{6,1024})"
)
_NAMED = re.compile(
    r"(?i)(?:(?<![a-z])(?:password|passwd|pwd|passphrase|passcode|secret(?:[_ -]?key)?|token|(?:api|access|auth|private)[_ -]?(?:key|token)"
    r"|bearer|authorization: basic)|密码|口令|密钥|令牌)(?=(?:\s?(?:is|was|为|是|[:=]|=>|->)\s?|\s)[\"'`(]?([^,;\"'`<>"
    + BREAKS
    + r"]{6,256}))"
)
_TOKEN = re.compile(r"(?<![0-9A-Za-z+/_\-])[0-9A-Za-z+/_\-]{28,512}={0,2}(?![0-9A-Za-z+/_\-])")
_KEY_WORDS = re.compile(r"(?i)key|token|secret|auth|credential|bearer|密钥|令牌|凭证")
_LEAST_BITS = 3.8
_HEX = re.compile(r"(?i)(?:0x)?[0-9a-f\-]+")


def bits_per_character(text: str) -> float:
    """Shannon entropy of the characters of ``text``."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


def find_secrets(text: str, start: int, end: int) -> Iterator[Span]:
    """Secrets among ``text[start:end]``. ``text`` is plain."""
    if "-----BEGIN" in text:
        yield from (Span("SECRET", *found.span()) for found in _PEM.finditer(text, start, end))
    yield from (Span("SECRET", *found.span()) for found in _PREFIXED.finditer(text, start, end))
    if "://" in text:
        yield from (Span("SECRET", *found.span(1)) for found in _LOGIN.finditer(text, start, end))
    if "=" in text:
        yield from (Span("SECRET", *found.span(1)) for found in _PARAMETER.finditer(text, start, end))
    for found in _NAMED.finditer(
        text, max(0, start - CONTEXT), end
    ):  # the name may lie before: it is no part of the span
        low, high = found.span(1)
        high = low + len(text[low:high].rstrip(".!?)]}:"))
        if low >= start and _is_password(text[low:high]):
            yield Span("SECRET", low, high)
    for found in _TOKEN.finditer(text, start, end):
        if said_before(text, found.start(), _KEY_WORDS) and _is_random(found[0]):
            yield Span("SECRET", *found.span())


def open_secret(text: str, start: int) -> int | None:
    """Where a private key begins that has not ended by the end of ``text``, or may be about to begin; None without one."""
    at = text.rfind("-----BEGIN", start)
    if at >= 0:
        found = _PEM.match(text, at)
        if found is None:
            return at if re.fullmatch(r"-----BEGIN [A-Z0-9 ]{0,50}-{0,5}", text[at:]) else None
        return at if found.end() == len(text) else None
    at = text.rfind("-----", max(start, len(text) - len(_PEM_OPENING)))
    return at if at >= 0 and _PEM_OPENING.startswith(text[at:]) else None


def _is_password(text: str) -> bool:
    """Not a word of a sentence: letters beside digits or signs."""
    if len(text) < 6 or text.startswith(("[", "<", "{", "$")) or "://" in text:
        return False
    return any(each.isdigit() for each in text) and any(not each.isdigit() for each in text)


def _is_random(text: str) -> bool:
    """As mixed as a key: small and capital letters and digits without a pattern. Hashes and UUIDs (hexadecimal) are not taken for keys."""
    if _HEX.fullmatch(text) or text.count("/") > 1 + len(text) / 16:
        return False
    mixed = any(c.islower() for c in text) and any(c.isupper() for c in text) and any(c.isdigit() for c in text)
    return mixed and bits_per_character(text) >= _LEAST_BITS
