from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import Scripted

from luthier.core.errors import EngineError
from luthier.gateway.targets.health import HealthChecks
from luthier.gateway.targets.registry import ModelConfig, Registry
from luthier.gateway.workers import Workers
from luthier.store.database import open_store


class Checked(Scripted):
    """An engine that tells how it is."""

    problem: Exception | None = None
    checks = 0

    def healthy(self, timeout_s: float) -> None:
        self.checks += 1
        if self.problem is not None:
            raise self.problem


def run(home: Path, scenario: Any, engines: list[Scripted], **config: Any) -> None:
    async def whole() -> None:
        clock = [100.0]
        registry = Registry(open_store(home), now=lambda: clock[0])
        registry.show([registry.hold("m", engines, ModelConfig(health={"every_s": 10, "failures": 2}, **config))])
        checks = HealthChecks(registry, Workers("test"), lambda: clock[0])

        async def look(seconds: float = 10.0) -> None:
            clock[0] += seconds
            await checks.look()
            await checks.finish()

        await scenario(registry.target("m"), look)

    asyncio.run(asyncio.wait_for(whole(), 30))


@pytest.mark.parametrize("problem", [EngineError("connection refused"), RuntimeError("a fault of its own")])
def test_a_replica_that_is_unwell_gets_no_requests_until_it_is_well(home: Path, problem: Exception) -> None:
    sick, well = Checked(name="sick"), Checked(name="well")

    async def scenario(target: Any, look: Any) -> None:
        await look()
        sick.problem = problem
        await look()
        assert target.replicas[0].ready  # one failure may be an accident
        await look()
        assert not target.replicas[0].ready
        assert {target.pick() for _ in range(6)} == {target.replicas[1]}
        shown = target.as_dict()["replicas"]
        assert [each["state"] for each in shown] == ["unwell", "closed"]
        well.problem = problem
        await look()
        await look()
        assert target.pick() is None
        sick.problem = None
        await look()
        assert target.pick() is target.replicas[0]

    run(home, scenario, [sick, well])


def test_checks_are_made_when_they_are_due(home: Path) -> None:
    engine = Checked()

    async def scenario(target: Any, look: Any) -> None:
        for _ in range(5):
            await look(4.0)
        assert engine.checks == 2  # at once, then after 10 s

    run(home, scenario, [engine])


def test_an_engine_that_cannot_tell_counts_as_well(home: Path) -> None:
    async def scenario(target: Any, look: Any) -> None:
        await look()
        assert target.pick() is not None
        assert target.replicas[0].checked_at is None

    run(home, scenario, [Scripted()])
