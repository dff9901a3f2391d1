"""Who has a place in a running batch, who waits for one, and how much memory the places may take."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from luthier.core.engine import Delta

if TYPE_CHECKING:
    from luthier.engines._answer import Answer
    from luthier.models.load import LoadedModel
    from luthier.models.prefix import KeysValues
    from luthier.models.sample import RowSampler
    from luthier.models.slots import Slots
    from luthier.models.speculate import Guesser, Trust


@dataclass(frozen=True)
class Serving:
    """How much runs at once: ``max_running`` answers, whose keys and values take ``cache_bytes`` at most (one answer always may run); and
    ``prefix_cache_bytes`` of what prompts begin with. ``guesser`` says what may come next, while few answers run."""

    max_running: int = 32
    cache_bytes: int = 2**30
    prefix_cache_bytes: int = 128 * 2**20
    guesser: Guesser | None = None


@dataclass
class Stats:
    """Counts since the base was loaded. ``cached_tokens`` of ``prompt_tokens`` were not read; ``put_back`` rows lost their place to others;
    ``accepted_tokens`` of ``guessed_tokens`` were what was drawn."""

    steps: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    put_back: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0


class Row:
    """One answer on its way: ``key`` answers it, ``read_tokens`` of its prompt are read in a step, and what happens is put to ``told``:
    ``(row, what can be shown)`` if it ``streams``, ``(row, None)`` at its end, ``(row, error)`` when it failed."""

    def __init__(
        self,
        key: str | None,
        answer: Answer,
        sampler: RowSampler,
        told: SimpleQueue[tuple[Row, Delta | Exception | None]],
        *,
        read_tokens: int,
        streams: bool,
    ) -> None:
        self.key, self.answer, self.sampler, self.told = key, answer, sampler, told
        self.read_tokens, self.streams = read_tokens, streams
        self.cancelled = False
        self.ids = list(answer.prompt)
        self.fed = 0  # of ids: how many have keys and values in the slot
        self.slot: int | None = None
        self.begun = False  # what the memory has of it is in the slot
        self.virtual = 0
        self.soft_prompt: KeysValues = []
        self.name: str | None = None
        self.trust: Trust | None = None

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen."""
        return len(self.ids) - self.fed

    @property
    def left(self) -> int:
        """How many more tokens the answer may have."""
        return self.answer.limit - (len(self.ids) - len(self.answer.prompt))

    @property
    def is_new(self) -> bool:
        """Whether nothing was answered yet."""
        return len(self.ids) == len(self.answer.prompt)


class Places:
    """The slots of a base and the rows in them, in groups that one forward can take (``models.mixed``); and the rows that wait, first come first."""

    def __init__(self, serving: Serving, stats: Stats) -> None:
        self.waiting: deque[Row] = deque()
        self.slots: Slots | None = None
        self._serving, self._stats = serving, stats
        self._groups: OrderedDict[Hashable, list[Row]] = OrderedDict()

    def placed(self) -> list[Row]:
        """Rows that have a place."""
        return [row for rows in list(self._groups.values()) for row in rows]

    def all(self) -> list[Row]:
        """Rows that have a place, and rows that wait."""
        return [*self.placed(), *self.waiting]

    def next_group(self) -> list[Row]:
        """The rows of the group whose turn it is; [] when there are none."""
        if not self._groups:
            return []
        group, rows = next(iter(self._groups.items()))
        self._groups.move_to_end(group)
        return list(rows)

    def admit(self, loaded: LoadedModel) -> bool:
        """Give the row that waits for longest a place; False when there is none."""
        from luthier.models.mixed import group_of, row_names
        from luthier.models.slots import Slots

        if self.slots is None:
            self.slots = Slots(self._serving.max_running, loaded.device)
        row = self.waiting[0]
        if not self.slots.free and not self._enlarge(row):
            return False
        self.waiting.popleft()
        row.slot = self.slots.open()
        (row.name,) = row_names(loaded, [row.key])
        self._groups.setdefault(group_of(loaded, row.key), []).append(row)
        self._stats.rows += row.is_new
        return True

    def reserve(self, columns: int) -> None:
        """Room for so many tokens in each row; rows for which there is no place then go back to those that wait."""
        from luthier.models.slots import COLUMNS

        slots = self.slots
        if slots is None or columns <= slots.columns:
            return
        wanted = max(columns, slots.columns * 3 // 2)
        if self._rows_for(wanted) < slots.rows:
            wanted = -(-columns // COLUMNS) * COLUMNS
        count = min(slots.rows, self._rows_for(wanted))
        for row in [row for row in reversed(self.placed()) if row.slot is not None and row.slot >= count]:
            self.put_back(row)
        slots.reshape(count, wanted)

    def put_back(self, row: Row) -> None:
        """Take the row's place; it is read again when it is its turn."""
        self.leave(row)
        row.fed, row.begun = 0, False
        self.waiting.appendleft(row)
        self._stats.put_back += 1

    def leave(self, row: Row) -> None:
        """The row is nowhere any more."""
        if row.slot is not None and self.slots is not None:
            self.slots.close(row.slot)
        row.slot = None
        if self._serving.guesser is not None:
            self._serving.guesser.forget(row)
        if row in self.waiting:
            self.waiting.remove(row)
        for group, rows in list(self._groups.items()):
            if row in rows:
                rows.remove(row)
                if not rows:
                    del self._groups[group]

    def _rows_for(self, columns: int) -> int:
        """How many rows of ``columns`` tokens there is memory for."""
        one = self.slots.bytes_of(1) if self.slots is not None else 0
        most = self._serving.max_running
        return max(1, min(most, self._serving.cache_bytes // (columns * one))) if one else most

    def _enlarge(self, row: Row) -> bool:
        """Whether there is memory for one more row, now that others may have become shorter."""
        slots = self.slots
        if slots is None or slots.rows == self._serving.max_running:
            return False
        needed = max(len(each.ids) + each.virtual for each in [row, *self.placed()]) + 256
        count = self._rows_for(needed)
        if count <= slots.rows:
            return False
        slots.reshape(count, needed)
        return True


def answered(submit: Callable[[Sequence[Row]], None], rows: Sequence[Row]) -> Iterator[tuple[Row, Delta | None]]:
    """Submit ``rows``, which share their ``told``; yields what is told of them, in the end ``(row, None)`` of each. Raises the error of one that
    failed. When it is closed, what is not finished is given up."""
    submit(rows)
    left = len(rows)
    try:
        while left:
            row, told = rows[0].told.get()
            if isinstance(told, Exception):
                raise told
            left -= told is None
            yield row, told
    finally:
        for row in rows:
            row.cancelled = True
