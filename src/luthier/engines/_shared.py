"""One base in memory for many engines: who uses it, and whose turn it is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.core.errors import EngineError
from luthier.engines._places import Serving
from luthier.engines._scheduler import Scheduler

MEMORY_RAN_OUT = "memory ran out while answering"
MEMORY_HINT = "lower the engine's max_batch_tokens, or answer shorter prompts"

if TYPE_CHECKING:
    from luthier.core.model import ModelRecord
    from luthier.models.load import LoadedModel
    from luthier.store.database import Store


class Turns:
    """A lock that is given out in the order in which it was asked for.

    A plain lock would let a tight loop take it again and again while others wait.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._mutex:
            if not self._held:
                self._held = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            mine.acquire()
        except BaseException:  # Ctrl-C while waiting: leave the queue, or pass on a turn that has just come
            with self._mutex:
                waiting = mine in self._waiting
                if waiting:
                    self._waiting.remove(mine)
            if not waiting:
                self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


class SharedBase:
    """A loaded base and the engines that use it.

    Every use goes through ``using``, which waits for its turn and selects the adapter; work is cut into short uses (one decoding
    step, one batch), so that engines on the same base take turns. ``memory`` is read and written only inside of a turn. ``scheduler`` answers
    what several threads ask at the same time in one running batch.
    """

    def __init__(
        self,
        store: Store,
        load: Callable[[], LoadedModel],
        forget: Callable[[], Any],
        serving: Callable[[LoadedModel], Serving] = lambda _: Serving(),
    ) -> None:
        from luthier.models.prefix import PrefixMemory

        self._store, self._load, self._forget, self._serving = store, load, forget, serving
        self.scheduler = Scheduler(self)
        self.memory = PrefixMemory()
        self._turns = Turns()
        self._users: dict[str | None, int] = {}
        self._loaded: LoadedModel | None = None

    def join(self, name: str | None, record: ModelRecord | None) -> None:
        """One more engine answers as ``name`` (None: the bare base); its adapter is attached when it is the first to."""
        from luthier.models.attach import attach

        with self._turns:
            try:
                if self._loaded is None:
                    self._loaded = self._load()
                    self.scheduler.serve(self._serving(self._loaded))
                    self.memory.max_bytes = self.scheduler.serving.prefix_cache_bytes
                if name is not None and record is not None and name not in self._loaded.attached:
                    attach(self._loaded, record, name, store=self._store, light=True)
                self._users[name] = self._users.get(name, 0) + 1
            finally:
                self._free_unused()

    def leave(self, name: str | None) -> None:
        """One engine less; what nobody uses is freed."""
        from luthier.models.attach import detach

        with self._turns:
            if self._loaded is None or not self._users.get(name):
                return
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self.memory.forget(name)
                self.scheduler.drop(name)
                if name is not None:
                    detach(self._loaded, name)
            self._free_unused()

    def _free_unused(self) -> None:
        if not self._users:
            self._loaded = None
            self.scheduler.serve(Serving())
            self._forget()

    def answers(self, name: str | None) -> bool:
        """Whether some engine answers as ``name``. Asked inside of a turn, it stays true until the turn's end."""
        return name in self._users

    @contextmanager
    def using(self, *names: str | None) -> Iterator[LoadedModel]:
        """The base, answering as the adapter that is named (None: as itself), for as long as the block runs.

        With several names it is ready to answer each row as its own (``models.mixed.prepare``): they must be ones that go together.
        Raises EngineError after an engine that answers as one of them was closed.
        """
        with self.turn() as loaded:
            if not all(map(self.answers, names)):
                raise EngineError("the engine was closed")
            self.choose(loaded, names)
            yield loaded

    @contextmanager
    def turn(self) -> Iterator[LoadedModel]:
        """The base for as long as the block runs, answering as whatever was chosen last. Raises EngineError when nobody uses it any more."""
        with self._turns:
            if self._loaded is None:
                raise EngineError("the engine was closed")
            try:
                yield self._loaded
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise EngineError(MEMORY_RAN_OUT, hint=MEMORY_HINT) from error

    def choose(self, loaded: LoadedModel, names: Sequence[str | None]) -> None:
        """Inside of a turn: answer as ``names`` from now on; several of them must be ones that go together."""
        from luthier.models.attach import select
        from luthier.models.mixed import prepare

        if len(names) > 1:
            prepare(loaded, names)
        elif names[0] is not None or loaded.attached:
            select(loaded, names[0])


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that no memory is left."""
    import torch

    text = str(error)  # torch has an own class for GPUs only
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text or "not enough memory" in text
