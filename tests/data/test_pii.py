"""Personal data found by form: what is planted is found, what only looks like it is not, and growing texts give what whole ones give."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import InputError
from luthier.data import pii

KEY = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nMIIEowIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----"

FOUND = [
    ("Mail jane.doe+x@mail.example.co.uk.", "EMAIL", "jane.doe+x@mail.example.co.uk"),
    ("邮箱是zhang.san@example.com请查收", "EMAIL", "zhang.san@example.com"),
    ("José: josé@exámple.es!", "EMAIL", "josé@exámple.es"),
    ("ｍａｉｌ：ｌｉ＠ｅｘａｍｐｌｅ．ｃｎ", "EMAIL", "ｌｉ＠ｅｘａｍｐｌｅ．ｃｎ"),
    ("call +1 415-555-2671 now", "PHONE", "+1 415-555-2671"),
    ("(415) 555-2671", "PHONE", "(415) 555-2671"),
    ("London 020 7946 0958", "PHONE", "020 7946 0958"),
    ("我的手机号是13800138000，谢谢", "PHONE", "13800138000"),
    ("手机１３８００１３８０００", "PHONE", "１３８００１３８０００"),
    ("138 0013 8000", "PHONE", "138 0013 8000"),
    ("热线400-820-8888。", "PHONE", "400-820-8888"),
    ("北京010-62345678转", "PHONE", "010-62345678"),
    ("Please phone 0494 92 82 32 today", "PHONE", "0494 92 82 32"),
    ("visa 4111 1111 1111 1111", "CARD", "4111 1111 1111 1111"),
    ("pay 5105-1051-0510-5100,", "CARD", "5105-1051-0510-5100"),
    ("卡号6222021234567890128", "CARD", "6222021234567890128"),
    ("12 378282246310005", "CARD", "378282246310005"),
    ("IBAN DE89 3704 0044 0532 0130 00 thanks", "IBAN", "DE89 3704 0044 0532 0130 00"),
    ("gb82west12345698765432", "IBAN", "gb82west12345698765432"),
    ("身份证11010519491231002X的", "CN_ID", "11010519491231002X"),
    ("110105 19491231 002x", "CN_ID", "110105 19491231 002x"),
    ("SSN 123-45-6789.", "SSN", "123-45-6789"),
    ("my ssn is 123456789", "SSN", "123456789"),
    ("护照号E12345678", "PASSPORT", "E12345678"),
    ("车牌京A·12345的车", "PLATE", "京A·12345"),
    ("粤BD12345", "PLATE", "粤BD12345"),
    ("from 203.0.113.7.", "IP", "203.0.113.7"),
    ("the server 10.20.30.40:8080", "IP", "10.20.30.40"),
    ("at 2001:db8::8a2e:370:7334 now", "IP", "2001:db8::8a2e:370:7334"),
    ("use sk-proj-abcdEFGH1234567890abcd", "SECRET", "sk-proj-abcdEFGH1234567890abcd"),
    ("AKIAIOSFODNN7EXAMPLE", "SECRET", "AKIAIOSFODNN7EXAMPLE"),
    ("x ghp_" + "a1B2" * 9, "SECRET", "ghp_" + "a1B2" * 9),
    ("postgres://bob:s3cret@db/x", "SECRET", "bob:s3cret"),
    ("GET /x?sig=abc123def&y=1", "SECRET", "abc123def"),
    ("password: hunter2!", "SECRET", "hunter2"),
    ("密码是abc12345。", "SECRET", "abc12345"),
    ("Authorization: Bearer a1b2c3d4e5", "SECRET", "a1b2c3d4e5"),
    ("the secret qT7xPz9LmK2vB8nR4wYc6JdF1hGs is", "SECRET", "qT7xPz9LmK2vB8nR4wYc6JdF1hGs"),
    (f"pem: {KEY} end", "SECRET", KEY),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123_-x", "SECRET", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123_-x"),
]  # fmt: skip

NOT_FOUND = [
    "order 4155552671", "订单号 13800138000", "invoice no. 20241012000123", "on 2024-10-12 10:30:00", "20241012", "12/10/2024",
    "v2.10.3 and version 1.2.3.4", "版本号 1.2.3.4", "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "123e4567-e89b-12d3-a456-426614174000",
    "sha256:" + "0a1b2c3d" * 8, "1733059200 1733059200000", "pi is 3.14159265358979", "12.345.678", "from 127.0.0.1 or 0.0.0.0",
    "4111 1111 1111 1112", "11010519491231002Y", "110105194912310021", "990105194912310020", "DE89 3704 0044 0532 0130 01", "000-12-3456", "std::vector a::b",
    "the password is required", "token limit is 4096 tokens", "page 12 of 345", "3-2 4-1", "AB12 is a plate of none", "pages 100-200 and 300-400",
    "user@localhost", "in 1851–1860 20 of them", "from 1600-1800", "(2010) 658–667", "1368–1644", "1 2 3 4 5 6 7 8 9 10 11 12", "价格是1299元，共3件，满2000减300",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value"), FOUND)
def test_found(text: str, kind: str, value: str) -> None:
    assert [(span.kind, span.of(text)) for span in pii.find(text)] == [(kind, value)]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_not_found(text: str) -> None:
    assert [(span.kind, span.of(text)) for span in pii.find(text)] == []


def test_redact_leaves_the_rest() -> None:
    text = "Jane (jane@example.com, 13800138000) paid with 4111111111111111 on 2024-10-12."
    assert pii.redact(text) == "Jane ([EMAIL], [PHONE]) paid with [CARD] on 2024-10-12."
    assert pii.redact(pii.redact(text)) == pii.redact(text)
    assert pii.redact(text, kinds=["CARD"]) == text.replace("4111111111111111", "[CARD]")
    assert pii.redact("") == ""


def test_regions_say_whose_numbers_are_known() -> None:
    assert pii.find("Paris 01 42 68 53 00") == []
    assert [span.kind for span in pii.find("Paris 01 42 68 53 00", regions=("FR",))] == ["PHONE"]


def test_overlapping_spans_become_one() -> None:
    text = "https://bob:s3cret99@host.example/"
    assert [(span.kind, span.of(text)) for span in pii.find(text)] == [("SECRET", "bob:s3cret99@host.example")]


def test_unknown_kinds_are_named() -> None:
    with pytest.raises(InputError, match=r"'EMIAL'.*EMAIL"):
        pii.check_kinds(["EMIAL"])


def grown(text: str, rng: random.Random) -> list[tuple[str, int, int]]:
    """What ``scan`` finds when the text comes in random pieces and what it does not need any more is thrown away."""
    out: list[tuple[str, int, int]] = []
    kept, base, cut, at = "", 0, 0, 0
    while at < len(text):
        count = rng.choice([1, 1, 2, 3, 5, 8, 40])
        kept, at = kept + text[at : at + count], at + count
        spans, new = pii.scan(kept, cut - base)
        assert new >= cut - base, "what was let out cannot be taken back"
        out += [(span.kind, span.start + base, span.end + base) for span in spans]
        cut = base + new
        drop = max(0, new - pii.KEPT)
        kept, base = kept[drop:], base + drop
    before = kept[: cut - base]
    spans = pii.find_from(kept, len(before))
    return out + [(span.kind, span.start + base, span.end + base) for span in spans]


PARTS = [text for text, _, _ in FOUND] + NOT_FOUND + ["1 2 3 4 5 6 7 8 ", "- - ", "京", "-----", "-----BEGIN ", "密码", "password", " ", "\n", "。"]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PARTS), st.integers(0, 12), st.integers(1, 90)), min_size=1, max_size=10),
    st.sampled_from(["", " ", "\n", "，", "-"]),
    st.randoms(use_true_random=False),
)
def test_a_growing_text_gives_what_the_whole_gives(
    parts: list[tuple[str, int, int]], between: str, rng: random.Random
) -> None:
    text = between.join(part[low : low + count] for part, low, count in parts)
    assert grown(text, rng) == [(span.kind, span.start, span.end) for span in pii.find(text)]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789 ().+/-aA@:x京。=\n", max_size=200), st.randoms(use_true_random=False))
def test_a_growing_text_of_odd_characters_does_too(text: str, rng: random.Random) -> None:
    assert grown(text, rng) == [(span.kind, span.start, span.end) for span in pii.find(text)]


def test_long_runs_without_a_break_are_let_out_in_parts() -> None:
    rng = random.Random(5)
    text = "".join(rng.choice("0123456789abcXYZ+/") for _ in range(11_000)) + " 13800138000 " + "1 2 " * 3000
    assert grown(text, rng) == [(span.kind, span.start, span.end) for span in pii.find(text)]
    _, cut = pii.scan("x" * 10_000)
    assert cut > 0


def test_ordinary_text_is_hardly_held_back() -> None:
    text = "The parcel left on Monday, and it should arrive by Thursday at the latest. 包裹周一寄出。"
    waits = [end - pii.scan(text[:end])[1] for end in range(1, len(text))]
    assert max(waits) <= len("Thursday") and waits[-1] == 0


BIG = ["a" * 100_000, "1 " * 50_000, "1-" * 50_000, "1234567890 " * 9_000, "a.b@" * 25_000, "-----" * 20_000, "key " * 25_000,
       "password " * 11_000, "GB59 " * 20_000, "(" * 100_000, "ab:" * 33_000, "eyJ" + "a.b" * 33_000, "aaaa://" * 14_000,
       "-----BEGIN PRIVATE KEY-----" * 3_700, "?key=" * 20_000, "A1" * 50_000, "138 0013 8000 " * 7_000, "1.2.3.4." * 12_000,
       "电话13800138000，" * 7_000, "京A1" * 33_000]  # fmt: skip


@pytest.mark.parametrize("text", BIG, ids=range(len(BIG)))
def test_no_text_takes_long(text: str) -> None:
    start = time.process_time()
    pii.find(text)
    assert time.process_time() - start < 4.0
