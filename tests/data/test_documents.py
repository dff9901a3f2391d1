"""Plain documents as tokens: no markup, pieces inside a text, windows and rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import InputError, UnsupportedError
from luthier.data.documents import DocumentEncoder, inner_ids, pack, windows
from luthier.data.render import Renderer


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture
def sentencepiece_like() -> Any:
    """A tokenizer that puts a space before the first word of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    raw.train_from_iterator(
        ["the parcel has not arrived and the courier does not answer"] * 4,
        trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"]),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_special_tokens_in_a_text_are_text_and_the_tokenizer_stays_as_it_was(
    tiny_decoder_path: Path, tiny_encoder_path: Path
) -> None:
    for folder, markup in ((tiny_decoder_path, "<|im_end|>"), (tiny_encoder_path, "[MASK]")):
        tokenizer = tokenizer_of(folder)
        encoder, mark = DocumentEncoder(tokenizer), tokenizer.convert_tokens_to_ids(markup)
        (found,) = encoder.encode([f"a {markup} b"])
        assert mark not in found.ids and len(found.ids) == len(found.words) == len(found.characters)
        assert mark in tokenizer(f"a {markup} b")["input_ids"]
        assert found.characters[0] == (0, 1) and found.characters[-1][1] == len(f"a {markup} b")
    assert (encoder.before, encoder.after) == ([2], [3])
    with pytest.raises(UnsupportedError, match="names no token that ends a document"):
        encoder.end()


def test_the_end_of_a_document(tiny_decoder_path: Path, sentencepiece_like: Any) -> None:
    tokenizer = tokenizer_of(tiny_decoder_path)
    assert tokenizer.eos_token == "<|im_end|>"
    assert DocumentEncoder(tokenizer).end() == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert DocumentEncoder(tokenizer).end("<|im_end|>") == tokenizer.eos_token_id
    assert DocumentEncoder(sentencepiece_like).end() == sentencepiece_like.eos_token_id
    with pytest.raises(InputError, match="got '<none>'"):
        DocumentEncoder(tokenizer).end("<none>")


def test_pieces_inside_a_text_get_no_space_of_their_own(tiny_decoder_path: Path, sentencepiece_like: Any) -> None:
    text = "the parcel has not arrived"
    for tokenizer in (tokenizer_of(tiny_decoder_path), sentencepiece_like):
        renderer, encoder = Renderer(tokenizer), DocumentEncoder(tokenizer)
        for at in range(1, len(text)):
            (first,), (rest,) = encoder.encode([text[:at]]), inner_ids(renderer, [text[at:]])
            assert tokenizer.decode([*first.ids, *rest]) == text
    assert sentencepiece_like.convert_ids_to_tokens(encoder.encode(["cel"])[0].ids)[0].startswith("▁")
    assert not sentencepiece_like.convert_ids_to_tokens(inner_ids(renderer, ["cel"])[0])[0].startswith("▁")
    assert inner_ids(renderer, ["", "a</s>b"])[0] == []
    assert sentencepiece_like.eos_token_id not in inner_ids(renderer, ["a</s>b"])[0]


def test_windows() -> None:
    assert windows(5, 5, 4) == [(0, 5)]
    assert windows(6, 5, 4) == [(0, 5), (1, 6)]
    assert windows(13, 5, 4) == [(0, 5), (4, 9), (8, 13)]
    assert windows(12, 5, 5) == [(0, 5), (5, 10), (7, 12)]
    for count in range(1, 60):
        for stride in (1, 3, 7):
            found = windows(count, 7, stride)
            assert {i for start, end in found for i in range(start, end)} == set(range(count))
            assert all(end - start == min(7, count) for start, end in found)


def test_rows_are_full_and_hold_everything_once() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 100) for _ in range(500)]
    rows = pack(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
    assert len(rows) <= 1.03 * sum(lengths) / 100 + 1
    assert pack([3, 2, 2, 3], 5) == [[0, 1], [3, 2]]
    assert pack(lengths, 100) == rows and pack([], 5) == []
