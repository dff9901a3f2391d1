"""Traces are kept as long as the configuration says: a thread of the server deletes older ones, a few at a time."""

from __future__ import annotations

import logging
import threading

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.errors import LuthierError
from luthier.store.database import Store
from luthier.store.retention import purge

PAUSE_S = 0.05

logger = logging.getLogger("luthier.gateway")


class RetainConfig(BaseModel):
    """Traces older than ``days`` or beyond the newest ``max_rows`` go, looked for every ``every_s``. Those with explicit feedback stay,
    unless ``rated_too``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    days: float | None = Field(default=None, gt=0.0)
    max_rows: int | None = Field(default=None, ge=1)
    rated_too: bool = False
    every_s: float = Field(default=600.0, ge=1.0)

    @model_validator(mode="after")
    def _some_bound(self) -> RetainConfig:
        if self.days is None and self.max_rows is None:
            raise ValueError("needs at least one of days, max_rows")
        return self


class Retention:
    """Deletes what need not be kept any more, from its own thread, now and every ``every_s`` seconds."""

    def __init__(self, store: Store, config: RetainConfig) -> None:
        self.store = store
        self.config = config
        self.purged = 0
        self.error = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="luthier-retention", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End, between two transactions. Safe to call twice."""
        self._stopped.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._once()
            if self._stopped.wait(self.config.every_s):
                return

    def _once(self) -> None:
        config = self.config
        try:
            done = purge(
                self.store, days=config.days, max_rows=config.max_rows, rated_too=config.rated_too,
                stopped=self._stopped, pause_s=PAUSE_S,
            )  # fmt: skip
        except LuthierError as error:
            if not self.error:
                logger.error("old traces cannot be deleted; tried again in %g s: %s", config.every_s, error.message)
            self.error = error.message
            return
        self.error = ""
        self.purged += done.traces
        if done.traces:
            logger.info("%d old traces deleted, %d kept for their feedback", done.traces, done.kept)
