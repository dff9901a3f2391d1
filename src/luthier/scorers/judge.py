"""Another model's verdict: a grade by a rubric, or whether the answer beats another one (Zheng et al., 2023).

Every prompt and reply is kept in ``judge.jsonl`` of the run. What cannot be read after the retries is unscored and counted, never a
number. Check a judge against people before you trust it: ``luthier judge``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import DataError, InputError
from luthier.scorers._score import Answer, Resources, Score, Target
from luthier.strategies._judge import DEFAULT_RUBRIC, Judge, Question

_VALUES = {"first": 1.0, "tie": 0.5, "second": 0.0}


class Config(EntryConfig):
    """``judge`` names the model that judges: a stored one, an endpoint, ``openai:MODEL@URL``; ``engine`` is how it is opened.

    ``mode`` pointwise gives a grade on ``scale`` (``normalised``: mapped to 0..1); pairwise gives 1 for an answer that is better than
    the other, 0.5 for a tie, 0 for a worse one, asked in both orders unless ``swap`` is false. The other answer is the example's
    target, or that in ``baseline``: a run's name, or a JSONL file of ``answer`` with ``id`` or ``input``.

    ``rubric`` is a text, or the name of one in the prompt catalogue. ``reference`` shows the judge the target as a right answer.
    ``reply`` write reads what the judge writes (at most ``max_new_tokens``, asked again up to ``retries`` times); score takes the
    probabilities that it gives to the verdicts. ``timeout_s`` bounds each reply; questions are then asked one by one, eight at once.
    """

    judge: str = Field(min_length=1)
    engine: str = "auto"
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    rubric: str = DEFAULT_RUBRIC
    scale: tuple[float, float] = (1.0, 10.0)
    normalised: bool = False
    reference: bool = False
    baseline: str = ""
    swap: bool = True
    reply: Literal["write", "score"] = "write"
    retries: int = Field(default=2, ge=0, le=20)
    max_new_tokens: int = Field(default=256, ge=1)
    timeout_s: float | None = Field(default=None, gt=0)


def needs_target(config: Config) -> bool:
    """Where the judge is shown it."""
    return config.reference or (config.mode == "pairwise" and not config.baseline)


def score(answer: Answer, target: Target, config: Config) -> Score:
    """The grade, or the outcome of the comparison; None when the judge could not be read."""
    resources = Resources()
    try:
        return score_many([answer], [target], config, resources)[0]
    finally:
        resources.close()


def score_many(
    answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    """``score`` of each, asked together.

    Raises NotFoundError for an unknown judge or rubric, UnsupportedError for a judge that cannot reply in this way, DataError for a
    baseline that cannot be used. A judge that fails on single examples leaves them unscored.
    """
    judge = _judge(config, resources)
    if config.mode == "pairwise":
        return _compared(judge, answers, targets, config, resources)
    grades = judge.grade(
        [(_question(target, config), answer.text) for answer, target in zip(answers, targets, strict=True)]
    )
    low, high = config.scale
    out = []
    for grade in grades:
        detail = {"reason": grade.reason, "attempts": grade.attempts}
        if grade.value is None:
            out.append(Score(None, detail | {"unparsable": True, "reply": grade.reply}))
        else:
            out.append(Score((grade.value - low) / (high - low) if config.normalised else grade.value, detail))
    return out


def _compared(
    judge: Judge, answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    others = [_other(target, config, resources) for target in targets]
    asked = [i for i, other in enumerate(others) if other is not None]
    preferences = judge.compare(
        [(_question(targets[i], config), answers[i].text, others[i] or "") for i in asked], swap=config.swap
    )
    out = [Score(None, {"reason": "the baseline has no answer to this example"}) for _ in answers]
    for i, preference in zip(asked, preferences, strict=True):
        detail: dict[str, Any] = {"reason": preference.reason, "attempts": preference.attempts}
        detail |= {"forward": preference.forward, "backward": preference.backward, "consistent": preference.consistent}
        if preference.winner is None:
            out[i] = Score(None, detail | {"unparsable": True})
        else:
            out[i] = Score(_VALUES[preference.winner], detail)
    return out


def _question(target: Target, config: Config) -> Question:
    return Question(target.input, target.text if config.reference else "")


# ---- kept for the length of a run

_JUDGES: WeakKeyDictionary[Resources, dict[Config, Judge]] = WeakKeyDictionary()
_BASELINES: WeakKeyDictionary[Resources, dict[str, Mapping[str, str]]] = WeakKeyDictionary()


def _judge(config: Config, resources: Resources) -> Judge:
    """The judge of this run: one that has given up on a dead engine remembers it from block to block."""
    judges = _JUDGES.setdefault(resources, {})
    if config not in judges:
        judges[config] = Judge(
            resources.engine(config.judge, config.engine),
            rubric=config.rubric,
            scale=config.scale,
            retries=config.retries,
            mode=config.reply,
            max_new_tokens=config.max_new_tokens,
            timeout_s=config.timeout_s,
            log=lambda record: resources.log("judge", record),
            store=resources.store,
        )
    return judges[config]


def _other(target: Target, config: Config, resources: Resources) -> str | None:
    if not config.baseline:
        return target.text
    known = _BASELINES.setdefault(resources, {})
    if config.baseline not in known:
        known[config.baseline] = read_baseline(config.baseline, resources)
    answers = known[config.baseline]
    return answers.get(f"id:{target.meta.get('id')}", answers.get(f"input:{target.input}"))


def read_baseline(name: str, resources: Resources) -> Mapping[str, str]:
    """Answers by ``id:...`` and ``input:...``. Raises DataError for a file that cannot be used, NotFoundError for an unknown run."""
    path = Path(name)
    if not path.is_file():
        if path.suffix:
            raise DataError(f"baseline: no such file: {path}")
        path = _records(name, resources)
    out: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            keys = [f"{key}:{row[key]}" for key in ("id", "input") if key in row]
            out |= dict.fromkeys(keys, str(row["answer"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: a baseline's row is {{answer, id or input}}; got {line[:100]!r}"
            ) from error
    if not out:
        raise DataError(f"{path}: the baseline holds no answers")
    return out


def _records(name: str, resources: Resources) -> Path:
    from luthier.store.database import open_store
    from luthier.store.runs import find_run, folder

    store = resources.store or open_store()
    path = folder(store, find_run(store, name).id) / "records.jsonl"
    if not path.is_file():
        raise InputError(f"baseline: run {name} has no answers; it must be an evaluation", hint="luthier runs")
    return path
