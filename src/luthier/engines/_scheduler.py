"""Continuous batching: what several threads ask of one base is answered in one running batch (Yu et al. 2022, Orca).

Between two steps rows join and leave: one that is finished, or that nobody reads any more, gives its place up at once. Who came first is
admitted first. A step takes one token of every answer that grows and some hundred of the prompts that are still read, so that a long prompt
does not hold the others up. What a prompt has in common with earlier ones is not read again (``models.prefix``). Adapters that
one forward can take (``models.mixed``) answer side by side, the other groups take turns.

The batch has a thread of its own, which lives while there is something to do. Everything that a turn of the base protects (``SharedBase.turn``)
is touched inside of one only: rows, slots, the memory of prompts.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.core.errors import EngineError, LuthierError
from luthier.engines._places import Places, Row, Serving, Stats

if TYPE_CHECKING:
    import torch

    from luthier.engines._shared import SharedBase
    from luthier.models.load import LoadedModel
    from luthier.models.speculate import Guesser

LINGER_S = 2.0
"""So long the thread waits for more before it ends and gives the buffers back."""

logger = logging.getLogger("luthier.engines")


@dataclass(eq=False)
class _Work:
    """What a row gets in a step: its next ``tokens``; ``ends`` when they are all there is, so that the next one can be drawn, and the ones after
    it as far as ``guess`` is ``right``."""

    row: Row
    tokens: list[int]
    ends: bool
    guess: list[int] = field(default_factory=list)
    right: int = 0

    @property
    def reads(self) -> int:
        """After how many of the tokens logits are wanted."""
        return 1 + len(self.guess) if self.ends else 0


class Scheduler:
    """The running batch of one base. ``submit`` is safe from every thread."""

    def __init__(self, base: SharedBase) -> None:
        self.base = base
        self._changed = threading.Condition()
        self._arrived: deque[Row] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.serve(Serving())
        _schedulers.add(self)

    def serve(self, serving: Serving) -> None:
        """From now on so much runs at once; nothing may be running."""
        self.serving, self.stats = serving, Stats()
        self._places = Places(serving, self.stats)

    @property
    def running(self) -> int:
        """Rows that have a place."""
        return len(self._places.placed())

    @property
    def waiting(self) -> int:
        """Rows that wait for one."""
        return len(self._places.waiting) + len(self._arrived)

    def submit(self, rows: Iterable[Row]) -> None:
        """Answer ``rows``; each hears of it by its ``told``."""
        with self._changed:
            for row in rows:
                row.answer.begin()
                self._arrived.append(row)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=_run, args=(weakref.ref(self), self._changed), name="luthier-answers", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def drop(self, key: str | None) -> None:
        """Inside of a turn: nobody answers as ``key`` any more; its rows fail, the others go on."""
        for row in [row for row in self._places.all() if row.key == key]:
            self._fail(row, EngineError("the engine was closed"))

    def stop(self) -> None:
        """End the thread after the step that it is in; what it was answering fails."""
        with self._changed:
            self._stopping = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(30.0)

    # ---- the thread

    def _one_turn(self) -> None:
        try:
            with self.base.turn() as loaded:
                self._turn(loaded)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            self._fail_all(_said(error))

    def _is_idle(self) -> bool:
        return not self._arrived and not self._places.all()

    def _turn(self, loaded: LoadedModel) -> None:
        """Rows leave and join, then one group of adapters makes a step."""
        with self._changed:
            self._places.waiting.extend(self._arrived)
            self._arrived.clear()
        for row in [row for row in self._places.all() if row.cancelled]:
            self._places.leave(row)
        self._admit(loaded)
        if rows := self._places.next_group():
            self._step(loaded, rows)

    def _admit(self, loaded: LoadedModel) -> None:
        while self._places.waiting:
            row = self._places.waiting[0]
            if not self.base.answers(row.key):
                self._fail(row, EngineError("the engine was closed"))
            elif not self._places.admit(loaded):
                return

    # ---- a step

    def _step(self, loaded: LoadedModel, rows: list[Row]) -> None:
        import torch

        from luthier.models.decode import logits

        with torch.inference_mode():
            for works, hidden in self._forward(loaded, self._plan(loaded, rows)):
                for work in works:
                    work.row.fed += len(work.tokens)
                    self._remember(work.row, at_end=False)
                ending = [work for work in works if work.ends]
                if ending:
                    with _adapters([work.row for work in ending for _ in range(work.reads)]):
                        scores = logits(loaded.module, hidden)
                    self._answer(ending, scores)
        self.stats.steps += 1

    def _plan(self, loaded: LoadedModel, rows: list[Row]) -> list[_Work]:
        """The next token of each answer that grows; of the prompts, first come first served, as many tokens as a step reads."""
        self.base.choose(loaded, list(dict.fromkeys(row.key for row in rows)))  # whose soft prompt may be asked for
        growing = [row for row in rows if row.begun and row.pending == 1]
        reading: list[Row] = []
        works = [_Work(row, row.ids[row.fed :], True) for row in growing]
        left = min(row.read_tokens for row in rows)
        for row in (row for row in rows if row not in growing):
            if left < 1 or (not row.begun and any(self._can_wait(row, other) for other in reading)):
                break
            if not row.begun:
                self._begin(loaded, row)
            reading.append(row)
            count = min(row.pending, left)
            left -= count
            works.append(_Work(row, row.ids[row.fed : row.fed + count], count == row.pending))
        if self.serving.guesser is not None and growing:
            self._guess(self.serving.guesser, works[: len(growing)])
        self._places.reserve(
            max(work.row.virtual + work.row.fed + len(work.tokens) + len(work.guess) for work in works)
        )
        return [work for work in works if work.row.slot is not None]

    def _guess(self, guesser: Guesser, works: list[_Work]) -> None:
        """While few answers grow: what may come next in each."""
        from luthier.models.speculate import MOST_ROWS, MOST_TOKENS, Trust

        if len(works) > MOST_ROWS:
            return
        most = []
        for work in works:
            row = work.row
            row.trust = row.trust or Trust()
            most.append(max(0, min(row.trust.most(), MOST_TOKENS // len(works) - 1, row.left - 1)))
        try:
            guesses = guesser.guess([work.row for work in works], most)
        except Exception:  # answers come without guesses too
            logger.exception("the model that guesses ahead failed")
            return
        for work, guess in zip(works, guesses, strict=True):
            work.guess = guess

    def _can_wait(self, row: Row, other: Row) -> bool:
        """Whether most of what ``row`` has to read is being read for ``other``: then it will be there in a moment."""
        from luthier.models.prefix import SHARE_AT_LEAST
        from luthier.models.prefix_tree import common_length

        if row.key != other.key:
            return False
        common = common_length(row.ids, other.ids)
        known = sum(count for count, _ in self.base.memory.pieces(row.key, row.ids[:-1], row.virtual))
        return common - known >= max(SHARE_AT_LEAST, (len(row.ids) - known) / 2)

    def _begin(self, loaded: LoadedModel, row: Row) -> None:
        """Put what is known of the row into its slot: the soft prompt, and what the memory has."""
        from luthier.models.soft_prompt import keys_values

        slots = self._places.slots
        assert slots is not None and row.slot is not None
        row.soft_prompt = keys_values(loaded.module)
        row.virtual = row.soft_prompt[0][0].shape[2] if row.soft_prompt else 0
        row.fed, row.begun = 0, True
        pieces = self.base.memory.pieces(row.key, row.ids[:-1], row.virtual)
        self._places.reserve(row.virtual + sum(count for count, _ in pieces) + 1)
        if row.slot is None:  # it had to make room for others
            return
        slots.write(row.slot, 0, row.soft_prompt, row.virtual)
        for count, values in pieces:
            slots.write(row.slot, row.virtual + row.fed, values, count)
            row.fed += count
        if row.is_new:
            row.answer.cached_tokens = row.fed
            self.stats.prompt_tokens += len(row.ids)
            self.stats.cached_tokens += row.fed

    def _forward(self, loaded: LoadedModel, works: list[_Work]) -> Iterator[tuple[list[_Work], torch.Tensor]]:
        """Hidden states of what ends; all in one forward, or one by one to find out which of them fails."""
        together = [works] if works else []
        while together:
            part = together.pop(0)
            part = [work for work in part if work.row.slot is not None]
            try:
                hidden = self._hidden(loaded, part)
            except Exception as error:  # noqa: BLE001
                if len(part) == 1:
                    self._broken(part[0].row, error)
                else:
                    together = [[work] for work in part]
                continue
            yield part, hidden

    def _hidden(self, loaded: LoadedModel, works: Sequence[_Work]) -> torch.Tensor:
        from luthier.models.slots import Feed

        assert self._places.slots is not None
        keys = list(dict.fromkeys(work.row.key for work in works))
        self.base.choose(loaded, keys)
        feeds = [
            Feed(
                work.row.slot or 0,
                work.row.virtual + work.row.fed,
                [*work.tokens, *work.guess],
                work.reads,
                work.row.name,
            )
            for work in works
        ]
        return self._places.slots.forward(loaded.module, feeds, mixed=len(keys) > 1)

    def _answer(self, works: Sequence[_Work], scores: torch.Tensor) -> None:
        """The next tokens of each row, from the logits of all its reads: one, and one more for each guess that was right."""
        read, at = {}, 0
        for work in works:
            read[work], at = at, at + work.reads
        going, depth = list(works), 0
        while going:
            drawn = self._draw([work.row for work in going], scores[[read[work] + depth for work in going]])
            going = [w for w in going if depth < len(w.guess) and drawn.get(w.row) == w.guess[depth]]
            depth += 1
            for work in going:
                work.right = depth
            going = [work for work in going if work.row.slot is not None]
            for work in going:
                work.row.fed += 1
        for work in works:
            if work.guess and work.row.trust is not None:
                work.row.trust.learn(len(work.guess), work.right)
                self.stats.guessed_tokens += len(work.guess)
                self.stats.accepted_tokens += work.right

    def _draw(self, rows: list[Row], scores: torch.Tensor) -> dict[Row, int]:
        """The next token of each row, from its logits; rows for which there is none fail."""
        from luthier.models.sample import DrawError, draw

        while rows:
            try:
                drawn = draw(scores, [row.sampler for row in rows])
                break
            except DrawError as error:
                self._fail(rows.pop(error.place), _said(error.__cause__ or error))
                scores = scores[[place for place in range(len(scores)) if place != error.place]]
        else:
            return {}
        tokens, log_probs = drawn.tokens.tolist(), drawn.log_probs.tolist()
        for place, row in enumerate(rows):
            self._take(row, tokens[place], log_probs[place], drawn.top.get(place, ()))
        return dict(zip(rows, tokens, strict=True))

    def _take(self, row: Row, token: int, log_prob: float, top: Sequence[tuple[int, float]]) -> None:
        try:
            row.sampler.take(token)
            delta = row.answer.take(token, log_prob, top, over=row.sampler.done)
        except Exception as error:  # noqa: BLE001 - of this row's constraint or text only
            self._fail(row, _said(error))
            return
        self.stats.answer_tokens += 1
        row.ids.append(token)
        if row.streams:
            row.told.put((row, delta))
        if row.answer.finish_reason:
            self._remember(row, at_end=True)
            self._places.leave(row)
            row.told.put((row, None))

    def _remember(self, row: Row, *, at_end: bool) -> None:
        """Keep what was read of a whole prompt, and in the end of the answer, for prompts that begin with it."""
        from luthier.models.prefix import SHARE_AT_LEAST

        slots, slot = self._places.slots, row.slot
        if slots is None or slot is None or not (at_end or row.fed == len(row.answer.prompt)):
            return
        if row.fed >= SHARE_AT_LEAST and self.base.memory.takes(slots.bytes_of(row.fed)):
            self.base.memory.add(
                row.key,
                row.ids[: row.fed],
                lambda start, end: slots.read(slot, row.virtual + start, row.virtual + end),
                row.soft_prompt,
            )

    def _broken(self, row: Row, error: Exception) -> None:
        """The model failed on this row alone. Where memory ran out, it waits until others are done."""
        from luthier.engines._shared import out_of_memory

        if out_of_memory(error) and len(self._places.placed()) > 1:
            self._places.put_back(row)
        else:
            self._fail(row, _said(error))

    def _fail(self, row: Row, error: Exception) -> None:
        self._places.leave(row)
        row.told.put((row, error))

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            self._places.waiting.extend(self._arrived)
            self._arrived.clear()
        for row in self._places.all():
            self._fail(row, error)


def _run(reference: weakref.ref[Scheduler], changed: threading.Condition) -> None:
    """The thread of a scheduler. While it waits for more it keeps nothing in memory."""
    while True:
        with changed:
            scheduler = reference()
            if scheduler is not None and scheduler._is_idle() and not scheduler._stopping:
                scheduler = None
                changed.wait(LINGER_S)
                scheduler = reference()
            if scheduler is None:
                return
            if scheduler._is_idle() or scheduler._stopping:
                scheduler._places.slots, scheduler._thread = None, None
                break
        scheduler._one_turn()
        scheduler = None
    if scheduler._stopping:
        scheduler._fail_all(EngineError("the process is ending"))


def _said(error: BaseException) -> Exception:
    """What whoever asked is told."""
    from luthier.engines._shared import MEMORY_HINT, MEMORY_RAN_OUT, out_of_memory

    if isinstance(error, LuthierError):
        return error
    if out_of_memory(error):
        return EngineError(MEMORY_RAN_OUT, hint=MEMORY_HINT)
    logger.error("answering failed in a way that it should not", exc_info=error)
    return EngineError(f"answering failed: {type(error).__name__}: {error}")


def _adapters(rows: Sequence[Row]) -> AbstractContextManager[None]:
    """Within it, these rows of a batch are answered by their own adapters."""
    from luthier.models.rows import answering

    mixed = len({row.key for row in rows}) > 1
    return answering([row.name for row in rows]) if mixed else nullcontext()


_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread that computes while the interpreter is taken down would bring the process down with it."""
    for scheduler in list(_schedulers):
        scheduler.stop()
