from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import luthier
from luthier.core.engine import Sampling, ScoreRequest
from luthier.core.errors import InputError, NotFoundError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate
from luthier.models.attach import save_trained
from luthier.models.load import load_model
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import find, register
from luthier.strategies._labels import LabelEngine
from luthier.strategies._load import load, load_many

FP32 = {"dtype": "fp32"}
PROMPT = PromptTemplate("Sort the ticket: {labels}", "Ticket: {input}", ("billing", "delivery"))


def adapter(base: str, name: str, **meta: object) -> ModelRecord:
    store = open_store()
    model = load_model(store, base, dtype="fp32")
    torch.manual_seed(len(name))
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model.module = get_peft_model(model.module, config)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "adapter", "prompt": meta.get("prompt")})
        digest, size = put(store, folder)
    return register(store, ModelRecord(name, "adapter", "decoder", digest, size, base=base, meta=meta))


def endpoint(name: str, target: str, **meta: object) -> None:
    register(open_store(), ModelRecord(name, "endpoint", "decoder", "", meta={"target": target, **meta}))


def asked(engine: object, text: str) -> tuple[int, ...]:
    """The tokens that the model reads, also where it then chooses among labels instead of writing."""
    engine = engine.inner if isinstance(engine, LabelEngine) else engine
    return engine.generate([user(text)], Sampling(max_new_tokens=1))[0].prompt_token_ids  # type: ignore[attr-defined,no-any-return]


def test_an_adapter_is_asked_with_the_prompt_it_was_tuned_with(tiny_decoder: str) -> None:
    adapter(tiny_decoder, "mine", prompt=PROMPT.as_dict())
    engine, raw = load("mine", options=FP32), load("mine", options=FP32, raw=True)
    renderer = load_model(open_store(), tiny_decoder).renderer
    assert renderer is not None
    assert asked(engine, "late parcel") == tuple(renderer.prompt_ids(PROMPT.messages("late parcel")))
    assert asked(raw, "late parcel") == tuple(renderer.prompt_ids(user("late parcel")))
    assert engine.info.prompt_digest == PROMPT.digest
    assert raw.info.prompt_digest == ""
    assert asked(load(tiny_decoder), "x") == tuple(renderer.prompt_ids(user("x")))


def test_what_has_labels_answers_with_the_likeliest_one_as_it_was_evaluated(tiny_decoder: str) -> None:
    adapter(tiny_decoder, "mine", prompt=PROMPT.as_dict())
    endpoint("served", "mine", strategy={"name": "zero_shot", "config": {"prompt": PROMPT.as_dict()}})
    questions = [user(f"where is parcel {i}") for i in range(5)]
    for name in ("mine", "served"):
        engine = load(name, options=FP32)
        assert engine.info.labels == PROMPT.labels
        scored = engine.score([ScoreRequest(question, PROMPT.labels) for question in questions])
        best = [max(zip(row, PROMPT.labels, strict=True), key=lambda pair: pair[0].logprob)[1] for row in scored]
        answers = engine.generate(questions, Sampling())
        assert [answer.text for answer in answers] == best
        assert all(answer.prompt_tokens == len(asked(engine, "where is parcel 0")) for answer in answers)
    assert load("mine", options=FP32, raw=True).info.labels == ()


def test_an_endpoint_is_its_target_with_its_strategy(tiny_decoder: str) -> None:
    adapter(tiny_decoder, "mine", prompt={"instruction": "not this one"})
    shots = [("no parcel", "delivery"), ("charged twice", "billing")]
    options = {"prompt": PROMPT.as_dict(), "examples": shots}
    endpoint("flat", "mine", strategy={"name": "few_shot", **options})
    endpoint("nested", "mine", strategy={"name": "few_shot", "config": options})
    endpoint("bare", "mine", strategy=None)
    endpoint("outer", "flat")
    engines = load_many(["flat", "nested", "bare", tiny_decoder, "fake"], options=None)
    renderer = load_model(open_store(), tiny_decoder).renderer
    assert renderer is not None
    expected = tuple(renderer.prompt_ids(PROMPT.messages("late", shots)))
    assert asked(engines["flat"], "late") == asked(engines["nested"], "late") == expected
    assert asked(engines["bare"], "late") == tuple(renderer.prompt_ids(user("late")))
    assert [e.info.model for e in engines.values()] == ["flat", "nested", "bare", tiny_decoder, "fake"]
    assert engines["flat"].info.model_digest == find(open_store(), "mine").digest
    below = [engines["flat"].inner.inner, engines["nested"].inner.inner, engines["bare"], engines[tiny_decoder]]  # type: ignore[attr-defined]
    bases = {id(engine._base) for engine in below}
    assert len(bases) == 1
    outer = load("outer")
    assert outer.info.model == "outer"
    assert outer.info.prompt_digest == ""  # what counts is what the name itself says


def test_strategies_stay_away_from_encoders(tiny_encoder: str) -> None:
    store = open_store()
    model = load_model(store, tiny_encoder, dtype="fp32", labels=PROMPT.labels)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "head"})
        digest, size = put(store, folder)
    meta = {"prompt": PROMPT.as_dict()}
    register(store, ModelRecord("probe", "adapter", "encoder", digest, size, base=tiny_encoder, meta=meta))
    endpoint("sorter", "probe", strategy={"name": "zero_shot", "prompt": PROMPT.as_dict()})
    probe, sorter = load("probe", options=FP32), load("sorter", options=FP32)
    request = [ScoreRequest(user("late parcel"), PROMPT.labels)]
    assert sorter.score(request)[0] == probe.score(request)[0]
    assert sorter.info.model == "sorter" and sorter.info.labels == PROMPT.labels


def test_endpoints_that_lead_nowhere(tiny_decoder: str) -> None:
    endpoint("a", "b")
    endpoint("b", "a")
    endpoint("gone", "never-made")
    with pytest.raises(InputError, match="a -> b -> a"):
        load("a")
    with pytest.raises(NotFoundError, match="never-made"):
        load("gone")


def test_a_strategy_that_fails_closes_what_was_opened(tiny_decoder: str) -> None:
    record = adapter(tiny_decoder, "mine")
    register(open_store(), replace(record, meta={"prompt": {"input": "no place for the text"}}), replace=True)
    with pytest.raises(InputError, match="input"):
        load_many([tiny_decoder, "mine"])


def test_the_verb_is_load(tiny_decoder: str) -> None:
    assert luthier.load is load
