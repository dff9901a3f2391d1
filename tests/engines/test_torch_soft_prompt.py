"""The torch engine with soft prompts, against PEFT's own model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from luthier.core.catalog import load
from luthier.core.engine import Engine, Generation, Sampling, ScoreRequest
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.model import ModelRecord
from luthier.engines._open import open_engine, open_many
from luthier.models.adapters import inner_of
from luthier.models.attach import save_trained
from luthier.models.export import export
from luthier.models.load import load_model
from luthier.store.artifacts import path_of, put, staged
from luthier.store.database import open_store
from luthier.store.models import find, register

FP32 = {"dtype": "fp32", "device": "cpu"}
LONG = "Please refund the deposit for the violin I returned in March. "
PROMPTS = [
    user("Where is my parcel?"),
    user(LONG * 3 + "Thanks."),
    user(LONG),
    (Message("system", "Be short."), Message("user", "refund"), Message("assistant", "ok"), Message("user", "again")),
    "Once upon a time",
]
METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"tokens": 7, "init": "random"},
    "p_tuning": {"tokens": 4},
    "prefix": {"tokens": 90, "mlp": False},
}
BASES = ["tiny_decoder", "tiny_gpt2"]


def make(base: str, method: str, name: str, **options: Any) -> None:
    """Register a soft prompt whose parameters moved from where they began."""
    store = open_store()
    model = load_model(store, base, dtype="fp32", device="cpu", labels=("billing", "delivery"))
    entry = load("methods", method)
    torch.manual_seed(5)
    model = entry(model, entry.configure(options))
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "adapter"})
        digest, size = put(store, folder)
    register(store, ModelRecord(name, "adapter", model.architecture, digest, size, base=base))


def of_peft(base: str, name: str) -> Any:
    """PEFT's own model of a stored soft prompt."""
    store = open_store()
    inner = inner_of(load_model(store, base, **FP32))
    return PeftModel.from_pretrained(inner, str(path_of(store, find(store, name).digest))).eval()


@pytest.fixture(params=[(base, method) for base in BASES for method in METHODS], ids="-".join)
def asked(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(base, name) of a stored soft prompt."""
    base, method = request.param
    name = request.getfixturevalue(base)
    make(name, method, "soft", **METHODS[method])
    return name, "soft"


def same(one: Generation, other: Generation) -> None:
    assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
    assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_greedy_answers_are_those_of_peft(asked: tuple[str, str]) -> None:
    base, name = asked
    theirs, engine = of_peft(base, name), open_engine(open_store(), name, "torch", FP32)
    answers = engine.generate(PROMPTS, Sampling(max_new_tokens=12))
    bare = open_engine(open_store(), base, "torch", FP32).generate(PROMPTS, Sampling(max_new_tokens=12))
    assert all(abs(a.logprob - b.logprob) > 1e-4 for a, b in zip(answers, bare, strict=True))
    stops = load_model(open_store(), base, **FP32).renderer.stop_ids  # type: ignore[union-attr]
    for answer in answers:
        ids, log_probs = list(answer.prompt_token_ids), []
        for _ in range(12):
            with torch.no_grad():
                log_prob, token = theirs(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1).max(0)
            log_probs.append(float(log_prob))
            ids.append(int(token))
        new = ids[len(answer.prompt_token_ids) :]
        ends = [place for place, token in enumerate(new) if token in stops]
        assert list(answer.token_ids) == new[: ends[0] if ends else 12]
        assert answer.logprob == pytest.approx(sum(log_probs[: len(answer.token_ids)]), abs=1e-3)


def test_answers_alone_together_streamed_and_repeated(asked: tuple[str, str]) -> None:
    engine = open_engine(open_store(), asked[1], "torch", FP32 | {"max_batch_tokens": 64})
    sampling = Sampling(max_new_tokens=9)
    together = engine.generate(PROMPTS, sampling)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        for _ in range(2):  # the second time, what the prompt begins with is in memory
            same(engine.generate([prompt], sampling)[0], expected)
        deltas = list(engine.stream(prompt, sampling))
        assert "".join(delta.text for delta in deltas) == expected.text
        assert deltas[-1].generation is not None
        same(deltas[-1].generation, expected)
    same(
        engine.generate([user(LONG * 3 + "Thanks again.")], sampling)[0],
        engine.generate([user(LONG * 3 + "Thanks again."), *PROMPTS], sampling)[0],
    )


def test_scores_are_those_of_peft(asked: tuple[str, str]) -> None:
    base, name = asked
    theirs, engine = of_peft(base, name), open_engine(open_store(), name, "torch", FP32)
    renderer = load_model(open_store(), base, **FP32).renderer
    assert renderer is not None
    labels = ("billing", "delivery", "delivery of parcels")
    prompts = [prompt for prompt in PROMPTS if not isinstance(prompt, str)]
    requests = [ScoreRequest(prompt, labels) for prompt in prompts]
    expected = []
    for prompt in prompts:
        ids = renderer.prompt_ids(prompt)
        for label in labels:
            own = renderer.continuation_ids(label, ends_turn=True)
            with torch.no_grad():
                out = theirs(input_ids=torch.tensor([ids + own])).logits[0, -len(ids + own) :].log_softmax(-1)
            expected.append(sum(float(out[len(ids) - 1 + i, token]) for i, token in enumerate(own)))
    for chosen in (requests, requests[::-1]):
        found = [each.logprob for row in engine.score(chosen) for each in row]
        order = range(4) if chosen is requests else range(3, -1, -1)
        assert found == pytest.approx([v for i in order for v in expected[3 * i : 3 * i + 3]], abs=2e-4)
    for number, request in enumerate(requests):
        for _ in range(2):
            alone = [each.logprob for each in engine.score([request])[0]]
            assert alone == pytest.approx(expected[3 * number : 3 * number + 3], abs=2e-4)


def test_vectors_are_means_over_real_tokens(asked: tuple[str, str]) -> None:
    base, name = asked
    theirs, engine = of_peft(base, name), open_engine(open_store(), name, "torch", FP32)
    renderer = load_model(open_store(), base, **FP32).renderer
    texts = ["a refund", LONG, "ok"]
    for got, text in zip(engine.embed(texts), texts, strict=True):
        ids = renderer.prompt_ids(text)  # type: ignore[union-attr]
        with torch.no_grad():
            hidden = theirs(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        mean = hidden[0, -len(ids) :].mean(0)
        np.testing.assert_allclose(got, (mean / mean.norm()).numpy(), atol=1e-5)


def test_engines_of_one_base_answer_in_turn(tiny_decoder: str) -> None:
    """Nothing of one prompt's memory comes into another's answers."""
    for method, options in METHODS.items():
        make(tiny_decoder, method, method, **options)
    make(tiny_decoder, "lora", "lora")
    names = [*METHODS, "lora", tiny_decoder]
    many = open_many(open_store(), names, "torch", FP32)
    asked = [user(LONG * 2), user(LONG)]
    request = [ScoreRequest(user(LONG * 2), ("billing", "delivery"))]
    sampling = Sampling(max_new_tokens=5)

    def answers(engine: Engine) -> tuple[Any, ...]:
        texts = [each.token_ids for each in engine.generate(asked[:1], sampling) + engine.generate(asked, sampling)]
        return texts, [each.logprob for each in engine.score(request)[0]], engine.embed(["ok"])[0].tolist()

    alone = {name: answers(open_engine(open_store(), name, "torch", FP32)) for name in names}
    for name in [*names, *names[::-1], *names]:
        texts, scores, vector = answers(many[name])
        assert texts == alone[name][0]
        assert scores == pytest.approx(alone[name][1], abs=1e-5)
        assert vector == pytest.approx(alone[name][2], abs=1e-6)
    many["prompt"].close()
    assert answers(many["prefix"])[0] == alone["prefix"][0]
    assert answers(many[tiny_decoder])[0] == alone[tiny_decoder][0]


def test_virtual_tokens_count_against_the_context(tiny_decoder: str) -> None:
    make(tiny_decoder, "prefix", "soft", tokens=90, mlp=False)
    engine = open_engine(open_store(), "soft", "torch", FP32)
    assert engine.info.context_length == 512 - 90
    words = "refund " * 600
    with pytest.raises(InputError, match=r"soft reads 422 in all"):
        engine.generate([user(words)], Sampling(max_new_tokens=4))
    (answer,) = engine.generate([user("refund " * 20)], Sampling(max_new_tokens=2000, stop=("\N{SNOWMAN}",)))
    assert len(answer.token_ids) + answer.prompt_tokens <= 422


@pytest.mark.parametrize("method", METHODS)
def test_no_export(method: str, tiny_decoder: str) -> None:
    make(tiny_decoder, method, "soft", **METHODS[method])
    with pytest.raises(UnsupportedError, match=r"soft is a soft prompt.*\n.*engine torch"):
        export("soft", type="F32", store=open_store())


@pytest.mark.parametrize("method", ["prompt", "p_tuning", "prefix", "p_tuning_v2"])
def test_encoders(method: str, tiny_encoder: str) -> None:
    make(tiny_encoder, method, "soft", tokens=6)
    store = open_store()
    theirs = of_peft(tiny_encoder, "soft")
    head = load_model(store, "soft", **FP32).module.head
    engine = open_engine(store, "soft", "torch", FP32)
    assert engine.info.context_length == 128 - 6
    assert engine.info.labels == ("billing", "delivery")
    texts = ["Where is my parcel?", "refund " * 200, "My lesson was cancelled twice.", "ok"]
    tokenizer = load_model(store, tiny_encoder, **FP32).tokenizer
    scores = engine.score([ScoreRequest(user(text), ("billing", "delivery")) for text in texts])
    for text, vector, row in zip(texts, engine.embed(texts), scores, strict=True):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=122)["input_ids"]])
        with torch.no_grad():
            hidden = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, -ids.shape[1] :]
            mean = hidden.mean(0)
            expected = head(mean).log_softmax(-1)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
        assert [each.logprob for each in row] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_encoder_decoders(method: str, tiny_t5: str) -> None:
    make(tiny_t5, method, "soft", tokens=6)
    store, theirs = open_store(), of_peft(tiny_t5, "soft")
    engine = open_engine(store, "soft", "torch", FP32 | {"max_batch_tokens": 64})
    bare = open_engine(store, tiny_t5, "torch", FP32)
    assert engine.info.context_length == bare.info.context_length - 6
    sampling, prompts = Sampling(max_new_tokens=8), PROMPTS[:3]
    answers = engine.generate(prompts, sampling)
    plain = bare.generate(prompts, sampling)
    assert all(abs(a.logprob - b.logprob) > 1e-4 for a, b in zip(answers, plain, strict=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        source = torch.tensor([answer.prompt_token_ids])
        ids, log_probs = [0], []
        while len(ids) <= 8 and 1 not in ids:
            with torch.no_grad():
                out = theirs(
                    input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=torch.tensor([ids])
                )
            log_prob, token = out.logits[0, -1].log_softmax(-1).max(0)
            log_probs.append(float(log_prob))
            ids.append(int(token))
        assert [*answer.token_ids] == [token for token in ids[1:] if token != 1]
        assert answer.logprob == pytest.approx(sum(log_probs[: len(answer.token_ids)]), abs=1e-3)
        same(engine.generate([prompt], sampling)[0], answer)
        same([*engine.stream(prompt, sampling)][-1].generation, answer)  # type: ignore[arg-type]
    texts = ["a refund", LONG, "ok"]
    for text, vector in zip(texts, engine.embed(texts), strict=True):
        np.testing.assert_allclose(engine.embed([text])[0], vector, atol=1e-5)
    labels = ("billing", "delivery")
    together = engine.score([ScoreRequest(prompt, labels) for prompt in prompts])
    for prompt, row in zip(prompts, together, strict=True):
        alone = engine.score([ScoreRequest(prompt, labels)])[0]
        assert [a.logprob for a in alone] == pytest.approx([b.logprob for b in row], abs=1e-4)
