"""Every strategy of the catalogue: it answers, survives a target that fails as far as it says, and takes no unknown option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.gateway.world import Heard, World, run, world

from luthier.core import catalog
from luthier.core.errors import EngineError, InputError
from luthier.gateway.config import read_config
from luthier.gateway.targets.routes import check_routes

NAMES = catalog.names("routes")
OPTIONS: dict[str, dict[str, Any]] = {
    "weighted": {"targets": {"a": 1, "b": 1}},
    "intent": {"classifier": "a", "targets": {"billing": "a"}, "default": "b"},
    "length": {"targets": {"a": 100, "b": 400}},
    "cost": {"targets": ["a", "b"]},
    "ab": {"targets": {"a": 1, "b": 1}},
    "shadow": {"target": "a", "shadow": "b"},
    "canary": {"baseline": "a", "canary": "b", "share": 0.5},
    "fallback": {"targets": ["a", "b"]},
    "round_robin": {"targets": ["a", "b"]},
    "least_busy": {"targets": ["a", "b"]},
}
ALONE = {"ab", "shadow"}
"""Strategies whose choice is one target, which only ``fallbacks`` can replace."""


def route(name: str, **more: Any) -> dict[str, Any]:
    return {"strategy": name, **OPTIONS[name], **more}


async def asked(folder: Path, name: str, broken: str = "", **more: Any) -> tuple[list[Heard], World]:
    made = world(folder, {"a": {"retries": 0}, "b": {"retries": 0}}, {"r": route(name, **more)})
    if broken:
        made.scripts[broken] = [[EngineError("down")]]
    return [await made.ask("r", session=f"user {number}") for number in range(20)], made


def test_the_battery_knows_every_strategy() -> None:
    assert set(OPTIONS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_and_the_trace_says_why(name: str, tmp_path: Path) -> None:
    heard, made = run(asked(tmp_path, name))
    for each in heard:
        assert each.error is None
        assert each.text in ("a", "b")
        assert each.exchange.route == "r"
        (attempt,) = each.route
        assert attempt["target"] == each.exchange.served.name == each.text
        assert attempt["by"] == {"r": each.text}
        assert attempt["outcome"] == "ok"
    assert made.router.routes["r"].as_dict()["strategy"] == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_target_that_is_down_costs_no_answer(name: str, broken: str, tmp_path: Path) -> None:
    more = {"fallbacks": ["a", "b"]} if name in ALONE | {"length", "canary", "intent"} else {}
    heard, _ = run(asked(tmp_path, name, broken, **more))
    assert {each.text for each in heard} == {"b" if broken == "a" else "a"}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_and_targets_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"routes\.r.*route {name}: unknown key 'tragets'"):
        read_config({"routes": {"r": route(name, tragets=1)}})
    config = read_config({"routes": {"r": route(name)}})
    with pytest.raises(InputError, match=r"routes\.r: 'b' is neither a model nor a route here"):
        check_routes(config.routes, ["a"])
    check_routes(config.routes, ["a", "b"])


@pytest.mark.parametrize("name", NAMES)
def test_a_route_may_lead_to_a_route_unless_it_needs_models(name: str, tmp_path: Path) -> None:
    """An inner route in the place of one of the targets: its own strategy chooses, and the trace shows the whole way."""
    inner = {"strategy": "fallback", "targets": ["c", "d"]}
    config = read_config({"routes": {"r": route(name), "b": inner}})
    if catalog.load("routes", name).config_class.MODELS_ONLY:
        with pytest.raises(InputError, match="needs models"):
            check_routes(config.routes, ["a", "c", "d"])
        return
    check_routes(config.routes, ["a", "c", "d"])

    async def scenario() -> None:
        made = world(tmp_path, {"a": {}, "c": {"retries": 0}, "d": {}}, {"r": route(name), "b": inner})
        made.scripts["c"] = [[EngineError("down")]]
        for number in range(20):
            heard = await made.ask("r", session=f"user {number}")
            if heard.text == "d":
                assert [each["by"] for each in heard.route][-2:] == [{"r": "b", "b": "c"}, {"r": "b", "b": "d"}]
                return
        assert name in {"shadow", "fallback", "intent"}  # which always begin with a

    run(scenario())


def test_a_route_that_leads_to_itself_is_refused() -> None:
    routes = {"r": {"strategy": "fallback", "targets": ["s"]}, "s": {"strategy": "fallback", "targets": ["a", "r"]}}
    with pytest.raises(InputError, match="r -> s -> r"):
        check_routes(read_config({"routes": routes}).routes, ["a"])
    with pytest.raises(InputError, match="a model has this name"):
        check_routes(read_config({"routes": {"a": route("fallback")}}).routes, ["a", "b"])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"targets": ["a"]}, "routes.r.strategy is required"),
        ({"strategy": "wieghted", "targets": {"a": 1}}, "Did you mean 'weighted'"),
        ({"strategy": "weighted", "targets": {}}, "at least one"),
        ({"strategy": "weighted", "targets": {"a": -1}}, "must not be negative"),
        ({"strategy": "weighted", "targets": {"a": 0}}, "above 0"),
        ({"strategy": "fallback", "targets": ["a", "a"]}, "twice"),
        ({"strategy": "canary", "baseline": "a", "canary": "a"}, "two targets"),
        ({"strategy": "canary", "baseline": "a", "canary": "b", "share": 1.5}, "share"),
        ({"strategy": "fallback", "targets": ["a"], "retries": -1}, "retries"),
        ({"strategy": "fallback", "targets": ["a"], "hedge": {"after": 3}}, "hedge"),
        ({"strategy": "fallback", "targets": ["a"], "timeout_s": 0}, "timeout_s"),
        ("weighted", "routes.r"),
        (["a"], "routes.r"),
    ],
)
def test_bad_sections_say_what_is_wrong(section: Any, words: str) -> None:
    with pytest.raises(InputError) as raised:
        read_config({"routes": {"r": section}})
    assert words in str(raised.value)
