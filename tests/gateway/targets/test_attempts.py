from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import Scripted
from tests.gateway.world import Heard, World, answer, run, said, world

from luthier.core.engine import Sampling
from luthier.core.errors import ContextLengthError, EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import user
from luthier.gateway.api.wire import RequestError
from luthier.gateway.targets.gate import BATCH

BUSY = EngineError("the upstream is overloaded", retryable=True)
BROKEN = EngineError("out of memory")


def asked(
    folder: Path, models: dict[str, Any], scripts: dict[str, Any], *, routes: Any = None, **question: Any
) -> tuple[Heard, World]:
    """One question at ``m``, or at the route ``r`` when there is one."""

    async def scenario() -> tuple[Heard, World]:
        made = world(folder, models, {"r": routes} if routes else None)
        made.scripts |= scripts
        return await made.ask("r" if routes else "m", **question), made

    heard: tuple[Heard, World] = run(scenario())
    return heard


@pytest.mark.parametrize("stream", [True, False])
def test_what_may_pass_is_tried_again_with_growing_pauses(tmp_path: Path, stream: bool) -> None:
    heard, made = asked(
        tmp_path, {"m": {"retries": 3}}, {"m": [[BUSY], [BUSY], [BUSY], answer("hello")]}, stream=stream
    )
    assert heard.text == "hello"
    assert made.asked == ["m"] * 4
    assert heard.outcomes == [("m", "error")] * 3 + [("m", "ok")]
    assert 0 < heard.took_s <= 0.2 + 0.4 + 0.8  # full jitter: anything up to base * 2**n


def test_pauses_are_full_jitter(tmp_path: Path) -> None:
    """Each pause is uniform between 0 and its bound, which doubles up to ``most_s``."""

    async def scenario() -> list[list[float]]:
        made = world(
            tmp_path, {"m": {"retries": {"attempts": 4, "base_s": 1.0, "most_s": 4.0}, "breaker": {"least": 10_000}}}
        )
        made.scripts["m"] = [[BUSY]]
        pauses: list[list[float]] = [[], [], [], []]
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        made.router.sleep = sleep
        for _ in range(400):
            slept.clear()
            await made.ask("m")
            for number, seconds in enumerate(slept):
                pauses[number].append(seconds)
        return pauses

    for pauses, bound in zip(run(scenario()), (1.0, 2.0, 4.0, 4.0), strict=True):
        assert len(pauses) == 400
        assert 0 <= min(pauses) < 0.05 * bound
        assert 0.95 * bound < max(pauses) <= bound
        assert abs(sum(pauses) / 400 - bound / 2) < 4 * bound / (12 * 400) ** 0.5


def test_a_target_that_says_when_is_waited_for(tmp_path: Path) -> None:
    soon = EngineError("come again", retryable=True, retry_after_s=4.0)
    heard, _ = asked(tmp_path, {"m": {}}, {"m": [[soon], answer("hello")]})
    assert heard.text == "hello"
    assert heard.took_s == pytest.approx(4.0)
    late = EngineError("come again", retryable=True, retry_after_s=60.0)
    heard, made = asked(tmp_path, {"m": {}}, {"m": [[late], answer("hello")]})
    assert heard.error is late  # longer than a request is held
    assert heard.took_s == 0
    assert made.asked == ["m"]


@pytest.mark.parametrize("error", [BROKEN, EngineError("the key was refused")])
def test_what_will_not_pass_is_not_tried_again(tmp_path: Path, error: EngineError) -> None:
    heard, made = asked(tmp_path, {"m": {}}, {"m": [[error], answer("hello")]})
    assert heard.error is error
    assert made.asked == ["m"]


@pytest.mark.parametrize(
    "error", [InputError("temperature must be less"), RequestError("a guardrail refuses", code="blocked")]
)
def test_a_refusal_is_the_clients_and_goes_nowhere_else(tmp_path: Path, error: Exception) -> None:
    route = {"strategy": "fallback", "targets": ["m", "other"]}
    heard, made = asked(tmp_path, {"m": {}, "other": {}}, {"m": [[error]]}, routes=route)
    assert heard.error is error
    assert made.asked == ["m"]
    assert made.service.models.target("m").replicas[0].breaker.counts() == (0, 0)  # not its fault


def test_a_stream_that_breaks_after_its_first_piece_is_an_error(tmp_path: Path) -> None:
    """Nothing is begun anew behind the reader's back, however retryable the error, and whatever else could answer."""
    route = {"strategy": "fallback", "targets": ["m", "other"]}
    heard, made = asked(tmp_path, {"m": {}, "other": {}}, {"m": [["half an ans", BUSY]]}, routes=route)
    assert (heard.text, heard.error) == ("half an ans", BUSY)
    assert made.asked == ["m"]
    assert made.service.models.target("m").replicas[0].breaker.counts() == (1, 1)


def test_an_answer_that_is_not_streamed_may_break_anywhere(tmp_path: Path) -> None:
    heard, made = asked(tmp_path, {"m": {}}, {"m": [["half an ans", BUSY], answer("whole ", "answer")]}, stream=False)
    assert (heard.text, heard.error) == ("whole answer", None)
    assert made.asked == ["m", "m"]
    assert heard.exchange.made[0].text == "whole answer"
    assert heard.exchange.usage == (3, 2, 0)


def test_the_next_target_answers_when_one_fails(tmp_path: Path) -> None:
    route = {"strategy": "fallback", "targets": ["m", "second"], "fallbacks": ["last"]}
    models = {"m": {"retries": 0}, "second": {}, "last": {}}
    heard, _ = asked(tmp_path, models, {"m": [[BUSY]], "second": [[BROKEN]]}, routes=route)
    assert heard.text == "last"
    assert heard.outcomes == [("m", "error"), ("second", "error"), ("last", "ok")]
    assert [each["by"] for each in heard.route] == [{"r": "m"}, {"r": "second"}, {"r": "last"}]
    assert (heard.exchange.route, heard.exchange.served.name) == ("r", "last")


def test_when_nobody_can_every_reason_is_given(tmp_path: Path) -> None:
    route = {"strategy": "fallback", "targets": ["m", "second"], "retries": 0}
    heard, _ = asked(tmp_path, {"m": {}, "second": {}}, {"m": [[BUSY]], "second": [[BROKEN]]}, routes=route)
    assert isinstance(heard.error, EngineError)
    assert heard.error.http_status == 502
    assert "m: the upstream is overloaded" in heard.error.message
    assert "second: out of memory" in heard.error.message


def test_a_target_that_cannot_do_what_is_asked_is_passed_over(tmp_path: Path) -> None:
    """``Scripted`` engines honour top_k, the other one does not."""
    plain = Scripted(name="m")
    plain.__class__ = type(
        "Plain", (Scripted,), {"info": property(lambda self: Scripted.info.fget(self).with_(parameters=frozenset()))}
    )
    route = {"strategy": "fallback", "targets": ["m", "able"]}
    models = {"m": ([plain], {}), "able": {}}
    heard, made = asked(tmp_path, models, {}, routes=route, sampling=Sampling(top_k=5))
    assert (heard.text, made.asked) == ("able", ["able"])
    assert heard.outcomes == [("m", "unsupported"), ("able", "ok")]
    heard, _ = asked(tmp_path, models, {}, routes={**route, "targets": ["m"]}, sampling=Sampling(top_k=5))
    assert isinstance(heard.error, UnsupportedError)
    assert "top_k" in heard.error.message


def test_a_prompt_that_does_not_fit_goes_where_it_does(tmp_path: Path) -> None:
    """``short`` knows that it reads 20 tokens; nobody can count, so four letters are taken for one."""
    models = {"short": {"context_length": 20}, "m": {"context_length": 200}}
    route = {"strategy": "fallback", "targets": ["short", "m"]}
    heard, _ = asked(tmp_path, models, {}, routes=route, prompt=user("x" * 400))
    assert heard.text == "m"
    assert heard.outcomes == [("short", "too_long"), ("m", "ok")]
    heard, _ = asked(tmp_path, models, {}, routes=route, prompt=user("x" * 4000))
    assert isinstance(heard.error, ContextLengthError)
    assert heard.error.http_status == 400
    assert "about 1000 tokens" in heard.error.message


def test_an_engine_that_says_the_prompt_is_too_long_is_believed(tmp_path: Path) -> None:
    error = ContextLengthError("the prompt has 600 tokens; m takes at most 512")
    route = {"strategy": "fallback", "targets": ["m", "long"]}
    heard, _ = asked(tmp_path, {"m": {}, "long": {}}, {"m": [[error]]}, routes=route)
    assert heard.text == "long"
    heard, _ = asked(tmp_path, {"m": {}}, {"m": [[error]]})
    assert heard.error is error


@pytest.mark.parametrize("stream", [True, False])
def test_an_attempt_has_its_time(tmp_path: Path, stream: bool) -> None:
    route = {"strategy": "fallback", "targets": ["m", "other"]}
    models = {"m": {"timeout_s": 5}, "other": {}}
    heard, made = asked(tmp_path, models, {"m": [[100.0, "late"]]}, routes=route, stream=stream)
    assert (heard.text, heard.took_s) == ("other", 5.0)
    assert heard.outcomes == [("m", "timeout"), ("other", "ok")]
    assert (made.running, made.stopped) == (0, 1)  # what nobody waits for is stopped
    assert made.service.models.target("m").replicas[0].breaker.counts() == (1, 1)
    heard, _ = asked(tmp_path, {"m": {"timeout_s": 5}}, {"m": [[100.0, "late"]]}, stream=stream)
    assert heard.error is not None
    assert (heard.error.http_status, heard.error.code) == (504, "timeout")


def test_time_to_the_first_piece_and_to_the_last(tmp_path: Path) -> None:
    models = {"m": {"first_token_timeout_s": 2, "timeout_s": 10}}
    slow_start = [3.0, *answer("a")]
    heard, _ = asked(tmp_path, models, {"m": [slow_start]})
    assert heard.error is not None
    assert heard.took_s == 2.0
    heard, _ = asked(tmp_path, models, {"m": [slow_start]}, stream=False)  # it has no first piece before its last
    assert heard.text == "a"
    heard, _ = asked(tmp_path, models, {"m": [answer(*("a", 3.0) * 3)]})  # pauses later on are no matter
    assert heard.text == "aaa"
    heard, _ = asked(tmp_path, models, {"m": [answer(*("a", 3.0) * 9)]})
    assert heard.error is not None
    assert (heard.took_s, heard.text) == (10.0, "aaaa")


def test_a_routes_time_is_that_of_all_tries_together(tmp_path: Path) -> None:
    route = {"strategy": "fallback", "targets": ["m", "second", "third"], "timeout_s": 8}
    models = {"m": {"timeout_s": 5}, "second": {"timeout_s": 5}, "third": {}}
    heard, made = asked(tmp_path, models, {"m": [[100.0]], "second": [[100.0]]}, routes=route)
    assert heard.took_s == 8.0
    assert heard.error is not None
    assert made.asked == ["m", "second"]


def test_waiting_for_a_turn_is_not_the_targets_fault(tmp_path: Path) -> None:
    async def scenario() -> Heard:
        made = world(tmp_path, {"m": {"timeout_s": 5, "max_concurrent": 1}})
        made.scripts["m"] = [answer(3.0, "slow")]
        first = asyncio.ensure_future(made.ask("m"))
        second = asyncio.ensure_future(made.ask("m"))
        third = asyncio.ensure_future(made.ask("m"))
        assert (await first).text == "slow"
        heard = await asyncio.gather(second, third)
        assert [each.error is None for each in heard] == [
            False,
            False,
        ]  # 3 s of its own time is not enough after 3 s of waiting
        counts = made.service.models.target("m").replicas[0].breaker.counts()
        assert counts == (2, 1)  # the one that began and was cut, not the one that never did
        return heard[1]

    heard: Heard = run(scenario())
    assert "had no turn" in heard.error.message


def test_a_batch_is_not_late_while_it_waits(tmp_path: Path) -> None:
    async def scenario() -> tuple[Heard, Heard]:
        made = world(tmp_path, {"m": {"timeout_s": 5, "max_concurrent": 1}})
        made.scripts["m"] = [answer(4.0, "one"), answer(4.0, "two"), answer(4.0, "three"), [9.0, "four"]]
        crowd = [asyncio.ensure_future(made.ask("m", priority=0)) for _ in range(1)]
        await asyncio.sleep(0)
        batch = [asyncio.ensure_future(made.ask("m", priority=BATCH)) for _ in range(3)]
        heard = await asyncio.gather(*crowd, *batch)
        assert [each.text for each in heard[:3]] == ["one", "two", "three"]
        return heard[2], heard[3]

    patient, hung = run(scenario())
    assert patient.took_s == 12.0
    assert hung.error is not None  # its own time is over 5 s after its turn
    assert hung.took_s == 17.0


def test_circuits(tmp_path: Path) -> None:
    """Once enough requests failed the target is left alone, others answer at once, and a probe brings it back."""

    async def scenario() -> None:
        breaker = {"least": 4, "open_s": 10}
        made = world(
            tmp_path,
            {"m": {"retries": 0, "breaker": breaker}, "other": {}},
            {"r": {"strategy": "fallback", "targets": ["m", "other"]}},
        )
        made.scripts["m"] = [[BROKEN]] * 4 + [answer("back")]
        for _ in range(4):
            assert (await made.ask("r")).text == "other"
        heard = await made.ask("r")
        assert heard.outcomes == [("m", "open"), ("other", "ok")]
        assert made.asked.count("m") == 4
        alone = await made.ask("m")
        assert (alone.error.http_status, alone.error.code) == (503, "no_target")
        assert alone.error.retry_after_s == pytest.approx(10.0)
        await asyncio.sleep(10)
        assert (await made.ask("r")).text == "back"
        assert made.service.models.target("m").replicas[0].breaker.state == "closed"

    run(scenario())


def test_a_replica_that_fails_is_followed_by_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        engines = [Scripted(name=f"m{number}") for number in range(3)]
        made = world(tmp_path, {"m": (engines, {"retries": 2})})
        places = {id(engine): number for number, engine in enumerate(engines)}
        made.scripts["m"] = lambda served, question: [BUSY] if places[id(served.engine)] == 0 else answer("well")
        for _ in range(6):
            heard = await made.ask("m")
            assert heard.text == "well"
            replicas = [each["replica"] for each in heard.route]
            assert replicas in ([1], [2], [0, 1], [0, 2])
            if len(replicas) == 2:
                assert heard.route[0]["outcome"] == "error"

    run(scenario())


def test_the_least_busy_replica_is_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        engines = [Scripted(name=f"m{number}") for number in range(4)]
        made = world(tmp_path, {"m": (engines, {})})
        made.scripts["m"] = [answer(1.0, "x")]
        crowd = [asyncio.ensure_future(made.ask("m")) for _ in range(40)]
        await asyncio.sleep(0.5)
        assert [each.served.use.count for each in made.service.models.target("m").replicas] == [10] * 4
        await asyncio.gather(*crowd)

    run(scenario())


def test_a_model_that_is_removed_while_a_request_waits_to_try_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = world(tmp_path, {"m": {"retries": {"attempts": 3, "base_s": 60, "most_s": 60}}})
        made.scripts["m"] = [[BUSY]]
        waiting = asyncio.ensure_future(made.ask("m"))
        await asyncio.sleep(0)
        made.service.models.remove("m")
        heard = await waiting
        assert heard.outcomes[-1] == ("m", "gone")
        assert made.asked == ["m"]
        again = await made.ask("m")
        assert again.error.http_status == 404

    run(scenario())


def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    heard, _ = asked(tmp_path, {"mm": {}, "other": {}}, {})
    assert isinstance(heard.error, RequestError)
    assert heard.error.http_status == 404
    assert "'mm'" in heard.error.message


def test_a_remote_endpoint_without_the_model_is_the_targets_fault(tmp_path: Path) -> None:
    route = {"strategy": "fallback", "targets": ["m", "other"]}
    heard, _ = asked(tmp_path, {"m": {}, "other": {}}, {"m": [[NotFoundError("it has no such model")]]}, routes=route)
    assert heard.text == "other"


class TestHedges:
    def ask(self, folder: Path, scripts: dict[str, Any], hedge: Any = 1.0, **more: Any) -> tuple[Heard, World]:
        route = {"strategy": "fallback", "targets": ["m", "other"], "hedge": hedge}
        return asked(folder, {"m": {}, "other": {}}, scripts, routes=route, **more)

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_second_attempt_overtakes_a_slow_one(self, tmp_path: Path, stream: bool) -> None:
        heard, made = self.ask(tmp_path, {"m": [answer(30.0, "slow")], "other": [answer(0.5, "fast")]}, stream=stream)
        assert (heard.text, heard.took_s) == ("fast", 1.5)
        assert heard.exchange.served.name == "other"
        assert (made.running, made.stopped) == (0, 1)
        told = {(each["target"], each["outcome"], each.get("as")) for each in heard.route}
        assert told == {("m", "lost", None), ("other", "ok", "hedge")}
        assert made.service.models.target("m").replicas[0].breaker.counts() == (0, 0)

    def test_the_first_may_still_win(self, tmp_path: Path) -> None:
        heard, made = self.ask(tmp_path, {"m": [answer(2.0, "first")], "other": [answer(30.0, "second")]})
        assert (heard.text, heard.took_s, heard.exchange.served.name) == ("first", 2.0, "m")
        assert (made.running, made.stopped) == (0, 1)

    def test_a_fast_answer_is_not_hedged(self, tmp_path: Path) -> None:
        heard, made = self.ask(tmp_path, {"m": [answer(0.9, "first", 5.0, " piece")]})
        assert heard.text == "first piece"
        assert made.asked == ["m"]

    def test_when_one_fails_the_other_goes_on(self, tmp_path: Path) -> None:
        heard, _ = self.ask(tmp_path, {"m": [[2.0, BROKEN]], "other": [answer(5.0, "well")]})
        assert heard.text == "well"
        heard, _ = self.ask(tmp_path, {"m": [answer(5.0, "well")], "other": [[2.0, BROKEN]]})
        assert heard.text == "well"
        heard, _ = self.ask(tmp_path, {"m": [[2.0, BROKEN]], "other": [[2.0, BROKEN]]})
        assert heard.error is not None

    def test_a_client_that_leaves_stops_both(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            made = world(
                tmp_path, {"m": {}, "other": {}}, {"r": {"strategy": "fallback", "targets": ["m", "other"], "hedge": 1}}
            )
            made.scripts |= {"m": [[100.0]], "other": [[100.0]]}
            request = asyncio.ensure_future(made.ask("r"))
            await asyncio.sleep(5)
            assert made.running == 2
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            assert (made.running, made.stopped) == (0, 2)
            assert [
                each.served.use.count for name in ("m", "other") for each in made.service.models.target(name).replicas
            ] == [0, 0]

        run(scenario())

    def test_the_delay_is_the_95th_percentile_of_late_and_few_are_asked_twice(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            engines = [Scripted(name=f"m{number}") for number in range(2)]
            made = world(tmp_path, {"m": (engines, {"hedge": True})})
            quick = [answer(0.1 + 0.001 * (37 * number % 100), "x") for number in range(100)]
            made.scripts["m"] = [*quick, answer(50.0, "late")]
            early = [len((await made.ask("m")).route) == 2 for _ in range(90)]
            assert sum(early) <= 90 * 0.1 + 1
            assert made.service.models.target("m").firsts.quantile(0.95) == pytest.approx(0.195, abs=0.002)
            made.scripts["m"] = [answer(50.0, "late")]
            made.router._hedges["m"] = 3.0  # what a quiet time has saved up
            hedged = [len((await made.ask("m")).route) == 2 for _ in range(40)]
            assert 3 <= sum(hedged) <= 3 + 4  # three were saved up, then one of ten

        run(scenario())

    def test_a_busy_server_is_not_asked_twice(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            made = world(tmp_path, {"m": {"hedge": 1.0}}, concurrent=1)
            made.scripts["m"] = [answer(10.0, "x")]
            heard = await made.ask("m")
            assert heard.text == "x"
            assert made.asked == ["m"]

        run(scenario())


def test_embeddings_fall_back_only_to_the_same_vectors(tmp_path: Path) -> None:
    """Vectors of another model mean something else: no answer is better than a wrong one."""
    from luthier.gateway.access.caller import Caller
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.layers import Question

    def other_weights(name: str) -> Scripted:
        made = Scripted(name=name)
        made.__class__ = type(
            "Other", (Scripted,), {"info": property(lambda self: Scripted.info.fget(self).with_(model_digest="o" * 64))}
        )
        return made

    async def scenario(targets: list[str]) -> Any:
        models = {"m": {}, "twin": {}, "other": ([other_weights("other")], {})}
        made = world(tmp_path, models, {"r": {"strategy": "fallback", "targets": targets}})

        async def vectors(served: Any, turn: Any) -> Any:
            made.asked.append(served.name)
            if served.name == "m":
                raise BROKEN
            yield served.name

        question = Question(Exchange("embedding", "r", Caller()), ("text",), Sampling())
        try:
            found = [each async for each in made.router.ask(question, vectors)]
        except EngineError as error:
            return made.asked, error.message
        return made.asked, found

    assert run(scenario(["m", "other", "twin"])) == (["m", "twin"], ["twin"])
    tried, problem = run(scenario(["m", "other"]))
    assert tried == ["m"]
    assert "other vectors" in problem


def test_answers_of_several_pieces_come_as_they_were_made(tmp_path: Path) -> None:
    heard, _ = asked(tmp_path, {"m": {}}, {"m": [["a", "b", "c", said("abc", tokens=3)]]})
    assert heard.text == "abc"
    assert heard.exchange.texts == {0: ["a", "b", "c", ""]}
    assert heard.route == []  # one try at the model that was asked for: nothing was decided
