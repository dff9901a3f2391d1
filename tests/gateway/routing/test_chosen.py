"""Strategies that look at the question: length, cost, intent; and those that look at the targets: turns and load."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import Scripted
from tests.gateway.world import World, answer, run, said, world

from luthier.core.engine import GENERATE, SCORE, STREAM, ContinuationScore, Sampling
from luthier.core.errors import ContextLengthError, EngineError
from luthier.core.message import user
from luthier.gateway.api.wire import RequestError
from luthier.gateway.targets.gate import SHADOW


class Counting(Scripted):
    """An engine of which every word is a token."""

    def count_tokens(self, prompt: Any) -> int:
        return sum(len(turn.content.split()) for turn in prompt)


def words(count: int) -> Any:
    return user(" ".join(["word"] * count))


def test_length(tmp_path: Path) -> None:
    async def scenario() -> None:
        engines = {name: ([Counting(name=name)], {}) for name in ("short", "long", "longest")}
        route = {"strategy": "length", "targets": {"long": 100, "short": 10}, "beyond": "longest"}
        made = world(tmp_path, engines, {"r": route})
        for count, target in ((1, "short"), (10, "short"), (11, "long"), (100, "long"), (101, "longest")):
            heard = await made.ask("r", prompt=words(count))
            assert (heard.text, heard.route[0]["reason"]) == (target, f"{count} tokens")
        del route["beyond"]
        made = world(tmp_path, engines, {"r": route})
        heard = await made.ask("r", prompt=words(101))
        assert isinstance(heard.error, ContextLengthError)
        assert "101 tokens; r takes at most 100" in heard.error.message

    run(scenario())


def test_length_is_estimated_where_nobody_can_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = world(tmp_path, {"a": {}, "b": {}}, {"r": {"strategy": "length", "targets": {"a": 100, "b": 1000}}})
        heard = await made.ask("r", prompt=user("x" * 800))
        assert (heard.text, heard.route[0]["reason"]) == ("b", "about 200 tokens")

    run(scenario())


def costly(folder: Path, **more: Any) -> World:
    models = {
        "dear": ([Counting(name="dear")], {"price": [10, 30], "retries": 0}),
        "cheap": ([Counting(name="cheap")], {"price": [1, 2], "context_length": 50, "retries": 0}),
    }
    return world(folder, models, {"r": {"strategy": "cost", "targets": ["dear", "cheap"], **more}})


def test_cost_is_the_cheapest_that_fits(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = costly(tmp_path)
        assert (await made.ask("r", prompt=words(40))).text == "cheap"
        assert (await made.ask("r", prompt=words(60))).text == "dear"
        made.scripts["cheap"] = [[EngineError("down")]]
        assert (await made.ask("r", prompt=words(40))).text == "dear"

    run(scenario())


def test_cost_is_expected_from_prompt_and_answer(tmp_path: Path) -> None:
    """40 prompt tokens at 1 and 100 answer tokens at 2 a million are 240 a million."""

    async def scenario() -> None:
        heard = await costly(tmp_path).ask("r", prompt=words(40), sampling=Sampling(max_new_tokens=100))
        assert heard.route[0]["reason"] == "about 0.00024"
        fits = await costly(tmp_path, most=0.00025).ask("r", prompt=words(40), sampling=Sampling(max_new_tokens=100))
        assert fits.text == "cheap"
        refused = await costly(tmp_path, most=0.00023).ask("r", prompt=words(40), sampling=Sampling(max_new_tokens=100))
        assert isinstance(refused.error, RequestError)
        assert (refused.error.http_status, refused.error.code) == (400, "too_expensive")
        too_long = world(
            tmp_path,
            {"a": ([Counting(name="a")], {"context_length": 5})},
            {"r": {"strategy": "cost", "targets": ["a"]}},
        )
        heard = await too_long.ask("r", prompt=words(9))
        assert isinstance(heard.error, ContextLengthError)

    run(scenario())


def test_cost_learns_how_long_answers_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = costly(tmp_path, answer_tokens=256)
        made.scripts["cheap"] = [["x", said("x", tokens=6)]]
        for _ in range(600):
            await made.ask("r", prompt=words(4))
        assert made.router.routes["r"].as_dict()["state"]["answer_tokens"] == pytest.approx(6, abs=1)

    run(scenario())


class Classifier(Scripted):
    """Scores ``labels``: those that occur in the text get ``likely``, the others ``unlikely``."""

    likely, unlikely = -0.1, -3.0

    @property
    def info(self) -> Any:
        return super().info.with_(capabilities=frozenset({GENERATE, STREAM, SCORE}), labels=("billing", "refund"))

    def score(self, requests: Any, progress: Any = None) -> Any:
        self.before(0)
        (request,) = requests
        text = request.prompt[-1].content
        return [
            tuple(
                ContinuationScore(self.likely if each in text else self.unlikely, 1) for each in request.continuations
            )
        ]


def test_intent(tmp_path: Path) -> None:
    async def scenario() -> None:
        judge = Classifier(name="judge")
        route = {
            "strategy": "intent",
            "classifier": "judge",
            "targets": {"billing": "money"},
            "default": "other",
            "threshold": 0.8,
        }
        made = world(tmp_path, {"judge": ([judge], {}), "money": {}, "other": {}}, {"r": route})
        heard = await made.ask("r", prompt=user("my billing is wrong"))
        assert (heard.text, heard.route[0]["intent"]) == ("money", "billing")
        assert heard.route[0]["probability"] == pytest.approx(1 / (1 + 2.718281828**-2.9), abs=1e-3)  # softmax
        for text, why in (("a refund", "'refund' has no target"), ("hello", "'billing' is not sure enough")):
            heard = await made.ask("r", prompt=user(text))
            assert (heard.text, heard.route[0]["reason"]) == ("other", why)

        def broken(number: int) -> None:
            raise EngineError("out of memory")

        judge.before = broken
        heard = await made.ask("r", prompt=user("my billing is wrong"))
        assert (heard.text, heard.route[0]["reason"]) == ("other", "the classifier failed: out of memory")

    asyncio.run(asyncio.wait_for(scenario(), 60))  # the classifier has a thread, whose time is real


def test_round_robin(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = world(
            tmp_path,
            {name: {"retries": 0} for name in "abc"},
            {"r": {"strategy": "round_robin", "targets": ["a", "b", "c"]}},
        )
        assert [(await made.ask("r")).text for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]
        made.scripts["b"] = [[EngineError("down")]]
        assert [(await made.ask("r")).text for _ in range(3)] == ["a", "c", "c"]

    run(scenario())


def test_least_busy(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = world(tmp_path, {"slow": {}, "fast": {}}, {"r": {"strategy": "least_busy", "targets": ["slow", "fast"]}})
        made.scripts |= {"slow": [answer(100.0, "slow")], "fast": [answer(1.0, "fast")]}
        running = []
        for _ in range(60):
            running.append(asyncio.ensure_future(made.ask("r")))
            await asyncio.sleep(0.5)
        heard = Counter([(await each).text for each in running])
        assert heard["slow"] <= 4  # what is slow fills up and is left alone
        assert heard["fast"] >= 56

    run(scenario())


class TestShadow:
    def made(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[World, list[Any]]:
        from luthier.gateway.targets import place

        here = world(
            folder,
            {"main": {"price": [1, 1]}, "copy": {"price": [7, 7]}},
            {"r": {"strategy": "shadow", "target": "main", "shadow": "copy", **more}},
        )
        monkeypatch.setattr(
            place, "answers", lambda service, question: here._answer(question, question.served, question.turn)
        )
        finished: list[Any] = []
        here.service.finish = lambda exchange, error="": (exchange.finish(error), finished.append(exchange))
        return here, finished

    async def settle(self, here: World) -> None:
        while here.router.aside:
            await asyncio.gather(*here.router.aside)

    def test_the_copy_delays_nobody_and_costs_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario() -> None:
            here, finished = self.made(tmp_path, monkeypatch)
            here.scripts["copy"] = [answer(500.0, "other words")]
            heard = await here.ask("r", session="s")
            assert (heard.text, heard.took_s) == ("main", 0.0)
            await self.settle(here)
            (copy,) = finished
            (trace,) = copy.traces()
            assert (trace.model, trace.answer, trace.cost) == ("copy", "other words", 0.0)
            (told,) = trace.details["shadow"]
            assert told["shadow_of"] == heard.exchange.id
            assert told["would_cost"] == pytest.approx(7 * 5 / 1e6)
            assert (trace.tenant, copy.priority) == (heard.exchange.caller.tenant, SHADOW)
            assert heard.exchange.cost == pytest.approx(5 / 1e6)

        run(scenario())

    def test_a_copy_that_fails_is_nobodys_problem(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario() -> None:
            here, finished = self.made(tmp_path, monkeypatch)
            here.scripts["copy"] = [[EngineError("down")]]
            assert (await here.ask("r")).error is None
            await self.settle(here)
            assert finished[0].error == "down"

        run(scenario())

    def test_copies_are_bounded_and_never_push_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario() -> None:
            here, finished = self.made(tmp_path, monkeypatch, most_running=2)
            here.scripts["copy"] = [answer(500.0, "x")]
            for _ in range(5):
                assert (await here.ask("r")).text == "main"
            state = here.router.routes["r"].as_dict()["state"]
            assert (state["running"], state["left_out"]) == (2, 3)
            await self.settle(here)
            assert len(finished) == 2
            here.service.gate.most_running = 0  # busy
            monkeypatch.setattr(type(here.service.gate), "idle", property(lambda self: False))
            here.service.gate.most_running = 1000
            await here.ask("r")
            await self.settle(here)
            assert here.asked.count("copy") == 2

        run(scenario())

    def test_a_share_of_them_and_none_of_what_failed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario() -> None:
            here, finished = self.made(tmp_path, monkeypatch, share=0.3)
            for _ in range(300):
                await here.ask("r")
                await self.settle(here)
            assert 60 <= len(finished) <= 120
            here.scripts["main"] = [[EngineError("down")]]
            finished.clear()
            for _ in range(20):
                assert (await here.ask("r")).error is not None
            await self.settle(here)
            assert finished == []

        run(scenario())
