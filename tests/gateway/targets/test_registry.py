from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import Scripted

from luthier.core.errors import ConflictError, InputError, NotFoundError
from luthier.gateway.config import read_config
from luthier.gateway.targets.registry import ModelConfig, Registry, Target
from luthier.gateway.targets.served import Price
from luthier.store.database import open_store


class Engines:
    """What ``load_many`` opens, in its place: scripted engines that note when they are opened and closed."""

    def __init__(self) -> None:
        self.opened: list[Scripted] = []
        self.closed: list[str] = []
        self.options: list[Any] = []
        self.shared: list[dict[Any, Any]] = []
        self.fail: set[str] = set()
        self.go: threading.Event | None = None
        self.running = 0
        self.most_running = 0

    def load_many(
        self, names: list[str], *, engine: str, store: Any, options: Any, shared: dict[Any, Any]
    ) -> dict[str, Scripted]:
        (name,) = names
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.go is not None:
            assert self.go.wait(20)
        self.running -= 1
        if name in self.fail:
            raise NotFoundError(f"model {name!r} is not known")
        made = Scripted(name=name)
        made.close = lambda: self.closed.append(name)
        self.opened.append(made)
        self.options.append((engine, options))
        self.shared.append(shared)
        return {name: made}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    monkeypatch.setattr("luthier.strategies._load.load_many", made.load_many)
    return made


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry(open_store())


async def settled(registry: Registry) -> None:
    while registry._tasks:
        await asyncio.gather(*registry._tasks)


def test_a_model_comes_and_goes(engines: Engines, registry: Registry) -> None:
    async def scenario() -> None:
        await registry.load("a", ModelConfig(price=[1, 2], context_length=99, temperature=0.3, max_new_tokens=7))
        assert list(registry) == ["a"]
        served = registry["a"]
        assert (served.price, served.context_length, served.temperature, served.max_new_tokens) == (
            Price(1, 2),
            99,
            0.3,
            7,
        )
        with pytest.raises(ConflictError, match="served already"):
            await registry.load("a", ModelConfig())
        registry.remove("a")
        assert list(registry) == []
        assert registry.get("a") is None
        await settled(registry)
        assert engines.closed == ["a"]
        with pytest.raises(NotFoundError, match="'a' is not served"):
            registry.remove("a")

    asyncio.run(scenario())


def test_an_engine_closes_when_the_last_request_lets_go(engines: Engines, registry: Registry) -> None:
    async def scenario() -> None:
        await registry.load("a", ModelConfig())
        use = registry["a"].use
        use.begin()
        use.begin()
        registry.remove("a")
        use.end()
        await settled(registry)
        assert engines.closed == []
        use.end()
        await settled(registry)
        assert engines.closed == ["a"]

    asyncio.run(scenario())


def test_a_swap_takes_over_at_once_and_the_old_one_ends_in_peace(engines: Engines, registry: Registry) -> None:
    async def scenario() -> None:
        await registry.load("desk", ModelConfig(model="v1"))
        old = registry["desk"]
        old.use.begin()
        engines.go = threading.Event()
        swap = asyncio.ensure_future(registry.load("desk", ModelConfig(model="v2"), swap=True))
        await asyncio.sleep(0)
        assert registry["desk"] is old  # while the new one loads
        engines.go.set()
        await swap
        assert registry["desk"].engine is engines.opened[1]
        await settled(registry)
        assert engines.closed == []
        old.use.end()
        await settled(registry)
        assert engines.closed == ["v1"]

    asyncio.run(scenario())


def test_what_cannot_be_loaded_changes_nothing(engines: Engines, registry: Registry) -> None:
    async def scenario() -> None:
        await registry.load("a", ModelConfig())
        engines.fail.add("b")
        with pytest.raises(NotFoundError):
            await registry.load("b", ModelConfig())
        with pytest.raises(NotFoundError):
            await registry.load("a", ModelConfig(model="b"), swap=True)
        assert list(registry) == ["a"]
        with pytest.raises(NotFoundError):
            await registry.load_all({"c": ModelConfig(), "d": ModelConfig(model="b")})
        assert engines.closed == ["c"]
        with pytest.raises(InputError, match="alias"):
            await registry.load("e", ModelConfig(aliases=("a",)))
        assert engines.closed == ["c", "e"]
        assert list(registry) == ["a"]

    asyncio.run(scenario())


def test_a_pool_of_which_one_cannot_be_opened_opens_none(engines: Engines, registry: Registry) -> None:
    engines.fail.add("c")
    with pytest.raises(NotFoundError):
        registry.open("pool", ModelConfig(replicas=[{"model": "a"}, {"model": "b"}, {"model": "c"}]), "file")
    assert engines.closed == ["a", "b"]


def test_changes_are_made_one_at_a_time_so_that_bases_are_shared(engines: Engines, registry: Registry) -> None:
    async def scenario() -> None:
        await asyncio.gather(*(registry.load(f"adapter-{number}", ModelConfig()) for number in range(8)))
        assert engines.most_running == 1
        assert all(shared is engines.shared[0] for shared in engines.shared)
        await registry.load("pool", ModelConfig(replicas=2))
        assert engines.shared[8] is engines.shared[0]
        assert (
            engines.shared[9] is not engines.shared[0]
        )  # a second copy would be none if it shared the first one's memory

    asyncio.run(scenario())


def test_a_caller_who_leaves_does_not_stop_a_load(engines: Engines, registry: Registry) -> None:
    async def scenario() -> None:
        engines.go = threading.Event()
        caller = asyncio.ensure_future(registry.load("a", ModelConfig()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        engines.go.set()
        while "a" not in registry:
            await asyncio.sleep(0)
        assert engines.closed == []

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_aliases_lead_to_their_model(engines: Engines, registry: Registry) -> None:
    async def scenario() -> None:
        await registry.load("a", ModelConfig(aliases=("gpt-4o", "default")))
        assert registry["gpt-4o"] is registry["a"]
        assert list(registry) == ["a"]
        with pytest.raises(NotFoundError, match="an alias of 'a'"):
            registry.remove("default")
        registry.remove("a")
        assert "gpt-4o" not in registry

    asyncio.run(scenario())


def test_hidden_targets_are_for_those_who_know_of_them(engines: Engines, registry: Registry) -> None:
    registry.show([registry.open("judge", ModelConfig(), "file", hidden=True)])
    assert registry.get("judge") is None
    assert list(registry) == []
    assert len(registry) == 0
    assert registry.target("judge", hidden=True) is not None
    with pytest.raises(NotFoundError):
        registry.remove("judge")


def test_settings_change_without_opening_anything(engines: Engines, registry: Registry) -> None:
    registry.show([registry.open("a", ModelConfig(price=[1, 1], max_concurrent=2), "file")])
    before = registry.target("a")
    assert before is not None
    before.served.use.begin()
    after = registry.with_settings(before, ModelConfig(price=[2, 2], max_concurrent=2, context_length=5))
    registry.show([after])
    assert engines.closed == []
    assert len(engines.opened) == 1
    assert registry["a"].price == Price(2, 2)
    assert registry["a"].use is before.served.use
    assert registry["a"].gate is before.served.gate
    assert after.replicas[0].breaker is before.replicas[0].breaker
    again = registry.with_settings(after, ModelConfig())
    registry.show([again])
    assert (registry["a"].price, registry["a"].context_length, registry["a"].gate) == (Price(), 512, None)


def test_engines_that_were_given_stay_open_and_all_others_are_closed_at_the_end(
    engines: Engines, registry: Registry
) -> None:
    given = Scripted(name="given")
    registry.show([registry.hold("given", [given], ModelConfig()), registry.open("a", ModelConfig(), "given")])
    registry.remove("given")
    registry.close()
    registry.close()
    assert engines.closed == ["a"]
    assert not given.ended.is_set()


def test_an_engine_that_fails_to_close_keeps_none_of_the_others_open(engines: Engines, registry: Registry) -> None:
    registry.show([registry.open(name, ModelConfig(), "given") for name in ("a", "b")])

    def fail() -> None:
        raise RuntimeError("stuck")

    engines.opened[0].close = fail
    registry.close()
    assert engines.closed == ["b"]


def test_the_gateway_alone_retries(engines: Engines, registry: Registry) -> None:
    """An engine that would try again by itself is told not to, unless somebody says so."""
    for config in (
        {"model": "openai:m@http://h/v1"},
        {"model": "openai:m@http://h/v1", "options": {"retries": 5}},
        {"model": "fake"},
    ):
        registry.open("a", ModelConfig(**config), "file")
    assert engines.options == [("auto", {"retries": 0}), ("auto", {"retries": 5}), ("auto", None)]


def test_sections() -> None:
    read = read_config({"models": ["a", "b"]}).models
    assert read == {"a": ModelConfig(), "b": ModelConfig()}
    read = read_config({"models": {"small": "smollm2-135m", "plain": None, "dear": {"price": "1,2"}}}).models
    assert read["small"].engines("small") == [("smollm2-135m", "auto", None)]
    assert read["plain"].engines("plain") == [("plain", "auto", None)]
    assert read["dear"].price == Price(1, 2)
    pool = {
        "model": "m",
        "engine": "torch",
        "options": {"dtype": "bf16"},
        "replicas": [{}, {"options": {"device": "cuda:1"}}, {"model": "openai:m@http://h/v1", "engine": "openai"}],
    }
    assert read_config({"models": {"pool": pool}}).models["pool"].engines("pool") == [
        ("m", "torch", {"dtype": "bf16"}),
        ("m", "torch", {"dtype": "bf16", "device": "cuda:1"}),
        ("openai:m@http://h/v1", "openai", {"dtype": "bf16"}),
    ]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"a": {"prise": 1}}, "Did you mean 'price'"),
        ({"a": {"price": "cheap"}}, "price"),
        ({"a": {"price": [1, -2]}}, "price"),
        ({"a": {"replicas": 0}}, "replicas"),
        ({"a": {"replicas": []}}, "replicas"),
        ({"a": {"max_concurrent": 0}}, "max_concurrent"),
        ({"a": {"breaker": {"error_rate": 2}}}, "error_rate"),
        ({"a": {"health": {"every_s": 0}}}, "every_s"),
        ({"a": 5}, "models.a"),
        ("a", "models"),
        ([1], "models"),
    ],
)
def test_bad_sections(section: Any, words: str) -> None:
    with pytest.raises(InputError) as raised:
        read_config({"models": section})
    assert words in str(raised.value)


def test_nothing_is_left_of_a_target_nobody_sees(engines: Engines, registry: Registry) -> None:
    """``discard`` closes what was loaded for a change that did not come."""

    async def scenario() -> None:
        opened = await registry.load_all({"a": ModelConfig(), "b": ModelConfig()})
        assert all(isinstance(each, Target) for each in opened)
        assert list(registry) == []
        await registry.discard(opened)
        assert engines.closed == ["a", "b"]

    asyncio.run(scenario())
