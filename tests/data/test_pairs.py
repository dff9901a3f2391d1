"""Raw prompts with continuations: the cut pieces against the definition of lm-evaluation-harness, on random text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import InputError
from luthier.data import pairs
from luthier.data.pairs import PairEncoder, windows

WORDS = [
    "the",
    "parcel",
    "refund",
    "O'Neil's",
    "12",
    "3.5",
    "billing",
    "包裹",
    "没有到",
    "é",
    "e\u0301",
    "I'm",
    "?!",
    "(a)",
    "|>",
    ":",
]
SPACES = [" ", " ", " ", "\n", "\n\n", "  ", "\n ", " \n", "\t", "", "。\n", ".\n", "\r\n", "\u3000", "<|im_end|>"]


def harness(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """What HFLM makes of a pair: everything is tokenised twice."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation, context = context[-spaces:] + continuation, context[:-spaces]
    whole, own = tokenizer.encode(context + continuation), tokenizer.encode(context)
    return own, whole[len(own) :]


def byte_level(*, add: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A byte-level BPE tokenizer with merges over words; ``changes`` replace its parts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = changes.get("pre_tokenizer") or pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    draw = random.Random(0)
    text = ["".join(draw.choice(WORDS) + draw.choice(SPACES[:-1]) for _ in range(30)) for _ in range(60)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|s|>", "<|im_end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(text, trainer)
    for name in ("normalizer", "post_processor"):
        if name in changes:
            setattr(raw, name, changes[name])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|s|>", eos_token="<|im_end|>", **(add or {}))


def tokenizers() -> dict[str, Any]:
    from tokenizers import Regex, normalizers, pre_tokenizers, processors

    def words(pattern: str) -> Any:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    begins = processors.TemplateProcessing(single="<|s|> $A", special_tokens=[("<|s|>", 0)])
    three, one = sorted(pairs._WORDS, key=len, reverse=True)
    return {
        "gpt2": byte_level(),
        "smollm": byte_level(pre_tokenizer=digits),
        "llama3": byte_level(pre_tokenizer=words(three), post_processor=begins),
        "qwen2": byte_level(pre_tokenizer=words(one), normalizer=normalizers.NFC()),
        "unknown": byte_level(pre_tokenizer=words(r"\S+|\s+")),
        "lowered": byte_level(normalizer=normalizers.Lowercase()),
    }


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return tokenizers()


texts = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SPACES)), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(texts, texts, st.booleans())
def test_ids_are_those_of_the_whole_text(
    made: dict[str, Any], before: list[tuple[str, str]], after: list[tuple[str, str]], spaced: bool
) -> None:
    context = "".join(word + space for word, space in before)
    continuations = ["".join(word + space for word, space in after), "s", " A", "\n"]
    if spaced:
        continuations = [" " + each for each in continuations]
    for tokenizer in made.values():
        wanted = [harness(tokenizer, context, each) for each in continuations]
        kept = [each for each, (_, ids) in zip(continuations, wanted, strict=True) if ids]
        ((prompt, found),) = PairEncoder(tokenizer).encode([(context, kept)])
        assert [(prompt, ids) for ids in found] == [pair for pair in wanted if pair[1]]


def test_which_tokenizers_are_cut(made: dict[str, Any], tiny_encoder_path: Path) -> None:
    from transformers import AutoTokenizer

    can = {name: PairEncoder(tokenizer).can_cut for name, tokenizer in made.items()}
    assert can == {"gpt2": True, "smollm": True, "llama3": True, "qwen2": True, "unknown": False, "lowered": False}
    assert not PairEncoder(AutoTokenizer.from_pretrained(str(tiny_encoder_path))).can_cut
    with_space = byte_level(add={"additional_special_tokens": ["two words"]})
    assert not PairEncoder(with_space).can_cut


def test_shared_examples_are_tokenised_once(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PairEncoder(made["gpt2"])
    assert encoder.can_cut
    seen: list[str] = []
    ids = encoder._ids
    monkeypatch.setattr(encoder, "_ids", lambda texts, add: seen.extend(texts) or ids(texts, add))
    head = "Questions about parcels.\n\n" + "".join(f"Where is parcel {n}?\nAnswer: here\n\n" for n in range(20))
    rows = [(f"{head}Where is parcel {n} now?\nAnswer:", [" A", " B", " C", " D"]) for n in range(50)]
    found = encoder.encode(rows)
    assert sum(map(len, seen)) < len(head) + 50 * 60
    for (context, letters), (prompt, continuations) in list(zip(rows, found, strict=True))[::10]:
        assert [harness(made["gpt2"], context, letter) for letter in letters] == [(prompt, c) for c in continuations]


def test_texts_without_a_prompt_follow_the_beginning_token(made: dict[str, Any]) -> None:
    for name in ("gpt2", "llama3"):
        tokenizer = made[name]
        bare = tokenizer.encode("The parcel", add_special_tokens=False)
        assert PairEncoder(tokenizer).encode([("", ["The parcel"])]) == [([tokenizer.bos_token_id], [bare])]
        spaced = tokenizer.encode(" The parcel", add_special_tokens=False)
        assert PairEncoder(tokenizer).encode([(" ", ["The parcel"])]) == [([tokenizer.bos_token_id], [spaced])]
    assert PairEncoder(made["llama3"]).encode([("<|s|>a", [" b"])])[0][0][:2] != [0, 0]  # not begun twice


def test_what_cannot_be_asked_is_refused(made: dict[str, Any]) -> None:
    encoder = PairEncoder(made["gpt2"])
    with pytest.raises(InputError, match="must add a token"):
        encoder.encode([("parcel", [""])])
    with pytest.raises(InputError, match="surrogate"):
        encoder.encode([("parcel", ["\ud800"])])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 30])
def test_windows_predict_every_token_once(count: int) -> None:
    ids = list(range(100, 100 + count))
    cut = windows(ids, 1, 8)
    assert [token for _, predicted in cut for token in predicted] == ids
    assert cut[0][0] == [1]
    whole = [1, *ids]
    at = 0
    for context, predicted in cut:
        at += len(predicted)
        assert len(context) >= 1 and len(context) + len(predicted) - 1 <= 8
        assert [*context, *predicted] == whole[at - len(context) - len(predicted) + 1 : at + 1]
