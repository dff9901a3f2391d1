"""The torch engine on a tiny T5, against transformers and against itself alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from luthier.core.engine import PARAMETERS, Constraint, Engine, Sampling, ScoreRequest
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, Tool, user
from luthier.core.model import ModelRecord
from luthier.engines._open import open_engine, open_many
from luthier.models.attach import save_trained
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register

FP32 = {"dtype": "fp32", "device": "cpu"}
TEXTS = [
    "Where is my parcel?",
    "Please refund the deposit for the violin I returned in March.",
    "ok",
    "我的包裹还没有到",
]


def make_adapter(base: str, name: str, seed: int) -> None:
    """Register a random LoRA adapter, in the attention of both stacks and across them."""
    store = open_store()
    model = load_model(store, base, dtype="fp32")
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q", "v", "wo"], init_lora_weights=False, task_type="SEQ_2_SEQ_LM")
    model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "adapter"})
        digest, size = put(store, folder)
    register(store, ModelRecord(name, "adapter", "encoder-decoder", digest, size, base=base))


@pytest.fixture(scope="module")
def talkative_path(tiny_t5_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny T5 with a random head of its own, as T5 v1.1 has: where the head is the embeddings, it repeats what it is given."""
    folder = tmp_path_factory.mktemp("talkative")
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(str(tiny_t5_path), tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    module = AutoModelForSeq2SeqLM.from_config(config)
    module.lm_head.weight = torch.nn.Parameter(torch.randn(384, 32))
    module.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(tiny_t5_path)).save_pretrained(str(folder))
    return folder


@pytest.fixture
def engine(home: Path, talkative_path: Path) -> Engine:
    return open_engine(open_store(), pull(f"file:{talkative_path}", alias="talkative").name, "torch", FP32)


@pytest.fixture
def peer(talkative_path: Path) -> tuple[Any, Any]:
    folder = str(talkative_path)
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_greedy_answers_are_those_of_transformers(engine: Engine, peer: tuple[Any, Any]) -> None:
    module, tokenizer = peer
    asked = tokenizer(TEXTS, padding=True, return_tensors="pt")
    told = module.generate(**asked, max_new_tokens=12, do_sample=False, num_beams=1)
    answers = engine.generate([user(text) for text in TEXTS], Sampling(max_new_tokens=12))
    for answer, row, text in zip(answers, told.tolist(), TEXTS, strict=True):
        whole = [token for token in row[1:] if token != 0]
        assert list(answer.token_ids) == [token for token in whole if token != 1]
        assert answer.finish_reason == ("stop" if 1 in whole else "length")
        assert list(answer.prompt_token_ids) == tokenizer(text)["input_ids"]
        assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_an_answer_does_not_depend_on_the_others(engine: Engine) -> None:
    prompts = [user(text) for text in TEXTS] + [user(f"{n} {TEXTS[n % 4]}") for n in range(20)]
    for sampling in (
        Sampling(max_new_tokens=9),
        Sampling(max_new_tokens=9, temperature=1.0, seed=5, top_p=0.9, repetition_penalty=1.3),
    ):
        together = engine.generate(prompts, sampling)
        alone = [engine.generate([prompt], sampling)[0] for prompt in prompts]
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_the_log_probability_of_an_answer_is_its_score(engine: Engine, peer: tuple[Any, Any]) -> None:
    module, tokenizer = peer
    for text, answer in zip(
        TEXTS, engine.generate([user(text) for text in TEXTS], Sampling(max_new_tokens=6)), strict=True
    ):
        wanted = torch.tensor([answer.token_ids])
        with torch.no_grad():
            loss = module(**tokenizer(text, return_tensors="pt"), labels=wanted).loss
        assert answer.logprob == pytest.approx(-float(loss) * len(answer.token_ids), abs=1e-3)


def test_a_repetition_penalty_is_that_of_transformers(engine: Engine, peer: tuple[Any, Any]) -> None:
    module, tokenizer = peer
    asked = tokenizer(TEXTS[:1], return_tensors="pt")
    told = module.generate(**asked, max_new_tokens=10, do_sample=False, num_beams=1, repetition_penalty=2.0)
    (answer,) = engine.generate([user(TEXTS[0])], Sampling(max_new_tokens=10, repetition_penalty=2.0))
    assert list(answer.token_ids) == [t for t in told[0, 1:].tolist() if t != 1]


def test_stop_texts_and_streams(engine: Engine) -> None:
    (whole,) = engine.generate([user(TEXTS[1])], Sampling(max_new_tokens=12))
    pieces = list(engine.stream(user(TEXTS[1]), Sampling(max_new_tokens=12)))
    assert "".join(piece.text for piece in pieces) == whole.text
    last = pieces[-1].generation
    assert last is not None and last.token_ids == whole.token_ids
    stop = next(c for c in whole.text[2:] if c.isprintable() and c != "\ufffd")
    (cut,) = engine.generate([user(TEXTS[1])], Sampling(max_new_tokens=12, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_scores_are_those_of_plain_forwards(engine: Engine, peer: tuple[Any, Any]) -> None:
    module, tokenizer = peer
    answers = ("billing", "lost violin", "delivery is late")
    requests = [ScoreRequest(user(TEXTS[0]), answers), ScoreRequest(TEXTS[1], answers[:2])]
    found = engine.score(requests)
    for request, scores in zip(requests, found, strict=True):
        text = request.prompt if isinstance(request.prompt, str) else request.prompt[0].content
        for answer, score in zip(request.continuations, scores, strict=True):
            wanted = tokenizer(answer, return_tensors="pt")["input_ids"]
            wanted = wanted[:, :-1] if isinstance(request.prompt, str) else wanted  # bare text does not end
            with torch.no_grad():
                loss = module(**tokenizer(text, return_tensors="pt"), labels=wanted).loss
            assert score.tokens == wanted.shape[1]
            assert score.logprob == pytest.approx(-float(loss) * wanted.shape[1], abs=1e-3)


def test_vectors_are_means_of_the_encoders_states(engine: Engine, peer: tuple[Any, Any]) -> None:
    module, tokenizer = peer
    found = engine.embed(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            hidden = (
                module.get_encoder()(tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0].mean(0)
            )
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(hidden, dim=0).numpy(), atol=1e-5)


def test_adapters_share_the_base(tiny_t5: str) -> None:
    make_adapter(tiny_t5, "one", 1)
    make_adapter(tiny_t5, "two", 2)
    family = open_many(open_store(), [tiny_t5, "one", "two"], "torch", FP32)
    prompt, request = user(TEXTS[1]), ScoreRequest(user(TEXTS[0]), ("billing", "delivery"))
    bare = [score.logprob for score in family[tiny_t5].score([request])[0]]
    for name in (tiny_t5, "one", "two", tiny_t5, "one"):
        alone = load_model(open_store(), name, dtype="fp32")
        ids = torch.tensor([alone.tokenizer(TEXTS[0])["input_ids"]])
        expected = []
        for label in request.continuations:
            wanted = torch.tensor([alone.tokenizer(label)["input_ids"]])
            with torch.no_grad():
                expected.append(-float(alone.module(input_ids=ids, labels=wanted).loss) * wanted.shape[1])
        found = [score.logprob for score in family[name].score([request])[0]]
        assert found == pytest.approx(expected, abs=1e-3)
        assert (found == pytest.approx(bare, abs=1e-4)) == (name == tiny_t5)
        family[name].generate([prompt], Sampling(max_new_tokens=3))
    for each in family.values():
        each.close()


def test_what_it_is(engine: Engine, tiny_t5: str) -> None:
    info = engine.info
    assert info.capabilities == {"generate", "stream", "score", "embed"}
    assert info.template_digest and info.context_length == 512 and not info.labels


def test_what_cannot_be_asked_is_refused(engine: Engine, tiny_t5: str) -> None:
    with pytest.raises(InputError, match=r"prompt must not be empty.*encoder-decoder"):
        engine.generate([""], Sampling())
    with pytest.raises(InputError, match=r"prompt must not be empty.*a question for a decoder"):
        engine.score([ScoreRequest("", ("text",))])
    with pytest.raises(InputError, match="continuations must not be empty"):
        engine.score([ScoreRequest("text", ("",))])
    with pytest.raises(InputError, match=r"prompt 2 of 2 has 601 tokens; talkative reads 512"):
        engine.generate([user("x"), user("x" * 600)], Sampling())
    with pytest.raises(
        InputError, match=r"a continuation of prompt 1 has 601 tokens; talkative answers with 512 at most"
    ):
        engine.score([ScoreRequest(user("x"), ("x" * 600,))])
    (long,) = engine.generate([(Message("user", "x"),)], Sampling(max_new_tokens=2000, temperature=2.0, seed=1))
    assert long.completion_tokens <= 511
    with pytest.raises(UnsupportedError, match="llamacpp"):
        open_engine(open_store(), tiny_t5, "llamacpp")


def test_what_is_asked_of_the_drawing_is_honoured(engine: Engine) -> None:
    """Each by what it must do to an answer; whole and streamed, whose pieces carry the tokens' log-probabilities."""
    plain = engine.generate([user(TEXTS[0])], Sampling(max_new_tokens=8))[0]
    banned = plain.token_ids[0]
    without = engine.generate([user(TEXTS[0])], Sampling(max_new_tokens=8, logit_bias=((banned, -100.0),)))[0]
    assert banned not in without.token_ids
    penalised = engine.generate(
        [user(TEXTS[0])], Sampling(max_new_tokens=8, presence_penalty=2.0, frequency_penalty=2.0)
    )
    assert len(set(penalised[0].token_ids)) >= len(set(plain.token_ids))
    formed = Sampling(
        max_new_tokens=20, temperature=1.5, seed=2, constraint=Constraint("regex", "[a-d]{3}"), logprobs=2
    )
    answer = engine.generate([user(text) for text in TEXTS], formed)[1]
    assert answer.finish_reason == "stop" and re.fullmatch("[a-d]{3}", answer.text)
    assert b"".join(token.data for token in answer.tokens).decode() == answer.text
    assert all(len(token.top) == 2 for token in answer.tokens)
    deltas = list(engine.stream(user(TEXTS[1]), formed))
    assert tuple(token for delta in deltas for token in delta.tokens) == deltas[-1].generation.tokens  # type: ignore[union-attr]
    assert [t.data for t in deltas[-1].generation.tokens] == [t.data for t in answer.tokens]  # type: ignore[union-attr]


def test_what_an_encoder_decoder_cannot_do_is_named(engine: Engine) -> None:
    for sampling, name in ((Sampling(beams=2), "beams"), (Sampling(tools=(Tool("find"),)), "tools")):
        with pytest.raises(UnsupportedError, match=name):
            engine.generate([user(TEXTS[0])], sampling)
        with pytest.raises(UnsupportedError, match=name):
            engine.stream(user(TEXTS[0]), sampling)
    assert engine.info.parameters == set(PARAMETERS) - {"beams", "tools", "images"}
