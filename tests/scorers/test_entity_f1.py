"""entity_f1 against the definition of seqeval, worked out on tags by scikit-learn-like counts, and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.entities import Entity, answer_text, spans_of_tags
from luthier.scorers._score import Answer, Figure, Resources, Target, score_all

TEXT = "Ada met Bob in Bonn"
GOLD = [("P", 0, 3), ("P", 8, 11), ("L", 15, 19)]


def listed(entities: list[tuple[str, int, int]], **more: str) -> str:
    return json.dumps([{"type": t, "start": s, "end": e, **more} for t, s, e in entities])


def figure(answers: list[str], targets: list[str], text: str = TEXT, **options: str) -> float:
    entry = catalog.load("scorers", "entity_f1")
    config = entry.configure(options)
    given, wanted = [Answer(a) for a in answers], [Target(t, input=text) for t in targets]
    scores = score_all(entry, config, given, wanted, Resources())
    return Figure(entry, config, given, wanted, [s.value for s in scores]).value


def test_worked_by_hand() -> None:
    """One of two people, a place that is none, and the right place as a person: P 1/2 right of 2 wanted and 2 given, L 0 of 1 and 1."""
    answer = listed([("P", 0, 3), ("P", 15, 19), ("L", 4, 7)])
    assert figure([answer], [listed(GOLD)]) == pytest.approx(2 * 1 / (3 + 3))
    assert figure([answer], [listed(GOLD)], average="macro") == pytest.approx((2 * 1 / (2 + 2) + 0) / 2)
    assert figure([answer], [listed(GOLD)], measure="recall") == pytest.approx(1 / 3)
    assert figure([listed(GOLD)], [listed(GOLD)], average="macro") == 1.0
    assert figure(["[]"], ["[]"]) == 0.0  # nothing wanted, nothing given: no F1, as seqeval says


def test_equals_seqevals_definition_on_random_tags() -> None:
    """seqeval: the sets of (type, first, last) of two tag sequences, counted over the corpus; macro is the mean over types of either side."""
    draw = np.random.default_rng(1)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    words = ["w"] * 12
    text = " ".join(words)

    def answer(sequence: list[str]) -> str:
        return answer_text(text, [Entity(2 * f, 2 * e - 1, t) for f, e, t in spans_of_tags(sequence)])

    gold = [list(draw.choice(tags, 12)) for _ in range(30)]
    said = [[t if draw.random() < 0.7 else str(draw.choice(tags)) for t in row] for row in gold]
    wanted = {(n, *span) for n, row in enumerate(gold) for span in spans_of_tags(row)}
    given = {(n, *span) for n, row in enumerate(said) for span in spans_of_tags(row)}
    micro = 2 * len(wanted & given) / (len(wanted) + len(given))
    per_type = []
    for kind in "AB":
        one, other = ({each for each in side if each[3] == kind} for side in (wanted, given))
        per_type.append(2 * len(one & other) / (len(one) + len(other)))
    answers, targets = [answer(row) for row in said], [answer(row) for row in gold]
    assert figure(answers, targets, text) == pytest.approx(micro)
    assert figure(answers, targets, text, average="macro") == pytest.approx(np.mean(per_type))


def test_entities_without_places_are_looked_for_in_the_text() -> None:
    said = 'Here you are: ```json\n[{"type": "P", "text": "Bob"}, {"type": "P", "text": "Bob"}, {"type": "L", "text": "Rome"}]\n```'
    text = "Bob saw Bob"
    wanted = listed([("P", 0, 3), ("P", 8, 11)])
    assert figure([said], [wanted], text) == pytest.approx(2 * 2 / (2 + 3))
    assert figure(['{"entities": [{"label": "P", "text": "Bob"}]}'], [wanted], text) == pytest.approx(2 / 3)


def test_an_answer_without_json_finds_nothing() -> None:
    entry = catalog.load("scorers", "entity_f1")
    score = entry(Answer("There is Ada."), Target(listed(GOLD), input=TEXT), entry.configure())
    assert score.value == 0.0 and score.detail["reason"] == "there is no JSON in it"
    assert entry(Answer("[1, null, {}]"), Target("[]"), entry.configure()).value == 1.0
