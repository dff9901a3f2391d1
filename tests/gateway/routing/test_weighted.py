from __future__ import annotations

from pathlib import Path

from scipy.stats import chisquare
from tests.gateway.world import run, world

from luthier.core.errors import EngineError


def test_shares_are_the_weights(tmp_path: Path) -> None:
    """Chi-square of 6,000 draws against the definition, and of the second choices of those whose first failed."""
    weights = {"a": 6, "b": 3, "c": 1}

    async def scenario() -> None:
        made = world(
            tmp_path,
            {**{name: {"retries": 0, "breaker": {"least": 10**6}} for name in weights}, "z": {}},
            {"r": {"strategy": "weighted", "targets": {**weights, "z": 0}}},
        )
        firsts, seconds = dict.fromkeys(weights, 0), {"b": 0, "c": 0}
        made.scripts["a"] = [[EngineError("down")]]
        for _ in range(6000):
            heard = await made.ask("r")
            firsts[heard.route[0]["target"]] += 1
            if heard.route[0]["target"] == "a":
                seconds[heard.text] += 1
        assert chisquare(list(firsts.values()), [3600, 1800, 600]).pvalue > 0.001
        down = sum(seconds.values())
        assert chisquare(list(seconds.values()), [down * 3 / 4, down / 4]).pvalue > 0.001

    run(scenario())


def test_weight_0_is_for_when_all_others_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = world(
            tmp_path, {"a": {"retries": 0}, "z": {}}, {"r": {"strategy": "weighted", "targets": {"a": 1, "z": 0}}}
        )
        assert {(await made.ask("r")).text for _ in range(50)} == {"a"}
        made.scripts["a"] = [[EngineError("down")]]
        assert (await made.ask("r")).text == "z"

    run(scenario())
