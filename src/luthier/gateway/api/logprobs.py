"""Log-probabilities of tokens, as each endpoint writes them. A token that is part of a character has no text of its own, only bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.engine import TokenLogprob


def listed(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As chat completions and responses list them."""
    return [
        {**_token(token.data, token.logprob), "top_logprobs": [_token(data, logprob) for data, logprob in token.top]}
        for token in tokens
    ]


def _token(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": data.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(data)}


def columns(tokens: Sequence[TokenLogprob], place: tuple[int, bytes]) -> tuple[dict[str, Any], tuple[int, bytes]]:
    """As completions write them, in columns.

    ``place``: how many characters came before, and the bytes of one that is not complete; also returned, for the tokens that follow.
    """
    offset, rest = place
    offsets = []
    for token in tokens:
        offsets.append(offset)
        text, rest = _complete(rest + token.data)
        offset += len(text)
    out = {
        "tokens": [_text(token.data) for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [{_text(data): finite(logprob) for data, logprob in token.top} for token in tokens],
        "text_offset": offsets,
    }
    return out, (offset, rest)


def _complete(data: bytes) -> tuple[str, bytes]:
    """The text of ``data`` and the beginning of a character at its end."""
    for cut in range(min(4, len(data) + 1)):
        head = data[: len(data) - cut]
        try:
            return head.decode("utf-8"), data[len(head) :]
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", "replace"), b""


def _text(data: bytes) -> str:
    """A token's text, or ``bytes:\\xe4\\xbd`` for part of a character: two of them must not look the same."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """JSON has no infinity: a token that could not come has the -9999 that OpenAI's clients expect."""
    return logprob if logprob > -9999.0 else -9999.0
