from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from luthier.engines._text import AnswerText


@pytest.fixture(scope="module")
def tokenizer(tiny_decoder_path: Path) -> object:
    return AutoTokenizer.from_pretrained(str(tiny_decoder_path))


def decoder(tokenizer):  # type: ignore[no-untyped-def]
    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return decode


def pieces(text: AnswerText, ids: Sequence[int]) -> list[str]:
    out = []
    for token in ids:
        out.append(text.push(token))
        if text.stopped:
            break
    return [*out, text.finish()]


TEXT = "Refund für das 包裹, naïve 🎻🎻 café — ok?"


def test_no_half_characters_and_nothing_lost(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) > len(TEXT)  # the tiny vocabulary spells rare characters in bytes
    text = AnswerText(decoder(tokenizer))
    shown = pieces(text, ids)
    assert "".join(shown) == text.text == TEXT
    assert not any("\ufffd" in piece for piece in shown)
    assert text.ids == tuple(ids)


def test_an_answer_that_ends_within_a_character(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer("ok 🎻")["input_ids"][:-1]
    text = AnswerText(decoder(tokenizer))
    assert "".join(pieces(text, ids)) == text.text == tokenizer.decode(ids)
    assert text.ids == tuple(ids)


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_give_the_text_of_all_tokens(tokenizer, seed: int) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(seed)
    ids = [draw.randrange(3, len(tokenizer)) for _ in range(60)]  # mostly bytes that are no characters
    text = AnswerText(decoder(tokenizer))
    assert "".join(pieces(text, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (("包裹",), "Refund für das "),
        (("für", "das"), "Refund "),
        (("Refund",), ""),
        ((", naïve 🎻",), "Refund für das 包裹"),
        (("absent", "ok!"), TEXT),
        (("?",), TEXT[:-1]),
    ],
)
def test_stop_texts_end_the_answer_wherever_tokens_are_cut(tokenizer, stop: tuple[str, ...], kept: str) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer(TEXT)["input_ids"]
    text = AnswerText(decoder(tokenizer), stop)
    shown = pieces(text, ids)
    assert "".join(shown) == text.text == kept
    assert text.stopped == (kept != TEXT)
    assert tokenizer.decode(text.ids).startswith(kept)
    if text.stopped and text.ids:
        assert len(tokenizer.decode(text.ids[:-1])) < len(kept)  # no token more than the text needs


def test_what_may_become_a_stop_text_is_held_back_and_then_shown() -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    text = AnswerText(decode, ("END",))
    assert [text.push(ord(c)) for c in "aEN"] == ["a", "", ""]
    assert text.push(ord("X")) == "ENX"
    assert [text.push(ord(c)) for c in "EEND"] == ["", "E", "", ""]
    assert text.stopped and text.text == "aENXE"
    assert text.push(ord("z")) == ""
    unfinished = AnswerText(decode, ("END",))
    unfinished.push(ord("E"))
    assert unfinished.finish() == "E"
