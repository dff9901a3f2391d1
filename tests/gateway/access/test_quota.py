"""Limits with a clock of the test's own, against what the arithmetic says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from luthier.core.engine import Generation
from luthier.core.errors import StoreError
from luthier.core.key import Limits
from luthier.gateway.access.accounts import Bucket, duration
from luthier.gateway.access.caller import Caller
from luthier.gateway.access.quota import Quota, expected_tokens, tokens_of
from luthier.gateway.api.wire import RequestError
from luthier.gateway.calls import Piece
from luthier.gateway.exchange import GONE, Exchange
from luthier.gateway.service import Price, Served
from luthier.store import usage
from luthier.store.database import open_store
from luthier.store.usage import Spent, list_usage, spent_by

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
PRICE = Price(1.0, 2.0)  # per million tokens


class Desk:
    """A quota over a store, and requests that reserve ``prompt`` + ``answer`` tokens."""

    def __init__(self, store, *, key=None, tenant=None):
        self.at_s = NOON
        self.keys = SimpleNamespace(limits={"k1": Limits(**key or {})}, tenants={"acme": Limits(**tenant or {})})
        self.quota = Quota(store, self.keys, clock=lambda: self.at_s)
        self.served = Served("m", SimpleNamespace(info=None), price=PRICE, max_new_tokens=100)
        self.service = SimpleNamespace(models={"m": self.served})

    def begin(self, prompt=10, answer=10, *, key="k1", bulk=False):
        exchange = Exchange("chat", "m", Caller("acme", key), messages=({},), parameters={"max_new_tokens": answer})
        exchange.messages = (({"role": "user", "content": "x" * 4 * (prompt - 4)},),)
        self.quota.admit(self.service, exchange, bulk=bulk)
        exchange.served = self.served
        return exchange

    def end(self, exchange, prompt=10, answer=10):
        exchange.note(
            Piece(0, "text", Generation("text", (), (), "stop", prompt_tokens=prompt, completion_tokens=answer))
        )
        exchange.finish()

    def refusal(self, **asked):
        with pytest.raises(RequestError) as raised:
            self.begin(**asked)
        return raised.value


@pytest.fixture
def store(home):
    return open_store()


@pytest.fixture
def make(store):
    return lambda **limits: Desk(store, **limits)


def test_requests_of_a_minute_flow_through_a_bucket(make):
    desk = make(key={"requests_per_minute": 3})
    for left in (2, 1, 0):
        exchange = desk.begin()
        assert exchange.headers["x-ratelimit-remaining-requests"] == str(left)
        desk.end(exchange)
    assert exchange.headers["x-ratelimit-limit-requests"] == "3"
    assert exchange.headers["x-ratelimit-reset-requests"] == "1m0s"
    error = desk.refusal()
    assert (error.http_status, error.code) == (429, "rate_limit_exceeded")
    assert error.headers["Retry-After"] == "20"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    desk.at_s += 19.9
    assert desk.refusal().headers["Retry-After"] == "1"
    desk.at_s += 0.1
    desk.begin()
    desk.refusal()


def test_tokens_are_reserved_and_settled(make):
    desk = make(key={"tokens_per_minute": 600})
    first = desk.begin(prompt=100, answer=400)
    assert first.headers["x-ratelimit-remaining-tokens"] == "100"
    error = desk.refusal(prompt=50, answer=60)
    assert (error.http_status, error.code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "1")
    desk.end(first, prompt=100, answer=50)  # 450 were not needed and 350 of them come back
    assert desk.begin(prompt=50, answer=60).headers["x-ratelimit-remaining-tokens"] == str(600 - 150 - 110)


def test_a_request_that_took_more_than_it_said_leaves_a_debt(make):
    desk = make(key={"tokens_per_minute": 600})
    exchange = desk.begin(prompt=50, answer=10)
    desk.end(exchange, prompt=900, answer=10)
    assert desk.refusal(prompt=5, answer=5).headers["Retry-After"] == "32"  # 310 in debt and 10 more, 10 a second


def test_a_request_that_can_never_pass_is_told_so(make):
    desk = make(key={"tokens_per_minute": 100})
    assert (desk.refusal(prompt=50, answer=51).http_status, desk.refusal(prompt=50, answer=51).param) == (
        400,
        "max_tokens",
    )
    assert desk.refusal(prompt=101, answer=1).param == "messages"


def test_both_the_key_and_its_tenant_must_have_room_and_neither_is_charged_when_one_has_none(make):
    desk = make(key={"requests_per_minute": 10}, tenant={"requests_per_minute": 2})
    desk.begin(), desk.begin(key="k2")
    assert "this tenant" in desk.refusal().message
    desk.at_s += 30
    assert desk.begin().headers["x-ratelimit-remaining-requests"] == "0"  # the tenant's, which is nearer to its end
    assert desk.quota._accounts["key:k1"].requests.level == pytest.approx(9)  # 10 - 2, and 5 came in, of which 1 fitted


def test_requests_at_once(make):
    desk = make(tenant={"concurrent_requests": 2})
    first, _second = desk.begin(), desk.begin(key="k2")
    error = desk.refusal()
    assert (error.http_status, error.code, error.headers["Retry-After"]) == (429, "concurrent_limit_exceeded", "1")
    desk.begin(bulk=True)  # lines of batches have a limit of their own: the batch worker's
    desk.end(first)
    desk.begin()
    desk.refusal()


def test_a_day_of_tokens_and_its_end(make):
    desk = make(key={"tokens_per_day": 100})
    desk.end(desk.begin(prompt=30, answer=30), prompt=30, answer=10)
    error = desk.refusal(prompt=30, answer=31)
    assert (error.http_status, error.code) == (429, "insufficient_quota")
    assert error.headers["Retry-After"] == str(12 * 3600) and error.headers["x-should-retry"] == "false"
    desk.begin(prompt=30, answer=30)
    assert "100 are used or reserved" in desk.refusal(prompt=5, answer=1).message
    desk.at_s += 12 * 3600  # what is still reserved counts on the new day
    desk.refusal(prompt=30, answer=20)
    desk.begin(prompt=30, answer=10)


def test_money_of_a_day_and_of_a_month(make):
    desk = make(
        key={"cost_per_day": 100e-6, "cost_per_month": 150e-6}
    )  # a prompt token costs 1e-6, one of an answer 2e-6
    desk.end(desk.begin(prompt=20, answer=40), prompt=20, answer=40)
    assert desk.refusal(prompt=5, answer=0).code == "insufficient_quota"
    desk.at_s += 86_400
    assert "money a month" in desk.refusal(prompt=51, answer=0).message
    desk.begin(prompt=50, answer=0)
    desk.at_s = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert desk.refusal(prompt=51, answer=0).code == "insufficient_quota"  # 50 are still reserved
    desk.begin(prompt=20, answer=15)


def test_what_was_used_is_written_once_and_read_by_the_next_process(make, store):
    limits = {"tokens_per_day": 1000}
    desk = make(key=limits)
    desk.end(desk.begin(), prompt=100, answer=50)
    failed = desk.begin()
    failed.finish("no")
    desk.quota.sync()
    desk.quota.sync()
    row = {
        "day": "2026-11-20",
        "tenant": "acme",
        "key_id": "k1",
        "model": "m",
        "requests": 2,
        "errors": 1,
        "cache_hits": 0,
    }
    assert list_usage(store) == [row | {"prompt_tokens": 100, "completion_tokens": 50, "cost": pytest.approx(200e-6)}]
    assert list_usage(store, tenant="other") == list_usage(store, since="2026-11-21") == []
    after_restart = make(key=limits)
    assert "150 are used" in after_restart.refusal(prompt=850, answer=1).message
    after_restart.end(after_restart.begin(prompt=800, answer=50), prompt=800, answer=50)
    desk.begin(prompt=40, answer=0)  # the first process has not heard of that yet,
    after_restart.quota.sync()
    desk.quota.sync()
    assert "1,040 are used" in desk.refusal(prompt=5, answer=0).message  # and now has


def test_sums_of_the_store_are_of_the_day_and_the_month(make, store):
    for at, tokens in (("2026-10-31", 1), ("2026-11-01", 10), ("2026-11-20", 100), ("2026-12-01", 1000)):
        usage.add_usage(store, {(at, "acme", "k1", "m"): usage.Used(1, 0, 0, tokens, tokens, tokens / 4)})
    usage.add_usage(store, {("2026-11-20", "acme", "k2", "m"): usage.Used(prompt_tokens=5, cost=1.0)})
    subjects = ["key:k1", "tenant:acme", "key:none", "tenant:k1"]
    assert spent_by(store, "2026-11-20", subjects) == {
        "key:k1": Spent(200, 25.0, 27.5), "tenant:acme": Spent(205, 26.0, 28.5), "key:none": Spent(), "tenant:k1": Spent(),
    }  # fmt: skip


def test_a_store_that_refuses_loses_nothing(make, store, monkeypatch):
    desk = make(key={"tokens_per_day": 1000})
    desk.end(desk.begin(), prompt=100, answer=50)
    real = usage.add_usage

    def full(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr("luthier.gateway.access.quota.add_usage", full)
    for _ in range(2):
        with pytest.raises(StoreError):
            desk.quota.sync()
    assert "150 are used" in desk.refusal(prompt=900, answer=0).message
    monkeypatch.setattr("luthier.gateway.access.quota.add_usage", real)
    monkeypatch.setattr("luthier.gateway.access.quota.spent_by", full)
    with pytest.raises(StoreError):
        desk.quota.sync()
    assert "150 are used" in desk.refusal(prompt=900, answer=0).message
    monkeypatch.undo()
    desk.quota.sync()
    assert spent_by(store, "2026-11-20", ["key:k1"])["key:k1"].tokens_day == 150


def test_leaving_before_the_end_is_not_free(make):
    desk = make(key={"tokens_per_day": 1000, "tokens_per_minute": 1000})
    exchange = desk.begin(prompt=100, answer=400)
    for word in ("word " * 10,) * 16:
        exchange.note(Piece(0, word))
    exchange.finish(GONE)
    account = desk.quota._accounts["key:k1"]
    assert account.fresh.tokens_day == 100 + 200  # the prompt as it was judged, and 800 letters
    assert account.tokens.level == 500, "the rate keeps the whole of what was reserved"


def test_a_failed_request_costs_what_was_made(make):
    desk = make(key={"tokens_per_minute": 1000})
    desk.begin(prompt=100, answer=400).finish("the engine failed")
    account = desk.quota._accounts["key:k1"]
    assert (account.fresh.tokens_day, account.tokens.level, account.running) == (0, 1000, 0)


def test_an_answer_out_of_a_cache_takes_nothing_of_the_money(make):
    desk = make(key={"cost_per_day": 1.0})
    exchange = desk.begin()
    exchange.cache = "exact"
    desk.end(exchange, 100, 100)
    assert desk.quota._accounts["key:k1"].fresh.cost_day == 0.0


def test_new_limits_hold_at_once_and_what_was_used_stays_used(make):
    desk = make()
    desk.end(desk.begin(), 500, 0)
    desk.quota.sync()
    desk.keys.limits = {"k1": Limits(tokens_per_day=600, requests_per_minute=10)}
    assert "500 are used" in desk.refusal(prompt=101, answer=0).message
    desk.begin(prompt=50, answer=0)
    desk.keys.limits = {"k1": Limits(requests_per_minute=5)}
    assert (
        desk.begin(prompt=500, answer=0).headers["x-ratelimit-remaining-requests"] == "3"
    )  # 9 left of 10 are 4 left of 5


def test_processes_share_their_rates_within_a_sync(make):
    here, there = make(key={"requests_per_minute": 10}), make(key={"requests_per_minute": 10})
    for desk in (here, there):
        desk.begin()
        desk.quota.sync()
    here.quota.sync()
    for _ in range(5):
        here.begin()
    here.quota.sync()
    there.quota.sync()
    assert there.quota._accounts["key:k1"].requests.level == pytest.approx(10 - 1 - 5)
    for _ in range(4):
        there.begin()
    there.refusal()
    here.quota.close()
    there.quota.sync()
    assert there.quota._accounts["key:k1"].requests.level == pytest.approx(0)


def test_threads_cannot_take_more_than_there_is(make):
    desk = make(key={"requests_per_minute": 100, "tokens_per_day": 100 * 40})
    passed = []

    def hammer(_):
        for _ in range(50):
            try:
                passed.append(desk.begin(prompt=20, answer=20))
            except RequestError:
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))
    assert len(passed) == 100


def test_accounts_that_nobody_uses_are_dropped(make):
    desk = make(key={"tokens_per_day": 10_000})
    held = desk.begin()
    desk.end(desk.begin(key="k2"))
    desk.at_s += 3601
    desk.quota.sync()
    assert set(desk.quota._accounts) == {"key:k1", "tenant:acme"}
    desk.end(held, 70, 30)
    desk.at_s += 3601
    desk.quota.sync()
    assert not desk.quota._accounts
    assert "100 are used" in desk.refusal(prompt=9_901, answer=0).message


def test_tokens_are_judged_by_the_script():
    assert tokens_of("four") == 1 and tokens_of("x" * 4001) == 1001
    assert tokens_of("我的包裹") == 4
    exchange = Exchange(
        "chat", "m", Caller(), messages=(({"content": "我的包裹"}, {"content": [{"text": "four"}, {"image": 1}]}),)
    )
    assert expected_tokens(exchange) == 4 + 4 + 1 + 800 + 4


def test_a_clock_that_steps_back_gives_nothing_away():
    bucket = Bucket(60, 10, 100.0)
    bucket.fill(50.0)
    assert bucket.level == 10
    bucket.fill(101.0)
    assert bucket.level == 11


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (0.12, "120ms"), (1, "1s"), (7.664, "7.66s"), (60, "1m0s"), (359.2, "6m0s"), (3723, "1h2m3s")],
)
def test_durations_as_openai_writes_them(seconds, said):
    assert duration(seconds) == said
