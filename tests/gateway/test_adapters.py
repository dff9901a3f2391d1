"""Several adapters of one base behind one server, through the torch engine."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from luthier.core.engine import Sampling
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.gateway.serve import running
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import find, register

QUESTIONS = [f"Where is parcel {number}?" for number in range(4)]


def store_adapter(base: str, name: str, seed: int, **meta: Any) -> None:
    """A random adapter on ``base``, strong enough that it answers differently."""
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.models.attach import save_trained
    from luthier.models.load import load_model

    store = open_store()
    model = load_model(store, base, dtype="fp32")
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "adapter", "method": {"name": "lora", "config": {}}})
        digest, size = put(store, folder)
    register(store, ModelRecord(name, "adapter", "decoder", digest, size, base=base, meta=meta))


def test_two_adapters_of_one_base_by_name_at_once(tiny_decoder: str) -> None:
    from luthier.strategies._load import load_many

    names = ["a", "b", tiny_decoder]
    store_adapter(tiny_decoder, "a", 1)
    store_adapter(tiny_decoder, "b", 2)
    expected: dict[tuple[str, str], str] = {}
    engines = load_many(names, options={"dtype": "fp32"})
    for name, engine in engines.items():
        made = engine.generate([user(text) for text in QUESTIONS], Sampling(max_new_tokens=8))
        expected |= {(name, text): each.text for text, each in zip(QUESTIONS, made, strict=True)}
        engine.close()
    assert len({expected[name, QUESTIONS[0]] for name in names}) == 3

    with running(names, options={"dtype": "fp32"}) as base_url:
        client = OpenAI(base_url=base_url, api_key="x", max_retries=0)

        def ask(job: tuple[str, str, bool]) -> str:
            name, text, stream = job
            asked: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": text}]}
            asked |= {"temperature": 0, "max_tokens": 8}
            if not stream:
                return client.chat.completions.create(**asked).choices[0].message.content or ""
            chunks = client.chat.completions.create(**asked, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        jobs = [(name, text, stream) for text in QUESTIONS for name in names for stream in (True, False)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, jobs))
        for (name, text, _), said in zip(jobs, answers, strict=True):
            assert said == expected[name, text]
        listed = {model.id: model for model in client.models.list()}
        assert len({listed[name].model_digest for name in names}) == 3
        assert {listed[name].base_digest for name in names} == {find(open_store(), tiny_decoder).digest}
        vectors = client.embeddings.create(model=tiny_decoder, input=["one", "two words"])
        assert len(vectors.data) == 2
        assert vectors.usage.prompt_tokens > 2


def test_the_weights_of_the_base_are_in_memory_once(tiny_decoder: str) -> None:
    import torch

    from luthier.models.load import load_model

    store_adapter(tiny_decoder, "a", 1)
    store_adapter(tiny_decoder, "b", 2)
    shape = load_model(open_store(), tiny_decoder, dtype="fp32").module.get_input_embeddings().weight.shape

    def tables() -> int:
        gc.collect()
        found = [each for each in gc.get_objects() if type(each) is torch.nn.Parameter and each.shape == shape]
        return len({each.untyped_storage().data_ptr() for each in found})

    before = tables()
    with running(["a", "b"], options={"dtype": "fp32"}) as base_url:
        assert httpx.get(f"{base_url}/models").status_code == 200
        assert tables() == before + 1
    assert tables() == before


def test_a_classifying_decoder_answers_with_its_labels(tiny_decoder: str) -> None:
    """Served as it is evaluated: the label with the highest log-probability, not free text; with real token counts."""
    from luthier.core.engine import ScoreRequest
    from luthier.core.task import PromptTemplate
    from luthier.strategies._load import load

    prompt = PromptTemplate(instruction="One of: {labels}.", labels=("billing", "refund", "delivery"))
    store_adapter(tiny_decoder, "desk", 3, prompt=prompt.as_dict(), labels=list(prompt.labels))
    with closing(load("desk", options={"dtype": "fp32"})) as engine:
        requests = [ScoreRequest(user(text), prompt.labels) for text in QUESTIONS]
        rows = engine.score(requests)
        counts = [
            g.prompt_tokens for g in engine.generate([user(text) for text in QUESTIONS], Sampling(max_new_tokens=1))
        ]
    best = [prompt.labels[max(range(3), key=lambda i: row[i].logprob)] for row in rows]
    with running("desk", options={"dtype": "fp32"}) as base_url:
        client = OpenAI(base_url=base_url, api_key="x", max_retries=0)
        for text, label, count in zip(QUESTIONS, best, counts, strict=True):
            answer = client.chat.completions.create(model="desk", messages=[{"role": "user", "content": text}])
            assert answer.choices[0].message.content == label
            assert answer.usage.prompt_tokens == count
        wrong = httpx.post(f"{base_url}/feedback", json={"trace_id": answer.id, "label": "other"})
        assert wrong.status_code == 400


@pytest.mark.models
def test_the_two_real_models(real_home: Path, tmp_path: Path) -> None:
    """A chat model and an embedder in one server, through the official client."""
    from luthier.strategies._load import load_many

    engines = load_many(["smollm2-135m", "minilm-l6"], store=open_store(real_home))
    with running(engines, store=open_store(tmp_path)) as base_url:
        client = OpenAI(base_url=base_url, api_key="x", max_retries=0)
        question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
        whole = client.chat.completions.create(model="smollm2-135m", messages=question, temperature=0, max_tokens=12)
        assert "Paris" in (whole.choices[0].message.content or "")
        chunks = client.chat.completions.create(
            model="smollm2-135m", messages=question, temperature=0, max_tokens=12, stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
        near, far, other = client.embeddings.create(
            model="minilm-l6", input=["a parcel is late", "my package has not arrived", "the violin is out of tune"]
        ).data
        dot = lambda a, b: sum(x * y for x, y in zip(a.embedding, b.embedding, strict=True))  # noqa: E731
        assert dot(near, far) > dot(near, other)


def test_concurrent_requests_to_random_adapters_get_the_right_one(tiny_decoder: str) -> None:
    """50 requests at once to 12 adapters and the base, streamed and whole: nobody gets another adapter's answer."""
    import random

    from luthier.strategies._load import load_many

    names = [f"desk-{number}" for number in range(12)]
    for seed, name in enumerate(names):
        store_adapter(tiny_decoder, name, seed)
    expected: dict[tuple[str, str], str] = {}
    engines = load_many([*names, tiny_decoder], options={"dtype": "fp32"})
    for name, engine in engines.items():
        made = engine.generate([user(text) for text in QUESTIONS], Sampling(max_new_tokens=8))
        expected |= {(name, text): each.text for text, each in zip(QUESTIONS, made, strict=True)}
        engine.close()
    said = {name: tuple(expected[name, text] for text in QUESTIONS) for name in engines}
    told_apart = [name for name in said if list(said.values()).count(said[name]) == 1]
    assert len(told_apart) > 9
    draw = random.Random(0)
    jobs = [(draw.choice(told_apart), draw.choice(QUESTIONS), draw.random() < 0.5) for _ in range(50)]
    assert len({name for name, _, _ in jobs}) == len(told_apart)
    with running((), adapters_of=[tiny_decoder], options={"dtype": "fp32"}, max_concurrent=50) as base_url:
        client = OpenAI(base_url=base_url, api_key="x", max_retries=0)

        def ask(job: tuple[str, str, bool]) -> tuple[str, str]:
            name, text, stream = job
            asked: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": text}]}
            asked |= {"temperature": 0, "max_tokens": 8}
            if not stream:
                whole = client.chat.completions.create(**asked)
                return whole.model, whole.choices[0].message.content or ""
            chunks = list(client.chat.completions.create(**asked, stream=True))
            return chunks[0].model, "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

        with ThreadPoolExecutor(50) as pool:
            for (name, text, _), (model, said) in zip(jobs, pool.map(ask, jobs), strict=True):
                assert (model, said) == (name, expected[name, text])


def test_patterns_and_all_adapters_of_a_base(tiny_decoder: str) -> None:
    from luthier.core.errors import InputError, NotFoundError
    from luthier.gateway.serve import serve

    for seed, name in enumerate(["desk-1", "desk-2", "other"]):
        store_adapter(tiny_decoder, name, seed)
    store_adapter("desk-1", "on-an-adapter", 9)

    def served(models: Any, **settings: Any) -> list[str]:
        with running(models, options={"dtype": "fp32"}, **settings) as base_url:
            return [each["id"] for each in httpx.get(f"{base_url}/models").json()["data"]]

    assert served("desk-*") == ["desk-1", "desk-2"]
    assert served(["other", "desk-[2-9]", "desk-?"]) == ["other", "desk-2", "desk-1"]
    assert served((), adapters_of=[tiny_decoder]) == [tiny_decoder, "desk-1", "desk-2", "other"]
    for models, settings, words in (
        ("desc-*", {}, "no model is called like 'desc-\\*'. Here are: desk-1"),
        ((), {"adapters_of": ["desk-2"]}, "no adapter was tuned on desk-2"),
        ((), {"adapters_of": ["tiny"]}, "'tiny' is not known"),
    ):
        with pytest.raises(NotFoundError, match=words):
            serve(models, port=0, **settings)
    with pytest.raises(InputError, match="at least one"):
        serve((), port=0)
    with pytest.raises(InputError, match="adapters_of goes with names"):
        serve({"a": object()}, port=0, adapters_of=[tiny_decoder])  # type: ignore[dict-item]
