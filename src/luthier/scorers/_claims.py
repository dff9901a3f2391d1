"""An answer cut into the statements that it makes, and which passages each of them cites."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.core.document import Hit
from luthier.core.score import Answer
from luthier.scorers._words import is_unspaced, sentences, squad_words

_MARK = re.compile(r"\s*[\[【](\d{1,3}(?:\s*[,，、;-]\s*\d{1,3})*)[\]】]")
_LEADING = re.compile(rf"^(?:{_MARK.pattern})+\s*[.。]?")
_NOT_FOUND = re.compile(
    r"\bnot (?:in|contained in|found in|mentioned|stated|given|provided|specified|available|answered)\b|\bunanswerable\b"
    r"|\b(?:do|does|did)(?: not|n't) (?:say|state|contain|mention|provide|specify|answer|include|know|have)\b"
    r"|\b(?:can(?:not|'t)|could not|couldn't|unable to|impossible to) (?:be )?(?:find|found|answer|answered|determine|determined|tell|say)\b"
    r"|\b(?:no|not enough|insufficient) (?:information|answer|mention|evidence|context)\b"
    r"|(?:文档|文件|资料|材料|文中|文章|段落|上下文|原文|信息)[^。！？]{0,8}(?:没有|未|无|不包含|不足)"
    r"|没有(?:提到|提及|说明|相关|答案|足够)|未(?:提及|提到|说明|给出|找到)|无法(?:回答|确定|得知|找到|判断)|不知道|找不到|无相关",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence without its marks, and the numbers that it cites."""

    text: str
    numbers: tuple[int, ...] = ()


def statements(text: str) -> list[Statement]:
    """The sentences of an answer; marks such as ``[2]`` or ``[1, 3]`` after the full stop belong to the sentence before them."""
    out: list[Statement] = []
    for sentence in sentences(text):
        leading = _LEADING.match(sentence)
        if leading is not None and out:
            out[-1] = Statement(out[-1].text, tuple(dict.fromkeys((*out[-1].numbers, *_numbers(leading[0])))))
        rest = sentence if leading is None or not out else sentence[leading.end() :]
        said = " ".join(_MARK.sub("", rest).split())
        if squad_words(said):
            out.append(Statement(said, _numbers(rest)))
    return out


def cited(answer: Answer) -> list[tuple[str, list[Hit | None]]]:
    """Each statement with the passages that it cites; None for a number that stands for none. Where the answer's citations are not marked
    in its text, they are all of every statement."""
    known = {each.number: each.hit for each in answer.citations}
    found = statements(answer.text)
    if known and not any(each.numbers for each in found):
        return [(each.text, list(known.values())) for each in found]
    return [(each.text, [known.get(number) for number in each.numbers]) for each in found]


def says_not_found(text: str) -> bool:
    """Whether an answer says that there is none in the documents (English, Chinese), or says nothing."""
    first = next(iter(sentences(text)), "")
    return not squad_words(text) or _NOT_FOUND.search(first) is not None


def without_marks(text: str) -> str:
    """An answer without its marks; "" for one that says that there is none in the documents."""
    return "" if says_not_found(text) else " ".join(_MARK.sub("", text).split())


def coverage(statement: str, passage: str) -> float:
    """The share of the statement's words, articles and punctuation aside, that stand in the passage (Chinese: characters)."""
    wanted = set(squad_words(statement))
    return len(wanted & set(squad_words(passage))) / len(wanted) if wanted else 0.0


def in_chinese(text: str) -> bool:
    """Whether to speak Chinese with a judge about this."""
    return is_unspaced(text)


def _numbers(text: str) -> tuple[int, ...]:
    out: list[int] = []
    for found in _MARK.finditer(text):
        for part in re.split(r"[,，、;]", found[1]):
            first, _, last = part.strip().partition("-")
            out += range(int(first), min(int(last or first), int(first) + 50) + 1)
    return tuple(dict.fromkeys(out))
