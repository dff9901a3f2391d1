"""llama.cpp against torch: the same tokens, the same scores, adapters swapped while others answer."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.engines.sharp import EXACT, GREEDY, QUESTIONS, adapt, both, decoder

from luthier.core.engine import GENERATE, SCORE, STREAM, Engine, Sampling, ScoreRequest
from luthier.core.errors import DataError, EngineError, InputError, MismatchError, StoreError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.model import ModelRecord
from luthier.engines import _llamacpp_server as server_module
from luthier.engines._open import open_engine, open_many
from luthier.models.pull import pull
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.models import find, list_models, register


def same_answers(ours: Engine, reference: Engine) -> None:
    for mine, theirs in zip(ours.generate(QUESTIONS, GREEDY), reference.generate(QUESTIONS, GREEDY), strict=True):
        assert mine.prompt_token_ids == theirs.prompt_token_ids
        assert mine.token_ids == theirs.token_ids
        assert (mine.text, mine.finish_reason) == (theirs.text, theirs.finish_reason)
        assert (mine.prompt_tokens, mine.completion_tokens) == (theirs.prompt_tokens, theirs.completion_tokens)
    told = replace(GREEDY, logprobs=0)
    for mine, theirs in zip(ours.generate(QUESTIONS, told), reference.generate(QUESTIONS, told), strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=2e-3)


def test_a_base_answers_as_in_torch(sharp: str, opened: list[Engine]) -> None:
    ours, reference = both(opened, sharp)
    assert ours.info.capabilities == {GENERATE, STREAM, SCORE}
    for key in ("model", "model_digest", "base_digest", "template_digest", "context_length"):
        assert getattr(ours.info, key) == getattr(reference.info, key), key
    same_answers(ours, reference)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
        (
            "Llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
                "head_dim": 32,
            },
        ),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
        ("Mistral", {"sliding_window": None, "head_dim": 16}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Qwen3", {"head_dim": 16}),
    ],
)
def test_other_families_answer_as_in_torch(
    family: str, changes: dict[str, Any], home: Path, tmp_path: Path, tiny_decoder_path: Path, opened: list[Engine]
) -> None:
    folder = decoder(tiny_decoder_path, tmp_path / "other", family, **changes)
    pull(f"file:{folder}", alias="other")
    same_answers(*both(opened, "other"))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "alpha_pattern": {"k_proj": 3}}])
def test_a_lora_adapter_answers_as_in_torch(options: dict[str, Any], sharp: str, opened: list[Engine]) -> None:
    adapt(sharp, "mine", 1, **options)
    ours, reference = both(opened, "mine")
    same_answers(ours, reference)
    assert [(r.name, r.meta["holds"]) for r in list_models(open_store(), "export")] == [
        ("mine-lora-gguf", "lora"),
        ("sharp-f32", "model"),
    ]
    assert ours.info.model_digest == find(open_store(), "mine").digest


@pytest.mark.parametrize("saves", ["weights", "dora"])
def test_what_no_lora_file_can_hold_is_served_merged(saves: str, sharp: str, opened: list[Engine]) -> None:
    if saves == "weights":
        adapt(sharp, "mine", 2, "weights")
    else:
        adapt(sharp, "mine", 2, use_dora=True)
    same_answers(*both(opened, "mine"))
    assert [r.name for r in list_models(open_store(), "export")] == ["mine-f32"]


def test_exports_open_by_their_own_names(sharp: str, opened: list[Engine]) -> None:
    from luthier.models.export import export

    adapt(sharp, "mine", 1)
    swapped, merged = export("mine"), export("mine", type="F32", merge=True)
    prompts = QUESTIONS[:2]
    reference = both(opened, "mine")[1].generate(prompts, GREEDY)
    for name in (swapped.name, merged.name):
        engine = open_engine(open_store(), name, "auto", EXACT)
        opened.append(engine)
        assert engine.info.engine == "llamacpp"
        assert [g.token_ids for g in engine.generate(prompts, GREEDY)] == [g.token_ids for g in reference]


def test_adapters_of_one_base_alternate_in_threads_on_one_loaded_base(
    sharp: str, opened: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [sharp, *(adapt(sharp, f"adapter-{i}", i).name for i in range(3))]
    expected: dict[str, list[tuple[int, ...]]] = {}
    prompts = [user(f"question {i}") for i in range(6)]
    for name in names:
        engine = open_engine(open_store(), name, "torch", {"dtype": "fp32", "device": "cpu"})
        expected[name] = [g.token_ids for g in engine.generate(prompts, GREEDY)]
        engine.close()
    assert len({tuple(e) for e in expected.values()}) == len(names)
    starts: list[Any] = []
    start = server_module._start
    monkeypatch.setattr(server_module, "_start", lambda *a: starts.append(a) or start(*a))
    engines = open_many(open_store(), names, "llamacpp", EXACT)
    opened.extend(engines.values())
    work = [(name, i) for i in range(len(prompts)) for name in names]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda w: engines[w[0]].generate([prompts[w[1]]], GREEDY)[0].token_ids, work))
    assert answers == [expected[name][i] for name, i in work]
    assert len(starts) == 1


def test_an_adapter_that_comes_later_joins(sharp: str, opened: list[Engine]) -> None:
    shared: dict[Any, Any] = {}
    store = open_store()
    base = open_engine(store, sharp, "llamacpp", EXACT, shared=shared)
    before = base.generate(QUESTIONS, GREEDY)
    running = base.stream(QUESTIONS[0], GREEDY)
    next(running)
    adapt(sharp, "late", 5)
    late = open_engine(store, "late", "llamacpp", EXACT, shared=shared)
    opened += [base, late]
    reference = both(opened, "late")[1]
    assert [g.token_ids for g in late.generate(QUESTIONS, GREEDY)] == [
        g.token_ids for g in reference.generate(QUESTIONS, GREEDY)
    ]
    assert list(running)[-1].generation.token_ids == before[0].token_ids  # the first server finished its request
    assert [g.token_ids for g in base.generate(QUESTIONS, GREEDY)] == [g.token_ids for g in before]


@pytest.mark.parametrize("adapted", [False, True])
def test_scores_are_those_of_torch(adapted: bool, sharp: str, opened: list[Engine]) -> None:
    name = adapt(sharp, "mine", 1).name if adapted else sharp
    texts = ("billing", "delivery", "billing refund", "包裹", "é", "b")
    requests = [ScoreRequest(QUESTIONS[0], texts), ScoreRequest(QUESTIONS[2], texts[:2]), ScoreRequest("The ", texts)]
    requests.append(ScoreRequest("", ("The parcel has not arrived", "b")))
    ours, reference = both(opened, name)
    said = ours.generate([QUESTIONS[0]], Sampling(max_new_tokens=40))[0].text
    requests.append(ScoreRequest(QUESTIONS[0], (said, said[:1])))
    for mine, theirs in zip(ours.score(requests), reference.score(requests), strict=True):
        assert [(s.tokens, s.greedy) for s in mine] == [(s.tokens, s.greedy) for s in theirs]
        np.testing.assert_allclose([s.logprob for s in mine], [s.logprob for s in theirs], atol=3e-3)
    with pytest.raises(InputError, match="must not be empty"):
        ours.score([ScoreRequest("a", ("b", ""))])


def test_the_stream_is_the_answer(sharp: str, opened: list[Engine]) -> None:
    ours, _ = both(opened, sharp)
    whole = ours.generate(QUESTIONS, GREEDY)
    for prompt, answer in zip(QUESTIONS, whole, strict=True):
        pieces = list(ours.stream(prompt, GREEDY))
        last = pieces[-1].generation
        assert last is not None
        assert all(p.generation is None for p in pieces[:-1])
        assert "".join(p.text for p in pieces) == last.text
        assert last.text.rstrip("\ufffd") == answer.text.rstrip("\ufffd")
        assert last.token_ids in (answer.token_ids, ())
        assert (last.finish_reason, last.completion_tokens) == (answer.finish_reason, answer.completion_tokens)
        assert 0 < last.first_token_s <= last.latency_s
    assert any(list(ours.stream(p, GREEDY))[-1].generation.token_ids for p in QUESTIONS)


def test_stop_texts_and_lengths_as_in_torch(sharp: str, opened: list[Engine]) -> None:
    ours, reference = both(opened, sharp)
    text = reference.generate(QUESTIONS[:1], Sampling(max_new_tokens=40))[0].text
    readable = [text[i : i + 2] for i in range(4, len(text) - 2) if text[i : i + 2].isascii()]
    sampling = Sampling(max_new_tokens=40, stop=(readable[0], "never this"))
    mine, theirs = (e.generate(QUESTIONS[:1], sampling)[0] for e in (ours, reference))
    assert (mine.text, mine.token_ids, mine.finish_reason) == (theirs.text, theirs.token_ids, "stop")
    assert readable[0] not in mine.text
    streamed = list(ours.stream(QUESTIONS[0], sampling))[-1].generation
    assert (streamed.text, streamed.finish_reason) == (mine.text, "stop")
    cut = ours.generate(QUESTIONS[:1], Sampling(max_new_tokens=3))[0]
    assert (cut.completion_tokens, cut.finish_reason) == (3, "length")


def test_the_end_of_the_turn_ends_the_answer(home: Path, tmp_path: Path, tiny_decoder_path: Path, opened: Any) -> None:
    folder = decoder(tiny_decoder_path, tmp_path / "ends")
    module = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
    with torch.no_grad():  # the next token is always the end of the turn
        for parameter in module.parameters():
            parameter.zero_()
        module.model.norm.weight.fill_(1.0)
        module.model.embed_tokens.weight[:, 0] = 1.0
        module.model.embed_tokens.weight[2, 0] = 5.0
    module.save_pretrained(str(folder))
    pull(f"file:{folder}", alias="ends")
    ours, reference = both(opened, "ends")
    for engine in (ours, reference):
        answer = engine.generate(QUESTIONS[:1], GREEDY)[0]
        assert (answer.text, answer.token_ids, answer.finish_reason, answer.completion_tokens) == ("", (), "stop", 0)
    last = list(ours.stream(QUESTIONS[0], GREEDY))[-1].generation
    assert (last.text, last.finish_reason, last.completion_tokens) == ("", "stop", 0)


def test_sampling(sharp: str, opened: list[Engine]) -> None:
    ours, reference = both(opened, sharp)
    prompt = [QUESTIONS[0]]

    def drawn(**options: Any) -> tuple[int, ...]:
        return ours.generate(prompt, Sampling(max_new_tokens=12, **options))[0].token_ids

    greedy = drawn()
    assert drawn(seed=3) == greedy
    assert drawn(temperature=1.5, seed=3) == drawn(temperature=1.5, seed=3)
    assert len({drawn(temperature=1.5, seed=s) for s in range(5)}) > 1
    assert drawn(temperature=1.5, top_k=1) == greedy
    assert drawn(temperature=1.5, top_p=1e-6) == greedy
    plain, penalised = Sampling(max_new_tokens=40), Sampling(max_new_tokens=40, repetition_penalty=1.8)
    answers = [[g.token_ids for g in ours.generate(QUESTIONS, sampling)] for sampling in (plain, penalised)]
    assert answers[1] == [g.token_ids for g in reference.generate(QUESTIONS, penalised)]
    assert answers[0] != answers[1]


def test_the_share_of_drawn_tokens_is_the_softmax(sharp: str, opened: list[Engine]) -> None:
    """Temperature 2: the first token's observed frequencies against its scored probabilities."""
    ours, _ = both(opened, sharp)
    draws = ours.generate(["The"] * 300, Sampling(max_new_tokens=1, temperature=2.0, top_k=3, seed=None))
    tokens = [g.token_ids[0] for g in draws if g.token_ids]
    logits = {}
    renderer = ours._renderer  # type: ignore[attr-defined]
    for token in set(tokens):
        value, _ = ours._tokens.score(renderer.prompt_ids("The"), token)  # type: ignore[attr-defined]
        logits[token] = value / 2.0
    assert len(logits) <= 3
    total = sum(np.exp(v) for v in logits.values())
    for token, value in logits.items():
        share, expected = tokens.count(token) / len(tokens), np.exp(value) / total
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / len(tokens)) + 0.01


def test_prompts_that_do_not_fit(sharp: str, opened: list[Engine]) -> None:
    engine = open_engine(open_store(), sharp, "llamacpp", EXACT | {"context_length": 64})
    opened.append(engine)
    assert engine.info.context_length == 64
    with pytest.raises(InputError, match=r"tokens; sharp takes at most 63"):
        engine.generate([user("word " * 80)], GREEDY)
    with pytest.raises(InputError, match="takes at most"):
        engine.stream(user("word " * 80), GREEDY)
    with pytest.raises(InputError, match="sharp reads 64"):
        engine.score([ScoreRequest("word " * 15, ("word " * 60,))])
    filled = engine.generate(["one two"], Sampling(max_new_tokens=500))[0]
    assert filled.prompt_tokens + filled.completion_tokens <= 64


def test_damaged_files_never_reach_llama_cpp(sharp: str) -> None:
    from luthier.models.export import export, gguf_file

    store = open_store()
    path = gguf_file(store, export(sharp, type="F32"))
    data = bytearray(path.read_bytes())
    data[:4] = b"GARB"  # the size stays, so the store does not notice
    path.chmod(0o600)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="GGUF"):
        open_engine(store, sharp, "llamacpp", EXACT)
    path.write_bytes(bytes(data[:100]))
    with pytest.raises(StoreError, match="damaged"):
        open_engine(store, "sharp-f32", "llamacpp", EXACT)
    made_again = open_engine(store, sharp, "llamacpp", EXACT)
    made_again.close()


def test_what_llama_cpp_refuses_is_an_error_not_an_end(tmp_path: Path, sharp: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model")
    settings = server_module.Settings(bad, 64, 1, 1, "f16", -1, 10.0)
    server = server_module.LlamaServer(settings)
    server.join(None)
    with pytest.raises(EngineError, match=r"cannot load .*bad\.gguf"):
        server.post("/completion", {"prompt": [1]})


def test_encoders_endpoints_and_strangers_are_refused(tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="encoder"):
        open_engine(open_store(), tiny_encoder, "llamacpp")
    with pytest.raises(InputError, match="context_length"):
        open_engine(open_store(), tiny_encoder, "llamacpp", {"context": 3})


def test_another_template_is_refused(sharp: str) -> None:
    record = adapt(sharp, "mine", 1)
    register(open_store(), ModelRecord(**{**vars(record), "meta": {"template_digest": "0" * 64}}))
    with pytest.raises(MismatchError, match="template"):
        open_engine(open_store(), "mine", "llamacpp", EXACT)


def test_source_weights_need_a_pulled_gguf(sharp: str) -> None:
    with pytest.raises(InputError, match="pulled as GGUF"):
        open_engine(open_store(), sharp, "llamacpp", EXACT | {"type": "source"})


def test_it_cannot_embed(sharp: str, opened: list[Engine]) -> None:
    ours, _ = both(opened, sharp)
    with pytest.raises(UnsupportedError, match="cannot embed"):
        ours.embed(["a"])


def test_closing(sharp: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engines = open_many(open_store(), [sharp, adapt(sharp, "mine", 1).name], "llamacpp", EXACT)
    first, second = engines.values()
    first.generate(QUESTIONS[:1], GREEDY)
    (folder,) = tmp_path.glob("luthier-*")
    assert folder.stat().st_mode & 0o077 == 0
    first.close()
    first.close()
    assert second.generate(QUESTIONS[:1], GREEDY)[0].completion_tokens
    second.close()
    assert not folder.exists()
    with pytest.raises(EngineError, match="closed"):
        second.generate(QUESTIONS[:1], GREEDY)


def test_a_stream_that_nobody_reads_on_stops(sharp: str, opened: list[Engine]) -> None:
    engine = open_engine(open_store(), sharp, "llamacpp", EXACT | {"parallel": 1})
    opened.append(engine)
    stream = engine.stream(QUESTIONS[0], Sampling(max_new_tokens=400))
    next(stream)
    stream.close()
    assert engine.generate(QUESTIONS[:1], Sampling(max_new_tokens=1))[0].completion_tokens == 1


def test_ctrl_c_still_reaches_python(sharp: str, opened: list[Engine]) -> None:
    ours, _ = both(opened, sharp)
    ours.generate(QUESTIONS[:1], GREEDY)
    if threading.current_thread() is threading.main_thread():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 5)


def test_it_says_nothing(sharp: str, opened: list[Engine], capfd: pytest.CaptureFixture[str]) -> None:
    ours, _ = both(opened, sharp)
    capfd.readouterr()
    ours.generate(QUESTIONS, GREEDY)
    assert capfd.readouterr() == ("", "")


def test_a_missing_socket_is_an_engine_error(
    sharp: str, opened: list[Engine], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours, _ = both(opened, sharp)
    ours.generate(QUESTIONS[:1], GREEDY)
    for folder in tmp_path.glob("luthier-*"):
        shutil.rmtree(folder)
    with pytest.raises(EngineError, match="broke off"):
        ours.generate(QUESTIONS[:1], GREEDY)


def test_path_of_a_base_is_not_touched(sharp: str, opened: list[Engine]) -> None:
    """Opening exports into the store, beside the base."""
    store = open_store()
    before = sorted(p.name for p in path_of(store, find(store, sharp).digest).iterdir())
    both(opened, sharp)
    assert sorted(p.name for p in path_of(store, find(store, sharp).digest).iterdir()) == before


@pytest.mark.models
def test_the_real_model_answers_as_in_torch(real_home: Path, opened: list[Engine]) -> None:
    store = open_store(real_home)
    prompts = [
        user("My parcel has not arrived and the courier's page shows nothing."),
        user("What is the capital of France?"),
        (Message("system", "Answer in one word."), Message("user", "Is 17 a prime number?")),
        user("Write a line about violins 🎻, in English."),
        "Once upon a time in 1984, there",
    ]
    options = {"parallel": 1, "context_length": 512}
    ours = open_engine(store, "smollm2-135m", "llamacpp", options)
    reference = open_engine(store, "smollm2-135m", "torch", {"dtype": "fp32", "device": "cpu"})
    opened += [ours, reference]
    pairs = list(zip(ours.generate(prompts, GREEDY), reference.generate(prompts, GREEDY), strict=True))
    assert all(mine.prompt_token_ids == theirs.prompt_token_ids for mine, theirs in pairs)
    assert sum(mine.token_ids == theirs.token_ids for mine, theirs in pairs) >= 4
    renderer = reference._renderer  # type: ignore[attr-defined]
    for prompt, (mine, _) in zip(prompts[:4], pairs, strict=False):
        body = {"content": renderer.text(prompt), "add_special": False, "parse_special": True}
        assert ours._server.post("/tokenize", body)["tokens"] == list(mine.prompt_token_ids)  # type: ignore[attr-defined]
    request = ScoreRequest(prompts[1], ("Paris", "London", "一"))
    (mine,), (theirs,) = ours.score([request]), reference.score([request])
    np.testing.assert_allclose([s.logprob for s in mine], [s.logprob for s in theirs], atol=0.1)
    source = open_engine(store, "smollm2-135m", "llamacpp", options | {"type": "source"})
    opened.append(source)
    answer = source.generate(prompts[1:2], GREEDY)[0]
    assert answer.prompt_token_ids == pairs[1][0].prompt_token_ids and answer.text
    np.testing.assert_allclose([s.logprob for s in source.score([request])[0]], [s.logprob for s in theirs], atol=1.5)
