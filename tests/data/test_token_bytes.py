"""Bytes of tokens, against what the tokenizers themselves decode."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luthier.core.errors import UnsupportedError
from luthier.data.token_bytes import has_token_bytes, token_bytes

TEXT = "naïve 你好 🙂\n\ttwo  spaces refund {}"


def _sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's: pieces with U+2581 for spaces, other characters as bytes."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "t",
        "w",
        "o",
        "tw",
        "two",
        "\u2581two",
    ]
    merges = [("t", "w"), ("tw", "o"), ("\u2581", "two")]
    raw = Tokenizer(
        models.BPE({p: n for n, p in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    raw.normalizer = normalizers.Replace(" ", "\u2581")
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")


def test_the_bytes_of_a_texts_tokens_are_the_text(tiny_decoder_path: Path) -> None:
    for tokenizer in (AutoTokenizer.from_pretrained(str(tiny_decoder_path)), _sentencepiece()):
        known = token_bytes(tokenizer)
        assert b"".join(known[i] for i in tokenizer(TEXT, add_special_tokens=False)["input_ids"]) == TEXT.encode()
        assert len(known) == len(tokenizer)
        assert has_token_bytes(tokenizer)


def test_special_tokens_give_their_text(tiny_decoder_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    assert token_bytes(tokenizer)[tokenizer.eos_token_id] == b"<|im_end|>"


def test_metaspace_pieces() -> None:
    raw = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0), ("b", -2.0)], unk_id=0))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")) == [b"<unk>", b" a", b"b"]


def test_word_pieces_are_refused(tiny_encoder_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="byte-level and SentencePiece"):
        token_bytes(AutoTokenizer.from_pretrained(str(tiny_encoder_path)))
    assert not has_token_bytes(AutoTokenizer.from_pretrained(str(tiny_encoder_path)))
