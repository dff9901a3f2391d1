from __future__ import annotations

import json
import subprocess
import sys

import pytest

from luthier.core.errors import DataError, InputError
from luthier.data.documents import DocumentEncoder
from luthier.data.read import examples_from_rows
from luthier.data.render import Renderer
from luthier.models.new_tokenizer import (
    DECODER_TOKENS,
    digest_of,
    texts_of,
    train_decoder_tokenizer,
    train_encoder_tokenizer,
)

TEXTS = [
    "The parcel has not arrived and the courier does not answer; the café is closed.",
    "Please refund the deposit for the violin I returned in March 2024.",
    "我的包裹还没有到,请帮我查一下。",
    "Naïve coöperation: the parcel, the parcels, the courier's parcels.",
]


def test_bytes_come_back_and_digits_stand_alone() -> None:
    tokenizer = train_decoder_tokenizer(TEXTS * 3, 400)
    text = "A parcel\n\tof 2024 \u20ac and \U0001f600 in 包裹 "
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [token for token in tokenizer.convert_ids_to_tokens(ids) if any(c in "0123456789" for c in token)] == list(
        "2024"
    )
    assert len(tokenizer) <= 400 and tokenizer.convert_ids_to_tokens(list(range(7))) == list(DECODER_TOKENS)
    encoder = DocumentEncoder(tokenizer)
    assert (encoder.before, encoder.after, encoder.end()) == ([], [], 0)


def test_its_template_trains_and_serves() -> None:
    from luthier.core.message import Message

    renderer = Renderer(train_decoder_tokenizer(TEXTS, 300))
    asked = (Message("system", "Be brief."), Message("user", "Where?"))
    opened = renderer.text(asked)
    assert opened == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    )
    taught = renderer.training_ids((*asked, Message("assistant", "Here.")))
    learnt = [token for token, mine in zip(taught.ids, taught.mask, strict=True) if mine]
    assert renderer.decode(learnt, special=True) == "Here.<|im_end|>"
    assert taught.ids[: len(renderer.prompt_ids(asked))] == renderer.prompt_ids(asked)


def test_word_pieces_know_every_letter_and_put_marks_around() -> None:
    tokenizer = train_encoder_tokenizer(TEXTS, 300)
    known = tokenizer.get_vocab()
    assert [known[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    words = "The cafe, the parcel: 包"
    assert "[UNK]" not in tokenizer.tokenize(words)
    assert tokenizer.decode(tokenizer(words)["input_ids"]).startswith("[CLS] the cafe, the parcel")
    assert len(known) == len(set(known.values())) <= 300
    assert "The" in train_encoder_tokenizer(TEXTS * 2, 300, lowercase=False).get_vocab()


_AGAIN = """
import json, sys
from luthier.models.new_tokenizer import digest_of, train_decoder_tokenizer, train_encoder_tokenizer
texts = json.load(sys.stdin)
print(digest_of(train_decoder_tokenizer(texts, 400)), digest_of(train_encoder_tokenizer(texts, 300)))
"""


def test_the_same_texts_give_the_same_tokenizer_in_every_process() -> None:
    here = [digest_of(train_decoder_tokenizer(TEXTS, 400)), digest_of(train_encoder_tokenizer(TEXTS, 300))]
    there = subprocess.run(
        [sys.executable, "-c", _AGAIN], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == here
    assert digest_of(train_encoder_tokenizer(TEXTS, 300)) == here[1]


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match=r"at least 263 for byte-level BPE.*got 200"):
        train_decoder_tokenizer(TEXTS, 200)
    with pytest.raises(InputError, match="at least 64 for WordPiece; got 20"):
        train_encoder_tokenizer(TEXTS, 20)
    for train in (train_decoder_tokenizer, train_encoder_tokenizer):
        with pytest.raises(DataError, match="no text to train a tokenizer on"):
            train([" ", "\n"], 400)


def test_texts_of_rows_of_every_kind() -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    chat = examples_from_rows((("f", n, row) for n, row in enumerate(rows, 1)), name="d")
    labelled = examples_from_rows([("f", 1, {"text": "t", "label": "x"})], name="d")
    assert (list(texts_of(chat)), list(texts_of(labelled))) == (["q", "a"], ["t", "x"])
