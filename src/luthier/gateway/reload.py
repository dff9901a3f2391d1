"""The configuration file, followed while the server runs.

A change is read and checked as a whole, models that are new in it are loaded, and then everything is switched at once; running requests end as
they began. A file that is wrong changes nothing: what is wrong with it is logged and shown in /health until it is right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, LuthierError
from luthier.gateway.config import GatewayConfig, read_config
from luthier.gateway.guard.layer import guard_of
from luthier.gateway.targets.stock import Stock
from luthier.store.home import now

if TYPE_CHECKING:
    from luthier.gateway.service import Service

EVERY_S = 1.0

logger = logging.getLogger("luthier.gateway")


class Reloader:
    """Applies configurations to a service. ``path`` is the file to follow, None when there is none."""

    def __init__(self, service: Service, stock: Stock, path: Path | None) -> None:
        self._service, self._stock, self.path = service, stock, path
        self._seen = self._content()
        self._busy = asyncio.Lock()
        self.loaded_at = now()
        self.error = ""

    async def look(self) -> None:
        """Load the file anew if it has another content than at the last look."""
        content = await asyncio.to_thread(self._content)
        if content != self._seen:
            await self.reload()

    async def reload(self) -> None:
        """Read the file and apply it; what is wrong is logged and kept in ``error``."""
        if self.path is None:
            return
        async with self._busy:
            self._seen = await asyncio.to_thread(self._content)
            try:
                config = await asyncio.to_thread(read_config, self.path)
                await self._apply(config)
            except LuthierError as error:
                self.error = str(error)
                logger.error("%s was not loaded, everything stays as it was: %s", self.path, error)
                return
            self.loaded_at, self.error = now(), ""
            logger.info("%s was loaded", self.path)

    async def _apply(self, config: GatewayConfig) -> None:
        service = self._service
        _refuse_fixed(service.config, config)
        change = await self._stock.prepare(service.models, config)
        guard = service.guard
        try:
            if config.guardrails != service.config.guardrails:
                guard = await asyncio.to_thread(guard_of, config.guardrails, service.engines(), service.store)
            routes = service.router.built(config.routes)
            old, cache = service.cache, await service.other_cache(config)
            service.models.show(change.targets, change.drop)
        except BaseException:
            await service.models.discard(change.opened)
            if guard is not None and guard is not service.guard:
                guard.close()
            raise
        service.router.routes = routes
        service.cache = cache
        service.switch(config, guard)
        if old is not None and old is not cache:
            await asyncio.to_thread(old.close)

    def state(self) -> dict[str, Any] | None:
        """For /health."""
        if self.path is None:
            return None
        return {"file": str(self.path), "loaded_at": self.loaded_at, "error": self.error or None}

    def _content(self) -> bytes | None:
        if self.path is None:
            return None
        try:
            return self.path.read_bytes()
        except OSError:  # gone, or not yet there again: a file that is replaced is missing for a moment
            return None


FIXED = ("watch", "batch")
"""Sections that take effect at the start only: a file that changes them is refused, rather than taken and not followed."""


def _refuse_fixed(old: GatewayConfig, new: GatewayConfig) -> None:
    before, after = (each.model_dump(include=set(FIXED)) for each in (old, new))
    changed = [name for name in FIXED if before[name] != after[name]]
    if changed:
        raise InputError(f"{', '.join(changed)}: read at the start only; restart the server, or put it back as it was")


async def every(seconds: float, run: Callable[[], Any]) -> None:
    """Await ``run()`` again and again; its errors are logged."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await run()
        except Exception:  # a fault in one round must not end all
            logger.exception("a task in the background failed")
