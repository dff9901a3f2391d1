"""Whether the answer follows instructions that a program can check (length, format, words, case): IFEval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from luthier.core.catalog import EntryConfig
from luthier.core.errors import nearest
from luthier.scorers._instructions import CHECKS, followed
from luthier.scorers._score import Answer, Floats, Score, Target


class Config(EntryConfig):
    """``level: prompt`` wants all instructions of an example followed, ``instruction`` gives the share of them. ``mode: loose`` also accepts
    the answer without its first or last line and without asterisks.

    A row has ``instruction_id_list`` and ``kwargs`` as IFEval publishes them: the ids, and for each the arguments.
    """

    level: Literal["prompt", "instruction"] = "prompt"
    mode: Literal["strict", "loose"] = "strict"


def needs_target(config: Config) -> bool:
    """The instructions are fields of the row."""
    return False


def score(answer: Answer, target: Target, config: Config) -> Score:
    """1.0 when all instructions are followed (level ``instruction``: the share); None when the row names none, or one that is not known.

    Zhou et al. (2023), section 2.2. The detail says of each instruction whether it was followed.
    """
    ids, arguments = target.meta.get("instruction_id_list"), target.meta.get("kwargs")
    if not isinstance(ids, list | tuple) or not ids:
        return Score(None, {"reason": "the row has no instruction_id_list"})
    given = _arguments(ids, arguments)
    if given is None:
        return Score(
            None, {"reason": f"kwargs must be a list with one mapping for each of the {len(ids)} instructions"}
        )
    done: list[tuple[str, bool]] = []
    for name, one in zip(ids, given, strict=True):
        if name not in CHECKS:
            near = nearest(str(name), list(CHECKS))
            return Score(
                None, {"reason": f"instruction {name!r} is not known" + (f"; near: {near[0]}" if near else "")}
            )
        try:
            done.append((name, followed(name, answer.text, one, loose=config.mode == "loose")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return Score(None, {"reason": f"the arguments of {name} cannot be used: {error}"})
    count = sum(good for _, good in done)
    value = float(count == len(done)) if config.level == "prompt" else count / len(done)
    return Score(value, {"followed": [n for n, good in done if good], "missed": [n for n, good in done if not good]})


def _arguments(ids: Sequence[Any], given: Any) -> list[dict[str, Any]] | None:
    """One mapping for each instruction, without the empty values that a table of all arguments has."""
    if given is None:
        return [{} for _ in ids]
    if not isinstance(given, list | tuple) or len(given) != len(ids):
        return None
    if not all(one is None or isinstance(one, Mapping) for one in given):
        return None
    return [{key: value for key, value in (one or {}).items() if value is not None} for one in given]


def sums_of(scores: Sequence[Score], config: Config) -> Floats:
    """Columns: followed, asked. Of level ``prompt`` an example is asked once; of level ``instruction`` once for each instruction."""
    out = np.zeros((len(scores), 2))
    for row, one in enumerate(scores):
        if one.value is not None:
            asked = 1
            if config.level == "instruction":
                asked = len(one.detail.get("followed", ())) + len(one.detail.get("missed", ())) or 1
            out[row] = one.value * asked, asked
    return out


def combine(totals: Floats, config: Config) -> Floats:
    """Followed / asked, each row; ``nan`` where nothing was asked."""
    out: Floats = np.divide(totals[:, 0], totals[:, 1], out=np.full(len(totals), np.nan), where=totals[:, 1] > 0)
    return out
