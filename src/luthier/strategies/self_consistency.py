"""Reason several times and take the answer that comes most often (Wang et al., 2023, "Self-Consistency Improves Chain of Thought")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import Engine, Generation, Sampling
from luthier.core.message import Prompt
from luthier.data.reasons import answers_of, rationale_of
from luthier.strategies._answers import AnswerForm, final_answer, form_of
from luthier.strategies._build import prepare_inner, wrap_inner
from luthier.strategies._prompted import plain, read_prompt
from luthier.strategies._thinking import Ask, Talk, Thinking, as_asked, cost_of, good, seeded, weighed
from luthier.strategies._vote import elect, probabilities

if TYPE_CHECKING:
    from luthier.store.database import Store


class Config(EntryConfig):
    """``samples`` answers are drawn with strategy ``of``, each with a seed of its own, at the request's temperature or, where that is 0,
    at ``temperature``. ``of`` is a strategy's name, or a mapping with ``name`` and options; left out, it is ``chain_of_thought`` where the
    train split has examples with their reasoning, else ``zero_shot_cot``.

    ``vote`` majority counts the answers; weighted adds up their probabilities, each to the power of one by its number of tokens (the
    paper's normalised weighted sum). Of equals the first drawn wins. ``answer`` says how answers are read and compared: ``number``,
    ``letter``, ``label``, ``text``, or ``auto``, what the answers of the train split are. ``template`` takes instruction and input from
    the prompt catalogue.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = ""
    samples: int = Field(default=5, ge=1, le=256)
    temperature: float = Field(default=0.7, gt=0.0, le=2.0)
    vote: Literal["majority", "weighted"] = "majority"
    answer: AnswerForm = "auto"
    of: str | dict[str, Any] = ""


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with the strategy that is asked, prepared too, and the form that the answers in ``train`` have."""
    prompt = read_prompt(config.prompt, config.template, store)
    form = config.answer
    if form == "auto":
        form = form_of(answers_of(train), prompt.labels)
    of = prepare_inner(config.of or _default(train), "self_consistency.of", prompt, train, store)
    return config.model_copy(update={"prompt": plain(prompt), "template": "", "answer": form, "of": of})


def _default(train: Sequence[Example]) -> str:
    return "chain_of_thought" if any(rationale_of(e) for e in train) else "zero_shot_cot"


def wrap(engine: Engine, config: Config, store: Store | None = None) -> Engine:
    """``engine``, asked ``samples`` times. A sample that fails is left out; when all fail, the first error is raised."""
    prompt = read_prompt(config.prompt, config.template, store)
    inner = wrap_inner(engine, config.of or "zero_shot_cot", "self_consistency.of", prompt, store)

    def think(asked: Prompt, sampling: Sampling) -> Talk:
        weighted = config.vote == "weighted"
        drawn = weighed(sampling, engine) if weighted else sampling
        draws = (seeded(drawn, number, config.samples, config.temperature) for number in range(config.samples))
        made = good((yield [Ask(asked, each) for each in draws]))
        answers = [_answer(each, config.answer, prompt.labels) for each in made]
        chosen = elect(answers, probabilities(made, inner.info.model) if weighted else [1.0] * len(made))
        best = as_asked(made[chosen], sampling)
        return cost_of(replace(best, text=answers[chosen], samples=tuple(answers)), made)

    decides = [inner.info.prompt_digest, config.samples, config.temperature, config.vote, config.answer]
    return Thinking(inner, think, digest_json(["self_consistency", *decides]))


def _answer(made: Generation, form: AnswerForm, labels: Sequence[str]) -> str:
    """The answer of a sample; a strategy that reasons has read it off already."""
    return made.text if made.reasoning else final_answer(made.text, form, labels)
