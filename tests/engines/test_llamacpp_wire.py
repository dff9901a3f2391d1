"""Every parameter of llama.cpp against its definition, worked out on the same model in torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tests.engines.sharp import EXACT, QUESTIONS, both, decoder

from luthier.core.engine import Constraint, Delta, Engine, Generation, Sampling, TokenLogprob, require_parameters
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.core.message import Tool
from luthier.data.token_bytes import bytes_of_tokens
from luthier.engines._llamacpp_wire import split_bytes
from luthier.engines._open import open_engine
from luthier.models.load import load_model
from luthier.models.pull import pull
from luthier.store.database import open_store


@pytest.fixture
def ours(sharp: str, opened: list[Engine]) -> Any:
    engine = open_engine(open_store(), sharp, "llamacpp", EXACT)
    opened.append(engine)
    return engine


@pytest.fixture
def logits(sharp: str) -> Callable[[list[int]], torch.Tensor]:
    """The logits after token ids, by torch in fp32."""
    module = load_model(open_store(), sharp, dtype="fp32", device="cpu").module

    def after(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = module(torch.tensor([ids])).logits[0, -1]
        return found

    return after


def greedy(logits: Any, prompt: list[int], tokens: int, change: Callable[[torch.Tensor, list[int]], Any]) -> list[int]:
    """Greedy tokens after ``change(logits, answer so far)``."""
    said: list[int] = []
    for _ in range(tokens):
        found = logits([*prompt, *said]).clone()
        change(found, said)
        said.append(int(found.argmax()))
    return said


@pytest.mark.parametrize(
    ("presence", "frequency", "bias"),
    [
        (0.0, 2.0, {}),
        (2.0, 0.0, {}),
        (1.5, 0.7, {}),
        (-1.5, -0.5, {}),
        (0.0, 0.0, {70: 4.0, 80: -100.0}),
        (2.0, 1.0, {70: 4.0}),
    ],
)
def test_penalties_are_of_the_answer_alone(
    ours: Any, logits: Any, presence: float, frequency: float, bias: dict[int, float]
) -> None:
    sampling = Sampling(
        max_new_tokens=24, presence_penalty=presence, frequency_penalty=frequency, logit_bias=tuple(bias.items())
    )
    require_parameters(ours.info, QUESTIONS, sampling)

    def penalise(found: torch.Tensor, said: list[int]) -> None:
        for token, count in Counter(said).items():
            found[token] -= presence + frequency * count
        for token, value in bias.items():
            found[token] += value

    plain = ours.generate(QUESTIONS, replace(sampling, presence_penalty=0.0, frequency_penalty=0.0, logit_bias=()))
    answers = ours.generate(QUESTIONS, sampling)
    for prompt, answer in zip(QUESTIONS, answers, strict=True):
        expected = greedy(logits, list(answer.prompt_token_ids), len(answer.token_ids), penalise)
        assert list(answer.token_ids) == expected
        assert list(ours.stream(prompt, sampling))[-1].generation.text == answer.text
    assert [answer.token_ids for answer in answers] != [answer.token_ids for answer in plain]


def test_a_repetition_penalty_beside_another_one_is_refused(ours: Any) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        sampling = Sampling(repetition_penalty=1.2, **{name: 0.5})  # type: ignore[arg-type]
        for call in (ours.generate, lambda prompts, s: list(ours.stream(prompts[0], s))):
            with pytest.raises(UnsupportedError, match=f"{name}.*repetition_penalty") as raised:
                call(QUESTIONS[:1], sampling)
            assert raised.value.parameters == (name, "repetition_penalty")


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(ours: Any, logits: Any) -> None:
    """The shares of first tokens are those of the definition: temperature, then every token below min_p of the best is out."""
    prompt = ours.generate(QUESTIONS[:1], Sampling(max_new_tokens=1))[0].prompt_token_ids
    shares = (logits(list(prompt)) / 2.0).softmax(-1)
    smallest = float(shares.sort(descending=True).values[3] / shares.max()) * 0.999
    kept = torch.where(shares >= smallest * shares.max(), shares, 0.0)
    kept /= kept.sum()
    assert int((kept > 0).sum()) == 4
    sampling = Sampling(max_new_tokens=1, temperature=2.0, min_p=smallest)
    drawn = Counter(g.token_ids[0] for g in ours.generate(QUESTIONS[:1] * 300, sampling))
    assert set(drawn) <= set(kept.nonzero().flatten().tolist())
    for token in kept.nonzero().flatten().tolist():
        expected = float(kept[token])
        assert abs(drawn[token] / 300 - expected) < 5 * (expected * (1 - expected) / 300) ** 0.5 + 0.01


def checked_logprobs(logits: Any, answer: Generation, alternatives: int) -> int:
    """Compare what is said of each token with torch; returns how many tokens are not whole characters."""
    assert len(answer.tokens) == len(answer.token_ids) > 0
    before, partial = list(answer.prompt_token_ids), 0
    for token, about in zip(answer.token_ids, answer.tokens, strict=True):
        expected = logits(before).log_softmax(-1)
        assert about.logprob == pytest.approx(float(expected[token]), abs=3e-3)
        best = expected.topk(alternatives).values.tolist() if alternatives else []
        assert [value for _, value in about.top] == pytest.approx(best, abs=3e-3)
        try:
            about.data.decode()
        except UnicodeDecodeError:
            partial += 1
        before.append(token)
    assert answer.logprob == pytest.approx(sum(about.logprob for about in answer.tokens))
    return partial


def same_but_for_rounding(ours: tuple[TokenLogprob, ...], theirs: tuple[TokenLogprob, ...]) -> bool:
    return [t.data for t in ours] == [t.data for t in theirs] and [t.logprob for t in ours] == pytest.approx(
        [t.logprob for t in theirs], abs=1e-3
    )


@pytest.mark.parametrize("alternatives", [0, 3])
def test_log_probabilities_are_those_of_torch_and_their_bytes_are_the_text(
    ours: Any, logits: Any, alternatives: int
) -> None:
    sampling = Sampling(max_new_tokens=16, logprobs=alternatives)
    for prompt in QUESTIONS:
        (answer,) = ours.generate([prompt], sampling)
        checked_logprobs(logits, answer, alternatives)
        assert b"".join(about.data for about in answer.tokens).decode(errors="replace").startswith(answer.text[:-1])
        deltas = list(ours.stream(prompt, sampling))
        last = deltas[-1].generation
        assert (last.text, last.token_ids, last.finish_reason) == (answer.text, answer.token_ids, answer.finish_reason)
        assert same_but_for_rounding(last.tokens, answer.tokens)
        assert tuple(token for delta in deltas for token in delta.tokens) == last.tokens
        assert "".join(delta.text for delta in deltas) == answer.text
    assert ours.generate(QUESTIONS[:1], Sampling(max_new_tokens=2))[0].logprob is None


def entry(token: int, data: bytes) -> dict[str, Any]:
    return {"id": token, "bytes": list(data), "logprob": -1.0, "top_logprobs": []}


def test_an_answer_fills_in_the_tokens_that_llama_cpp_leaves_out(ours: Any, logits: Any) -> None:
    """Chinese characters and an emoji in single bytes: llama.cpp reports the last byte of each."""
    vocabulary = ours._tokens.vocabulary
    prompt = ours._prompt_ids(QUESTIONS[0], Sampling())
    text = "a的é🎻"
    ids = [vocabulary.index(bytes([byte])) for byte in text.encode()]
    lasts = [ids[end - 1] for end in (1, 4, 6, 10)]
    answer = {
        "tokens": ids, "stop_type": "limit", "timings/cache_n": 3,
        "completion_probabilities": [entry(token, vocabulary[token]) for token in lasts],
    }  # fmt: skip
    made = ours._reader(prompt, Sampling(max_new_tokens=10, logprobs=2)).whole(answer)
    assert (made.text, made.token_ids, made.cached_tokens) == (text, tuple(ids), 3)
    assert b"".join(about.data for about in made.tokens).decode() == text
    for place, (token, about) in enumerate(zip(ids, made.tokens, strict=True)):
        if token in lasts:
            assert (about.logprob, about.top) == (-1.0, ())
            continue
        expected = logits([*prompt, *ids[:place]]).log_softmax(-1)
        assert about.logprob == pytest.approx(float(expected[token]), abs=3e-3)
        assert [value for _, value in about.top] == pytest.approx(expected.topk(2).values.tolist(), abs=3e-3)


def test_a_stream_fills_in_the_tokens_that_llama_cpp_leaves_out(ours: Any) -> None:
    """Events as llama.cpp sends them: the last token of a character stands for those before it."""
    vocabulary = ours._tokens.vocabulary
    prompt = ours._prompt_ids(QUESTIONS[0], Sampling())
    ids = [vocabulary.index(bytes([byte])) for byte in "的".encode()]
    plain = vocabulary.index(b"a")

    events = [
        {"content": "a", "tokens": [plain], "tokens_predicted": 1, "completion_probabilities": [entry(plain, b"a")]},
        {
            "content": "的", "tokens": ids[2:], "tokens_predicted": 4,
            "completion_probabilities": [entry(ids[2], vocabulary[ids[2]])],
        },
        {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "tokens_predicted": 4, "timings/cache_n": 5},
    ]  # fmt: skip
    sampling = Sampling(max_new_tokens=4, logprobs=0)
    deltas: list[Delta] = list(ours._reader(prompt, sampling).stream(events))
    last = deltas[-1].generation
    assert last is not None
    assert (last.text, last.token_ids, last.cached_tokens) == ("a的", (plain, *ids), 5)
    assert b"".join(token.data for token in last.tokens) == "a的".encode()
    assert last.tokens[1].logprob == pytest.approx(ours._tokens.score([*prompt, plain], ids[0])[0], abs=1e-3)
    with pytest.raises(EngineError, match="broke off"):
        list(ours._reader(prompt, sampling).stream(events[:2]))
    with pytest.raises(EngineError, match="broke off"):
        list(ours._reader(prompt, Sampling()).stream(events[:2]))


def test_bytes_are_split_into_tokens() -> None:
    vocabulary = {b"ab": 1, b"a": 2, b"b": 3, b"c": 4}
    assert split_bytes(b"abc", 2, vocabulary) == [1, 4]
    assert split_bytes(b"abc", 3, vocabulary) == [2, 3, 4]
    with pytest.raises(EngineError, match="vocabulary"):
        split_bytes(b"abd", 2, vocabulary)


def test_stop_texts_end_a_stream_that_reports_tokens(ours: Any) -> None:
    text = ours.generate(QUESTIONS[:1], Sampling(max_new_tokens=40))[0].text
    stop = next(text[i : i + 2] for i in range(4, len(text) - 2) if text[i : i + 2].isascii())
    for sampling in (Sampling(max_new_tokens=40, stop=(stop,), logprobs=1), Sampling(max_new_tokens=40, stop=(stop,))):
        whole = ours.generate(QUESTIONS[:1], sampling)[0]
        deltas = list(ours.stream(QUESTIONS[0], sampling))
        last = deltas[-1].generation
        assert (last.text, last.finish_reason, last.tokens) == (whole.text, "stop", last.tokens)
        assert "".join(delta.text for delta in deltas) == whole.text == text[: text.index(stop)]
        assert tuple(token for delta in deltas for token in delta.tokens) == last.tokens
        assert len(last.tokens) == (len(whole.token_ids) if sampling.logprobs is not None else 0)


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "number": {"type": "integer", "minimum": 3, "maximum": 40},
        "kinds": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "number", "kinds"],
    "additionalProperties": False,
}
FORMS = {
    "json_schema": (json.dumps(SCHEMA), lambda text: jsonschema.validate(json.loads(text), SCHEMA)),
    "regex": ("[a-c]{2,5}(-[0-9]+)?x", lambda text: re.fullmatch("[a-c]{2,5}(-[0-9]+)?x", text)[0]),  # type: ignore[index]
    "choice": ('["billing", "refund now", "我的"]', ["billing", "refund now", "我的"].index),
    "grammar": ('root ::= "(" ([a-z] | root){1,3} ")"', lambda text: re.fullmatch(r"\([a-z()]+\)", text)[0]),  # type: ignore[index]
}


@pytest.mark.parametrize("kind", list(FORMS))
def test_an_answer_has_the_form_that_it_must_have_and_is_that_of_torch(
    kind: str, sharp: str, opened: list[Engine]
) -> None:
    engine, reference = both(opened, sharp)
    value, check = FORMS[kind]
    sampling = Sampling(max_new_tokens=200, constraint=Constraint(kind, value))  # type: ignore[arg-type]
    require_parameters(engine.info, QUESTIONS, sampling)
    for prompt in QUESTIONS:
        (answer,) = engine.generate([prompt], sampling)
        assert answer.finish_reason == "stop"
        check(answer.text)
        assert "".join(delta.text for delta in engine.stream(prompt, sampling)) == answer.text
        if (
            kind != "json_schema"
        ):  # torch writes texts without a choice in the tokenizer's own pieces, which changes what follows
            assert answer.text == reference.generate([prompt], sampling)[0].text
        (drawn,) = engine.generate([prompt], replace(sampling, temperature=1.5, seed=4))
        check(drawn.text)


def test_special_tokens_do_not_stand_for_their_letters(ours: Any) -> None:
    """llama.cpp's grammars read their text, which no answer shows."""
    start = ours._renderer.tokenizer.convert_tokens_to_ids("<|im_start|>")
    sampling = Sampling(max_new_tokens=40, logit_bias=((start, 100.0),), constraint=Constraint("regex", "[^x]{15}x"))
    (answer,) = ours.generate(QUESTIONS[:1], sampling)
    assert start not in answer.token_ids and re.fullmatch("[^x]{15}x", answer.text)


@pytest.mark.parametrize("lead, rest", [(0xC1, 0xA2), (0xE0, 0x81), (0xF0, 0x82), (0xFE, 0x80)])
def test_bytes_that_are_no_text_do_not_stand_for_characters(ours: Any, lead: int, rest: int) -> None:
    """llama.cpp reads C1 A2 as a letter b, which UTF-8 forbids."""
    data = bytes_of_tokens(ours._renderer)
    bias = tuple((data.index(bytes([byte])), value) for byte, value in ((lead, 99.0), (rest, 100.0)))
    form = Constraint("regex", "[a-zA-Z\u0080-\uffff]{4}")
    (answer,) = ours.generate(QUESTIONS[:1], Sampling(max_new_tokens=40, logit_bias=bias, constraint=form))
    assert re.fullmatch(form.value, b"".join(data[token] for token in answer.token_ids).decode())


def test_any_object_in_json(ours: Any) -> None:
    for seed in range(4):
        sampling = Sampling(max_new_tokens=300, temperature=1.0, seed=seed, constraint=Constraint("json"))
        (answer,) = ours.generate(QUESTIONS[:1], sampling)
        assert answer.text.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)


def test_forms_that_cannot_be(ours: Any) -> None:
    bad = Sampling(constraint=Constraint("grammar", 'root ::= "a'))
    with pytest.raises(InputError, match="grammar"):
        ours.generate(QUESTIONS[:1], bad)
    with pytest.raises(InputError, match="grammar"):
        ours.stream(QUESTIONS[0], bad)
    both_asked = Sampling(presence_penalty=1.0, constraint=Constraint("choice", '["a"]'))
    with pytest.raises(UnsupportedError, match="presence_penalty") as raised:
        ours.generate(QUESTIONS[:1], both_asked)
    assert raised.value.parameters == ("presence_penalty", "choice")
    with pytest.raises(InputError, match="logit_bias names token 9999"):
        ours.generate(QUESTIONS[:1], Sampling(logit_bias=((9999, 1.0),)))


TOOLS = (
    Tool(
        "look_up",
        "Finds a parcel.",
        json.dumps(
            {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": False}
        ),
    ),
    Tool("mail", "Writes a mail.", '{"type": "object", "properties": {}, "additionalProperties": false}'),
)


@pytest.mark.parametrize("choice", ["required", "mail", "look_up"])
def test_calls_that_must_come_come(
    choice: str, home: Path, tmp_path: Path, tiny_decoder_path: Path, opened: list[Engine]
) -> None:
    folder = decoder(tiny_decoder_path, tmp_path / "long", max_position_embeddings=2048)
    engine, reference = both(opened, pull(f"file:{folder}", alias="long").name, context_length=2048)
    sampling = Sampling(max_new_tokens=120, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    for prompt in QUESTIONS[:3]:
        (answer,) = engine.generate([prompt], sampling)
        assert (answer.finish_reason, answer.text) == ("tool_calls", "")
        (call,) = answer.tool_calls
        arguments = json.loads(call.arguments)
        assert (call.name, arguments.get("n", 1)) in {("look_up", 1), ("look_up", 22), ("mail", 1)}
        assert choice in ("required", call.name)
        assert len(answer.prompt_token_ids) > 100  # the tools are in the prompt
        streamed = list(engine.stream(prompt, sampling))
        calls = [each for delta in streamed for each in delta.tool_calls]
        assert [(each.name, each.arguments) for each in calls] == [(call.name, call.arguments)]
        assert "".join(delta.text for delta in streamed) == ""
        (theirs,) = reference.generate([prompt], sampling)[0].tool_calls
        assert (call.name, call.arguments) == (theirs.name, theirs.arguments)
    (free,) = engine.generate(QUESTIONS[:1], replace(sampling, tool_choice="none"))
    assert free.tool_calls == ()
