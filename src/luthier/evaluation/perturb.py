"""Changes to a question that change nothing in its meaning: case, white space, punctuation, typing errors, synonyms, the order of options.

Every change is decided by a ``random.Random`` of the caller, so equal seeds give equal texts. What has digits in it, addresses and
links is left alone except for case and white space. Chinese text has its own typing errors, punctuation and synonyms.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.errors import InputError, did_you_mean
from luthier.core.message import Conversation

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_TOKEN = re.compile(r"\S+")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_FIXED = re.compile(r"[\d@/\\<>{}=_]|https?:|www\.")
_LETTERED = re.compile(r"^(\s*[(（]?)([A-J])([)）.．、:：]\s*)(.*)$")
_TYPING_RATE, _SPACE_RATE, _SYNONYM_RATE, _MARK_RATE = 0.12, 0.15, 0.8, 0.5
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

SYNONYMS = (
    ("buy", "purchase"), ("help", "assist"), ("start", "begin"), ("end", "finish"), ("big", "large"),
    ("small", "little"), ("quick", "fast"), ("quickly", "fast"), ("often", "frequently"), ("answer", "reply"), ("ask", "enquire"),
    ("wrong", "incorrect"), ("happy", "glad"), ("sad", "unhappy"), ("angry", "furious"), ("great", "excellent"),
    ("terrible", "awful"), ("movie", "film"), ("picture", "image"), ("company", "firm"), ("money", "cash"),
    ("parcel", "package"), ("phone", "telephone"), ("child", "kid"), ("children", "kids"), ("people", "persons"),
    ("car", "automobile"), ("road", "street"), ("city", "town"), ("show", "display"), ("choose", "pick"), ("need", "require"),
    ("use", "employ"), ("make", "create"), ("also", "too"), ("maybe", "perhaps"), ("now", "currently"), ("soon", "shortly"),
    ("mistake", "error"), ("problem", "issue"), ("fix", "repair"), ("cancel", "call off"),
    ("refund", "reimbursement"), ("cheap", "inexpensive"), ("expensive", "costly"), ("near", "close to"), ("almost", "nearly"),
    ("question", "query"), ("sentence", "phrase"), ("text", "passage"), ("teacher", "instructor"), ("doctor", "physician"),
)  # fmt: skip
SYNONYMS_ZH = (
    ("购买", "买"), ("喜欢", "喜爱"), ("非常", "十分"), ("马上", "立刻"), ("帮助", "帮忙"), ("开始", "着手"), ("结束", "完结"),
    ("问题", "疑问"), ("回答", "答复"), ("错误", "差错"), ("正确", "对的"), ("高兴", "开心"), ("难过", "伤心"), ("漂亮", "好看"),
    ("但是", "不过"), ("因为", "由于"), ("所以", "因此"), ("如果", "假如"), ("已经", "早已"), ("经常", "常常"), ("可能", "也许"),
    ("现在", "目前"), ("快递", "包裹"), ("酒店", "宾馆"), ("电影", "影片"), ("老师", "教师"), ("医生", "大夫"),
    ("以下", "下列"), ("哪个", "哪一个"), ("下面", "下列"), ("便宜", "实惠"), ("质量", "品质"), ("价格", "价钱"),
)  # fmt: skip
_SOUNDS_ALIKE: Mapping[str, str] = {
    "的": "得", "得": "的", "地": "的", "在": "再", "再": "在", "做": "作", "作": "做", "他": "她", "她": "他", "那": "哪",
    "哪": "那", "以": "已", "已": "以", "象": "像", "像": "象", "坐": "座", "座": "坐", "帐": "账", "账": "帐", "和": "合",
    "是": "事", "为": "位", "有": "又", "到": "道", "带": "戴", "长": "常", "须": "需", "需": "须", "其": "期", "真": "针",
}  # fmt: skip
_HALF: Mapping[str, str] = {"，": ",", "。": ".", "！": "!", "？": "?", "；": ";", "：": ":", "（": "(", "）": ")"}


def lower_case(text: str, draw: random.Random) -> str:
    """All in lower case."""
    return text.lower()


def upper_case(text: str, draw: random.Random) -> str:
    """ALL IN UPPER CASE."""
    return text.upper()


def white_space(text: str, draw: random.Random) -> str:
    """Doubled spaces, a space before some Chinese characters, and some space around the whole."""
    out = re.sub(r"(?<=\S) (?=\S)", lambda m: "  " if draw.random() < _SPACE_RATE else " ", text)
    out = _HAN.sub(lambda m: f" {m[0]}" if draw.random() < _SPACE_RATE / 2 else m[0], out)
    return draw.choice(("", " ", "\n")) + out + draw.choice((" ", "  ", "\n"))


def punctuation(text: str, draw: random.Random) -> str:
    """Final marks dropped, some commas too, some marks doubled; Chinese marks in half width."""
    out = re.sub(
        r"(?<=[^\W\d])[,;](?=\s)", lambda m: "" if draw.random() < _MARK_RATE else m[0], text.rstrip(".!?。！？ \n")
    )
    out = "".join(_HALF[c] if c in _HALF and draw.random() < _MARK_RATE else c for c in out)
    return re.sub(r"(?<=[^\W\d])([!?.])(?=\s)", lambda m: m[1] * 2 if draw.random() < _MARK_RATE / 2 else m[1], out)


def typos(text: str, draw: random.Random) -> str:
    """Letters swapped, dropped, doubled or struck beside the key in about one word of eight; Chinese characters that sound alike."""
    out = _TOKEN.sub(lambda m: _mistyped(m[0], draw), text)
    return "".join(_SOUNDS_ALIKE[c] if c in _SOUNDS_ALIKE and draw.random() < _TYPING_RATE * 2 else c for c in out)


def _mistyped(token: str, draw: random.Random) -> str:
    word = _WORD.search(token)
    if _FIXED.search(token) or word is None or len(word[0]) < 4 or _HAN.search(token) or draw.random() >= _TYPING_RATE:
        return token
    letters, at = list(word[0]), draw.randrange(1, len(word[0]) - 1)
    how = draw.randrange(4)
    if how == 0:
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    elif how == 1:
        del letters[at]
    elif how == 2:
        letters.insert(at, letters[at])
    else:
        letters[at] = _beside(letters[at], draw)
    return token[: word.start()] + "".join(letters) + token[word.end() :]


def _beside(letter: str, draw: random.Random) -> str:
    for row in _KEYS:
        at = row.find(letter.lower())
        if at >= 0:
            near = draw.choice([row[i] for i in (at - 1, at + 1) if 0 <= i < len(row)])
            return near.upper() if letter.isupper() else near
    return letter


_WORDS = dict(SYNONYMS) | {b: a for a, b in SYNONYMS if " " not in b and b not in dict(SYNONYMS)}
_HAN_WORDS = dict(SYNONYMS_ZH) | {b: a for a, b in SYNONYMS_ZH if len(b) > 1 and b not in dict(SYNONYMS_ZH)}
_HAN_KNOWN = re.compile("|".join(sorted(map(re.escape, _HAN_WORDS), key=len, reverse=True)))


def synonyms(text: str, draw: random.Random) -> str:
    """Words of a small list, English and Chinese, in place of others that mean the same."""

    def other(word: re.Match[str]) -> str:
        found = _WORDS.get(word[0].lower())
        if found is None or draw.random() >= _SYNONYM_RATE:
            return word[0]
        if word[0].isupper() and len(word[0]) > 1:
            return found.upper()
        return found.capitalize() if word[0][0].isupper() else found

    out = _WORD.sub(other, text)
    return _HAN_KNOWN.sub(lambda m: _HAN_WORDS[m[0]] if draw.random() < _SYNONYM_RATE else m[0], out)


CHANGES: Mapping[str, Callable[[str, random.Random], str]] = {
    "lower_case": lower_case,
    "upper_case": upper_case,
    "white_space": white_space,
    "punctuation": punctuation,
    "typos": typos,
    "synonyms": synonyms,
}


def perturb(example: Example, change: str, seed: int = 0) -> Example:
    """The example with its question changed; answer, choices and options under letters stay. The same for the same seed.

    Raises InputError for a change that is not known.
    """
    if change not in CHANGES:
        raise InputError(f"change {change!r} is not known. {did_you_mean(change, CHANGES)}")
    draw = random.Random(digest_json([seed, change, example.id]))
    head, options = _split_options(example.text)
    return _with_text(example, CHANGES[change](head, draw) + options, change)


def rotate_options(example: Example, shift: int) -> Example:
    """The example with its options moved ``shift`` places down, round the end; letters stay in order, so the right one may get another.

    An example without options to move (neither under letters in the question, nor as choices) comes back as it is.
    """
    count = len(example.choices)
    if count < 2 or shift % count == 0:
        return example
    order = [(i - shift) % count for i in range(count)]  # the option that comes to place i
    text = _rotated(example.text, order)
    letters = all(len(choice.strip()) == 1 for choice in example.choices)
    if text == example.text and letters:
        return example
    moved = _with_text(example, text, f"rotate {shift}", lambda raw: _rotated(raw, order))
    correct = tuple(sorted(order.index(i) for i in example.correct))
    if letters:
        return replace(moved, correct=correct, target=example.choices[correct[0]] if correct else example.target)
    if len(example.raw) > 1:
        return moved  # a raw text for each choice: they are asked apart, in whatever order
    return replace(moved, choices=tuple(example.choices[i] for i in order), correct=correct)


def _with_text(example: Example, text: str, change: str, raw_change: Callable[[str], str] | None = None) -> Example:
    """The example with another question, in its messages and in its raw prompts, under an id of its own."""
    old = example.text
    messages = _replaced(example.messages, old, text)

    def changed(raw: str) -> str:
        if raw_change is not None:
            return raw_change(raw)
        before, found, after = raw.rpartition(old.strip())
        return before + text.strip() + after if found else raw

    raw = tuple(changed(each) for each in example.raw)
    if messages == example.messages and raw == example.raw:
        return example
    return replace(example, id=digest_json([example.id, change, text])[:16], messages=messages, raw=raw)


def _replaced(messages: Conversation, old: str, text: str) -> Conversation:
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "user" and messages[at].content == old:
            return (*messages[:at], replace(messages[at], content=text), *messages[at + 1 :])
    return messages


def _block(lines: list[str]) -> tuple[int, int]:
    """Where the last run of lines under A, B, C ... begins and ends; (0, 0) when there is none."""
    found, at = (0, 0), 0
    while at < len(lines):
        end = at
        while end < len(lines) and (m := _LETTERED.match(lines[end])) and ord(m[2]) - ord("A") == end - at:
            end += 1
        if end - at >= 2:
            found = (at, end)
        at = max(end, at + 1)
    return found


def _split_options(text: str) -> tuple[str, str]:
    """The question before its lettered options, and the rest."""
    lines = text.split("\n")
    begin, _ = _block(lines)
    if not begin:
        return text, ""
    return "\n".join(lines[:begin]), "\n" + "\n".join(lines[begin:])


def _rotated(text: str, order: list[int]) -> str:
    """The text with the texts of its last lettered options in another order."""
    lines = text.split("\n")
    begin, end = _block(lines)
    if end - begin != len(order):
        return text
    parts = [_LETTERED.match(line) for line in lines[begin:end]]
    texts = [m[4] for m in parts if m]
    for place, (m, source) in enumerate(zip(parts, order, strict=True)):
        assert m is not None
        lines[begin + place] = f"{m[1]}{m[2]}{m[3]}{texts[source]}"
    return "\n".join(lines)
