"""A canary on trial: what was seen of it and of its baseline, and the verdict, which is kept in the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from luthier.core.digest import digest_json
from luthier.core.errors import LuthierError
from luthier.evaluation.sequential import WorseRate
from luthier.gateway.routing._rule import Place
from luthier.gateway.targets.recent import Recent
from luthier.store.audit import append
from luthier.store.home import now
from luthier.store.routes import ratings_of_route, read_route_state, write_route_state

_LOOK_S = 5.0  # between two looks at the store: at what people rated, and at what other servers decided

logger = logging.getLogger("luthier.gateway")


class Terms(Protocol):
    """What a trial needs to know (``canary.Config``)."""

    @property
    def baseline(self) -> str: ...
    @property
    def canary(self) -> str: ...
    @property
    def metrics(self) -> Sequence[str]: ...
    @property
    def margin(self) -> float: ...
    @property
    def false_alarm(self) -> float: ...
    @property
    def least(self) -> int: ...


class Trial:
    """See the module. Belongs to the event loop; the store is read and written in threads."""

    def __init__(self, place: Place, terms: Terms) -> None:
        self._place, self._terms = place, terms
        self._verdict: dict[str, Any] | None = None
        self._known = False  # whether the store was asked
        self._saved = True
        self._asking = asyncio.Lock()
        self._looked_at = -_LOOK_S
        self._begin()

    def _begin(self) -> None:
        self._tests = {metric: WorseRate(self._terms.margin) for metric in self._terms.metrics}
        self._usual = {metric: Recent() for metric in self._terms.metrics}
        self._rated_since = now()
        self._rated: set[str] = set()

    @property
    def _digest(self) -> str:
        """What is on trial: other weights under the same name are another trial."""
        served = self._place.served(self._terms.canary)
        info = served.engine.info if served is not None else None
        weights = [info.model_digest, info.prompt_digest, info.model] if info is not None else []
        return digest_json([self._terms.baseline, self._terms.canary, weights])

    async def runs(self) -> bool:
        """Whether the canary gets its share. The first call asks the store."""
        if not self._known:
            async with self._asking:
                if not self._known:
                    await self._read()
        return self._verdict is None

    def see(self, metric: str, name: str, bad: bool) -> None:
        """An outcome of one of the two targets."""
        test = self._tests.get(metric)
        if test is None or self._verdict is not None:
            return
        if name == self._terms.baseline:
            test.old(bad)
        elif name == self._terms.canary:
            test.new(bad)
            self._judge(metric, test)

    def compare(self, metric: str, name: str, value: float) -> None:
        """A number of one of the two targets, which is bad when it is larger than most of the baseline's are."""
        usual = self._usual.get(metric)
        if usual is None:
            return
        bound = usual.quantile(0.95)
        if bound is not None:
            self.see(metric, name, value > bound)
        if name == self._terms.baseline:
            usual.add(value)

    async def tick(self) -> None:
        """Look at the store now and then; write a verdict that could not be written yet."""
        if not self._saved:
            await self._write()
        if self._place.now() < self._looked_at + _LOOK_S:
            return
        self._looked_at = self._place.now()
        await self._read()
        if "thumbs_down" in self._tests and self._verdict is None:
            await self._read_ratings()

    async def reset(self, actor: str) -> None:
        """Put the canary on trial anew."""
        self._verdict, self._saved = None, True
        self._begin()
        await asyncio.to_thread(self._save, {"status": "running", "at": now()}, actor, "route.reset")

    def as_dict(self) -> dict[str, Any]:
        """For /health."""
        shown: dict[str, Any] = {"status": "rolled_back" if self._verdict else "running"}
        for metric, test in self._tests.items():
            old, _, new, _ = test.totals
            shown[metric] = {
                "baseline": round(test.rates[0], 4), "canary": round(test.rates[1], 4), "of": [old, new],
                "evidence": float(f"{test.evidence:.3g}"),
            }  # fmt: skip
        return shown | (self._verdict or {})

    def _judge(self, metric: str, test: WorseRate) -> None:
        old, new = test.rates
        enough = test.totals[2] >= self._terms.least and new >= old + self._terms.margin
        if not enough or not test.rejects(self._terms.false_alarm / len(self._tests)):
            return
        self._verdict = {
            "status": "rolled_back", "at": now(), "metric": metric, "baseline_rate": round(old, 4),
            "canary_rate": round(new, 4), "requests": [test.totals[0], test.totals[2]],
            "evidence": float(f"{test.evidence:.3g}"),
        }  # fmt: skip
        self._saved = False
        logger.warning(
            "route %s: %s was rolled back: %s in %.1f%% of %d requests, %.1f%% of %d with %s", self._place.route,
            self._terms.canary, metric, 100 * new, test.totals[2], 100 * old, test.totals[0], self._terms.baseline,
        )  # fmt: skip
        self._place.spawn(self._write())

    async def _write(self) -> None:
        verdict = self._verdict
        if verdict is None or self._saved:
            return
        self._saved = True
        try:
            await asyncio.to_thread(self._save, verdict, "gateway", "route.rolled_back")
        except LuthierError as error:  # it holds in this server all the same; the next tick tries again
            self._saved = False
            logger.error("route %s: that it was rolled back cannot be written yet: %s", self._place.route, error)

    def _save(self, state: dict[str, Any], actor: str, action: str) -> None:
        with self._place.store.write() as connection:
            write_route_state(connection, self._place.route, self._digest, state)
            append(connection, actor, action, self._place.route, {**state, "canary": self._terms.canary})

    async def _read(self) -> None:
        try:
            found = await asyncio.to_thread(read_route_state, self._place.store, self._place.route, self._digest)
        except LuthierError as error:
            logger.error("route %s: its state cannot be read: %s", self._place.route, error)
            return  # asked again: a canary that was rolled back must not come to life because the store was busy
        self._known = True
        if not self._saved:
            return
        rolled_back = found is not None and found.get("status") == "rolled_back"
        if rolled_back and self._verdict is None:
            self._verdict = dict(found or {})
        elif not rolled_back and self._verdict is not None:  # reset by another server
            self._verdict = None
            self._begin()

    async def _read_ratings(self) -> None:
        """Outcomes that people gave: a thumb up or down of an answer of this route."""
        try:
            rated = await asyncio.to_thread(ratings_of_route, self._place.store, self._place.route, self._rated_since)
        except LuthierError as error:
            logger.error("route %s: ratings cannot be read: %s", self._place.route, error)
            return
        fresh = [each for each in rated if each.id not in self._rated]
        for each in fresh:
            self.see("thumbs_down", each.arm, each.bad)
        if rated:
            self._rated_since = max(each.at for each in rated)
            self._rated = {each.id for each in rated if each.at == self._rated_since}
