"""Tool calls in an answer that grows: no half calls are shown, whole ones are handed on as soon as they are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from luthier.core.engine import Constraint, Sampling
from luthier.core.message import Tool, ToolCall
from luthier.data.call_form import CallForm, call_form
from luthier.data.chat_template import Tools
from luthier.data.render import Renderer
from luthier.data.tools import may_be_bare, next_block, split_calls, tool_constraint


def offered(sampling: Sampling) -> tuple[Tool, ...]:
    """The tools that may be called."""
    return sampling.tools if sampling.tool_choice != "none" else ()


def prompt_tools(sampling: Sampling) -> Tools | None:
    """What ``Renderer.prompt_ids`` takes for this call's tools."""
    return [tool.as_dict() for tool in offered(sampling)] or None


def wanted_form(renderer: Renderer, sampling: Sampling) -> Constraint | None:
    """What the text of an answer must be: calls that must come have no other form, else what ``sampling`` asks for. Raises as ``tool_constraint``."""
    if sampling.tools and (sampling.constraint is None or sampling.tool_choice != "auto"):
        return tool_constraint(renderer, sampling) or sampling.constraint
    return sampling.constraint


def decoder(renderer: Renderer, sampling: Sampling) -> Callable[[Sequence[int]], str]:
    """``renderer.decode`` that keeps the special tokens by which calls are known (Mistral's ``[TOOL_CALLS]``), where tools are offered."""
    if not offered(sampling):
        return renderer.decode
    return partial(renderer.decode, keep=call_form(renderer).tokens)


class ToolText:
    """The text and the calls of an answer that grows piece by piece; without tools the pieces pass as they come.

    ``push`` returns what can be shown for good and the calls that are complete: what may be the beginning of a call is held back, and so are
    spaces, which do not stand before one. The texts joined are ``text``, the calls joined are ``calls``. When several calls are not wanted
    (``parallel_tool_calls``) those after the first are left out. Raises UnsupportedError for a template whose calls cannot be read.
    """

    def __init__(self, renderer: Renderer, sampling: Sampling) -> None:
        self._names = tuple(tool.name for tool in offered(sampling))
        self._form: CallForm | None = call_form(renderer) if self._names else None
        self._most = None if sampling.parallel_tool_calls else 1
        self._raw, self._at = "", 0
        self._after = False  # nothing but spaces came after the last calls
        self._found = False  # calls came before
        self.text = ""
        self.calls: tuple[ToolCall, ...] = ()

    def push(self, piece: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Take more text; returns the text and the calls that are sure now."""
        return self._step(piece, final=False)

    def finish(self, piece: str = "") -> tuple[str, tuple[ToolCall, ...]]:
        """Take the last text; returns all that was held back."""
        return self._step(piece, final=True)

    def _step(self, piece: str, *, final: bool) -> tuple[str, tuple[ToolCall, ...]]:
        if self._form is None:
            self.text += piece
            return piece, ()
        self._raw += piece
        shown, calls = self._read(self._form, final)
        calls = calls if self._most is None else calls[: self._most - len(self.calls)]
        self.text += shown
        self.calls += calls
        return shown, calls

    def _read(self, form: CallForm, final: bool) -> tuple[str, tuple[ToolCall, ...]]:
        if not self._at and form.is_json and may_be_bare(self._raw):
            if not final:
                return "", ()
            text, bare = split_calls(form, self._raw, self._names)
            self._at = len(self._raw)
            return text, bare
        shown = ""
        calls: list[ToolCall] = []
        block = next_block(form, self._raw, self._at)
        while block is not None and (block.closed or final):
            shown += self._show(block.start, shown, before_call=True)
            calls += block.calls
            self._at, self._after, self._found = block.end, True, True
            block = next_block(form, self._raw, self._at)
        end = len(self._raw) if final else self._sure(form)
        return shown + self._show(end, shown, before_call=final and self._found), tuple(calls)

    def _sure(self, form: CallForm) -> int:
        """Up to where no call can begin any more, nor spaces before one."""
        end = self._raw.find(form.begin, self._at) if form.begin else -1
        if end < 0:
            end = len(self._raw)
            for size in range(min(len(form.begin) - 1, end - self._at), 0, -1):
                if form.begin.startswith(self._raw[end - size :]):
                    end -= size
                    break
        return self._at + len(self._raw[self._at : end].rstrip())

    def _show(self, end: int, shown: str, *, before_call: bool) -> str:
        """Text up to ``end``. After calls it begins on a line of its own; spaces before calls are dropped."""
        piece = self._raw[self._at : end]
        self._at = max(self._at, end)
        if before_call:
            piece = piece.rstrip()
        if not self._after:
            return piece
        piece = piece.lstrip()
        if not piece:
            return ""
        self._after = False
        return f"\n{piece}" if self.text or shown else piece
