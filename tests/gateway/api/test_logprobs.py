from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.core.engine import TokenLogprob
from luthier.gateway.api.logprobs import columns, finite, listed


def test_a_list_says_text_and_bytes() -> None:
    whole = TokenLogprob(b" caf", -0.5, ((b" caf", -0.5), (b" tea", -1.5)))
    part = TokenLogprob("é".encode()[:1], float("-inf"))
    first, second = listed([whole, part])
    assert first == {
        "token": " caf", "logprob": -0.5, "bytes": list(b" caf"),
        "top_logprobs": [
            {"token": " caf", "logprob": -0.5, "bytes": list(b" caf")},
            {"token": " tea", "logprob": -1.5, "bytes": list(b" tea")},
        ],
    }  # fmt: skip
    assert (second["token"], second["bytes"], second["logprob"]) == ("\ufffd", [0xC3], -9999.0)


def test_columns_keep_parts_of_characters_apart() -> None:
    data = "é".encode()
    tokens = [TokenLogprob(data[:1], -1.0, ((data[:1], -1.0), (b"\xc4", -2.0))), TokenLogprob(data[1:], -0.1)]
    said, _ = columns(tokens, (0, b""))
    assert said["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert said["top_logprobs"][0] == {"bytes:\\xc3": -1.0, "bytes:\\xc4": -2.0}


@given(st.text(max_size=30), st.lists(st.integers(1, 5), max_size=30), st.integers(0, 40))
def test_offsets_are_places_in_the_text_however_it_is_cut(text: str, sizes: list[int], split: int) -> None:
    """Each token's offset is the number of characters that are complete before it; chunks say the same as the whole."""
    data = text.encode()
    tokens, at = [], 0
    for size in sizes:
        if at < len(data):
            tokens.append(TokenLogprob(data[at : at + size], -0.5))
            at += size
    said, _ = columns(tokens, (0, b""))
    head, place = columns(tokens[:split], (0, b""))
    tail, _ = columns(tokens[split:], place)
    assert said["text_offset"] == head["text_offset"] + tail["text_offset"]
    before = b""
    for token, offset in zip(tokens, said["text_offset"], strict=True):
        assert offset == len(before.decode("utf-8", "ignore"))
        before += token.data


def test_infinity_is_a_number() -> None:
    assert finite(float("-inf")) == -9999.0
    assert finite(-3.5) == -3.5
