"""A regular expression decides: what it captures must be the target, or finding it is enough."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from luthier.core.catalog import EntryConfig
from luthier.scorers._pattern import PatternTimeoutError, compiled, matches, removed
from luthier.scorers._score import Answer, Score, Target


class Config(EntryConfig):
    """``pattern`` is searched in the answer; its first group (the whole match, without groups) must be the target, white space around
    it aside. ``expect: match`` is content when it is found at all, ``no_match`` when it is not. Without a ``pattern``, each accepted
    target is a pattern that the answer must match.

    ``take`` says which match counts, ``group`` which group. ``casefold`` ignores upper and lower case, ``ignore`` lists patterns that are
    taken out of what was captured and of the target before they are compared, one after another (lm-evaluation-harness's
    ``regexes_to_ignore``). ``^`` and ``$`` hold at each line.
    A search that takes over two seconds is stopped, and the example counted as unscored.
    """

    pattern: str = ""
    expect: Literal["target", "match", "no_match"] = "target"
    take: Literal["first", "last"] = "first"
    group: int | None = Field(default=None, ge=0)
    casefold: bool = False
    ignore: tuple[str, ...] = ()

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        compiled(value)
        return value

    @field_validator("ignore")
    @classmethod
    def _are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            compiled(pattern)
        return value


def needs_target(config: Config) -> bool:
    """Not where finding the pattern is enough."""
    return not config.pattern or config.expect == "target"


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when the answer has what is expected, else 0.0; None when there is no pattern to look for, or the search never ended."""
    try:
        return _captured(answer.text, target, config) if config.pattern else _matched(answer.text, target, config)
    except PatternTimeoutError as error:
        return Score(None, {"reason": str(error)})


def _captured(text: str, target: Target, config: Config) -> Score:
    found = None
    for match in matches(config.pattern, text, casefold=config.casefold, lines=True):
        found = match
        if config.take == "first":
            break
    if config.expect != "target":
        return Score(1.0 if (found is not None) == (config.expect == "match") else 0.0, {"matched": found and found[0]})
    if found is None:
        return Score(0.0, {"matched": None})
    captured = _group(found, config)
    accepted = [_folded(one, config) for one in target.accepted]
    return Score(1.0 if _folded(captured, config) in accepted else 0.0, {"matched": captured})


def _group(found: Any, config: Config) -> str:
    wanted = config.group
    if wanted is None:
        wanted = next((i for i, part in enumerate(found.groups(), start=1) if part is not None), 0)
    return found[wanted] or "" if wanted <= len(found.groups()) else ""


def _folded(text: str, config: Config) -> str:
    for pattern in config.ignore:
        text = removed(pattern, text)
    return text.strip().casefold() if config.casefold else text.strip()


def _matched(text: str, target: Target, config: Config) -> Score:
    """The targets are patterns."""
    patterns = [one for one in target.accepted if one]
    if not patterns:
        return Score(None, {"reason": "the target has no pattern"})
    for pattern in patterns:
        try:
            found = next(matches(pattern, text, casefold=config.casefold, lines=True), None)
        except ValueError as error:
            return Score(None, {"reason": str(error)})
        if found is not None:
            return Score(1.0 if config.expect != "no_match" else 0.0, {"matched": found[0]})
    return Score(0.0 if config.expect != "no_match" else 1.0, {"matched": None})
