from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.errors import InputError
from luthier.gateway.access.keys import Keys
from luthier.gateway.config import read_config
from luthier.gateway.reload import Reloader
from luthier.gateway.service import Service
from luthier.gateway.targets.registry import ModelConfig, Registry
from luthier.gateway.targets.stock import Stock
from luthier.store.database import open_store

BASE = {"models": {"a": "fake:a", "b": "fake:b"}, "routes": {"r": {"strategy": "round_robin", "targets": ["a", "b"]}}}


class Place:
    """A service that follows a file."""

    def __init__(self, folder: Path, document: Any = BASE, named: dict[str, ModelConfig] | None = None) -> None:
        self.path = folder / "gateway.yaml"
        self.write(document)
        config, stock, store = read_config(self.path), Stock(named or {}), open_store(folder / "home")
        registry = Registry(store)
        stock.open(registry, config)
        self.service = Service.open(registry, store, Keys(), max_concurrent=4, max_queue=4, config=config)
        self.reloader = Reloader(self.service, stock, self.path)
        self.loads: list[str] = []
        opening = registry.open

        def opened(name: str, *more: Any, **others: Any) -> Any:
            self.loads.append(name)
            return opening(name, *more, **others)

        registry.open = opened

    def write(self, document: Any) -> None:
        self.path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))

    async def look(self, document: Any) -> None:
        self.write(document)
        await self.reloader.look()

    def names(self) -> list[str]:
        return sorted(self.service.names())


def test_a_change_is_taken_over_as_a_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        kept = place.service.models["a"].engine
        ask = place.service.ask
        new = {
            "models": {"a": {"model": "fake:a", "price": [1, 2]}, "c": "fake:c"},
            "routes": {"s": {"strategy": "fallback", "targets": ["c", "a"]}},
        }
        await place.look(new)
        assert place.reloader.error == ""
        assert place.names() == ["a", "c", "s"]
        assert place.loads == ["c"]  # what is there already is not loaded again
        assert place.service.models["a"].engine is kept
        assert place.service.models["a"].price.completion == 2
        assert place.service.ask is not ask

    asyncio.run(scenario())


def test_the_same_content_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        ask = place.service.ask
        await place.look(BASE)
        assert place.service.ask is ask

    asyncio.run(scenario())


def test_routes_that_did_not_change_go_on_with_what_they_have_seen(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        before = place.service.router.routes["r"]
        await place.look({**BASE, "models": {**BASE["models"], "c": "fake:c"}})
        assert place.service.router.routes["r"] is before
        await place.look({**BASE, "routes": {"r": {"strategy": "fallback", "targets": ["a", "b"]}}})
        assert place.service.router.routes["r"] is not before

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("models: [", "not valid YAML"),
        ("- a", "key: value"),
        ({**BASE, "rotues": {}}, "rotues"),
        ({**BASE, "models": {"a": "fake:a"}}, "neither a model nor a route"),
        ({**BASE, "models": {**BASE["models"], "x": "no-such-model"}}, "no-such-model"),
        (
            {**BASE, "models": {**BASE["models"], "y": "fake:y", "x": {"model": "fake", "options": {"widht": 3}}}},
            "widht",
        ),
        ({**BASE, "watch": {"per_tenant": True}}, "watch: read at the start only"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing_and_is_said(tmp_path: Path, document: Any, words: str) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        before = (place.service.config, place.service.ask, place.names(), place.service.models["a"].engine)
        await place.look(document)
        assert words in place.reloader.error
        assert place.reloader.state()["error"]
        assert (place.service.config, place.service.ask, place.names(), place.service.models["a"].engine) == before
        await place.look({**BASE, "models": {**BASE["models"], "c": "fake:c"}})  # put right, it is taken
        assert place.reloader.state()["error"] is None
        assert "c" in place.names()

    asyncio.run(scenario())


def test_a_file_that_is_gone_for_a_moment(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        place.path.unlink()
        await place.reloader.look()
        assert place.names() == ["a", "b", "r"]
        await place.look(BASE)
        assert place.reloader.error == ""

    asyncio.run(scenario())


def test_what_was_named_to_the_server_and_what_was_loaded_on_request_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path, named={"fake": ModelConfig()})
        await place.service.models.load("extra", ModelConfig(model="fake:x"))
        await place.look({"models": {"c": "fake:c"}})
        assert place.names() == ["c", "extra", "fake"]

    asyncio.run(scenario())


def test_a_request_that_runs_keeps_the_model_that_the_file_drops(tmp_path: Path) -> None:
    async def scenario() -> None:
        place = Place(tmp_path)
        target = place.service.models.target("b")
        assert target is not None
        closed: list[int] = []
        target.served.engine.close = lambda: closed.append(1)
        target.served.use.begin()
        await place.look({"models": {"a": "fake:a"}})
        assert place.names() == ["a"]
        assert closed == []
        target.served.use.end()
        while place.service.models._tasks:
            await asyncio.gather(*place.service.models._tasks)
        assert closed == [1]

    asyncio.run(scenario())


def test_the_file_says_settings_of_what_was_named() -> None:
    stock = Stock({"m": ModelConfig(engine="fake", price="1,1")}, held={"h": []})
    wanted = stock.check(read_config({"models": {"m": {"timeout_s": 5}}}))
    assert (wanted["m"].engine, wanted["m"].timeout_s, wanted["m"].price.prompt) == ("fake", 5, 1)
    with pytest.raises(InputError, match="engine that was given open"):
        stock.check(read_config({"models": {"h": {"engine": "torch"}}}))
    with pytest.raises(InputError, match="alias"):
        stock.check(read_config({"models": {"x": {"aliases": ["m"]}}}))


def test_a_classifier_that_nobody_serves_is_loaded_and_not_shown(tmp_path: Path) -> None:
    route = {"strategy": "intent", "classifier": "fake:billing,refund", "targets": {"billing": "a"}, "default": "b"}
    place = Place(tmp_path, {"models": BASE["models"], "routes": {"r": route}})
    assert place.names() == ["a", "b", "r"]
    hidden = place.service.models.target("fake:billing,refund", hidden=True)
    assert hidden is not None
    assert hidden.served.labels == ("billing", "refund")
