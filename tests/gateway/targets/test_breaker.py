from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from luthier.gateway.targets.breaker import Breaker
from luthier.gateway.targets.policy import Breaking


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def made(**config: Any) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(Breaking(**{"least": 4, "error_rate": 0.5, "window_s": 10, "open_s": 5, **config}), clock), clock


def ask(breaker: Breaker, good: bool | None) -> None:
    permit = breaker.enter()
    assert permit is not None
    breaker.leave(permit, good)


def test_it_opens_when_enough_of_enough_fail() -> None:
    breaker, _ = made()
    for good in (True, False, False):
        ask(breaker, good)
    assert breaker.state == "closed"  # two of three, but three are too few to judge
    ask(breaker, False)
    assert (breaker.state, breaker.opened, breaker.closes_in_s) == ("open", 1, 5.0)
    assert breaker.enter() is None


def test_a_share_below_the_rate_does_not_open_it() -> None:
    breaker, _ = made()
    for _ in range(50):
        for good in (True, False, True):
            ask(breaker, good)
    assert breaker.state == "closed"
    assert breaker.counts() == (150, 50)


def test_what_lies_before_the_window_is_forgotten() -> None:
    breaker, clock = made()
    for _ in range(3):
        ask(breaker, False)
    clock.time += 11
    assert breaker.counts() == (0, 0)
    for good in (False, True, True, True):
        ask(breaker, good)
    assert breaker.state == "closed"


def test_what_says_nothing_of_the_target_counts_for_nothing() -> None:
    breaker, _ = made()
    for _ in range(20):
        ask(breaker, None)
    assert breaker.counts() == (0, 0)


def test_after_a_while_a_probe_decides() -> None:
    breaker, clock = made(probes=2)
    for _ in range(4):
        ask(breaker, False)
    clock.time += 5
    assert breaker.state == "half_open"
    first, second = breaker.enter(), breaker.enter()
    assert first is not None
    assert second is not None
    assert breaker.enter() is None  # as many as probe at once
    breaker.leave(first, True)
    assert breaker.state == "half_open"
    breaker.leave(second, True)
    assert breaker.state == "closed"
    for _ in range(3):  # what was counted before is forgotten
        ask(breaker, False)
    assert breaker.state == "closed"


def test_a_probe_that_fails_opens_it_again_and_one_that_is_given_up_makes_room_for_another() -> None:
    breaker, clock = made()
    for _ in range(4):
        ask(breaker, False)
    clock.time += 5
    ask(breaker, None)
    assert breaker.state == "half_open"
    ask(breaker, False)
    assert (breaker.state, breaker.opened) == ("open", 2)


@pytest.mark.parametrize("late", [True, False])
def test_a_request_of_an_earlier_state_decides_nothing(late: bool) -> None:
    breaker, clock = made()
    slow = breaker.enter()
    assert slow is not None
    for _ in range(4):
        ask(breaker, False)
    clock.time += 5
    probe = breaker.enter()
    breaker.leave(slow, late)
    assert breaker.state == "half_open"
    assert breaker.enter() is None  # its end freed nobody's place
    assert probe is not None
    breaker.leave(probe, True)
    assert breaker.state == "closed"


class Machine(RuleBasedStateMachine):
    """Any order of requests, ends and pauses, against the definition written out with all outcomes kept."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.clock = made(probes=2)
        self.out: list[tuple[int, bool]] = []  # permits, and whether they are of the present state
        self.seen: list[tuple[float, bool]] = []
        self.opened_at: float | None = None
        self.proven = 0

    def change(self, opened_at: float | None) -> None:
        self.opened_at, self.proven, self.seen = opened_at, 0, []
        self.out = [(permit, False) for permit, _ in self.out]

    @rule()
    def enter(self) -> None:
        permit = self.breaker.enter()
        probing = sum(present for _, present in self.out)
        allowed = self.opened_at is None or (self.clock() >= self.opened_at + 5 and probing < 2)
        assert (permit is not None) == allowed
        if permit is not None:
            self.out.append((permit, True))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100), good=st.sampled_from([True, False, None]))
    def leave(self, which: int, good: bool | None) -> None:
        permit, present = self.out.pop(which % len(self.out))
        self.breaker.leave(permit, good)
        if not present or good is None:
            return
        if self.opened_at is None:
            self.seen.append((self.clock(), good))
            number = int(self.clock())  # slices of a second: a tenth of the window
            counted = [ok for at, ok in self.seen if int(at) > number - 10]
            if not good and len(counted) >= 4 and counted.count(False) >= 0.5 * len(counted):
                self.change(self.clock())
        elif not good:
            self.change(self.clock())
        else:
            self.proven += 1
            if self.proven == 2:
                self.change(None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.time += seconds

    @invariant()
    def state(self) -> None:
        expected = "closed" if self.opened_at is None else "half_open" if self.clock() >= self.opened_at + 5 else "open"
        assert self.breaker.state == expected


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
