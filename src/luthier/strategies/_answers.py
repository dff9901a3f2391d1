"""The final answer in what a model wrote while it thought, and when two answers are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal

from luthier.data.prompts import is_chinese

AnswerForm = Literal["auto", "number", "letter", "label", "text"]
"""auto: what the training examples' answers are. number: a number, without unit and thousands separators. letter: one of A to J.
label: one of the prompt's labels. text: what follows "the answer is", or the last line."""

_QUOTES = ('""', "''", "“”", "「」")
_SAMPLE = 200  # answers that decide what form they have
_STATED = re.compile(
    r"(?:answer\s*(?:is|are|:|：|=)+|答案(?:应该|应)?\s*(?:是|为|:|：)+|####)[\s:：]*|\\boxed\{(?P<boxed>[^{}\n]*)\}",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.,])-?(?:[$€£¥]\s?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)|(?<=[=+*/xX×÷(-])(?:\d[\d,]*(?:\.\d+)?)")
_LETTER = re.compile(r"\W*([A-J])(?![A-Za-z0-9'])")
_LETTER_ALONE = re.compile(r"\W*([A-J])(?=\W*$|[.):,：、)])")
_MARKED_LETTER = re.compile(r"[(（]([A-J])[)）]|(?<![A-Za-z0-9])([A-J])[.):：](?!\w)")


def form_of(answers: Iterable[str], labels: Sequence[str]) -> AnswerForm:
    """The form that known answers have: label when there are labels, number or letter when all are, else text."""
    if labels:
        return "label"
    known = [answer.strip() for _, answer in zip(range(_SAMPLE), answers, strict=False)]
    if known and all(re.fullmatch(r"[A-J]", answer) for answer in known):
        return "letter"
    if known and all(_as_number(answer) is not None for answer in known):
        return "number"
    return "text"


def final_answer(text: str, form: AnswerForm, labels: Sequence[str] = ()) -> str:
    """What ``text`` gives as its answer: what follows its last "the answer is" (``答案是``, ``####``, ``\\boxed``), read as ``form``.

    Where it states none, the last number, marked letter, or label in it, or its last line. The whole text when none of these is there.
    """
    text = text.strip()
    if form == "auto":
        form = "label" if labels else "text"
    stated = [_rest(found) for found in _STATED.finditer(text)]
    said = next((each for each in reversed(stated) if each), "")
    if form == "number":
        return _number(said, last=False) or _number(text, last=True) or text
    if form == "letter":
        return _letter(said, _LETTER) or _letter(text, _LETTER_ALONE) or text
    if form == "label":
        return _label(said, labels) or _label(text, labels) or text
    return _bare(said or (text.splitlines() or [""])[-1])


def same_answer(text: str) -> str:
    """Equal for two texts that say the same: numbers by value, everything else without case, punctuation and extra white space."""
    number = _as_number(text)
    if number is not None:
        return str(number.normalize() + 0)
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text)
    return " ".join(kept.split()) or text.strip()


def cut_at(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first stop text."""
    places = [place for place in (text.find(each) for each in stop if each) if place >= 0]
    return text[: min(places)] if places else text


def _rest(found: re.Match[str]) -> str:
    """What follows "the answer is" on its line."""
    if found["boxed"] is not None:
        return found["boxed"].strip()
    return found.string[found.end() :].split("\n", 1)[0].strip()


def _bare(text: str) -> str:
    """Without emphasis, the full stop, and the quotation marks around it."""
    bare = text.strip().strip("*").strip()
    for _ in range(2):
        bare = bare.removesuffix(".").removesuffix("。").strip()
        if len(bare) > 1 and bare[0] + bare[-1] in _QUOTES:
            bare = bare[1:-1]
    return bare or text.strip()


def _number(text: str, *, last: bool) -> str:
    """The last number of ``text``, or the first one behind its last equals sign; empty when there is none."""
    text = unicodedata.normalize("NFKC", text)
    if not last:
        text = text.rsplit("=", 1)[-1]
    found = _NUMBER.findall(text)
    if not found:
        return ""
    bare = re.sub(r"[$€£¥,\s]", "", found[-1 if last else 0])
    return bare.rstrip(".")


def _as_number(text: str) -> Decimal | None:
    bare = re.sub(r"^(-?)[$€£¥]\s?|[,，](?=\d{3}\b)|%$|\.$", r"\1", unicodedata.normalize("NFKC", text).strip())
    try:
        number = Decimal(bare)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _letter(text: str, first: re.Pattern[str]) -> str:
    """The letter with which ``text`` begins, else the last one in it that is marked as a choice."""
    if found := first.match(text):
        return found[1]
    marked = _MARKED_LETTER.findall(text)
    return next(filter(None, marked[-1]), "") if marked else ""


def _label(text: str, labels: Sequence[str]) -> str:
    """The label that ``text`` names last; of two that overlap, the longer one."""
    text = unicodedata.normalize("NFKC", text).casefold()
    places: list[tuple[int, int, str]] = []
    for label in labels:
        wanted = unicodedata.normalize("NFKC", label).casefold()
        spellings = {wanted, wanted.replace("_", " ")}
        ends = [m.end() for each in spellings for m in re.finditer(_whole(each), text)]
        if ends:
            places.append((max(ends), len(wanted), label))
    return max(places)[2] if places else ""


def _whole(word: str) -> str:
    """A pattern for ``word`` that is no part of a longer one, where words are parted by spaces."""
    before = r"(?<![a-z0-9_])" if re.match(r"[a-z0-9_]", word) else ""
    after = r"(?![a-z0-9_])" if re.search(r"[a-z0-9_]$", word) else ""
    return before + re.escape(word) + after


def form_in_words(form: AnswerForm, labels: Sequence[str], like: str) -> str:
    """What a model is told to reply with, in the language of ``like``."""
    if form == "auto":
        form = "label" if labels else "text"
    chinese = is_chinese(like)
    if form == "label":
        return f"以下之一：{'、'.join(labels)}" if chinese else f"one of these labels: {', '.join(labels)}"
    return _FORMS[form][chinese]


_FORMS = {
    "number": ("the number", "数字"),
    "letter": ("the letter of the right choice", "正确选项的字母"),
    "text": ("the answer", "答案"),
}
