"""Show worked examples whose answers begin with their reasoning (Wei et al., 2022, "Chain-of-Thought Prompting Elicits Reasoning")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import Engine, Sampling
from luthier.core.errors import InputError
from luthier.core.message import Prompt, last_user_text
from luthier.data.reasons import RATIONALES, answer_of, answers_of, rationale_of
from luthier.strategies._answers import AnswerForm, cut_at, final_answer, form_of
from luthier.strategies._prompted import read_prompt, settled
from luthier.strategies._shots import draw_examples
from luthier.strategies._texts import say, settle_texts
from luthier.strategies._thinking import Ask, Talk, Thinking, close_with, only, thoughts, together

if TYPE_CHECKING:
    from luthier.store.database import Store

MOST = 8


class Config(EntryConfig):
    """``shots`` examples with their reasoning are drawn from the train split with ``seed`` (8, or fewer where there are fewer), labels
    in turn; the reasoning is what the row has under ``rationale``, ``reasoning``, ``explanation``, ``solution`` or ``answer``, or before ``####`` in its answer. With
    ``shots: 0`` the text ``closing`` of the prompt catalogue asks for reasoning instead. ``examples`` are the chosen (input, reasoning,
    answer) triples; each is written as the text ``worked`` says.

    The model writes at most ``thought_tokens`` tokens before its answer. The final answer is read out of what it wrote as ``answer``
    says: ``number``, ``letter``, ``label``, ``text``, or ``auto``, what the examples' answers are. ``template`` takes instruction and input
    from the prompt catalogue.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = ""
    shots: int | None = Field(default=None, ge=0, le=64)
    seed: int = 0
    examples: tuple[tuple[str, str, str], ...] = ()
    answer: AnswerForm = "auto"
    thought_tokens: int = Field(default=512, ge=1)
    worked: str = "worked_answer"
    closing: str = "chain_of_thought"
    texts: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with examples that have a reasoning, and with its texts. Raises InputError when none has one."""
    prompt = settled(config.prompt, config.template, store)
    changes: dict[str, Any] = {"prompt": prompt, "template": "", "texts": _texts(config, store)}
    if config.answer == "auto":
        known = answers_of(train) or [answer for _, _, answer in config.examples]
        changes["answer"] = form_of(known, prompt["labels"])
    if config.shots != 0 and not config.examples:
        changes["examples"] = _examples(config, train, prompt["labels"])
        changes["shots"] = len(changes["examples"])
    return config.model_copy(update=changes)


def _texts(config: Config, store: Store | None) -> dict[str, dict[str, str]]:
    return settle_texts({"worked": config.worked, "closing": config.closing}, config.texts, store)


def _examples(config: Config, train: Sequence[Example], labels: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    usable = [e for e in train if e.target is not None and rationale_of(e)]
    if not usable:
        raise InputError(
            f"chain_of_thought needs examples with their reasoning; no row of the train split has a {', '.join(RATIONALES)}",
            hint="use strategy zero_shot_cot, shots: 0, or give examples as (input, reasoning, answer)",
        )
    wanted = config.shots or min(MOST, len(usable))
    if wanted > len(usable):
        raise InputError(f"chain_of_thought.shots must be at most {len(usable)}, the rows with reasoning; got {wanted}")
    chosen = draw_examples(usable, wanted, config.seed, labels)
    return tuple((e.text, rationale_of(e), answer_of(e)) for e in chosen)


def wrap(engine: Engine, config: Config) -> Engine:
    """``engine``, which reasons before it answers. Raises InputError when ``shots`` is not the number of examples."""
    if config.shots and config.shots != len(config.examples):
        raise InputError(
            f"chain_of_thought.shots is {config.shots}, and chain_of_thought.examples holds {len(config.examples)}",
            hint="give (input, reasoning, answer) examples, or shots: 0 to ask for reasoning without any",
        )
    prompt = read_prompt(config.prompt, config.template)
    texts = _texts(config, None)
    shots = [(q, say(texts, "worked", q, rationale=why, answer=answer)) for q, why, answer in config.examples]

    def think(asked: Prompt, sampling: Sampling) -> Talk:
        question = last_user_text(asked)
        conversation = prompt.messages(question, shots)
        if not shots:
            conversation = close_with(conversation, say(texts, "closing", question))
        replies = yield [Ask(conversation, thoughts(sampling, config.thought_tokens + sampling.max_new_tokens))]
        wrote = only(replies)
        answer = final_answer(wrote.text, config.answer, prompt.labels)
        return together([wrote], cut_at(answer, sampling.stop), wrote.text)

    decides = ["chain_of_thought", prompt.digest, shots, texts, config.answer, config.thought_tokens]
    return Thinking(engine, think, digest_json(decides))
