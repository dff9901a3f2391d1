"""Tokenizers in GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luthier.core.errors import MismatchError, UnsupportedError
from luthier.data.render import Renderer
from luthier.models.gguf_tokenizer import PRE_TOKENIZERS, build_tokenizer
from luthier.models.gguf_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, split_name

TEXT = "In 2024 I'd paid 1234567 € for 2 violins…\n\n  Ok?\t我的包裹 don't"


@pytest.fixture
def tokenizer(tiny_decoder_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(tiny_decoder_path))


def test_tokens_types_and_special_ids(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken("<plain>", special=False)])
    size = len(tokenizer)
    found = Vocabulary.of(tokenizer, size + 3, Renderer(tokenizer))
    assert len(found.tokens) == len(found.types) == size + 3
    assert found.tokens[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert found.types[:4] == (CONTROL, CONTROL, CONTROL, NORMAL)
    assert (found.tokens[size - 1], found.types[size - 1]) == ("<plain>", USER_DEFINED)
    assert found.tokens[size:] == tuple(f"[PAD{i}]" for i in range(size, size + 3))
    assert set(found.types[size:]) == {UNUSED}
    assert found.special == {"bos": 1, "eos": 2, "pad": 0}
    assert found.split == "gpt-2"
    assert not found.adds_bos
    assert found.template == tokenizer.chat_template
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    assert [tuple(m.split(" ")) for m in found.merges] == [tuple(m) for m in described["model"]["merges"]]


def test_an_end_of_turn_that_is_not_the_end_of_text_is_named(tokenizer: Any) -> None:
    tokenizer.eos_token = "<|endoftext|>"
    found = Vocabulary.of(tokenizer, len(tokenizer), Renderer(tokenizer))
    assert (found.special["eos"], found.special["eot"]) == (0, 2)


def test_a_tokenizer_that_opens_texts_says_so(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert Vocabulary.of(tokenizer, len(tokenizer), None).adds_bos


def test_more_tokens_than_rows(tokenizer: Any) -> None:
    with pytest.raises(MismatchError, match="383; the model has 300 rows"):
        Vocabulary.of(tokenizer, 300, None)


def trained(pre: Any, **options: Any) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE(**options))
    raw.pre_tokenizer, raw.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=["<s>"], initial_alphabet=alphabet)
    raw.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<s>")


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_known_way_of_cutting_is_named_and_reads_back(name: str) -> None:
    digits, expression = PRE_TOKENIZERS[name]
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if expression:
        steps.append(pre_tokenizers.Split(Regex(expression), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression))
    made = trained(pre_tokenizers.Sequence(steps), ignore_merges=name == "llama-bpe")
    found = Vocabulary.of(made, len(made), None)
    assert found.split == name
    back = build_tokenizer(
        Path("x.gguf"),
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": found.split,
            "tokenizer.ggml.tokens": list(found.tokens),
            "tokenizer.ggml.token_type": list(found.types),
            "tokenizer.ggml.merges": list(found.merges),
            "tokenizer.ggml.add_bos_token": found.adds_bos,
        },
    )
    assert back(TEXT)["input_ids"] == made(TEXT)["input_ids"]


@pytest.mark.parametrize(
    "pre",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(False)]),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\d+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
    ],
)
def test_other_ways_of_cutting_are_refused(pre: Any) -> None:
    with pytest.raises(UnsupportedError, match="cuts text"):
        Vocabulary.of(trained(pre), 350, None)


def test_other_models_and_normalizers_are_refused(tokenizer: Any, tiny_encoder_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="WordPiece"):
        Vocabulary.of(AutoTokenizer.from_pretrained(str(tiny_encoder_path)), 300, None)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    assert split_name(described | {"normalizer": {"type": "NFC"}}) == "gpt-2"
    with pytest.raises(UnsupportedError, match="Lowercase"):
        split_name(described | {"normalizer": {"type": "Lowercase"}})
    with pytest.raises(UnsupportedError, match="fast tokenizer"):
        Vocabulary.of(object(), 10, None)
