from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import Scripted
from tests.gateway.world import World, answer, run, world

from luthier.core.errors import EngineError, NotFoundError, StoreError, UnsupportedError
from luthier.core.trace import Trace
from luthier.gateway.targets.registry import ModelConfig
from luthier.store.audit import list_audit
from luthier.store.feedback import record_feedback
from luthier.store.traces import record_traces

DOWN = EngineError("down")


def made(folder: Path, **more: Any) -> World:
    models = {name: {"retries": 0, "breaker": {"error_rate": 1.0, "least": 10**6}} for name in ("old", "new")}
    return world(
        folder, models, {"r": {"strategy": "canary", "baseline": "old", "canary": "new", "share": 0.2, **more}}
    )


async def settle(here: World) -> None:
    """Wait for what runs in the background."""
    while here.router.aside:
        await asyncio.gather(*here.router.aside)


def state(here: World) -> dict[str, Any]:
    told: dict[str, Any] = here.router.routes["r"].as_dict()["state"]
    return told


async def many(here: World, requests: int, start: int = 0) -> list[str]:
    """Who answered each of so many sessions."""
    return [(await here.ask("r", session=f"s{number}")).text for number in range(start, start + requests)]


def test_a_share_of_the_sessions_asks_the_canary_and_keeps_to_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = made(tmp_path)
        first = await many(here, 500)
        assert 70 <= first.count("new") <= 130
        assert await many(here, 500) == first
        assert state(here)["status"] == "running"

    run(scenario())


def test_a_canary_that_fails_is_rolled_back_and_costs_no_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = made(tmp_path)
        here.scripts["new"] = [[DOWN]]
        answers = await many(here, 300)
        assert set(answers) == {"old"}  # the baseline stepped in
        asked = here.asked.count("new")
        assert 10 <= asked <= 14  # ``least`` requests, and soon after it was clear
        told = state(here)
        assert (told["status"], told["metric"], told["canary_rate"]) == ("rolled_back", "errors", 1.0)
        await settle(here)
        (row,) = list_audit(here.service.store, action="route.rolled_back")
        assert (row.actor, row.target, row.detail["canary"]) == ("gateway", "r", "new")
        heard = await here.ask("r", session="s1")
        assert heard.route[0]["reason"] == "the canary was rolled back"

    run(scenario())


def test_it_stays_rolled_back_after_a_restart_until_the_weights_are_others_or_it_is_reset(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = made(tmp_path)
        here.scripts["new"] = [[DOWN]]
        await many(here, 200)
        await settle(here)

        again = made(tmp_path)  # another process on the same store
        assert set(await many(again, 100)) == {"old"}
        assert again.asked.count("new") == 0
        assert made(tmp_path, share=0.5) is not None
        wider = made(tmp_path, share=0.5)  # another share is not another canary
        assert set(await many(wider, 50)) == {"old"}

        better = Scripted(name="new")
        better.__class__ = type(
            "Better",
            (Scripted,),
            {"info": property(lambda self: Scripted.info.fget(self).with_(model_digest="n" * 64))},
        )
        again.service.models.show([again.service.models.hold("new", [better], ModelConfig())])
        await asyncio.sleep(10)
        await again.router.tick()
        assert "new" in await many(again, 100)

        await here.router.reset("r", "key_1")
        assert state(here)["status"] == "running"
        here.scripts["new"] = [answer("new")]
        assert "new" in await many(here, 100)
        await asyncio.sleep(10)
        await wider.router.tick()  # which hears of it from the store
        assert "new" in await many(wider, 100)
        (row,) = list_audit(here.service.store, action="route.reset")
        assert row.actor == "key_1"

    run(scenario())


def test_an_equal_canary_is_let_be(tmp_path: Path) -> None:
    """Both fail one request in fifty and take as long; the chance of a wrong verdict is 1 in 100 at most."""

    async def scenario() -> None:
        here, draw = made(tmp_path, share=0.5, metrics=["errors", "latency", "first_token", "cost"]), random.Random(1)
        for name in ("old", "new"):
            here.scripts[name] = lambda served, question: (
                [DOWN] if draw.random() < 0.02 else [draw.expovariate(1.0), *answer(served.name)]
            )
        await many(here, 2000)
        assert state(here)["status"] == "running"
        assert state(here)["errors"]["of"][1] > 800

    run(scenario())


@pytest.mark.parametrize(
    ("metric", "seconds"), [("latency", 3.0), ("first_token", 3.0), ("latency", 0.2), ("first_token", 0.2)]
)
def test_a_slow_canary_is_rolled_back_and_a_quick_one_not(tmp_path: Path, metric: str, seconds: float) -> None:
    async def scenario() -> None:
        here, draw = made(tmp_path, metrics=[metric]), random.Random(2)
        here.scripts["old"] = lambda served, question: [draw.uniform(0.5, 1.5), *answer("old")]
        here.scripts["new"] = lambda served, question: [draw.uniform(0.5, 1.5) * seconds, *answer("new")]
        await many(here, 600)
        assert (state(here)["status"] == "rolled_back") == (seconds > 1)
        if seconds > 1:
            assert state(here)["metric"] == metric

    run(scenario())


def test_a_dear_canary_is_rolled_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        models = {"old": {"price": [1, 1]}, "new": {"price": [2, 2]}}
        here = world(
            tmp_path,
            models,
            {"r": {"strategy": "canary", "baseline": "old", "canary": "new", "share": 0.2, "metrics": ["cost"]}},
        )
        await many(here, 300)
        assert (state(here)["status"], state(here)["metric"]) == ("rolled_back", "cost")

    run(scenario())


def test_guardrails_that_intervene_count_against_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = made(tmp_path, metrics=["guardrails"])
        for number in range(300):
            heard = await here.ask("r", session=f"s{number}")
            assert not heard.error
        assert state(here)["status"] == "running"
        here = made(tmp_path, metrics=["guardrails"])
        begin = here._begin

        def flagged(question: Any, served: Any, turn: Any) -> Any:
            if served.name == "new":
                question.exchange.say("guardrails", rule="toxicity", action="flag")
            return begin(question, served, turn)

        here._begin = flagged
        await many(here, 300)
        assert (state(here)["status"], state(here)["metric"]) == ("rolled_back", "guardrails")

    run(scenario())


def test_thumbs_down_in_the_store_count_against_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = made(tmp_path, metrics=["thumbs_down"], least=20)
        store = here.service.store
        await here.ask("r")
        traces, ratings = [], []
        for number in range(120):
            arm = "new" if number % 4 == 0 else "old"
            tries = [{"target": arm, "outcome": "ok", "by": {"r": arm}}]
            traces.append(
                Trace(f"t{number}", "2026-11-20T10:00:00.000Z", arm, "chat", route="r", details={"route": tries})
            )
            ratings.append((f"t{number}", -1 if arm == "new" else 1))
        record_traces(store, traces)
        for name, rating in ratings[:60]:
            record_feedback(store, name, rating=rating)
        await asyncio.sleep(6)
        await here.router.tick()
        assert state(here)["thumbs_down"]["of"] == [45, 15]
        await asyncio.sleep(6)
        await here.router.tick()  # the same rows again: each counts once
        assert state(here)["thumbs_down"]["of"] == [45, 15]
        for name, rating in ratings[60:]:
            record_feedback(store, name, rating=rating)
        await asyncio.sleep(6)
        await here.router.tick()
        assert state(here)["status"] == "rolled_back"

    run(scenario())


def test_a_verdict_holds_although_the_store_refuses_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.gateway.routing import _trial

    async def scenario() -> None:
        here = made(tmp_path)
        here.scripts["new"] = [[DOWN]]
        write = _trial.write_route_state

        def refuse(*arguments: Any) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(_trial, "write_route_state", refuse)
        await many(here, 200)
        await settle(here)
        assert state(here)["status"] == "rolled_back"
        assert list_audit(here.service.store, action="route.*") == []
        monkeypatch.setattr(_trial, "write_route_state", write)
        await here.router.tick()
        assert len(list_audit(here.service.store, action="route.rolled_back")) == 1
        assert set(await many(made(tmp_path), 50)) == {"old"}

    run(scenario())


def test_what_cannot_be_reset(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = world(tmp_path, {"a": {}}, {"r": {"strategy": "fallback", "targets": ["a"]}})
        with pytest.raises(UnsupportedError, match="fallback"):
            await here.router.reset("r", "me")
        with pytest.raises(NotFoundError, match="'s' is not known"):
            await here.router.reset("s", "me")

    run(scenario())
