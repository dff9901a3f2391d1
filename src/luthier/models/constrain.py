"""Constrained decoding: only tokens that keep an answer within its form can be drawn.

At each step a mask over the vocabulary says which tokens can still lead to a whole text of the asked form (Willard and Louf 2023; for
context-free forms Geng et al. 2023). llguidance keeps the state and computes the masks in microseconds, so a constraint costs next to
nothing. An answer that ends by itself therefore always has its form; one that is cut off by ``max_new_tokens`` (finish reason ``length``)
is the beginning of a text that has it.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from luthier.core.engine import Constraint
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.data.call_form import call_form
from luthier.data.render import Renderer
from luthier.data.token_bytes import token_bytes
from luthier.models.gbnf import named
from luthier.models.guidance import guidance

KEPT = 128
"""Compiled constraints kept for each tokenizer."""


class Follower:
    """Where one answer stands in its constraint. Not safe from several threads; ``copy`` gives a second one at the same place."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, stop_ids: frozenset[int]) -> None:
        self._matcher, self._vocabulary, self._stop_ids = matcher, vocabulary, stop_ids
        self._stopped = False

    @property
    def done(self) -> bool:
        """The text is complete and nothing may follow."""
        return self._stopped or bool(self._matcher.is_stopped())

    @property
    def accepts(self) -> bool:
        """The text may end here, though something may still follow."""
        return self._stopped or bool(self._matcher.is_accepting())

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next, (vocabulary of the tokenizer,), bool, on the CPU; stop ids where the text may end.

        Raises InputError when the constraint became too complex to follow, UnsupportedError when the vocabulary has no token that could
        come next (T5's has no braces, for example).
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(np.bool_)
        if not allowed.any():
            raise UnsupportedError(
                "the model's vocabulary has no token that can go on with an answer of the asked form"
            )
        return torch.from_numpy(allowed)

    def mask(self, logits: torch.Tensor) -> None:
        """Put -inf, in place, at every token of ``logits`` (vocabulary,) that may not come next. Raises as ``allowed`` does."""
        allowed = self.allowed().to(logits.device)
        known = min(len(allowed), len(logits))
        logits[:known].masked_fill_(~allowed[:known], float("-inf"))
        logits[known:] = float("-inf")  # models may have more rows than the tokenizer has tokens

    def take(self, token: int) -> None:
        """Go on with the drawn ``token``. Raises EngineError for one that was not allowed."""
        if token in self._stop_ids and self._matcher.is_accepting():
            self._stopped = True
        elif self._stopped or not self._matcher.consume_token(token):
            raise EngineError(f"token {token} is not allowed here by the answer's constraint")

    def copy(self) -> Follower:
        """Another one at the same place, for example for another beam."""
        made = Follower(self._matcher.deep_copy(), self._vocabulary, self._stop_ids)
        made._stopped = self._stopped
        return made

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _first_line(self._matcher.get_error())
            raise InputError(f"constraint is too complex to follow: {reason}", hint="ask for a simpler form")


def follower(renderer: Renderer, constraint: Constraint) -> Follower:
    """A ``Follower`` at the beginning of an answer; the constraint is compiled once for each tokenizer.

    Raises InputError for a schema, pattern or grammar that cannot be read or cannot be held exactly (the message names the keyword or the
    place), UnsupportedError for a tokenizer whose tokens' bytes are not known (WordPiece).
    """
    return _vocabulary(renderer, constraint).follower(constraint)


def _vocabulary(renderer: Renderer, constraint: Constraint) -> _Vocabulary:
    """The renderer's vocabulary. Special tokens cannot be drawn, but those by which its calls are known (Mistral's ``[TOOL_CALLS]``) where a
    grammar spells them out."""
    shown: tuple[str, ...] = ()
    if constraint.kind == "grammar":
        with suppress(UnsupportedError):
            shown = tuple(token for token in call_form(renderer).tokens if token in constraint.value)
    with _lock:
        known = _vocabularies.setdefault(renderer, {})
        if shown in known:
            return known[shown]
    made = _Vocabulary(renderer, shown)
    with _lock:
        return known.setdefault(shown, made)


class _Vocabulary:
    """One vocabulary as llguidance reads it, and what was compiled for it."""

    def __init__(self, renderer: Renderer, shown: Sequence[str]) -> None:
        tokens = token_bytes(renderer.tokenizer)
        self._size = len(tokens)
        self._stop_ids = renderer.stop_ids
        # A vocabulary without a token that ends texts gets one beyond its end, which no model can draw.
        ends = [i for i in sorted(renderer.stop_ids) if i < len(tokens)] or [len(tokens)]
        added = renderer.tokenizer.added_tokens_decoder.items()
        special = {int(i) for i, token in added if token.special and token.content not in shown}
        hidden = sorted({*special, *ends, *(i for i, token in enumerate(tokens) if not token)})
        whole = [token or b"\xff[%d]" % i for i, token in enumerate([*tokens, b"<end>"])]
        wrapped = TokenizerWrapper(_Tokens(whole, hidden, ends[0], _encoder(renderer, shown)))
        self._tokenizer = LLTokenizer(wrapped, eos_token=ends)
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def follower(self, constraint: Constraint) -> Follower:
        with self._lock:
            matcher = self._compiled.get(constraint)
            if matcher is not None:
                self._compiled.move_to_end(constraint)
        if matcher is None:
            matcher = self._compile(constraint)
            with self._lock:
                self._compiled[constraint] = matcher
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
        return Follower(matcher.deep_copy(), self._size, self._stop_ids)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        limits = LLParserLimits(initial_lexer_fuel=1_000_000, max_grammar_size=200_000, verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, guidance(constraint), log_level=0, limits=limits)
        if matcher.is_error():
            raise InputError(f"{named(constraint)} cannot be used: {_first_line(matcher.get_error())}")
        return matcher


class _Tokens:
    """What llguidance asks of a tokenizer. Text that is forced goes into the tokens that the model itself would see for it."""

    def __init__(
        self, tokens: Sequence[bytes], special: Sequence[int], eos: int, encode: Callable[[str], list[int]]
    ) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, eos
        self.bos_token_id = None
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text must be str")  # llguidance tries bytes first
        return self._encode(text)


_vocabularies: weakref.WeakKeyDictionary[Renderer, dict[tuple[str, ...], _Vocabulary]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _encoder(renderer: Renderer, shown: Sequence[str]) -> Callable[[str], list[int]]:
    """``renderer.plain_ids``, but for the special tokens ``shown``; without keeping the renderer alive."""
    weak = weakref.ref(renderer)
    between = re.compile("|".join(f"({re.escape(token)})" for token in shown)) if shown else None

    def encode(text: str) -> list[int]:
        here = weak()
        if here is None:
            return []
        if between is None:
            return here.plain_ids(text)
        pieces = [piece for piece in between.split(text) if piece]
        ids = [[here.tokenizer.convert_tokens_to_ids(p)] if p in shown else here.plain_ids(p) for p in pieces]
        return [i for part in ids for i in part]

    return encode


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "no reason given"
