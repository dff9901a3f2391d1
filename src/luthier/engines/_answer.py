"""An answer of the torch engine while it grows, token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from luthier.core.engine import Generation
from luthier.engines._text import AnswerText


class Answer:
    """One answer while it grows."""

    def __init__(self, prompt: list[int], limit: int, renderer: Any, stop: Sequence[str], *, incremental: bool) -> None:
        self.prompt, self.limit = prompt, limit
        self.finish_reason = ""
        self._renderer = renderer
        self._text = AnswerText(renderer.decode, stop) if incremental else None
        self._ids: list[int] = []
        self._log_probs: list[float] = []
        self._start = self._first_s = self._latency_s = 0.0

    def begin(self) -> None:
        """Time runs from now."""
        self._start = time.perf_counter()

    def take(self, token: int, log_prob: float) -> str:
        """One more token; returns the text that can be shown, and sets ``finish_reason`` when it was the last."""
        piece = ""
        if token in self._renderer.stop_ids:
            self.finish_reason = "stop"
        else:
            self._ids.append(token)
            self._log_probs.append(log_prob)
            if self._text is not None:
                piece = self._text.push(token)
                if self._text.stopped:
                    self.finish_reason = "stop"
            if not self.finish_reason and len(self._ids) >= self.limit:
                self.finish_reason = "length"
        self._latency_s = time.perf_counter() - self._start
        self._first_s = self._first_s or self._latency_s
        if self.finish_reason and self._text is not None:
            piece += self._text.finish()
            if self._text.stopped:
                self.finish_reason = "stop"
        return piece

    def generation(self) -> Generation:
        """The finished answer."""
        ids = self._text.ids if self._text is not None else tuple(self._ids)
        return Generation(
            text=self._text.text if self._text is not None else self._renderer.decode(ids),
            token_ids=ids,
            prompt_token_ids=tuple(self.prompt),
            finish_reason=self.finish_reason,
            logprob=sum(self._log_probs[: len(ids)]),
            first_token_s=self._first_s,
            latency_s=self._latency_s,
            prompt_tokens=len(self.prompt),
            completion_tokens=len(ids),
        )
