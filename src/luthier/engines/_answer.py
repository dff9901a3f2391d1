"""An answer of the torch engine while it grows, token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.engine import Delta, Generation, Sampling, TokenLogprob
from luthier.core.message import ToolCall
from luthier.engines._text import AnswerText

if TYPE_CHECKING:
    from luthier.engines._tools import ToolText

Top = Sequence[tuple[int, float]]
"""The likeliest tokens instead of one that was drawn, with their log-probabilities."""


class Answer:
    """One answer while it grows.

    ``incremental``: its text is wanted while it grows; stop texts and tools need it too. ``bytes_of`` are the tokens' bytes, where ``sampling`` asks for
    log-probabilities.
    """

    def __init__(
        self,
        prompt: list[int],
        limit: int,
        renderer: Any,
        sampling: Sampling,
        *,
        incremental: bool,
        bytes_of: Sequence[bytes] = (),
    ) -> None:
        self.prompt, self.limit = prompt, limit
        self.finish_reason = ""
        self.cached_tokens = 0
        self._renderer, self._sampling = renderer, sampling
        self._bytes_of = bytes_of
        self._tools = _tool_text(renderer, sampling)
        incremental = incremental or bool(sampling.stop) or self._tools is not None
        self._text = AnswerText(_decoder(renderer, sampling), sampling.stop) if incremental else None
        self._ids: list[int] = []
        self._log_probs: list[float] = []
        self._reports: list[TokenLogprob] = []
        self._told = 0
        self._start = self._first_s = self._latency_s = 0.0

    def begin(self) -> None:
        """Time runs from now."""
        self._start = time.perf_counter()

    def take(self, token: int, log_prob: float, top: Top = (), *, over: bool = False) -> Delta:
        """One more token; returns what can be shown, and sets ``finish_reason`` when it was the last.

        ``over``: the answer's constraint allows nothing after it.
        """
        piece = ""
        if token in self._renderer.stop_ids:
            self.finish_reason = "stop"
        else:
            piece = self._add(token, log_prob, top, over)
        self._latency_s = time.perf_counter() - self._start
        self._first_s = self._first_s or self._latency_s
        return self._shown(piece)

    def take_all(self, tokens: Sequence[int], log_probs: Sequence[float], tops: Sequence[Top]) -> Delta:
        """A whole answer at once (of a beam search); one that ends without a token that ends turns was cut."""
        pieces = []
        for token, log_prob, top in zip(tokens, log_probs, tops or [()] * len(tokens), strict=True):
            pieces.append(self.take(token, log_prob, top))
            if self.finish_reason:
                break
        if not self.finish_reason:
            self.finish_reason = "length"
            pieces.append(self._shown(""))
        return Delta(
            "".join(piece.text for piece in pieces),
            tokens=tuple(token for piece in pieces for token in piece.tokens),
            tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
        )

    def generation(self) -> Generation:
        """The finished answer."""
        ids = self._text.ids if self._text is not None else tuple(self._ids)
        text = self._text.text if self._text is not None else self._renderer.decode(ids)
        calls = self._tools.calls if self._tools is not None else ()
        return Generation(
            text=text if self._tools is None else self._tools.text,
            token_ids=ids,
            prompt_token_ids=tuple(self.prompt),
            finish_reason="tool_calls" if calls else self.finish_reason,
            logprob=sum(self._log_probs[: len(ids)]),
            first_token_s=self._first_s,
            latency_s=self._latency_s,
            prompt_tokens=len(self.prompt),
            completion_tokens=len(ids),
            tokens=tuple(self._reports[: len(ids)]),
            tool_calls=calls,
            cached_tokens=self.cached_tokens,
        )

    def _add(self, token: int, log_prob: float, top: Top, over: bool) -> str:
        self._ids.append(token)
        self._log_probs.append(log_prob)
        if self._sampling.logprobs is not None:
            likeliest = tuple((self._bytes(other), value) for other, value in top)
            self._reports.append(TokenLogprob(self._bytes(token), log_prob, likeliest))
        piece = ""
        if self._text is not None:
            piece = self._text.push(token)
            if self._text.stopped:
                self.finish_reason = "stop"
        if not self.finish_reason and over:
            self.finish_reason = "stop"
        if not self.finish_reason and len(self._ids) >= self.limit:
            self.finish_reason = "length"
        return piece

    def _shown(self, piece: str) -> Delta:
        if self.finish_reason and self._text is not None:
            piece += self._text.finish()
            if self._text.stopped:
                self.finish_reason = "stop"
        calls: tuple[ToolCall, ...] = ()
        if self._tools is not None:
            piece, calls = self._tools.finish(piece) if self.finish_reason else self._tools.push(piece)
            if calls and not self._sampling.parallel_tool_calls:
                self.finish_reason = "stop"
        return Delta(piece, tokens=self._new_reports(), tool_calls=calls)

    def _new_reports(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that the text is made of which can be shown, and that were not told yet."""
        if not self._reports or self._text is None:
            return ()
        sure = len(self._text.ids) if self.finish_reason else self._text.shown_tokens
        new = tuple(self._reports[self._told : sure])
        self._told = max(self._told, sure)
        return new

    def _bytes(self, token: int) -> bytes:
        return self._bytes_of[token] if token < len(self._bytes_of) else b""


def _tool_text(renderer: Any, sampling: Sampling) -> ToolText | None:
    from luthier.engines._tools import ToolText, offered

    return ToolText(renderer, sampling) if offered(sampling) else None


def _decoder(renderer: Any, sampling: Sampling) -> Any:
    from luthier.engines._tools import decoder

    return decoder(renderer, sampling)
