"""The same behaviour asked of every strategy in the catalogue, around an engine without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.engine import (
    EMBED,
    GENERATE,
    PARAMETERS,
    SCORE,
    STREAM,
    Constraint,
    Engine,
    Generation,
    Sampling,
    ScoreRequest,
    check_health,
)
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, Tool, user
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate, Task
from luthier.data.prompts import save_prompt
from luthier.evaluation.evaluate import ask_with, evaluate
from luthier.store.database import open_store
from luthier.store.models import register
from luthier.strategies._build import prepare_strategy, wrap_strategy
from luthier.strategies._load import load
from luthier.strategies._thinking import DRAWING

LABELS = ("billing", "delivery", "refund")
PROMPT = PromptTemplate("Sort into {labels}.", "Mail: {input}", LABELS)
TRAIN = [
    Example(f"train{i:02}", user(f"row {i} about {LABELS[i % 3]}"), LABELS[i % 3], meta={"rationale": f"it says {i}"})
    for i in range(12)
]
OPTIONS: dict[str, dict[str, Any]] = {"few_shot": {"shots": 3}, "chain_of_thought": {"shots": 3}}
SCORING = {"zero_shot", "few_shot", "instruction", "prompt_ensemble"}
ANY_PROMPT = {"best_of_n"}  # rewrites nothing
NAMES = catalog.names("strategies")
CASES = [(name, OPTIONS.get(name, {})) for name in NAMES] + [
    ("few_shot", {"shots": 2, "choose": "random"}),
    ("few_shot", {"choose": "fixed", "ids": ["train03", "train01"]}),
    ("few_shot", {"shots": 2, "choose": "nearest", "embedder": "fake"}),
    ("zero_shot", {"template": "classify"}),
    ("self_consistency", {"vote": "weighted", "of": {"name": "few_shot", "shots": 2}}),
    ("best_of_n", {"by": "reward", "judge": "fake:yes,no"}),
    ("best_of_n", {"by": "judge", "judge": "fake", "samples": 2}),
    ("prompt_ensemble", {"combine": "vote"}),
]
SAMPLING = Sampling(max_new_tokens=20, seed=1)
every = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
QUESTIONS = [user("the parcel is late"), user("charged twice"), user("请帮我查一下我的包裹")]


def built(engine: Engine, name: str, options: dict[str, Any]) -> Engine:
    return wrap_strategy(engine, name, prepare_strategy(name, options, PROMPT, TRAIN, open_store()), open_store())


def untimed(made: list[Generation]) -> list[Generation]:
    return [replace(each, latency_s=0.0, first_token_s=0.0) for each in made]


def test_the_docstrings_that_users_read() -> None:
    for name in NAMES:
        entry = catalog.load("strategies", name)
        assert (entry.module.__doc__ or "").split("\n")[0]
        assert len(entry.config_class.__doc__ or "") > 60
        assert len(entry.config_class.model_fields) <= 15


def honoured(name: str, options: dict[str, Any]) -> frozenset[str]:
    if name == "best_of_n":
        return frozenset(PARAMETERS) - {"beams"} - ({"tools"} if "judge" in options else set())
    return frozenset(PARAMETERS) if name in ("zero_shot", "few_shot", "instruction") else DRAWING


@every
def test_what_an_engine_says_it_honours_reaches_the_model(
    home: Path, spy: Any, name: str, options: dict[str, Any]
) -> None:
    """Each parameter alone, as often as the model is asked."""
    asked: dict[str, Any] = {
        "min_p": 0.2, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5, "top_k": 9,
        "logit_bias": ((7, 3.0),), "logprobs": 2, "constraint": Constraint("choice", '["yes"]'),
        "tools": (Tool("look"),),
    }  # fmt: skip
    for parameter, value in asked.items():
        inner = spy()
        engine = built(inner, name, options)
        sampling = replace(SAMPLING, temperature=0.8, **{parameter: value})
        if not sampling.parameters() <= engine.info.parameters:
            continue
        engine.generate([QUESTIONS[0]], sampling)
        drawn = [each for each in inner.samplings if each.temperature > 0 or parameter not in ("min_p", "top_k")]
        assert drawn
        assert all(getattr(each, parameter) == value for each in drawn)


@every
def test_it_is_an_engine_that_says_what_it_can_do(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    inner = spy()
    engine = built(inner, name, options)
    assert isinstance(engine, Engine)
    can = {GENERATE, STREAM, EMBED} | ({SCORE} if name in SCORING else set())
    assert engine.info.capabilities == can
    assert engine.info.prompt_digest
    told = {"prompt_digest": engine.info.prompt_digest, "capabilities": frozenset(can)}
    assert engine.info == inner.info.with_(**told, parameters=engine.info.parameters)
    assert engine.info.parameters == honoured(name, options) & inner.info.parameters
    check_health(engine, 1.0)
    assert np.array_equal(engine.embed(["a", "b"]), inner.embed(["a", "b"]))
    engine.close()
    assert inner.closed == 1


@every
def test_answers_come_in_order_whatever_is_beside_them(
    home: Path, spy: Any, name: str, options: dict[str, Any]
) -> None:
    engine = built(spy(), name, options)
    together = engine.generate(QUESTIONS, SAMPLING)
    alone = [engine.generate([question], SAMPLING)[0] for question in QUESTIONS]
    assert untimed(together) == untimed(alone)
    assert engine.generate([], SAMPLING) == []
    backwards = engine.generate(QUESTIONS[::-1], SAMPLING)
    assert untimed(backwards[::-1]) == untimed(together)


@every
def test_costs_are_those_of_every_call(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    inner = spy()
    (answer,) = built(inner, name, options).generate(QUESTIONS[:1], SAMPLING)
    assert answer.calls == len(inner.asked) == len(inner.made)
    assert answer.prompt_tokens == sum(made.prompt_tokens for made in inner.made)
    assert answer.completion_tokens == sum(made.completion_tokens for made in inner.made)
    assert answer.latency_s == pytest.approx(sum(made.latency_s for made in inner.made))
    assert answer.calls > 1 or not answer.samples


@every
def test_questions_are_asked_in_batches(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    one, many = spy(), spy()
    built(one, name, options).generate([user("the parcel is late")], SAMPLING)
    built(many, name, options).generate([user("the parcel is late")] * 5, SAMPLING)
    assert len(many.batches) == len(one.batches)
    assert len(many.asked) == 5 * len(one.asked)


@every
def test_a_stream_ends_with_what_generate_gives(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    engine = built(spy(), name, options)
    pieces = list(engine.stream(QUESTIONS[0], SAMPLING))
    (whole,) = engine.generate(QUESTIONS[:1], SAMPLING)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.generation is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].generation is not None
    assert untimed([pieces[-1].generation]) == untimed([whole])


@every
def test_scoring_is_as_it_says(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    engine = built(spy(), name, options)
    requests = [ScoreRequest(question, LABELS) for question in QUESTIONS]
    if name not in SCORING:
        with pytest.raises(UnsupportedError, match="cannot score"):
            engine.score(requests)
        return
    scored = engine.score(requests)
    assert [len(row) for row in scored] == [3, 3, 3]
    assert scored == [engine.score([request])[0] for request in requests]


@every
def test_a_prompt_in_the_callers_own_hands_is_not_rewritten(
    home: Path, spy: Any, name: str, options: dict[str, Any]
) -> None:
    turns = (Message("user", "q"), Message("assistant", "a"), Message("user", "again"))
    for prompt in ("raw text", turns, (Message("system", "be kind"), Message("user", "q"))):
        inner = spy()
        (answer,) = built(inner, name, options).generate([prompt], SAMPLING)
        assert set(inner.asked) == {prompt}
        assert name in ANY_PROMPT or (answer.calls == 1 and answer.text == spy().generate([prompt], SAMPLING)[0].text)


@every
def test_a_stored_config_answers_the_same_without_data_and_catalogue(
    home: Path, spy: Any, name: str, options: dict[str, Any]
) -> None:
    save_prompt("own", {"about": "x", "instruction": "Own: {labels}", "input": "Own: {input}"})
    fields = catalog.load("strategies", name).config_class.model_fields
    own: dict[str, Any] = (
        {"prompt": {"template": "own"}} if name != "instruction" and not options.get("template") else {}
    )
    config = prepare_strategy(name, {**options, **own}, PROMPT, TRAIN, open_store())
    for file in (home / "prompts").iterdir():
        file.unlink()
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    inner, again = spy(), spy()
    first, second = wrap_strategy(inner, name, config, open_store()), wrap_strategy(again, name, stored, open_store())
    assert untimed(first.generate(QUESTIONS, SAMPLING)) == untimed(second.generate(QUESTIONS, SAMPLING))
    assert inner.asked == again.asked
    assert first.info == second.info
    assert prepare_strategy(name, stored, PROMPT, (), open_store()).model_dump(mode="json") == stored
    if own and "prompt" in fields:
        assert config.prompt["source"].startswith("own@1 sha256:")
        assert config.prompt["labels"] == list(LABELS)


@every
def test_another_prompt_is_another_digest(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    one = built(spy(), name, options).info.prompt_digest
    assert built(spy(), name, options).info.prompt_digest == one
    changed = replace(PROMPT, input="Letter: {input}")
    other = prepare_strategy(name, options, changed, TRAIN, open_store())
    same = options.get("template") == "classify"  # the template's input is asked, not the task's
    assert (wrap_strategy(spy(), name, other, open_store()).info.prompt_digest == one) is same


@every
def test_unknown_options_are_named(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unknown key 'promt'"):
        built(spy(), name, {**options, "promt": {}})
    with pytest.raises(InputError, match="must contain"):
        built(spy(), name, {**options, "prompt": {"input": "no place"}, "template": ""} if name == "zero_shot" else {
            **options, "prompt": {"input": "no place"}
        })  # fmt: skip


@every
def test_evaluation_asks_it_as_it_can_be_asked(home: Path, spy: Any, name: str, options: dict[str, Any]) -> None:
    rows = [Example(f"{i}", user(f"mail {i} about {LABELS[i % 3]}"), LABELS[i % 3]) for i in range(6)]
    empty = Dataset("v", "labelled", ())
    splits = Splits(Dataset("train", "labelled", tuple(TRAIN)), empty, Dataset("test", "labelled", tuple(rows)))
    task = Task("sorting", "classify", splits, PROMPT, (("accuracy", {}),))
    result = evaluate(spy(), task, strategy={"name": name, **options}, store=open_store())
    assert result.run.status == "done"
    assert len(result.records) == 6
    scored = [record.options for record in result.records]
    assert all(scored) if name in SCORING else not any(scored)
    assert all(record.calls >= 1 for record in result.records)


@pytest.mark.parametrize("name", NAMES)
def test_an_endpoint_is_asked_as_its_evaluation_was(tiny_decoder: str, name: str) -> None:
    """What an evaluation writes down is all that serving needs."""
    store = open_store()
    examples = tuple(replace(each, meta={"rationale": "so it is"}) for each in TRAIN)
    train = Dataset("train", "labelled", examples)
    task = Task("t", "classify", Splits(train, train, train), PROMPT, (("accuracy", {}),))
    bare = load(tiny_decoder, options={"dtype": "fp32"}, store=store)
    options = {"thought_tokens": 4} if name in ("chain_of_thought", "zero_shot_cot", "least_to_most") else {}
    options = (
        {"of": {"name": "zero_shot_cot", "thought_tokens": 4}, "samples": 2} if name == "self_consistency" else options
    )
    asked = ask_with(bare, {"name": name, **options, **OPTIONS.get(name, {})}, task, store)
    meta = {
        "target": tiny_decoder,
        "strategy": {"name": asked.strategy, "config": json.loads(json.dumps(asked.config))},
    }
    register(store, ModelRecord("served", "endpoint", "decoder", "", meta=meta))
    served = load("served", options={"dtype": "fp32"}, store=store)
    short = Sampling(max_new_tokens=3, seed=0)
    assert served.info.prompt_digest == asked.engine.info.prompt_digest
    assert SCORE in served.info.capabilities or name not in SCORING
    if name in SCORING:
        requests = [ScoreRequest(user("late parcel"), LABELS)]
        ours, theirs = served.score(requests)[0], asked.engine.score(requests)[0]
        assert [s.logprob for s in ours] == pytest.approx([s.logprob for s in theirs], abs=1e-4)
    else:
        answers = [engine.generate([user("late parcel")], short)[0].text for engine in (served, asked.engine)]
        assert answers[0] == answers[1]
    served.close()
    bare.close()
