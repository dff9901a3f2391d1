"""Score requests as rows of token ids, and rows' results as scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from luthier.core.engine import ContinuationScore, EngineInfo, ScoreRequest
from luthier.core.errors import InputError
from luthier.data.pairs import windows

if TYPE_CHECKING:
    from luthier.data.render import Renderer


class Scored(Protocol):
    """What is known of one continuation of a row."""

    @property
    def logprob(self) -> float:
        """Sum over its tokens."""

    @property
    def greedy(self) -> bool | None:
        """Whether each was the likeliest token."""


@dataclass(frozen=True)
class ScoreRow:
    """A prompt of at least one token, and continuations of it."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Asked:
    """``rows`` to be scored; ``parts[request][continuation]`` lists the (row, number) pairs that make up its score."""

    rows: list[ScoreRow]
    parts: list[list[list[tuple[int, int]]]]

    def scores(self, results: Sequence[Sequence[Scored]]) -> list[tuple[ContinuationScore, ...]]:
        """One tuple a request, from the results of each row."""
        return [tuple(self._sum(parts, results) for parts in request) for request in self.parts]

    def _sum(self, parts: Sequence[tuple[int, int]], results: Sequence[Sequence[Scored]]) -> ContinuationScore:
        found = [results[row][number] for row, number in parts]
        said = [each.greedy for each in found]
        greedy = False if False in said else None if None in said else True
        tokens = sum(len(self.rows[row].continuations[number]) for row, number in parts)
        return ContinuationScore(sum(each.logprob for each in found), tokens, greedy)


def ask(requests: Sequence[ScoreRequest], renderer: Renderer, info: EngineInfo, *, window: int = 0) -> Asked:
    """The rows for ``requests``: conversations with whole turns, raw prompts with text cut into tokens together with them, and texts
    without a prompt in windows of ``window`` tokens (0: the context).

    Raises InputError for an empty continuation, and for a prompt that with its continuation passes the context.
    """
    if not all(text for request in requests for text in request.continuations):
        raise InputError("continuations must not be empty; got ''")
    turns = [number for number, request in enumerate(requests) if not isinstance(request.prompt, str)]
    texts = [number for number, request in enumerate(requests) if isinstance(request.prompt, str)]
    found: dict[int, ScoreRow] = {}
    known: dict[str, list[int]] = {}
    for number, prompt in zip(turns, renderer.prompt_ids_batch([requests[n].prompt for n in turns]), strict=True):
        for text in requests[number].continuations:
            if text not in known:
                known[text] = renderer.continuation_ids(text, ends_turn=True)
        found[number] = ScoreRow(prompt, [known[text] for text in requests[number].continuations])
    pairs = renderer.pairs.encode([(str(requests[n].prompt), requests[n].continuations) for n in texts])
    found |= {number: ScoreRow(*pair) for number, pair in zip(texts, pairs, strict=True)}
    asked = Asked([], [])
    for number, request in enumerate(requests):
        row = found[number]
        if request.prompt == "":
            asked.parts.append(
                [_windows(ids, asked.rows, renderer, window or info.context_length) for ids in row.continuations]
            )
            continue
        _check(row, number, len(requests), info)
        asked.parts.append([[(len(asked.rows), place)] for place in range(len(row.continuations))])
        asked.rows.append(row)
    return asked


def _windows(ids: Sequence[int], rows: list[ScoreRow], renderer: Renderer, length: int) -> list[tuple[int, int]]:
    """Add a text's windows to ``rows``; where they are."""
    begins = renderer.pairs.begins_with
    if len(ids) > 1 and ids[0] == begins:  # the text says itself how it begins
        ids = ids[1:]
    cut = windows(ids, begins, length)
    rows += [ScoreRow(context, [predicted]) for context, predicted in cut]
    return [(len(rows) - len(cut) + number, 0) for number in range(len(cut))]


def _check(row: ScoreRow, number: int, count: int, info: EngineInfo) -> None:
    longest = max(map(len, row.continuations), default=0)
    if len(row.prompt) + longest > info.context_length:
        which = f"prompt {number + 1} of {count}" if count > 1 else "the prompt"
        raise InputError(
            f"{which} and its continuation have {len(row.prompt)} + {longest} tokens; {info.model} reads {info.context_length}",
            hint="shorten it: a text is read in windows only when it has no prompt",
        )
