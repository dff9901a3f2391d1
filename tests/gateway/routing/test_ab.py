from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from scipy.stats import chi2_contingency, chisquare
from tests.gateway.world import World, run, world

from luthier.core.errors import EngineError
from luthier.gateway.access.caller import Caller

ROUTE = {"strategy": "ab", "targets": {"a": 1, "b": 2, "c": 1}}


def made(folder: Path, **more: Any) -> World:
    return world(folder, {"a": {"retries": 0}, "b": {}, "c": {}}, {"r": {**ROUTE, **more}})


def test_everybody_keeps_their_variant_and_shares_are_as_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, again = made(tmp_path), made(tmp_path)  # another server decides alike
        seen = Counter()
        for number in range(4000):
            heard = await first.ask("r", session=f"session {number}")
            seen[heard.text] += 1
            if number < 300:
                assert (await again.ask("r", session=f"session {number}")).text == heard.text
                assert (await first.ask("r", session=f"session {number}")).text == heard.text
        assert chisquare([seen["a"], seen["b"], seen["c"]], [1000, 2000, 1000]).pvalue > 0.001

    run(scenario())


def test_experiments_do_not_depend_on_one_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, other = made(tmp_path, experiment="one"), made(tmp_path, experiment="other")
        table = {(x, y): 0 for x in "abc" for y in "abc"}
        for number in range(3000):
            session = f"session {number}"
            table[(await one.ask("r", session=session)).text, (await other.ask("r", session=session)).text] += 1
        rows = [[table[x, y] for y in "abc"] for x in "abc"]
        assert chi2_contingency(rows).pvalue > 0.001

    run(scenario())


def test_the_trace_names_experiment_variant_and_unit(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = made(tmp_path, experiment="tone", by=["user", "key"])
        (told,) = (await here.ask("r", session="s", parameters={"user": "u"})).route
        assert (told["experiment"], told["variant"], told["unit"]) == ("tone", told["target"], "user")
        assert told["reason"] == "variant of this user"
        (told,) = (await here.ask("r", caller=Caller(key_id="k1"))).route
        assert told["reason"] == "variant of this key"
        (told,) = (await here.ask("r")).route
        assert told["reason"] == "variant of this request"

    run(scenario())


def test_units_of_different_tenants_are_different_units(tmp_path: Path) -> None:
    async def scenario() -> None:
        here = made(tmp_path)
        pairs = [
            [(await here.ask("r", session=f"s{number}", caller=Caller(tenant=tenant))).text for tenant in ("x", "y")]
            for number in range(60)
        ]
        assert any(one != other for one, other in pairs)

    run(scenario())


def test_a_variant_that_fails_is_not_replaced_by_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, kind = made(tmp_path), made(tmp_path, fallbacks=["b"])
        for each in (here, kind):
            each.scripts["a"] = [[EngineError("down")]]
        session = next(each for each in map(str, range(100)) if _variant(each) == "a")
        assert (await here.ask("r", session=session)).error is not None
        assert (await kind.ask("r", session=session)).text == "b"

    run(scenario())


def _variant(session: str) -> str:
    """The definition, written out: the first 8 bytes of sha256 as a fraction, laid along the shares."""
    import hashlib

    place = int.from_bytes(hashlib.sha256(f"r\0local/{session}".encode()).digest()[:8], "big") / 2**64
    return "a" if place < 0.25 else "b" if place < 0.75 else "c"
