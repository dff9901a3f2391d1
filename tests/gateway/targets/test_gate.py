from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.gateway.api.wire import RequestError
from luthier.gateway.targets.gate import BATCH, ONLINE, SHADOW, Gate, Turn


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def waits(gate: Gate, order: list[str], name: str, turn: Turn) -> asyncio.Task[None]:
    """A call that notes its name when it is let in."""

    async def call() -> None:
        await gate.enter(turn)
        order.append(name)

    return asyncio.create_task(call())


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(scenario())  # type: ignore[arg-type]


def test_as_many_as_it_should_in_order() -> None:
    async def scenario() -> list[str]:
        gate, order = Gate(running=1, queue=2), []
        await gate.enter()
        calls = [waits(gate, order, name, Turn()) for name in "ab"]
        await settle()
        assert (gate.running, gate.waiting) == (1, 2)
        with pytest.raises(RequestError) as raised:
            await gate.enter()
        assert (raised.value.http_status, raised.value.code) == (429, "queue_full")
        assert int(raised.value.headers["Retry-After"]) >= 1
        for call in calls:
            gate.leave(0.1)
            await call
        gate.leave(0.1)
        assert (gate.running, gate.waiting, gate.shed) == (0, 0, 1)
        return order

    assert run(scenario) == ["a", "b"]


def test_without_a_queue_it_takes_what_it_can_run() -> None:
    async def scenario() -> None:
        gate = Gate(running=1, queue=0)
        await gate.enter()
        with pytest.raises(RequestError):
            await gate.enter()

    run(scenario)


def test_who_gives_up_waiting_frees_the_place() -> None:
    async def scenario() -> None:
        gate = Gate(running=1, queue=1)
        await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert gate.waiting == 0
        gate.leave(0.1)
        await asyncio.wait_for(gate.enter(), 5)

    run(scenario)


def test_a_turn_that_comes_when_its_caller_gives_up_goes_to_the_next() -> None:
    async def scenario(cancel_first: bool) -> None:
        gate, order = Gate(running=1, queue=2), []
        await gate.enter()
        first, second = waits(gate, order, "first", Turn()), waits(gate, order, "second", Turn())
        await settle()
        if cancel_first:
            first.cancel()
            gate.leave(0.1)
        else:
            gate.leave(0.1)
            first.cancel()
        await asyncio.wait_for(second, 5)
        assert order == ["second"]
        assert (gate.running, gate.waiting) == (1, 0)

    for cancel_first in (True, False):
        asyncio.run(scenario(cancel_first))


def test_a_closed_gate_says_503() -> None:
    async def scenario() -> None:
        gate = Gate(running=1, queue=1)
        gate.closed = True
        with pytest.raises(RequestError) as raised:
            await gate.enter()
        assert raised.value.http_status == 503

    run(scenario)


def test_tenants_take_turns() -> None:
    async def scenario() -> list[str]:
        gate, order = Gate(running=1, queue=20), []
        await gate.enter()
        crowd = [waits(gate, order, f"a{number}", Turn("a")) for number in range(5)]
        late = [
            waits(gate, order, "b0", Turn("b")),
            waits(gate, order, "c0", Turn("c")),
            waits(gate, order, "b1", Turn("b")),
        ]
        await settle()
        for _ in range(8):
            gate.leave(0.1)
            await settle()
        await asyncio.gather(*crowd, *late)
        return order

    assert run(scenario) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


def test_one_tenant_cannot_fill_the_queue() -> None:
    """With the queue full of one tenant's calls, another's call displaces the last of them, until both have as many."""

    async def scenario() -> None:
        gate, order = Gate(running=1, queue=4), []
        await gate.enter()
        crowd = [waits(gate, order, f"a{number}", Turn("a")) for number in range(4)]
        await settle()
        with pytest.raises(RequestError):
            await gate.enter(Turn("a"))
        mine = [waits(gate, order, f"b{number}", Turn("b")) for number in range(2)]
        await settle()
        assert dict(gate.tenants()) == {"a": 2, "b": 2}
        with pytest.raises(RequestError):
            await gate.enter(Turn("b"))
        shed = await asyncio.gather(*crowd[2:], return_exceptions=True)
        assert [each.http_status for each in shed] == [429, 429]
        for _ in range(4):
            gate.leave(0.1)
            await settle()
        await asyncio.gather(*crowd[:2], *mine)
        assert order == ["a0", "b0", "a1", "b1"]

    run(scenario)


def test_higher_priorities_go_first_and_displace_lower_ones() -> None:
    async def scenario() -> None:
        gate, order = Gate(running=1, queue=2), []
        await gate.enter()
        low = waits(gate, order, "batch", Turn("a", BATCH))
        lowest = waits(gate, order, "shadow", Turn("a", SHADOW))
        await settle()
        high = waits(gate, order, "online", Turn("a", ONLINE))
        await settle()
        (error,) = await asyncio.gather(lowest, return_exceptions=True)
        assert error.code == "queue_full"
        with pytest.raises(RequestError):  # the lowest of all displaces nobody
            await gate.enter(Turn("b", SHADOW))
        for _ in range(2):
            gate.leave(0.1)
            await settle()
        await asyncio.gather(low, high)
        assert order == ["online", "batch"]

    run(scenario)


def test_a_request_that_would_wait_longer_than_it_may_take_is_refused_at_once() -> None:
    async def scenario() -> None:
        clock = [100.0]
        gate = Gate(running=2, queue=10, now=lambda: clock[0])
        for _ in range(2):
            await gate.enter()
        hopeful = asyncio.create_task(gate.enter(Turn("a", deadline=100.1)))  # nothing is known of how long calls take
        await settle()
        gate.leave(4.0)  # now it is
        await hopeful
        ahead = [asyncio.create_task(gate.enter(Turn("a"))) for _ in range(4)]
        await settle()
        with pytest.raises(RequestError) as raised:  # 4 s and four calls ahead of it, two at a time: about 12 s
            await gate.enter(Turn("a", deadline=111.9))
        assert raised.value.code == "too_late"
        assert raised.value.headers["Retry-After"] == "12"
        patient = asyncio.create_task(gate.enter(Turn("a", deadline=112.1)))
        await settle()
        assert not patient.done()
        for _ in range(5):
            gate.leave(4.0)
            await settle()
        await asyncio.gather(patient, *ahead)

    run(scenario)


@given(
    running=st.integers(1, 3),
    queue=st.integers(0, 5),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("enter"), st.integers(0, 2), st.integers(-2, 0)),
            st.tuples(st.just("leave"), st.just(0), st.just(0)),
            st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
            st.tuples(st.just("cancel at once"), st.integers(0, 30), st.just(0)),
        ),
        max_size=40,
    ),
)
def test_whatever_happens_no_turn_is_lost_or_made(running: int, queue: int, steps: list[tuple[str, int, int]]) -> None:
    async def scenario() -> None:
        gate, calls, inside = Gate(running, queue), [], 0
        for what, number, priority in [*steps, ("look", 0, 0), *[("leave", 0, 0)] * (running + queue)]:
            if what == "enter":
                calls.append(asyncio.create_task(gate.enter(Turn(str(number), priority))))
            elif what == "leave" and inside:
                gate.leave(1.0)
                inside -= 1
            elif what.startswith("cancel") and calls:
                calls[number % len(calls)].cancel()
            if what == "cancel at once":  # the next thing happens before the cancelled call has noticed
                continue
            await settle()
            inside += sum(call.done() and not call.cancelled() and call.exception() is None for call in calls)
            calls = [call for call in calls if not call.done()]
            assert gate.running == inside <= running
            assert gate.waiting == len(calls) <= queue
            assert not calls or gate.running == running  # nobody waits while there is a turn
        assert (gate.running, gate.waiting, calls) == (0, 0, [])

    asyncio.run(scenario())
