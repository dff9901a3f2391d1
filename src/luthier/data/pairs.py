"""Raw prompts and their continuations as token ids: cut into tokens together, as lm-evaluation-harness does.

A continuation's tokens are those that ``prompt + continuation`` has beyond the prompt's own; white space at the prompt's end belongs
to the continuation (HFLM ``_encode_pair``). Tokenising a long prompt once more for every continuation is wasteful, and so is
tokenising the same few-shot examples for every question. Where it changes nothing, text is therefore cut at places over which no
token of the tokenizer can reach, and each distinct piece is tokenised once.

Such a place is known for byte-level BPE, whose tokens stay inside of words that a regular expression finds: between a letter and a
space with a letter after it, and after a single line break with a letter after it. Every other tokenizer gets the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

from luthier.core.errors import InputError

Pairs: TypeAlias = tuple[list[int], list[list[int]]]
"""A prompt's ids, and for each continuation those that follow them."""

_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=[^\s]\n)(?=[A-Za-z\u4e00-\u9fff])")
_BLANK_LINE = "\n\n"
_TAIL = 256
"""Characters at a prompt's end in which the last cut is looked for."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = frozenset(
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
"""Word patterns of Llama 3 and Qwen 2 (GPT-2's is built into ``ByteLevel``): none reaches over a cut from either side."""


class PairEncoder:
    """Tokenises prompts with what may follow them. ``tokenizer`` is a Hugging Face one. Safe from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)

    @cached_property
    def begins_with(self) -> int:
        """The token that a text follows when nothing else is before it: the beginning-of-text token, else the end-of-text one.

        Raises InputError for a tokenizer that has neither.
        """
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise InputError("the tokenizer has no token that begins or ends texts; give a prompt that is not empty")

    @cached_property
    def can_cut(self) -> bool:
        """Whether pieces of text between cuts have the tokens that they have in the whole."""
        backend = self._backend
        if backend is None or type(backend.model).__name__ != "BPE":
            return False
        normalizer, splitter = (_state(part) for part in (backend.normalizer, backend.pre_tokenizer))
        added = self._tokenizer.added_tokens_decoder.values()
        if any(re.search(r"\s", t.content) or t.lstrip or t.rstrip or t.single_word for t in added):
            return False
        if normalizer is not None and normalizer["type"] != "NFC":
            return False
        before = self._specials("a")
        return (
            splitter is not None and _splits_words(splitter) and before is not None and before == self._specials(" a")
        )

    def encode(self, rows: Sequence[tuple[str, Sequence[str]]]) -> list[Pairs]:
        """Ids of each (prompt, continuations). A prompt of white space only, or none, becomes the token that begins texts.

        Raises InputError for a continuation that adds no token, and for text that is not valid Unicode.
        """
        split = [_move_space(prompt, continuations) for prompt, continuations in rows]
        cuts = [_pieces(prompt) if self.can_cut else [prompt] for prompt, _ in split]
        plain: dict[str, list[int]] = {}  # inner pieces and those that nothing is added to
        first: dict[str, list[int]] = {}  # pieces that begin a text
        for pieces, (prompt, continuations) in zip(cuts, split, strict=True):
            *heads, tail = pieces
            for place, piece in enumerate(heads):
                (plain if place else first)[piece] = []
            ends = plain if heads or not prompt else first
            for text in (tail, *(tail + continuation for continuation in continuations)):
                ends[text] = []
        self._fill(plain, special=False)
        self._fill(first, special=True)
        return [
            self._pairs(pieces, continuations, first, plain)
            for pieces, (_, continuations) in zip(cuts, split, strict=True)
        ]

    def _pairs(
        self,
        pieces: Sequence[str],
        continuations: Sequence[str],
        first: dict[str, list[int]],
        plain: dict[str, list[int]],
    ) -> Pairs:
        *heads, tail = pieces
        prompt = [token for place, piece in enumerate(heads) for token in (plain if place else first)[piece]]
        ends = plain if heads or not tail else first
        own = ends[tail]
        out = []
        for continuation in continuations:
            ids = ends[tail + continuation][len(own) :]
            if not ids:
                raise InputError(
                    f"a continuation must add a token to the prompt; got {continuation!r} after {tail[-20:]!r}"
                )
            out.append(ids)
        if heads or tail:
            return prompt + own, out
        return [self.begins_with], out

    def _fill(self, texts: dict[str, list[int]], *, special: bool) -> None:
        """The ids of every key. ``special`` adds what the tokenizer puts around texts, unless the text begins with it already."""
        begins = self._tokenizer.bos_token or self._tokenizer.eos_token if special else None
        bare = [text for text in texts if not special or (begins and text.startswith(begins))]
        whole = [text for text in texts if special and not (begins and text.startswith(begins))]
        for wanted, add in ((bare, False), (whole, True)):
            for text, ids in zip(wanted, self._ids(wanted, add), strict=True):
                texts[text] = ids

    def _ids(self, texts: list[str], add: bool) -> list[list[int]]:
        try:
            if self._backend is not None:
                return [each.ids for each in self._backend.encode_batch_fast(texts, add_special_tokens=add)]
            return [list(self._tokenizer(text, add_special_tokens=add)["input_ids"]) for text in texts]
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("text must be valid Unicode; it holds half of a surrogate pair") from error

    def _specials(self, text: str) -> list[int] | None:
        """What is added before ``text``; None when something is added after it."""
        bare, whole = self._ids([text], False)[0], self._ids([text], True)[0]
        return whole[: len(whole) - len(bare)] if whole[len(whole) - len(bare) :] == bare else None


def windows(ids: Sequence[int], begins_with: int, context_length: int) -> list[tuple[list[int], list[int]]]:
    """A text in windows of ``context_length`` tokens: (context, tokens to predict) of each; every token is predicted once.

    The first follows ``begins_with`` (``get_rolling_token_windows`` of lm-evaluation-harness, context length 1): full windows see one
    token of the window before, the last one as many as fill it up.
    """
    ids = list(ids)
    out = [([begins_with], ids[:context_length])]
    done = len(out[0][1])
    while done < len(ids):
        end = min(done + context_length, len(ids))
        out.append((ids[end - context_length - 1 : done], ids[done:end]))
        done = end
    return out


def _move_space(prompt: str, continuations: Sequence[str]) -> tuple[str, list[str]]:
    """The prompt without the white space at its end, which goes to the beginning of each continuation."""
    kept = prompt.rstrip()
    return kept, [prompt[len(kept) :] + continuation for continuation in continuations]


def _pieces(prompt: str) -> list[str]:
    """The prompt cut after each blank line, so that few-shot examples are pieces, and once more close to its end."""
    places = [0]
    at = prompt.find(_BLANK_LINE)
    while at >= 0:
        found = _CUT.search(prompt, at)
        if found is None:
            break
        places.append(found.start())
        at = prompt.find(_BLANK_LINE, max(found.start(), at + 1))
    last = [found.start() for found in _CUT.finditer(prompt, max(places[-1] + 1, len(prompt) - _TAIL))]
    if last:
        places.append(last[-1])
    return [prompt[begin:end] for begin, end in zip(places, [*places[1:], len(prompt)], strict=True)]


def _state(part: Any) -> Any:
    """A tokenizer part's definition, None for none."""
    return None if part is None else json.loads(part.__getstate__())


def _splits_words(splitter: dict[str, Any]) -> bool:
    """Whether this pre-tokenizer breaks at every cut, and breaks the same way when the text on one side is gone."""
    parts = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    words = False
    for part in parts:
        pattern = part.get("pattern", {}).get("Regex", "") if part["type"] == "Split" else ""
        if part["type"] == "ByteLevel":
            if part["add_prefix_space"]:
                return False
            words = words or part["use_regex"]
        elif pattern in _WORDS and part["behavior"] == "Isolated" and not part["invert"]:
            words = True
        elif part["type"] != "Digits" and not re.fullmatch(r"\[(\\x\{[0-9a-f]+\})+\]", pattern):
            return False
    return words
