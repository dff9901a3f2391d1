"""Texts with personal data planted in them, in English and Chinese: our own sentences, values drawn with a seed and valid by their standards."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

import phonenumbers

FULL_WIDTH = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x30, 0x3A)})

ENGLISH = (
    "Hello, this is about {NOISE}. My mail is {EMAIL}, please answer there.",
    "You can call me at {PHONE} after five.", "Phone: {PHONE}", "Please charge {CARD}, it expires in 2029.",
    "The refund goes to IBAN {IBAN}. Thank you!", "My social security number is {SSN}.", "We saw logins from {IP} on {DATE}.",
    "The key is {KEY} and must be rotated.", "export TOKEN={KEY}", "Connect with {LOGIN} and run the report.", "password: {PASSWORD}",
    "My passport number is {PASSPORT}.", "Write to <{EMAIL}>; cc {EMAIL}!", "Order {NOISE} was paid with card {CARD}\nRegards",
    "From: {EMAIL}\nTo: {EMAIL}\nSubject: version {VERSION}", '{{"mail": "{EMAIL}", "phone": "{PHONE}", "order": "{NOISE}"}}',
    "{KEYBLOCK}\nThat was the key of {EMAIL}.", "No data here, only {NOISE}, {DATE} and {VERSION}.", "(tel. {PHONE})", "{EMAIL}/{EMAIL}",
)  # fmt: skip

CHINESE = (
    "您好，我的手机号是{CNPHONE}，请尽快联系我。", "身份证号{CNID}，姓名见附件。", "邮箱{EMAIL}，订单号{NOISE}。", "请把退款打到{CARD}这张卡上，谢谢！",
    "我的车牌是{PLATE}，停在地下二层。", "护照号{PASSPORT}，有效期到2030年1月1日。", "座机{LANDLINE}转分机，手机{CNPHONE}。", "服务器{IP}昨天重启过，版本是{VERSION}。",
    "密码是{PASSWORD}，请勿外传。", "密钥：{KEY}", "联系人电话{CNPHONE}；邮箱：{EMAIL}；身份证：{CNID}。", "{DATE}下的单，单号{NOISE}，电话{CNPHONE}。",
    "收件人手机{WIDE}，地址稍后发。", "数据库地址{LOGIN}，只读。", "没有个人信息，只有{NOISE}和{DATE}。",
)  # fmt: skip

_LENGTHS = {"GB": 22, "DE": 22, "FR": 27, "NL": 18, "ES": 24, "IT": 27, "CH": 21, "AT": 20}
_CARDS = (
    ("4", 16),
    ("51", 16),
    ("55", 16),
    ("2223", 16),
    ("34", 15),
    ("37", 15),
    ("6011", 16),
    ("622", 16),
    ("622", 19),
    ("3530", 16),
    ("36", 14),
)


@dataclass(frozen=True)
class Planted:
    """A text, and the values in it that nobody must see."""

    text: str
    values: tuple[tuple[str, str], ...]


def texts(count: int, seed: int = 0) -> Iterator[Planted]:
    """``count`` texts of one to four sentences."""
    rng = random.Random(seed)
    for _ in range(count):
        yield one(rng)


def one(rng: random.Random) -> Planted:
    """One text."""
    templates = rng.choice((ENGLISH, CHINESE))
    values: list[tuple[str, str]] = []
    parts = []
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        out, rest = "", rng.choice(templates)
        while "{" in rest:
            before, _, rest = rest.partition("{")
            if rest.startswith("{"):
                out, rest = out + before + "{", rest[1:]
                continue
            name, _, rest = rest.partition("}")
            value = MAKERS[name](rng)
            if name not in HARMLESS:
                values.append(
                    (KIND.get(name, name), value.split("@")[0].split("://")[-1] if name == "LOGIN" else value)
                )
            out += before + value
        parts.append((out + rest).replace("}}", "}"))
    joint = rng.choice((" ", "\n", "\n\n")) if templates is ENGLISH else rng.choice(("", "\n"))
    return Planted(joint.join(parts), tuple(values))


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(count))


def _letters(rng: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choice(alphabet) for _ in range(count))


def email(rng: random.Random) -> str:
    """A mail address."""
    name = rng.choice(("jane", "li.wei", "o_brien", "max+shop", "a1", "Maria-Jose", "zhang_san"))
    host = rng.choice(("example", "mail.example", "corp-x", "uni.example"))
    return f"{name}{rng.randrange(1000) if rng.random() < 0.5 else ''}@{host}.{rng.choice(('org', 'com', 'co.uk', 'cn', 'de', 'io'))}"


def phone(rng: random.Random) -> str:
    """A number of one of six countries, valid in its numbering plan, written as people there or abroad write it."""
    region = rng.choice(("US", "GB", "CN", "DE", "FR", "JP"))
    while True:
        example = phonenumbers.example_number_for_type(region, rng.choice((0, 1)))
        national = str(example.national_number)
        number = phonenumbers.PhoneNumber(example.country_code, int(national[:-4] + _digits(rng, 4)))
        if phonenumbers.is_valid_number(number):
            break
    form = phonenumbers.PhoneNumberFormat
    international = rng.choice((form.INTERNATIONAL, form.E164))
    return str(
        phonenumbers.format_number(
            number, form.NATIONAL if region in ("US", "GB") and rng.random() < 0.5 else international
        )
    )


def chinese_phone(rng: random.Random) -> str:
    """A Chinese mobile number."""
    prefix = rng.choice(("135", "136", "138", "139", "150", "158", "177", "186", "188", "199"))
    number = prefix + _digits(rng, 8)
    return f"{number[:3]} {number[3:7]} {number[7:]}" if rng.random() < 0.2 else number


def landline(rng: random.Random) -> str:
    """A Chinese fixed line with its area code."""
    return f"{rng.choice(('010', '021'))}-{rng.choice('568')}{_digits(rng, 7)}"


def card(rng: random.Random) -> str:
    """A payment card, bare or in groups."""
    prefix, length = rng.choice(_CARDS)
    body = prefix + _digits(rng, length - len(prefix) - 1)
    total = sum(
        (value - 9 if value > 9 else value)
        for place, digit in enumerate(reversed(body))
        for value in [int(digit) * (2 - place % 2)]
    )
    number = body + str(-total % 10)
    if length == 16 and rng.random() < 0.4:
        return rng.choice((" ", "-")).join(number[at : at + 4] for at in range(0, 16, 4))
    return number


def iban(rng: random.Random) -> str:
    """A bank account number, bare or in groups of four."""
    country, length = rng.choice(list(_LENGTHS.items()))
    bank = _letters(rng, 4, string.ascii_uppercase) if country in ("GB", "NL") else _digits(rng, 4)
    body = bank + _digits(rng, length - 8)
    check = 98 - int("".join(str(int(each, 36)) for each in body + country + "00")) % 97
    number = f"{country}{check:02d}{body}"
    return " ".join(number[at : at + 4] for at in range(0, length, 4)) if rng.random() < 0.3 else number


def resident_id(rng: random.Random) -> str:
    """A Chinese resident ID with its check digit."""
    region = rng.choice(("110105", "310104", "440305", "510107", "330106"))
    born = date(1950, 1, 1) + timedelta(days=rng.randrange(20_000))
    body = f"{region}{born:%Y%m%d}{_digits(rng, 3)}"
    total = sum(
        int(digit) * weight
        for digit, weight in zip(body, (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2), strict=True)
    )
    return body + "10X98765432"[total % 11]


def ssn(rng: random.Random) -> str:
    """A US social security number."""
    return f"{rng.randrange(1, 665):03d}-{rng.randrange(1, 99):02d}-{rng.randrange(1, 9999):04d}"


def address(rng: random.Random) -> str:
    """An IP address."""
    if rng.random() < 0.2:
        return ":".join(f"{rng.randrange(4096, 65536):x}" for _ in range(8))
    return ".".join([str(rng.randrange(128, 224)), *(str(rng.randrange(256)) for _ in range(3))])


def key(rng: random.Random) -> str:
    """An API key or token with the prefix of those who give it out."""
    return rng.choice((
        "sk-" + _letters(rng, 40), "sk-ant-api03-" + _letters(rng, 60), "AKIA" + _letters(rng, 16, string.ascii_uppercase + string.digits),
        "ghp_" + _letters(rng, 36), "xoxb-" + _digits(rng, 11) + "-" + _letters(rng, 24), "AIza" + _letters(rng, 35), "hf_" + _letters(rng, 34),
        "glpat-" + _letters(rng, 20), "sk_live_" + _letters(rng, 24), "lth_" + _letters(rng, 43),
        f"eyJ{_letters(rng, 30)}.eyJ{_letters(rng, 60)}.{_letters(rng, 43)}",
    ))  # fmt: skip


def key_block(rng: random.Random) -> str:
    """A private key in PEM."""
    lines = "\n".join(_letters(rng, 64, string.ascii_letters + string.digits + "+/") for _ in range(6))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"


def login(rng: random.Random) -> str:
    """A URL with a user and a password in it."""
    return f"postgresql://{_letters(rng, 6, string.ascii_lowercase)}:{_letters(rng, 12)}@db.internal/x"


def password(rng: random.Random) -> str:
    """Letters, digits and a sign."""
    return f"{_letters(rng, 5, string.ascii_letters)}{rng.choice('!#%*_-')}{_digits(rng, 3)}{_letters(rng, 2, string.ascii_letters)}"


def plate(rng: random.Random) -> str:
    """A Chinese car plate."""
    return rng.choice("京沪粤浙苏川") + rng.choice("ABCDE") + _digits(rng, 2) + rng.choice("KMNP") + _digits(rng, 2)


def noise(rng: random.Random) -> str:
    """What looks like personal data and is none."""
    return rng.choice((
        f"2026{_digits(rng, 10)}", f"A-{_digits(rng, 6)}", _letters(rng, 40, "0123456789abcdef"), f"#{_digits(rng, 6)}", f"{_digits(rng, 3)},{_digits(rng, 3)}.00",
        f"{_letters(rng, 8, '0123456789abcdef')}-{_letters(rng, 4, '0123456789abcdef')}-4{_letters(rng, 3, '0123456789abcdef')}-a{_letters(rng, 3, '0123456789abcdef')}-{_letters(rng, 12, '0123456789abcdef')}",
    ))  # fmt: skip


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "EMAIL": email, "PHONE": phone, "CNPHONE": chinese_phone, "LANDLINE": landline, "WIDE": lambda rng: chinese_phone(rng).replace(" ", "").translate(FULL_WIDTH),
    "CARD": card, "IBAN": iban, "CNID": resident_id, "SSN": ssn, "IP": address, "KEY": key, "KEYBLOCK": key_block, "LOGIN": login, "PASSWORD": password,
    "PLATE": plate, "PASSPORT": lambda rng: rng.choice("EGD") + _digits(rng, 8), "NOISE": noise,
    "DATE": lambda rng: f"{rng.randrange(2000, 2027)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}",
    "VERSION": lambda rng: f"v{rng.randrange(1, 9)}.{rng.randrange(20)}.{rng.randrange(9)}",
}  # fmt: skip
HARMLESS = frozenset({"NOISE", "DATE", "VERSION"})
KIND = {
    "CNPHONE": "PHONE",
    "LANDLINE": "PHONE",
    "WIDE": "PHONE",
    "CNID": "CN_ID",
    "KEY": "SECRET",
    "KEYBLOCK": "SECRET",
    "LOGIN": "SECRET",
    "PASSWORD": "SECRET",
}
