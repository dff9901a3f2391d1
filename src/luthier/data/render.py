"""The one prompt renderer: messages (and tools) into token ids.

Training masks, evaluation prompts and the server all come from here, so that a model is asked in serving exactly as it was taught.
A conversation goes through the tokenizer's chat template; the text is then cut around every assistant response (content and
end-of-turn token) and tokenised piece by piece. Prompt ids at turn k are therefore exactly the ids that precede turn k in training.

What people write cannot become markup: a special token's text inside a message's content is tokenised as ordinary text.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from luthier.core.digest import digest_json
from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.message import Conversation, Prompt
from luthier.data.chat_template import ChatTemplate, Tools
from luthier.data.pairs import PairEncoder
from luthier.data.tool_turns import plain_turns

RENDERING = 1
"""Version of the cutting rules below. Part of the digest: other rules give other ids."""

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize + ':\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""For base models that come without a chat template."""

_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode noncharacters. One that no message contains separates the characters of special-token text in content."""

_PROBE_TEXTS = ("Hello world 2024!\n\n  two  spaces", "naïve 你好,世界 🙂", "def f(x):\n\treturn x**2")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as training sees it.

    ``mask`` is True on the tokens of assistant responses, end-of-turn token included. ``untrained`` lists the assistant turns (message
    indices) whose mask stays False because the template shows them otherwise than the model would have said them.
    """

    ids: list[int]
    mask: list[bool]
    untrained: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Segment:
    """A piece of text that is tokenised on its own. ``mark`` separates parts that must not join into a special token."""

    text: str
    response: bool
    mark: str


class _Recent(Generic[Value]):
    """The last ``size`` values, safe from several threads."""

    def __init__(self, size: int) -> None:
        self._size, self._values, self._lock = size, OrderedDict[Hashable, Value](), threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        return None

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._size:
                self._values.popitem(last=False)


class Renderer:
    """Turns prompts into token ids with one tokenizer and one chat template. Safe from several threads.

    ``template`` replaces the tokenizer's own chat template; a tokenizer without any gets ``PLAIN_TEMPLATE``. ``stop_ids`` adds to the
    ids that end an answer (a model's generation config may name some).
    """

    def __init__(self, tokenizer: Any, *, template: str | None = None, stop_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        self.template: str = template or own or PLAIN_TEMPLATE
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if (
            self._backend is not None
        ):  # some tokenizer files carry truncation and padding, which would cut prompts silently
            self._backend.no_truncation()
            self._backend.no_padding()
        self._chat = ChatTemplate(tokenizer, self.template)
        self._anchor = self._find_anchor()
        self._segment_ids: _Recent[list[int]] = _Recent(4096)
        self._histories: _Recent[tuple[str, tuple[tuple[int, int, int], ...]]] = _Recent(64)
        self._lead, self._tail, self._end, self._strips = self._probe()
        found = {tokenizer.eos_token_id, *stop_ids}
        if self._end:
            found.add(tokenizer.convert_tokens_to_ids(self._end))
        self.stop_ids: frozenset[int] = frozenset(i for i in found if i is not None)
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else tokenizer.eos_token_id or 0

    # ---- what callers use

    @cached_property
    def digest(self) -> str:
        """sha256 of all that decides which ids a conversation becomes: template, special tokens, vocabulary, splitting."""
        return digest_json(self._decides())

    def prompt_ids(self, prompt: Prompt, tools: Tools | None = None) -> list[int]:
        """Token ids to continue from: a conversation with the template's opening of an assistant turn, or raw text as it is.

        Raises InputError for an empty prompt or one that the template refuses. Tools that the template has no place for are told in plain
        turns (``luthier.data.tool_turns``).
        """
        return self.prompt_ids_batch([prompt], tools)[0]

    def prompt_ids_batch(self, prompts: Sequence[Prompt], tools: Tools | None = None) -> list[list[int]]:
        """``prompt_ids`` for many prompts; pieces that they share are tokenised once, the others all together."""
        segments = [[] if isinstance(p, str) else self._cut(p, tools, opened=True)[0] for p in prompts]
        encoded = self._encode(segments)
        out = []
        for prompt, pieces in zip(prompts, encoded, strict=True):
            ids = self._raw_ids(prompt) if isinstance(prompt, str) else [i for piece in pieces for i in piece]
            if not ids:
                raise InputError("prompt must not be empty; got no tokens")
            out.append(ids)
        return out

    def continuation_ids(self, text: str, *, ends_turn: bool) -> list[int]:
        """Ids of ``text`` as they follow a prompt.

        ``ends_turn``: the whole assistant turn as training sees it, end-of-turn token included; otherwise bare text.
        """
        if not ends_turn:
            return list(self._encode([[_Segment("", False, ""), _Segment(text, True, "")]])[0][1])
        mark = _unused_mark([text])
        content = self._chat.break_special(text.strip() if self._strips else text, mark)
        whole = self._lead + content + self._tail + (self._end or self.tokenizer.eos_token or "")
        return list(self._encode([[_Segment("", False, mark), _Segment(whole, True, mark)]])[0][1])

    def plain_ids(self, text: str) -> list[int]:
        """Ids of ``text`` inside of a turn: the text of special tokens is tokenised as ordinary text."""
        mark = _unused_mark([text])
        return list(
            self._encode([[_Segment("", False, ""), _Segment(self._chat.break_special(text, mark), True, mark)]])[0][1]
        )

    def special_in(self, text: str) -> list[str]:
        """The special tokens whose text stands in ``text``."""
        return [match.group() for match in self._chat.special.finditer(text)]

    @cached_property
    def pairs(self) -> PairEncoder:
        """Raw prompts with their continuations, cut into tokens together."""
        return PairEncoder(self.tokenizer)

    def training_ids(self, messages: Conversation, tools: Tools | None = None) -> Rendered:
        """The whole conversation with its mask. Raises MismatchError when the template cannot show the last assistant turn as the
        continuation of its own prompt, InputError without an assistant turn."""
        return self.training_ids_batch([messages], [tools])[0]

    def training_ids_batch(
        self, rows: Sequence[Conversation], tools: Sequence[Tools | None] | None = None
    ) -> list[Rendered]:
        """``training_ids`` for many conversations (``tools``: one entry a row), tokenised all together."""
        cut = [self._cut(m, t, opened=False) for m, t in zip(rows, tools or [None] * len(rows), strict=True)]
        encoded = self._encode([segments for segments, _ in cut])
        out = []
        for (segments, untrained), pieces in zip(cut, encoded, strict=True):
            mask = [s.response for s, piece in zip(segments, pieces, strict=True) for _ in piece]
            out.append(Rendered([i for piece in pieces for i in piece], mask, untrained))
        return out

    def text(self, messages: Conversation, *, opened: bool = True, tools: Tools | None = None) -> str:
        """The conversation as the template writes it; ``opened`` adds the beginning of the next assistant turn."""
        return "".join(s.text.replace(s.mark, "") for s in self._cut(messages, tools, opened=opened)[0])

    def decode(self, ids: Iterable[int], *, special: bool = False, keep: Sequence[str] = ()) -> str:
        """Text of ``ids``; ``special`` keeps the text of special tokens, ``keep`` that of these only."""
        if keep:
            kept = set(self.tokenizer.convert_tokens_to_ids(list(keep)))
            ids = [i for i in ids if i in kept or i not in self.special_ids]
            special = True
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens, which ``decode`` leaves out."""
        return frozenset(self.tokenizer.all_special_ids) | {
            int(i) for i, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }

    def _decides(self) -> list[Any]:
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        special = {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()}
        probes = [self.tokenizer(text)["input_ids"] for text in _PROBE_TEXTS]
        return [RENDERING, self.template, special, digest_json(vocabulary), probes]

    # ---- template

    def _probe(self) -> tuple[str, str, str, bool]:
        """What the template writes before and after a response's content, its end-of-turn token, and whether it strips content."""
        question = {"role": "user", "content": "question"}
        opening = self._chat.apply([question], None, opened=True)
        around = []
        for content in ("answer", " answer "):
            whole = self._chat.apply([question, {"role": "assistant", "content": content}], None, opened=False)
            before, _, after = whole.rpartition("answer")
            around.append((before.removeprefix(opening) if before.startswith(opening) else "", after))
        (lead, after), padded = around
        end = self._chat.special.search(after)
        tail = after[: end.start()] if end else ""
        return lead, tail, end.group() if end else "", padded == (lead, after)

    def _cut(
        self, messages: Conversation, tools: Tools | None, *, opened: bool
    ) -> tuple[list[_Segment], tuple[int, ...]]:
        """The rendered text in segments, and the assistant turns that no segment holds."""
        messages = tuple(messages)
        if not messages:
            raise InputError("messages must hold at least one turn; got none")
        tools = [t if "function" in t else {"type": "function", "function": dict(t)} for t in tools or ()]
        origins: Sequence[int] = range(len(messages))
        if (tools or any(m.tool_calls for m in messages)) and not self._chat.place.native:
            messages, origins = plain_turns(messages, tools, system=self._chat.place.system)
            tools = []
        mark = _unused_mark(_texts(messages, tools))
        plain = [self._chat.protected(m, mark) for m in messages]
        tools = self._chat.protected_value(tools, mark)
        text = self._chat.apply(plain, tools, opened=opened)
        self._check_tools(messages, tools, text)
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if not opened and not turns:
            raise InputError("a conversation to train on needs an assistant turn; got none")
        cuts = self._find_cuts(messages, plain, tools, text, turns)
        done = {turn for turn, _, _ in cuts}
        if not opened and turns[-1] not in done:
            said = messages[turns[-1]].content
            raise MismatchError(
                f"the chat template does not show assistant turn {turns[-1] + 1} ({said[:60]!r}) as a continuation of its own "
                "prompt, so training would not match serving",
                hint="give the model a template whose earlier text never changes when a turn is added",
            )
        if not opened and not self._end and turns[-1] == len(messages) - 1:
            end = cuts[-1][2]  # a template without an end-of-turn token: the answer would never learn to stop
            text = text[:end] + (self.tokenizer.eos_token or "")
            cuts = (*cuts[:-1], (cuts[-1][0], cuts[-1][1], len(text)))
        return list(_slices(text, cuts, mark)), tuple(origins[i] for i in turns if i not in done)

    def _find_cuts(
        self, messages: Conversation, plain: list[dict[str, Any]], tools: Tools, text: str, turns: list[int]
    ) -> tuple[tuple[int, int, int], ...]:
        """(turn, start, end) of each response in ``text``; earlier turns that are shared by many prompts are found once."""
        key = (messages[: turns[-1] + 1], json.dumps(tools, sort_keys=True, default=str)) if len(turns) > 1 else None
        known = self._histories.get(key) if key else None
        if known and text.startswith(known[0]):
            return known[1]
        found = []
        for turn in turns:
            where = self._response(plain, tools, text, turn) if turn else None
            if where:
                found.append((turn, *where))
        cuts = tuple(found)
        if key and cuts and cuts[-1][0] == turns[-1]:
            self._histories.put(key, (text[: cuts[-1][2]], cuts))
        return cuts

    def _response(self, plain: list[dict[str, Any]], tools: Tools, text: str, turn: int) -> tuple[int, int] | None:
        """Where ``text`` holds assistant turn ``turn`` just as the model would have continued its prompt, or None."""
        opening = self._chat.apply(plain[:turn], tools, opened=True)
        whole = self._chat.apply(plain[: turn + 1], tools, opened=False)
        if not whole.startswith(opening):
            return None
        start = len(opening)
        if self._end:
            end = whole.find(self._end, start) + len(self._end)
            if end < start:  # a turn that ends in its own way, as tool calls do in some templates
                last = [m.end() for m in self._chat.special.finditer(whole, start)][-1:]
                end = last[0] if last else len(whole)
        else:
            content = plain[turn]["content"].strip()
            at = whole.find(content, start)
            if at < 0:
                return None
            end = at + len(content)
        return (start, end) if text.startswith(whole[:end]) else None

    def _check_tools(self, messages: Conversation, tools: Tools, text: str) -> None:
        called = {call.name for m in messages for call in m.tool_calls}
        given = {str(t["function"].get("name")) for t in tools}
        lost = sorted(name for name in called | given if name not in text)
        if lost:
            raise UnsupportedError(
                f"this model's chat template has no place for tools; {', '.join(lost)} would be lost",
                hint="use a model whose template renders tools, or give one with template=",
            )

    # ---- tokenizer

    def _find_anchor(self) -> str:
        """A special token to put before inner pieces when the tokenizer treats the beginning of a text specially, else ''.

        SentencePiece-like tokenizers put a space before the first word only; an inner piece must not get one.
        """
        alone = self._plain(["a"])[0]
        for token in self.tokenizer.all_special_tokens:
            after = self._plain([token + "a"])[0]
            if len(after) > 1 and after[0] == self.tokenizer.convert_tokens_to_ids(token):
                return "" if after[1:] == alone else str(token)
        return ""

    def _plain(self, texts: list[str]) -> list[list[int]]:
        """Ids of ``texts``, nothing added. Raises InputError for text that is not valid Unicode."""
        try:
            if self._backend is not None:
                return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
            return [list(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("text must be valid Unicode; it holds half of a surrogate pair") from error

    def _raw_ids(self, text: str) -> list[int]:
        try:
            return list(self.tokenizer(text)["input_ids"])
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("text must be valid Unicode; it holds half of a surrogate pair") from error

    def _encode(self, rows: Sequence[Sequence[_Segment]]) -> list[list[list[int]]]:
        """Ids of every segment of every row. Pieces that recur are remembered; the rest goes through one batch call."""
        keys = [[(s.text, s.mark if s.mark in s.text else "", at > 0) for at, s in enumerate(row)] for row in rows]
        known: dict[tuple[str, str, bool], list[int]] = {}
        for key in {k for row in keys for k in row}:
            ids = self._segment_ids.get(key)
            if ids is not None:
                known[key] = ids
        missing = list(dict.fromkeys(k for row in keys for k in row if k not in known))
        pieces: list[str] = []
        spans = []
        for text, mark, inner in missing:
            parts = text.split(mark) if mark else [text]
            begin = len(pieces)
            pieces += [(self._anchor if inner or at else "") + part for at, part in enumerate(parts)]
            spans.append((begin, len(pieces), inner))
        encoded = self._plain(pieces) if pieces else []
        for key, (begin, end, inner) in zip(missing, spans, strict=True):
            ids = []
            for at in range(begin, end):
                anchored = self._anchor and (inner or at > begin)
                ids += encoded[at][1:] if anchored else encoded[at]
            known[key] = ids
        for key in {k for row in keys if len(row) > 1 for k in row}:  # a prompt of one piece is seldom asked again
            self._segment_ids.put(key, known[key])
        return [[known[key] for key in row] for row in keys]


def mismatch(trained: str, serving: str, *, what: str = "the adapter") -> None:
    """Raise MismatchError unless the two template digests are equal."""
    if trained != serving:
        raise MismatchError(
            f"template digest must be the one that {what} was made with ({trained[:12]}); got {serving[:12]}: another chat template, "
            "tokenizer or vocabulary",
            hint="serve it on the base model and template that it was trained on, or train it again",
        )


def render_tokens(
    renderer: Renderer, messages: Conversation, tools: Tools | None = None
) -> list[tuple[str, bool, tuple[int, ...]]]:
    """(text, trained, ids) of each token in order; tokens that only together make a character come as one."""
    rendered = renderer.training_ids(messages, tools)
    out: list[tuple[str, bool, tuple[int, ...]]] = []
    held: list[int] = []
    for at, token in enumerate(rendered.ids):
        held.append(token)
        text = renderer.decode(held, special=True)
        last = at + 1 == len(rendered.ids) or rendered.mask[at + 1] != rendered.mask[at]
        if last or not text.endswith("\ufffd"):
            out.append((text, rendered.mask[at], tuple(held)))
            held = []
    return out


def render_text(renderer: Renderer, messages: Conversation, mask: bool = True, tools: Tools | None = None) -> str:
    """The conversation as text; with ``mask`` the part that is trained on stands between ``[[`` and ``]]``."""
    if not mask:
        return renderer.text(messages, opened=False, tools=tools)
    segments, _ = renderer._cut(messages, tools, opened=False)
    plain = ((s.text.replace(s.mark, ""), s.response) for s in segments)
    return "".join(f"[[{text}]]" if response else text for text, response in plain)


def _texts(messages: Conversation, tools: Tools) -> list[str]:
    """All that people wrote in a conversation."""
    calls = [call.arguments for message in messages for call in message.tool_calls]
    return [*(message.content for message in messages), *calls, json.dumps(tools, ensure_ascii=False, default=str)]


def _unused_mark(contents: Iterable[str]) -> str:
    joined = "".join(contents)
    for mark in _MARKS:
        if mark not in joined:
            return mark
    raise InputError("text holds every Unicode noncharacter from U+FDD0 to U+FDEF; remove one")


def _slices(text: str, cuts: Iterable[tuple[int, int, int]], mark: str) -> Iterable[_Segment]:
    at = 0
    for _, start, end in cuts:
        yield _Segment(text[at:start], False, mark)
        yield _Segment(text[start:end], True, mark)
        at = end
    if at < len(text) or not at:
        yield _Segment(text[at:], False, mark)
