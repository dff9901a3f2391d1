"""Ways to put a task into words: our own small set, in English and Chinese, for labelled and question rows.

What a template asks for follows from what it holds: an answer with ``{rationale}`` in it is a chain of thought (Wei et al. 2022), an answer
that is the row's ``{input}`` turns the task round (input inversion, Longpre et al. 2023, section 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator

Language: TypeAlias = Literal["en", "zh"]
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_LOOKED_AT = 200
Words: TypeAlias = Literal["labelled", "question"]

_PLACES = ("input", "answer", "rationale", "labels", "asks")
_PLACE = re.compile("{(" + "|".join(_PLACES) + ")}")


def language_of(texts: Iterable[str]) -> Language:
    """``zh`` where more than a fifth of the characters of the first texts are Chinese, else ``en``."""
    text = "".join(islice(texts, _LOOKED_AT))
    return "zh" if len(_CHINESE.findall(text)) > 0.2 * max(len(text), 1) else "en"


class Template(BaseModel):
    """``instruction`` is said once, ``input`` of every example, ``cue`` stands before an answer where examples are shown, ``answer`` is what is
    said.

    Places: ``{input}`` the row's text, ``{answer}`` its label or final answer, ``{rationale}`` how one gets there, ``{labels}`` the choices,
    ``{asks}`` what the label says of the text. Everything else is taken to the letter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Words
    instruction: str = ""
    input: str = "{input}"
    cue: str = ""
    answer: str = "{answer}"
    language: Language = "en"

    @model_validator(mode="after")
    def _asks_and_answers(self) -> Template:
        asked = self.instruction + self.input
        if self.inverts:
            if "{answer}" not in asked and "{rationale}" not in asked:
                raise ValueError("a template that answers with {input} must ask with {answer} or {rationale}")
        elif "{input}" not in self.input or "{answer}" not in self.answer:
            raise ValueError("input must hold {input} and answer {answer} (or the other way round)")
        return self

    @property
    def inverts(self) -> bool:
        """Whether the row's text is what is to be said."""
        return "{input}" in self.answer

    @property
    def reasons(self) -> bool:
        """Whether the answer shows how one gets there."""
        return "{rationale}" in self.answer

    @property
    def needs_rationale(self) -> bool:
        """Whether it can only be used of rows with a rationale."""
        return "{rationale}" in self.instruction + self.input + self.answer


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its places filled; braces in ``values`` are safe."""
    return _PLACE.sub(lambda found: values[found[1]], text)


def _labelled(language: Language, *forms: tuple[str, str, str, str]) -> list[Template]:
    return [
        Template(kind="labelled", language=language, instruction=i, input=x, cue=c, answer=a) for i, x, c, a in forms
    ]


def _question(language: Language, *forms: tuple[str, str, str, str]) -> list[Template]:
    return [
        Template(kind="question", language=language, instruction=i, input=x, cue=c, answer=a) for i, x, c, a in forms
    ]


OWN: tuple[Template, ...] = (
    *_labelled(
        "en",
        ("What is the {asks} of the text? Answer with one of: {labels}.", "Text: {input}", "Answer:", "{answer}"),
        ("Sort the text by its {asks}. The choices are: {labels}.", "{input}", "Choice:", "{answer}"),
        ("", "{input}\n\nWhich {asks} fits this text: {labels}?", "", "{answer}"),
        ("Read the text and say its {asks}, and nothing else ({labels}).", "Text: {input}", "Its {asks}:", "{answer}"),
        ("Options: {labels}\nPick the option that is the {asks} of the text.", "Text: {input}", "Option:", "{answer}"),
        (
            "What is the {asks} of the text? Give your reasons first, then one of: {labels}.",
            "Text: {input}",
            "Answer:",
            "{rationale}\nSo the {asks} is {answer}.",
        ),
        (
            "Think step by step about the {asks} of the text. It is one of: {labels}.",
            "{input}",
            "",
            "{rationale}\nThe answer is {answer}.",
        ),
        ("", "Write a text whose {asks} is: {answer}.", "", "{input}"),
        ("", "Give an example of a text with this {asks}: {answer}.", "", "{input}"),
    ),
    *_labelled(
        "zh",
        ("下面这段文字的{asks}是什么？请从以下选项中选择：{labels}。", "文字：{input}", "答案：", "{answer}"),
        ("请判断文字的{asks}，可选项为：{labels}。", "{input}", "选择：", "{answer}"),
        ("", "{input}\n\n这段文字的{asks}是哪一个：{labels}？", "", "{answer}"),
        ("阅读文字，只回答它的{asks}（{labels}）。", "文字：{input}", "{asks}：", "{answer}"),
        ("选项：{labels}\n从中选出符合文字的{asks}。", "文字：{input}", "选项：", "{answer}"),
        (
            "这段文字的{asks}是什么？先说明理由，再从以下选项中作答：{labels}。",
            "文字：{input}",
            "答案：",
            "{rationale}\n所以{asks}是{answer}。",
        ),
        ("请一步一步地分析文字的{asks}，可选项为：{labels}。", "{input}", "", "{rationale}\n答案是{answer}。"),
        ("", "请写一段{asks}为“{answer}”的文字。", "", "{input}"),
        ("", "请举一个例子：{asks}是“{answer}”的一段文字。", "", "{input}"),
    ),
    *_question(
        "en",
        ("", "{input}", "", "{answer}"),
        ("Answer the question.", "Question: {input}", "Answer:", "{answer}"),
        ("Here is a question. What is the answer?", "{input}", "Answer:", "{answer}"),
        ("", "{input}\n\nSay only the answer.", "", "{answer}"),
        (
            "Answer the question. Think step by step.",
            "Question: {input}",
            "Answer:",
            "{rationale}\nThe answer is {answer}.",
        ),
        ("", "{input}\n\nShow how you get to the answer.", "", "{rationale}\nThe answer is {answer}."),
        (
            "Work the question out before you answer it.",
            "{input}",
            "Solution:",
            "{rationale}\nSo the answer is {answer}.",
        ),
        ("", "Ask a question to which this is the answer: {answer}", "", "{input}"),
        ("", "Here is how a question was worked out:\n{rationale}\n\nWhat was the question?", "", "{input}"),
    ),
    *_question(
        "zh",
        ("", "{input}", "", "{answer}"),
        ("请回答问题。", "问题：{input}", "答案：", "{answer}"),
        ("下面有一个问题，答案是什么？", "{input}", "答案：", "{answer}"),
        ("", "{input}\n\n只说答案。", "", "{answer}"),
        ("请一步一步地思考，然后回答问题。", "问题：{input}", "答案：", "{rationale}\n答案是{answer}。"),
        ("", "{input}\n\n请写出得到答案的过程。", "", "{rationale}\n答案是{answer}。"),
        ("先推算，再作答。", "{input}", "解答：", "{rationale}\n所以答案是{answer}。"),
        ("", "请提出一个问题，使它的答案是：{answer}", "", "{input}"),
        ("", "下面是一道题的解答过程：\n{rationale}\n\n原来的问题是什么？", "", "{input}"),
    ),
)
"""Those with a rationale, and those that turn the task round, come after the plain ones of their kind and language."""
