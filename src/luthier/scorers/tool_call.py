"""Whether the answer calls the right tools with the right arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from luthier.core.catalog import EntryConfig
from luthier.scorers._json import canonical
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers._tool_calls import Call, calls_in, calls_of


class Config(EntryConfig):
    """``measure``: ``full`` wants every call with all its arguments and no other call, ``name`` the right tools only, ``arguments`` is the F1
    over all (tool, argument, value). ``ordered`` wants the calls in the target's order too.

    Calls are read from ``<tool_call>`` tags, from OpenAI's ``tool_calls`` and from bare or fenced JSON (``name`` and ``arguments``), in the
    target too; a target without calls wants none. ``key`` is where a row keeps its calls when they are not the target itself.
    """

    measure: Literal["full", "name", "arguments"] = "full"
    ordered: bool = False
    key: str = "tool_calls"


def needs_target(config: Config) -> bool:
    """The calls may be a field of the row."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the calls are right by the measure; the detail holds the calls that were read, and what is missing or too much."""
    wanted = _wanted(target, config)
    given = calls_in(answer.text)
    if config.measure == "arguments":
        value = _f1(_facts(given), _facts(wanted))
    elif config.measure == "name":
        value = float(_same([call.name for call in given], [call.name for call in wanted], config.ordered))
    else:
        value = float(_same([_whole(call) for call in given], [_whole(call) for call in wanted], config.ordered))
    return Score(value, _detail(given, wanted))


def _wanted(target: Target, config: Config) -> list[Call]:
    found = calls_in(target.text)
    return found or calls_of(target.meta.get(config.key))


def _same(given: list[str], wanted: list[str], ordered: bool) -> bool:
    return given == wanted if ordered else Counter(given) == Counter(wanted)


def _whole(call: Call) -> str:
    return canonical([call.name, call.arguments])


def _facts(calls: list[Call]) -> Counter[str]:
    """One for each argument; a call without arguments is one itself."""
    facts: Counter[str] = Counter()
    for call in calls:
        pairs = call.arguments.items() if isinstance(call.arguments, Mapping) else [("", call.arguments)]
        facts.update([canonical([call.name, *pair]) for pair in pairs] or [canonical([call.name])])
    return facts


def _f1(given: Counter[str], wanted: Counter[str]) -> float:
    both, total = (given & wanted).total(), given.total() + wanted.total()
    return 2 * both / total if total else 1.0


def _detail(given: list[Call], wanted: list[Call]) -> dict[str, Any]:
    left, right = Counter(map(_whole, given)), Counter(map(_whole, wanted))
    return {
        "calls": sorted(left.elements()),
        "missing": sorted((right - left).elements()),
        "extra": sorted((left - right).elements()),
    }
