"""The torch engine on a tiny decoder, against ``transformers`` and against itself alone."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier.core import catalog
from luthier.core.engine import PARAMETERS, Engine, Generation, Measured, Sampling, ScoreRequest
from luthier.core.errors import EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.model import ModelRecord
from luthier.data.pairs import windows
from luthier.engines._open import open_engine, open_many
from luthier.engines._target import EngineTarget
from luthier.models.attach import save_trained
from luthier.models.load import load_model
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register

FP32 = {"dtype": "fp32", "device": "cpu"}
LONG = "Please refund the deposit for the violin I returned in March. "
PROMPTS = [
    user("Where is my parcel?"),
    user(LONG * 3 + "Thanks."),
    user(LONG),
    (Message("system", "Be short."), Message("user", "refund"), Message("assistant", "ok"), Message("user", "again")),
    "Once upon a time",
]


def make_adapter(base: str, name: str, seed: int, *, strength: float = 1.0) -> None:
    """Register a random LoRA adapter."""
    store = open_store()
    model = load_model(store, base, dtype="fp32")
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for parameter_name, parameter in model.module.named_parameters():
            if "lora_" in parameter_name:
                parameter.mul_(strength)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "adapter"})
        digest, size = put(store, folder)
    register(store, ModelRecord(name, "adapter", "decoder", digest, size, base=base))


@pytest.fixture
def engine(tiny_decoder: str) -> Engine:
    return open_engine(open_store(), tiny_decoder, "torch", FP32)


def reference(prompt_ids: tuple[int, ...], base: str, count: int) -> list[int]:
    model = load_model(open_store(), base, dtype="fp32")
    ids = torch.tensor([prompt_ids])
    out = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    new = out[0, ids.shape[1] :].tolist()
    assert model.renderer is not None
    return [t for t in new if t not in model.renderer.stop_ids]


def same(one: Generation, other: Generation) -> None:
    assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
    assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_greedy_answers_are_those_of_transformers(engine: Engine, tiny_decoder: str) -> None:
    answers = engine.generate(PROMPTS, Sampling(max_new_tokens=12))
    for answer in answers:
        assert list(answer.token_ids) == reference(answer.prompt_token_ids, tiny_decoder, 12)
        assert answer.prompt_tokens == len(answer.prompt_token_ids)
        assert answer.completion_tokens == len(answer.token_ids)
        assert 0 < answer.first_token_s <= answer.latency_s


def test_an_answer_does_not_depend_on_the_batch(engine: Engine, tiny_decoder: str) -> None:
    together = engine.generate(PROMPTS, Sampling(max_new_tokens=10))
    turned = engine.generate(PROMPTS[::-1], Sampling(max_new_tokens=10))[::-1]
    small = open_engine(open_store(), tiny_decoder, "torch", {**FP32, "max_batch_tokens": 100})
    narrow = small.generate(PROMPTS, Sampling(max_new_tokens=10))
    for number, prompt in enumerate(PROMPTS):
        alone = engine.generate([prompt], Sampling(max_new_tokens=10))[0]
        for other in (together[number], turned[number], narrow[number]):
            same(other, alone)


def test_seeds_repeat_alone_and_in_batches(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=10, temperature=1.2, top_p=0.9, top_k=50, repetition_penalty=1.1, seed=3)
    first = engine.generate(PROMPTS, sampling)
    for again, alone in zip(engine.generate(PROMPTS, sampling), PROMPTS, strict=True):
        same(again, engine.generate([alone], sampling)[0])
    assert first[0].token_ids != engine.generate(PROMPTS[:1], Sampling(max_new_tokens=10))[0].token_ids
    free = Sampling(max_new_tokens=10, temperature=1.0)
    assert len({engine.generate(PROMPTS[:1], free)[0].token_ids for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "sampling", [Sampling(max_new_tokens=30), Sampling(max_new_tokens=30, temperature=1.0, seed=1)]
)
def test_a_stream_is_the_answer_in_pieces(engine: Engine, sampling: Sampling) -> None:
    for prompt in PROMPTS:
        deltas = list(engine.stream(prompt, sampling))
        last = deltas[-1].generation
        assert last is not None and all(d.generation is None for d in deltas[:-1])
        assert "".join(d.text for d in deltas) == last.text
        same(last, engine.generate([prompt], sampling)[0])


def test_what_it_counts_is_what_was_asked(engine: Engine) -> None:
    assert isinstance(engine, Measured)
    before = engine.stats()
    answer = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=5))[0]
    after = engine.stats()
    assert after["prompt_tokens"] - before["prompt_tokens"] == answer.prompt_tokens
    assert after["rows"] - before["rows"] == 1
    assert 0 < after["answer_tokens"] - before["answer_tokens"] <= 5
    assert (after["running"], after["waiting"]) == (0, 0)


def test_stop_texts(engine: Engine) -> None:
    whole = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=20))[0]
    stop = whole.text[5:7]
    sampling = Sampling(max_new_tokens=20, stop=("never there", stop))
    cut = engine.generate(PROMPTS[:1], sampling)[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert cut.logprob is not None and whole.logprob is not None and cut.logprob > whole.logprob
    streamed = list(engine.stream(PROMPTS[0], sampling))
    assert "".join(d.text for d in streamed) == cut.text


def test_the_end_of_turn_ends_an_answer_and_is_not_in_it(engine: Engine, tiny_decoder: str) -> None:
    """With a high temperature a random model says every token some day, also the one that ends its turn."""
    ended = [a for seed in range(40) for a in engine.generate(PROMPTS[:1], Sampling(40, temperature=2.0, seed=seed))]
    stopped = [a for a in ended if a.finish_reason == "stop"]
    assert stopped
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    assert model.renderer is not None
    assert not any(t in model.renderer.stop_ids for a in ended for t in a.token_ids)
    assert all(len(a.token_ids) == 40 for a in ended if a.finish_reason == "length")


def test_the_context_bounds_prompt_and_answer(engine: Engine) -> None:
    nearly = "a" * 505  # the tiny tokenizer has no merges of a
    answer = engine.generate([nearly, "b"], Sampling(max_new_tokens=30))[0]
    assert answer.prompt_tokens + answer.completion_tokens == 512
    assert answer.finish_reason == "length"
    with pytest.raises(InputError, match=r"prompt 2 of 2 has \d+ tokens; tiny-decoder reads 512"):
        engine.generate(["b", "a" * 600], Sampling())
    with pytest.raises(InputError, match="600 tokens"):
        engine.stream("a" * 600, Sampling())  # before the first piece is asked for
    with pytest.raises(InputError, match=r"505 \+ 20 tokens"):
        engine.score([ScoreRequest(nearly, ("a" * 20,))])


def naive(base: str, prompt: tuple[int, ...], continuation: list[int]) -> float:
    model = load_model(open_store(), base, dtype="fp32")
    with torch.no_grad():
        log_probs = model.module(torch.tensor([[*prompt, *continuation]])).logits[0].log_softmax(-1)
    return sum(log_probs[len(prompt) - 1 + i, t].item() for i, t in enumerate(continuation))


def test_scores_are_those_of_separate_forwards(engine: Engine, tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    assert model.renderer is not None
    labels = ("billing", "billing refund", "delivery")
    requests = [ScoreRequest(p, labels[: 1 + n % 3]) for n, p in enumerate(PROMPTS)]
    found = engine.score(requests)
    again = [engine.score([request])[0] for request in requests]
    for request, scores, alone in zip(requests, found, again, strict=True):
        prompt = tuple(model.renderer.prompt_ids(request.prompt))
        for text, score, single in zip(request.continuations, scores, alone, strict=True):
            if isinstance(request.prompt, str):  # one text
                ids = model.tokenizer.encode(request.prompt + text)[len(prompt) :]
            else:
                ids = model.renderer.continuation_ids(text, ends_turn=True)
            assert score.tokens == single.tokens == len(ids)
            assert score.logprob == pytest.approx(naive(tiny_decoder, prompt, ids), abs=1e-4)
            assert single.logprob == pytest.approx(score.logprob, abs=1e-4)
    assert engine.score([]) == []
    with pytest.raises(InputError, match="must not be empty"):
        engine.score([ScoreRequest("raw text", ("",))])


def test_scores_depend_neither_on_batches_nor_on_the_order(engine: Engine, tiny_decoder: str) -> None:
    draw = random.Random(0)
    words = LONG.split()

    def text(count: int) -> str:
        return " ".join(draw.choice(words) for _ in range(count))

    heads = [f"About {topic}.\n\n{text(40)}\n\n" for topic in ("parcels", "lessons")]
    requests = [ScoreRequest(f"{heads[n % 2]}{text(6)}\nAnswer:", (" A", " B", " C")) for n in range(12)]
    requests += [ScoreRequest(text(12), tuple(" " + text(draw.randint(1, 8)) for _ in range(4))) for _ in range(4)]
    requests += [ScoreRequest(p, ("billing", "delivery")) for p in PROMPTS[:3]]
    requests += [ScoreRequest("", (text(200), text(3)))]
    expected = engine.score(requests)
    assert all(one.greedy is not None for row in expected for one in row)
    order = list(range(len(requests)))
    for most in (1, 50, 300):
        draw.shuffle(order)
        other = open_engine(open_store(), tiny_decoder, "torch", {**FP32, "max_batch_tokens": most})
        for index, row in zip(order, other.score([requests[i] for i in order]), strict=True):
            assert [one.tokens for one in row] == [one.tokens for one in expected[index]]
            assert [one.logprob for one in row] == pytest.approx([one.logprob for one in expected[index]], abs=1e-4)
            assert [one.greedy for one in row] == [one.greedy for one in expected[index]]


def test_a_text_longer_than_the_context_is_read_in_windows(engine: Engine, tiny_decoder: str) -> None:
    text = LONG * 60
    ((score,),) = engine.score([ScoreRequest("", (text,))])
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    ids = model.tokenizer.encode(text)
    assert score.tokens == len(ids) > engine.info.context_length
    total = sum(
        naive(tiny_decoder, tuple(context), own) for context, own in windows(ids, 1, engine.info.context_length)
    )
    assert score.logprob == pytest.approx(total, rel=1e-5)


def test_a_beginning_that_was_read_is_not_read_again(engine: Engine) -> None:
    with engine._base.using(None) as loaded:  # type: ignore[attr-defined]
        embeddings = loaded.module.get_input_embeddings()
    read: list[int] = []
    hook = embeddings.register_forward_hook(lambda _m, args, _out: read.append(args[0].numel()))
    system = Message("system", LONG)
    ask = [(system, Message("user", text)) for text in ("one", "two", "three")]
    engine.score([ScoreRequest(p, ("billing",)) for p in ask[:1]])
    whole, read[:] = sum(read), []
    engine.score([ScoreRequest(p, ("billing",)) for p in ask[1:2]])
    engine.generate(ask[2:], Sampling(max_new_tokens=1))
    hook.remove()
    assert whole > 45
    assert max(read) < 30


def test_embeddings_are_means_of_hidden_states(engine: Engine, tiny_decoder: str) -> None:
    texts = ["refund", LONG * 2, "my parcel"]
    vectors = engine.embed(texts)
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = model.module.model(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    assert vectors.dtype == np.float32
    assert engine.embed([]).shape == (0, 32)


def test_progress_is_told(engine: Engine) -> None:
    told: list[tuple[str, int, int]] = []
    engine.generate(PROMPTS[:2], Sampling(max_new_tokens=1), lambda *a: told.append(a))
    engine.score([ScoreRequest(PROMPTS[0], ("a",))], lambda *a: told.append(a))
    engine.embed(["a", "b"], lambda *a: told.append(a))
    assert told[:2] == [("generate", 1, 2), ("generate", 2, 2)]
    assert ("score", 1, 1) in told and told[-1] == ("embed", 2, 2)


ANSWER = Sampling(max_new_tokens=12)


@pytest.fixture
def family(tiny_decoder: str) -> dict[str, Engine]:
    """The base and two adapters, in one memory."""
    for seed, name in enumerate(("one", "two"), 1):
        make_adapter(tiny_decoder, name, seed)
    return open_many(open_store(), [tiny_decoder, "one", "two"], "torch", FP32)


def alone(name: str) -> list[Generation]:
    engine = open_engine(open_store(), name, "torch", FP32)
    try:
        return engine.generate(PROMPTS, ANSWER)
    finally:
        engine.close()


def test_adapters_share_a_base_and_answer_as_alone(family: dict[str, Engine]) -> None:
    expected = {name: alone(name) for name in family}
    assert len({tuple(a.token_ids for a in answers) for answers in expected.values()}) == 3
    for name in [*family, *reversed(family)]:
        for got, want in zip(family[name].generate(PROMPTS, ANSWER), expected[name], strict=True):
            same(got, want)
    assert len({id(e._base) for e in family.values()}) == 1  # type: ignore[attr-defined]


def test_interleaved_streams_of_different_adapters(family: dict[str, Engine]) -> None:
    expected = {name: alone(name)[0] for name in family}
    streams = {name: engine.stream(PROMPTS[0], ANSWER) for name, engine in family.items()}
    texts, last = dict.fromkeys(streams, ""), {}
    while streams:
        for name, stream in list(streams.items()):
            delta = next(stream)
            texts[name] += delta.text
            if delta.generation is not None:
                last[name] = delta.generation
                del streams[name]
    for name, want in expected.items():
        same(last[name], want)
        assert texts[name] == want.text


def test_a_slow_reader_does_not_hold_the_model(family: dict[str, Engine], tiny_decoder: str) -> None:
    stream = family["one"].stream(PROMPTS[0], ANSWER)
    next(stream)
    done = threading.Event()

    def ask() -> None:
        family["two"].generate(PROMPTS[:1], ANSWER)
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    assert done.wait(60)
    stream.close()  # type: ignore[attr-defined]


def test_threads_with_different_adapters(family: dict[str, Engine]) -> None:
    expected = {name: alone(name) for name in family}
    scored = {name: engine.score([ScoreRequest(PROMPTS[0], ("a", "b"))]) for name, engine in family.items()}
    failures: list[Any] = []

    def work(name: str) -> None:
        try:
            for got, want in zip(family[name].generate(PROMPTS, ANSWER), expected[name], strict=True):
                same(got, want)
            for got_s, want_s in zip(
                family[name].score([ScoreRequest(PROMPTS[0], ("a", "b"))])[0], scored[name][0], strict=True
            ):
                assert got_s.logprob == pytest.approx(want_s.logprob, abs=1e-4)
        except Exception as error:  # noqa: BLE001
            failures.append((name, error))

    threads = [threading.Thread(target=work, args=(name,)) for name in [*family, *family]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []


def test_closing_frees_what_nobody_uses(family: dict[str, Engine], tiny_decoder: str) -> None:
    base = family["one"]._base  # type: ignore[attr-defined]
    family["one"].close()
    family["one"].close()
    with pytest.raises(EngineError, match="closed"):
        family["one"].generate(PROMPTS[:1], ANSWER)
    assert len(base._loaded.attached) == 1
    family["two"].close()
    same(family[tiny_decoder].generate(PROMPTS[:1], ANSWER)[0], alone(tiny_decoder)[0])
    family[tiny_decoder].close()
    assert base._loaded is None


def test_info_says_exactly_what_answers(family: dict[str, Engine], tiny_decoder: str) -> None:
    base, one = family[tiny_decoder].info, family["one"].info
    assert (one.model, one.engine, one.context_length) == ("one", "torch", 512)
    assert one.capabilities == {"generate", "stream", "score", "embed"}
    assert one.parameters == base.parameters == set(PARAMETERS) - {"images"}
    assert one.base_digest == base.model_digest == base.base_digest != one.model_digest
    assert one.template_digest == base.template_digest != ""
    meta = dict(one.meta)
    assert (meta["dtype"], meta["device"]) == ("float32", "cpu")
    assert meta["weights_mb"] > dict(base.meta)["weights_mb"] > 0


def test_whole_weights_have_a_memory_of_their_own(tiny_decoder: str) -> None:
    store = open_store()
    model = load_model(store, tiny_decoder, dtype="fp32")
    with torch.no_grad():
        model.module.model.norm.weight.add_(0.5)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": "weights"})
        digest, size = put(store, folder)
    register(store, ModelRecord("full", "adapter", "decoder", digest, size, base=tiny_decoder))
    both = open_many(store, [tiny_decoder, "full"], "torch", FP32)
    assert both["full"]._base is not both[tiny_decoder]._base  # type: ignore[attr-defined]
    assert (
        both["full"].generate(PROMPTS[:1], ANSWER)[0].logprob
        != both[tiny_decoder].generate(PROMPTS[:1], ANSWER)[0].logprob
    )
    assert both["full"].info.base_digest == both[tiny_decoder].info.model_digest


def test_bf16_answers_and_scores(tiny_decoder: str) -> None:
    engine = open_engine(open_store(), tiny_decoder, "torch", {"dtype": "bf16"})
    fp32 = open_engine(open_store(), tiny_decoder, "torch", FP32)
    assert len(engine.generate(PROMPTS, ANSWER)) == len(PROMPTS)
    request = [ScoreRequest(PROMPTS[0], ("billing", "refund"))]
    for got, want in zip(engine.score(request)[0], fp32.score(request)[0], strict=True):
        assert got.logprob == pytest.approx(want.logprob, abs=0.2)
    assert np.abs(np.linalg.norm(engine.embed(["a", "b"]), axis=1) - 1).max() < 1e-5


def test_what_torch_does_not_open(home: Path) -> None:
    store = open_store()
    entry = catalog.load("engines", "torch")
    with pytest.raises(InputError, match="'nothing' is none"):
        entry(EngineTarget("nothing", store=store), entry.configure())
    export = register(store, ModelRecord("g", "export", "decoder", ""))
    with pytest.raises(UnsupportedError, match="llamacpp"):
        entry(EngineTarget("g", export, None, store), entry.configure())
    with pytest.raises(NotFoundError, match="pull"):
        open_engine(store, "smollm2-135m")
    with pytest.raises(InputError, match="Did you mean 'dtype'"):
        entry.configure({"dtyp": "bf16"})


@pytest.mark.models
def test_the_real_decoder_speaks_and_agrees_with_transformers(real_home: Path) -> None:
    store = open_store(real_home)
    question = user("What is the capital of France? Answer in one sentence.")
    for dtype in ("bf16", "fp32"):
        engine = open_engine(store, "smollm2-135m", "torch", {"dtype": dtype, "device": "cpu"})
        streamed = "".join(d.text for d in engine.stream(question, Sampling(max_new_tokens=24)))
        assert "Paris" in streamed
        assert streamed.endswith(".")
    answers = engine.generate([question, "Once upon a time"], Sampling(max_new_tokens=12))
    labels = ("Paris.", "London.", "I do not know.")
    scores = engine.score([ScoreRequest(question, labels)])[0]
    model = load_model(store, "smollm2-135m", dtype="fp32", device="cpu")
    assert model.renderer is not None
    model.module.set_attn_implementation("sdpa")
    for answer in answers:
        ids = torch.tensor([answer.prompt_token_ids])
        out = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert list(answer.token_ids) == [
            t for t in out[0, ids.shape[1] :].tolist() if t not in model.renderer.stop_ids
        ]
    prompt = model.renderer.prompt_ids(question)
    for text, score in zip(labels, scores, strict=True):
        own = model.renderer.continuation_ids(text, ends_turn=True)
        with torch.no_grad():
            log_probs = model.module(torch.tensor([prompt + own])).logits[0].log_softmax(-1)
        expected = sum(log_probs[len(prompt) - 1 + i, t].item() for i, t in enumerate(own))
        assert score.logprob == pytest.approx(expected, abs=1e-3)
    assert scores[0].logprob > scores[1].logprob


@pytest.mark.models
def test_the_real_model_scores_alike_in_any_batch_and_order(real_home: Path) -> None:
    """Few-shot questions, a text with four endings and a whole text: fp32, to 1e-4 against plain forwards, the same choices."""
    head = "The following are questions about parcels.\n\n" + "".join(
        f"How many days does parcel {n} take?\nA. {n}\nB. {n + 1}\nAnswer: {'AB'[n % 2]}\n\n" for n in range(3)
    )
    requests = [
        ScoreRequest(f"{head}What is {n} plus {n}?\nA. {2 * n}\nB. {n}\nAnswer:", (" A", " B")) for n in range(6)
    ]
    endings = (
        " the courier left it at the door.",
        " a violin.",
        " it rained in March and the lesson was cancelled.",
        " no",
    )
    requests += [ScoreRequest("Anna waited for her parcel all day. In the evening", endings)]
    requests += [ScoreRequest("", (head,)), ScoreRequest(user("Where is my parcel?"), ("billing", "delivery"))]
    store = open_store(real_home)
    engine = open_engine(store, "smollm2-135m", "torch", FP32)
    narrow = open_engine(store, "smollm2-135m", "torch", {**FP32, "max_batch_tokens": 96})
    found = engine.score(requests)
    turned = narrow.score(requests[::-1])[::-1]
    model = load_model(store, "smollm2-135m", dtype="fp32")
    for request, row, other in zip(requests, found, turned, strict=True):
        values = [one.logprob for one in row]
        assert [one.logprob for one in other] == pytest.approx(values, abs=1e-4)
        assert [one.greedy for one in other] == [one.greedy for one in row]
        if isinstance(request.prompt, str):
            own = model.tokenizer.encode(request.prompt) or [1]
            for text, value in zip(request.continuations, values, strict=True):
                ids = model.tokenizer.encode(request.prompt + text)[len(own) if request.prompt else 0 :]
                with torch.no_grad():
                    whole = model.module(torch.tensor([[*own, *ids]])).logits[0].double().log_softmax(-1)
                plain = sum(float(whole[len(own) - 1 + at, token]) for at, token in enumerate(ids))
                assert value == pytest.approx(plain, abs=1e-4 * max(1, len(ids) / 10))
    for each in (engine, narrow):
        each.close()
