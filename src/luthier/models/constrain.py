"""Constrained decoding: only tokens that keep an answer within its form can be drawn.

At each step a mask over the vocabulary says which tokens can still lead to a whole text of the asked form (Willard and Louf 2023; for
context-free forms Geng et al. 2023). llguidance keeps the state and computes the masks in microseconds, so a constraint costs next to
nothing. An answer that ends by itself therefore always has its form; one that is cut off by ``max_new_tokens`` (finish reason ``length``)
is the beginning of a text that has it.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from luthier.core.engine import Constraint
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.data.render import Renderer
from luthier.data.token_bytes import token_bytes

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

LONGEST = 200_000
"""Characters of a constraint. Compiling is bounded by llguidance's own counts; this bounds what is read before they count."""

KEPT = 128
"""Compiled constraints kept for each tokenizer."""

_JSON: JsonCompileOptions = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": " ?",
    "coerce_one_of": False,
    "lenient": False,
    "json_allow_general_unicode_escapes": False,
}
"""At most one space where JSON allows spaces: small models repeat them without end."""


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
    with _lock:
        vocabulary = _vocabularies.get(renderer)
    if vocabulary is None:
        made = _Vocabulary(
            token_bytes(renderer.tokenizer), _special_ids(renderer), sorted(renderer.stop_ids), _encoder(renderer)
        )
        with _lock:
            vocabulary = _vocabularies.setdefault(renderer, made)
    return vocabulary.follower(constraint)


class _Vocabulary:
    """One vocabulary as llguidance reads it, and what was compiled for it."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special: Sequence[int],
        stop_ids: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self._size = len(tokens)
        self._stop_ids = frozenset(stop_ids)
        # A vocabulary without a token that ends texts gets one beyond its end, which no model can draw.
        ends = [i for i in stop_ids if i < len(tokens)] or [len(tokens)]
        hidden = sorted({*special, *ends})
        named = [token or b"\xff[%d]" % at for at, token in enumerate([*tokens, b"<end>"])]
        hidden += [at for at, token in enumerate(tokens) if not token]
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(named, hidden, ends[0], encode)), eos_token=ends)
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
        matcher = LLMatcher(self._tokenizer, _grammar(constraint), log_level=0, limits=limits)
        if matcher.is_error():
            raise InputError(f"{_named(constraint)} cannot be used: {_first_line(matcher.get_error())}")
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


_vocabularies: weakref.WeakKeyDictionary[Renderer, _Vocabulary] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _encoder(renderer: Renderer) -> Callable[[str], list[int]]:
    """``renderer.plain_ids`` without keeping the renderer alive."""
    weak = weakref.ref(renderer)

    def encode(text: str) -> list[int]:
        here = weak()
        return here.plain_ids(text) if here is not None else []

    return encode


def _special_ids(renderer: Renderer) -> list[int]:
    return [int(id_) for id_, token in renderer.tokenizer.added_tokens_decoder.items() if token.special]


def _named(constraint: Constraint) -> str:
    return {"json": "constraint json", "json_schema": "json_schema"}.get(
        constraint.kind, f"constraint {constraint.kind}"
    )


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "no reason given"


def _grammar(constraint: Constraint) -> str:
    """llguidance's own form of ``constraint``."""
    if len(constraint.value) > LONGEST:
        raise InputError(f"{_named(constraint)} must be at most {LONGEST:,} characters; got {len(constraint.value):,}")
    try:
        if constraint.kind == "json":
            return str(LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_JSON))
        if constraint.kind == "json_schema":
            return _schema_grammar(constraint.value)
        if constraint.kind == "regex":
            return str(LLMatcher.grammar_from_regex(constraint.value))
        if constraint.kind == "choice":
            return str(LLMatcher.grammar_from_regex("|".join(map(_escaped, choices(constraint)))))
        return str(LLMatcher.grammar_from_lark(_lark(constraint.value)))
    except RecursionError as error:
        raise InputError(f"{_named(constraint)} is nested too deeply") from error


def choices(constraint: Constraint) -> list[str]:
    """The texts that a constraint of kind ``choice`` allows. Raises InputError unless it is a JSON list of different texts."""
    try:
        texts = json.loads(constraint.value)
    except ValueError as error:
        raise InputError(
            f"constraint choice must be a JSON list of texts; got {constraint.value[:60]!r}: {error}"
        ) from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"constraint choice must be a JSON list of texts, at least one; got {constraint.value[:60]!r}")
    return list(dict.fromkeys(texts))


def _schema_grammar(value: str) -> str:
    schema = _schema(value)
    return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON))


def _schema(value: str) -> Any:
    """The schema, checked against its own metaschema."""
    import jsonschema

    try:
        schema = json.loads(value)
    except ValueError as error:
        raise InputError(f"json_schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise InputError(f"json_schema must be an object; got {value[:60]!r}")
    schema.pop("x-guidance", None)  # llguidance would take settings of its own from it
    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "its top"
        raise InputError(f"json_schema is not a valid schema at {where}: {error.message}") from error
    return schema


def _lark(grammar: str) -> str:
    try:
        return str(gbnf_to_lark(grammar))
    except RecursionError:
        raise
    except Exception as error:  # the converter raises bare Exceptions
        raise InputError(f"constraint grammar is not GBNF: {error}") from error


def _escaped(text: str) -> str:
    """``text`` as a pattern that matches just it."""
    return "".join(c if c.isascii() and c.isalnum() else rf"\x{{{ord(c):x}}}" for c in text)
