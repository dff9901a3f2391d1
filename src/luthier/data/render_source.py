"""The renderer of encoder-decoders: what comes before an answer is a source, which the encoder reads; the answer is a target.

Such models (T5 and its relatives, BART) are taught on pairs of plain texts and know no chat markup, so a conversation becomes text without
roles: the contents of its turns, oldest first, with a blank line between them. An instruction therefore stands before the input as
"translate English to German: ..." does in Raffel et al. 2020, section 2.4, and examples stand before the question as in FLAN
(Chung et al. 2022). Source and target each get the special tokens that the tokenizer puts around a text (``</s>`` for T5, ``<s>`` and
``</s>`` for BART). There is no place for tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import InputError
from luthier.core.message import Conversation, Prompt
from luthier.data.chat_template import Tools
from luthier.data.render import Rendered, Renderer, _Segment, _unused_mark

SOURCE_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
"""Contents of the turns, a blank line between two of them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What the encoder reads, and what the decoder is to say after its opening; the end-of-text token closes the target."""

    source: list[int]
    target: list[int]


class SourceRenderer(Renderer):
    """Turns prompts into the token ids of sources, and answers into those of targets. Safe from several threads.

    ``start_id`` is the token that the decoder begins with. ``opening`` is what it reads before an answer's first token: that, and
    the tokens that the tokenizer puts before every text.
    """

    def __init__(self, tokenizer: Any, *, start_id: int, stop_ids: Sequence[int] = ()) -> None:
        super().__init__(tokenizer, template=SOURCE_TEMPLATE, stop_ids=stop_ids)
        plain, whole = self._plain(["a"])[0], self._raw_ids("a")
        at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        self._before, self._after = whole[:at], whole[at + len(plain) :]
        self.opening: tuple[int, ...] = (start_id, *self._before)
        self._close = self._after or [tokenizer.eos_token_id]

    def prompt_ids_batch(self, prompts: Sequence[Prompt], tools: Tools | None = None) -> list[list[int]]:
        """Ids of each prompt's source. Raises InputError for a prompt without text, UnsupportedError for tools."""
        segments = [[] if isinstance(p, str) else self._cut(p, tools, opened=True)[0] for p in prompts]
        encoded = self._encode(segments)
        out = []
        for prompt, pieces in zip(prompts, encoded, strict=True):
            if isinstance(prompt, str):
                inner = self._raw_ids(prompt) if prompt.strip() else []
            else:
                inner = self._around(pieces[0]) if pieces[0] else []
            if not inner:
                raise InputError(
                    "prompt must not be empty: an encoder-decoder answers what its encoder has read; got no tokens"
                )
            out.append(inner)
        return out

    def cut(self, source: list[int], length: int) -> list[int]:
        """The beginning of a source in ``length`` tokens, closed as it was."""
        if len(source) <= length:
            return source
        return [*source[: length - len(self._after)], *self._after][:length]

    def continuation_ids(self, text: str, *, ends_turn: bool) -> list[int]:
        """Ids of ``text`` as a target, after the opening; ``ends_turn``: with the token that ends it."""
        if not ends_turn:
            return list(self._encode([[_Segment(text, True, "")]])[0][0])
        mark = _unused_mark([text])
        ids = self._encode([[_Segment(self._chat.break_special(text, mark), True, mark)]])[0][0]
        return [*ids, *self._close]

    def training_ids_batch(
        self, rows: Sequence[Conversation], tools: Sequence[Tools | None] | None = None
    ) -> list[Rendered]:
        """Source and target of each conversation's last answer in one row; the mask is True on the target."""
        out = []
        for pairs in self.training_pairs_batch(rows, tools):
            source, target = pairs[-1].source, pairs[-1].target
            out.append(Rendered([*source, *target], [False] * len(source) + [True] * len(target)))
        return out

    def training_pairs_batch(
        self, rows: Sequence[Conversation], tools: Sequence[Tools | None] | None = None
    ) -> list[list[Pair]]:
        """A pair for every answer of each conversation: all that comes before it, and the answer. Raises InputError for a conversation
        without an answer, or with an answer to nothing."""
        asked: list[Prompt] = []
        answers: list[str] = []
        owners: list[int] = []
        given: list[Tools | None] = list(tools or [None] * len(rows))
        for number, messages in enumerate(rows):
            turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
            if not turns:
                raise InputError("a conversation to train on needs an assistant turn; got none")
            for turn in turns:
                if not turn:
                    raise InputError(
                        "an encoder-decoder answers what it has read; the first turn must not be an assistant's"
                    )
                if given[number]:  # says what is lost
                    self._cut(messages[:turn], given[number], opened=True)
                asked.append(tuple(messages[:turn]))
                answers.append(messages[turn].content)
                owners.append(number)
        known = {text: self.continuation_ids(text, ends_turn=True) for text in dict.fromkeys(answers)}
        out: list[list[Pair]] = [[] for _ in rows]
        for owner, source, answer in zip(owners, self.prompt_ids_batch(asked), answers, strict=True):
            out[owner].append(Pair(source, known[answer]))
        return out

    def _cut(
        self, messages: Conversation, tools: Tools | None, *, opened: bool
    ) -> tuple[list[_Segment], tuple[int, ...]]:
        """The source in one segment; when not ``opened``, the last answer in another."""
        messages = tuple(messages)
        if not messages:
            raise InputError("messages must hold at least one turn; got none")
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not opened and not turns:
            raise InputError("a conversation to train on needs an assistant turn; got none")
        before = messages if opened else messages[: turns[-1]]
        mark = _unused_mark([message.content for message in messages])
        text = self._chat.apply([self._chat.protected(message, mark) for message in before], None, opened=True)
        named = [t if "function" in t else {"type": "function", "function": dict(t)} for t in tools or ()]
        self._check_tools(messages, named, text if not named else "")
        segments = [_Segment(text, False, mark)]
        if not opened:
            answer = self._chat.break_special(messages[turns[-1]].content, mark)
            segments.append(_Segment(answer + (self.tokenizer.eos_token or ""), True, mark))
        return segments, tuple(turns[:-1])

    def _around(self, ids: list[int]) -> list[int]:
        return [*self._before, *ids, *self._after]

    def _decides(self) -> list[Any]:
        return [*super()._decides(), list(self.opening), self._close]

    def _probe(self) -> tuple[str, str, str, bool]:
        """A target is the answer and nothing around it."""
        return "", "", "", False
