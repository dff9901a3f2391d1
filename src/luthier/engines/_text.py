"""Tokens into text while they arrive: no half characters, no half stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
"""What a decoder shows for bytes that are not (yet) a character."""


class AnswerText:
    """The text of an answer that grows token by token.

    ``push`` returns what can be shown for good: a character whose bytes are incomplete is held back, and so is text that may be
    the beginning of a stop text. The pieces joined are ``text``. After a stop text was found ``stopped`` is True; the text ends
    before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(s for s in stop if s)
        self._ids: list[int] = []
        self._start = 0  # first token of the window that is decoded again
        self._read = 0  # tokens of the window whose text is in _text
        self._ends: list[int] = []  # length of _text after each token that completed some
        self._text = ""
        self._shown = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """What has been shown so far; after ``finish`` the whole answer."""
        return self._text[: self._shown]

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that the text is made of; after a stop text without the tokens that only it needed."""
        return tuple(self._ids[: self._made_of(len(self._text))] if self.stopped else self._ids)

    @property
    def shown_tokens(self) -> int:
        """How many tokens the text is made of that has been shown so far."""
        return self._made_of(self._shown)

    def push(self, token: int) -> str:
        """Take one token; returns the new text that is safe to show."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if len(now) > len(before) and not now.endswith(_BROKEN):
            self._text += now[len(before) :]
            self._start, self._read = self._read, len(self._ids)
        self._ends.append(len(self._text))
        return self._show(final=False)

    def finish(self) -> str:
        """No more tokens come: the rest of the text, half characters included as the decoder shows them."""
        if not self.stopped and self._read < len(self._ids):
            before = self._decode(self._ids[self._start : self._read])
            self._text += self._decode(self._ids[self._start :])[len(before) :]
            self._read = len(self._ids)
            self._ends[-1] = len(self._text)
        return self._show(final=True)

    def _made_of(self, length: int) -> int:
        """How many tokens it takes for the first ``length`` characters."""
        if not length:
            return 0
        return next((n for n, end in enumerate(self._ends) if end >= length), len(self._ends) - 1) + 1

    def _show(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        begin = self._shown
        found = [place for place in (self._text.find(stop, begin) for stop in self._stop) if place >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped, self._shown = True, len(self._text)
        elif final:
            self._shown = len(self._text)
        else:
            self._shown = max(begin, len(self._text) - self._held())
        return self._text[begin : self._shown]

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(self._text) - self._shown), 0, -1):
            if any(stop.startswith(self._text[-size:]) for stop in self._stop):
                return size
        return 0


def before_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first stop text."""
    places = [place for place in (text.find(s) for s in stop if s) if place >= 0]
    return text[: min(places)] if places else text
