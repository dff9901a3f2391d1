"""llguidance over a vocabulary of single bytes: the reference that grammars are held to."""

from __future__ import annotations

from functools import cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from luthier.models.gbnf_reader import read_gbnf, to_lark


class _Bytes:
    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


def matcher_of(grammar: str) -> LLMatcher:
    """What follows a grammar of llguidance."""
    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def lark_of(gbnf: str) -> str:
    """A GBNF grammar without references to patterns, for llguidance."""
    return LLMatcher.grammar_from_lark(to_lark(read_gbnf(gbnf), nothing))


def nothing(kind: str, value: str) -> tuple[str, str]:
    raise AssertionError(kind)


def takes(matcher: LLMatcher, text: str) -> bool:
    """Whether the whole text is accepted."""
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
