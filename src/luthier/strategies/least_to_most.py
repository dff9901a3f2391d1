"""Break a problem into simpler questions and answer them in turn (Zhou et al., 2023, "Least-to-Most Prompting")."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import Engine, Sampling
from luthier.core.message import Message, Prompt, last_user_text
from luthier.data.reasons import answers_of
from luthier.strategies._answers import AnswerForm, cut_at, final_answer, form_in_words, form_of
from luthier.strategies._prompted import read_prompt, settled
from luthier.strategies._texts import say, settle_texts
from luthier.strategies._thinking import Ask, Talk, Thinking, follow, only, read_off, thoughts, together

if TYPE_CHECKING:
    from luthier.store.database import Store

_LONGEST = 400  # characters; a longer line is no question
_BULLET = re.compile(
    r"^\s*(?:[-*•]|\(?\d{1,2}[.):、)]|[a-z][.)])\s*|^\s*(?:step|question|part)\s*\d{1,2}\s*[:.)]\s*", re.IGNORECASE
)


class Config(EntryConfig):
    """The text ``decompose`` of the prompt catalogue asks for at most ``parts`` simpler questions; each is answered after the ones
    before it, the first one put with the text ``part``; then the text ``final`` asks for the answer alone, read greedily. Each of these
    steps may take ``thought_tokens`` tokens. A Chinese question is asked with the texts' Chinese versions.

    ``answer`` is the form of the answer: ``number``, ``letter``, ``label``, ``text``, or ``auto``, what the answers of the train split
    are. ``template`` takes instruction and input from the prompt catalogue. ``texts`` are filled in from the catalogue.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = ""
    parts: int = Field(default=4, ge=1, le=16)
    answer: AnswerForm = "auto"
    thought_tokens: int = Field(default=256, ge=1)
    decompose: str = "decompose"
    part: str = "solve_part"
    final: str = "final_answer"
    texts: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with its texts, and the form that the answers in ``train`` have."""
    prompt = settled(config.prompt, config.template, store)
    changes: dict[str, Any] = {"prompt": prompt, "template": "", "texts": _texts(config, store)}
    if config.answer == "auto":
        changes["answer"] = form_of(answers_of(train), prompt["labels"])
    return config.model_copy(update=changes)


def _texts(config: Config, store: Store | None) -> dict[str, dict[str, str]]:
    wanted = {"decompose": config.decompose, "part": config.part, "final": config.final}
    return settle_texts(wanted, config.texts, store)


def wrap(engine: Engine, config: Config) -> Engine:
    """``engine``, asked part by part. A model that names no parts is asked the whole at once."""
    prompt = read_prompt(config.prompt, config.template)
    texts = _texts(config, None)

    def think(asked: Prompt, sampling: Sampling) -> Talk:
        raw = last_user_text(asked)
        *before, last = prompt.messages(raw)
        question, thinking = last.content, thoughts(sampling, config.thought_tokens)

        def put(text: str) -> tuple[Message, ...]:
            return (*before, Message("user", text))

        cut = say(texts, "decompose", raw, question=question, most=str(config.parts))
        made = [only((yield [Ask(put(cut), thinking)]))]
        parts = read_parts(made[0].text, config.parts)
        conversation = put(say(texts, "part", raw, question=question, part=parts[0]) if parts else question)
        notes = [made[0].text]
        for following in [*parts[1:], ""] if parts else [""]:
            made.append(only((yield [Ask(conversation, thinking)])))
            notes.append(made[-1].text)
            form = form_in_words(config.answer, prompt.labels, raw)
            turn = following or say(texts, "final", raw, form=form)
            conversation = follow(conversation, made[-1].text, turn)
        made.append(only((yield [Ask(conversation, read_off(sampling))])))
        answer = final_answer(made[-1].text, config.answer, prompt.labels)
        return together(made, cut_at(answer, sampling.stop), "\n\n".join(notes))

    decides = ["least_to_most", prompt.digest, texts, config.parts, config.answer, config.thought_tokens]
    return Thinking(engine, think, digest_json(decides))


def read_parts(text: str, most: int) -> list[str]:
    """The questions in ``text``, one a line, without numbers and bullets; at most ``most``, lines that repeat or run on left out."""
    lines = (_BULLET.sub("", line).strip().strip("*").strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line and len(line) <= _LONGEST and not line.endswith(":")))[
        :most
    ]
