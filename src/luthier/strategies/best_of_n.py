"""Answer several times and keep the answer that a measure likes best (Stiennon et al., 2020, section 4; Cobbe et al., 2021, "Training
Verifiers")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import PARAMETERS, Engine, Sampling
from luthier.core.errors import InputError
from luthier.core.message import Prompt, last_user_text
from luthier.data.prompts import is_prompt_name
from luthier.strategies._build import prepare_inner, wrap_inner
from luthier.strategies._prompted import plain, read_prompt
from luthier.strategies._reward import Reward, judge_reward, model_reward
from luthier.strategies._texts import settle_texts
from luthier.strategies._thinking import Ask, Talk, Thinking, Weigh, as_asked, cost_of, good, seeded, weighed
from luthier.strategies._vote import likelihoods

if TYPE_CHECKING:
    from luthier.store.database import Store


class Config(EntryConfig):
    """``samples`` answers are drawn with strategy ``of`` (a name, or a mapping with ``name`` and options; zero_shot when left out), each
    with a seed of its own, at the request's temperature or, where that is 0, at ``temperature``.

    ``by`` says which is best: ``logprob``, the highest mean log-probability a token; ``reward``, the answer to which the model ``judge``
    gives the highest probability of being ``label`` (an encoder with a head that has this label reads question and answer; a decoder is
    asked, with the text ``ask`` of the prompt catalogue, and ``label`` is weighed against ``against``); ``judge``, the highest grade by the
    model ``judge`` by ``rubric`` (a text, or the name of one in the prompt catalogue). Of equals the first drawn wins; an answer that could not be graded loses to all that were.

    Conversations of several turns are answered so too, and raw text, because nothing is rewritten. ``template`` takes instruction and
    input from the prompt catalogue.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = ""
    samples: int = Field(default=4, ge=1, le=256)
    temperature: float = Field(default=0.7, gt=0.0, le=2.0)
    of: str | dict[str, Any] = "zero_shot"
    by: Literal["logprob", "reward", "judge"] = "logprob"
    judge: str = ""
    engine: str = "auto"
    label: str = "yes"
    against: str = "no"
    ask: str = "is_good"
    rubric: str = "rubric_quality"
    texts: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with the strategy that is asked, prepared too, and with its texts."""
    _check(config)
    prompt = read_prompt(config.prompt, config.template, store)
    of = prepare_inner(config.of, "best_of_n.of", prompt, train, store)
    changes = {"prompt": plain(prompt), "template": "", "of": of, "texts": _texts(config, store)}
    return config.model_copy(update=changes)


def _texts(config: Config, store: Store | None) -> dict[str, dict[str, str]]:
    wanted = {"ask": config.ask} if config.by == "reward" else {}
    if config.by == "judge" and is_prompt_name(config.rubric):
        wanted["rubric"] = config.rubric
    return settle_texts(wanted, config.texts, store)


def _check(config: Config) -> None:
    if config.by != "logprob" and not config.judge:
        raise InputError(f"best_of_n.judge must name the model that chooses, for by: {config.by}")
    if config.by == "logprob" and config.judge:
        raise InputError("best_of_n.judge is for by: reward and by: judge; got by: logprob")


def wrap(engine: Engine, config: Config, store: Store | None = None) -> Engine:
    """``engine``, asked ``samples`` times. A sample that fails is left out; when all fail, the first error is raised.

    Raises NotFoundError for a model that is not there, InputError for one that cannot judge.
    """
    _check(config)
    prompt = read_prompt(config.prompt, config.template, store)
    inner = wrap_inner(engine, config.of, "best_of_n.of", prompt, store)
    reward = _reward(config, store)

    def think(asked: Prompt, sampling: Sampling) -> Talk:
        drawn = weighed(sampling, engine) if reward is None else sampling
        draws = (seeded(drawn, number, config.samples, config.temperature) for number in range(config.samples))
        made = good((yield [Ask(asked, drawn) for drawn in draws]))
        if reward is None:
            values = likelihoods(made, inner.info.model)
        else:
            values = yield Weigh(tuple((last_user_text(asked), each.text) for each in made))
        chosen = max(range(len(made)), key=lambda place: (values[place], -place))
        best = as_asked(made[chosen], sampling)
        return cost_of(replace(best, samples=tuple(each.text for each in made)), made)

    decides = [inner.info.prompt_digest, config.samples, config.temperature, config.by, reward.digest if reward else ""]
    honoured = frozenset(PARAMETERS) - {"beams"}  # beams are not drawn; whole answers keep everything else
    if reward is not None:
        honoured -= {"tools"}  # a judge reads text
    return Thinking(inner, think, digest_json(["best_of_n", *decides]), every=True, reward=reward, parameters=honoured)


def _reward(config: Config, store: Store | None) -> Reward | None:
    if config.by == "logprob":
        return None
    from luthier.strategies._load import load

    texts = _texts(config, store)
    model = load(config.judge, engine=config.engine, store=store)
    try:
        if config.by == "judge":
            rubric = texts["rubric"]["text"] if "rubric" in texts else config.rubric
            return judge_reward(model, rubric, store)
        return model_reward(model, config.label, config.against, texts)
    except BaseException:
        model.close()
        raise
