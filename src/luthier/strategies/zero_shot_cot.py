"""Ask for reasoning, then for the answer (Kojima et al., 2022, "Large Language Models are Zero-Shot Reasoners")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import Engine, Sampling
from luthier.core.message import Prompt, last_user_text
from luthier.data.reasons import answers_of
from luthier.strategies._answers import AnswerForm, cut_at, final_answer, form_in_words, form_of
from luthier.strategies._prompted import read_prompt, settled
from luthier.strategies._texts import say, settle_texts
from luthier.strategies._thinking import Ask, Talk, Thinking, close_with, follow, only, read_off, thoughts, together

if TYPE_CHECKING:
    from luthier.store.database import Store


class Config(EntryConfig):
    """Two calls: the question with the text ``trigger`` of the prompt catalogue ("Let's think step by step."), answered in at most
    ``thought_tokens`` tokens; then the text ``final``, which asks for the answer alone, read greedily. A Chinese question is asked with
    the texts' Chinese versions.

    ``answer`` is the form of the answer: ``number``, ``letter``, ``label``, ``text``, or ``auto``, what the answers of the train split
    are. ``template`` takes instruction and input from the prompt catalogue. ``texts`` are filled in from the catalogue.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = ""
    answer: AnswerForm = "auto"
    thought_tokens: int = Field(default=512, ge=1)
    trigger: str = "step_by_step"
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
    return settle_texts({"trigger": config.trigger, "final": config.final}, config.texts, store)


def wrap(engine: Engine, config: Config) -> Engine:
    """``engine``, asked twice. Raises NotFoundError for a text that the catalogue lacks."""
    prompt = read_prompt(config.prompt, config.template)
    texts = _texts(config, None)

    def think(asked: Prompt, sampling: Sampling) -> Talk:
        question = last_user_text(asked)
        conversation = close_with(prompt.messages(question), say(texts, "trigger", question))
        thought = only((yield [Ask(conversation, thoughts(sampling, config.thought_tokens))]))
        form = form_in_words(config.answer, prompt.labels, question)
        conversation = follow(conversation, thought.text, say(texts, "final", question, form=form))
        said = only((yield [Ask(conversation, read_off(sampling))]))
        answer = final_answer(said.text, config.answer, prompt.labels)
        return together([thought, said], cut_at(answer, sampling.stop), thought.text)

    decides = ["zero_shot_cot", prompt.digest, texts, config.answer, config.thought_tokens]
    return Thinking(engine, think, digest_json(decides))
