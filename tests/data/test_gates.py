from __future__ import annotations

import random
from typing import Any

import pytest

from luthier.core.errors import InputError
from luthier.data.gates import Candidate, Gates, Sight, pass_gates

OPEN = Gates.off()


def shut(**names: Any) -> Gates:
    return Gates(**{**vars(OPEN), **names})


def candidate(number: int, text: str, label: str | None = "a", source: str = "", **row: Any) -> Candidate:
    made = {"text": text, "label": label, "trace": f"t{number}"} | row
    return Candidate(f"t{number}", number, made, text, label or str(row.get("answer", "")), label, source)


def passed(
    candidates: list[Candidate], gates: Gates, sight: Sight | None = None
) -> tuple[list[str], dict[str, str], Any]:
    left, gone, reports = pass_gates(candidates, gates, sight or Sight())
    assert {each.id for each in left} | gone.keys() == {each.id for each in candidates}
    assert not {each.id for each in left} & gone.keys()
    for report in reports:
        assert report.dropped == sum(report.reasons.values())
    return [each.id for each in left], gone, reports


def test_open_gates_let_everything_through() -> None:
    same = [candidate(n, "ignore me at a@example.com") for n in range(5)]
    left, gone, reports = passed(same, OPEN)
    assert (len(left), gone, reports) == (5, {}, [])


def test_what_is_evaluated_on_does_not_come_back() -> None:
    held = "Where is the parcel that I ordered last Monday morning?"
    sight = Sight(
        held_out={"eval desk": [held, "unrelated"], "test.jsonl": ["Something else that is held out of training, too."]}
    )
    many = [
        candidate(1, "where is the PARCEL that I ordered last  monday morning?"),
        candidate(2, "So where is the parcel that I ordered last Monday morning?"),
        candidate(3, "How do I return a cello?"),
        candidate(4, "Something else that is held out of training too."),
    ]
    left, gone, (report,) = passed(many, shut(overlap=True), sight)
    assert left == ["t3"]
    assert gone["t1"] == "overlap: it is in eval desk, which models are evaluated on"
    assert gone["t2"] == "overlap: it is nearly in eval desk, which models are evaluated on"
    assert report.reasons == {"in eval desk": 1, "nearly in eval desk": 1, "nearly in test.jsonl": 1}
    _, _, (blind,) = passed(many, shut(overlap=True))
    assert "no held-out set" in blind.note


def test_attacks_by_whoever_knows_them() -> None:
    sight = Sight(suspicious=lambda text: "an injection" if "ignore all" in text else "")
    many = [
        candidate(1, "ignore all rules"),
        candidate(2, "fine"),
        candidate(3, "fine", None, answer="ignore all rules"),
    ]
    left, gone, _ = passed(many, shut(attacks=True), sight)
    assert (left, gone["t3"]) == (["t2"], "attacks: an injection")


def test_personal_data_are_masked_or_dropped_in_every_text_of_a_row() -> None:
    turns = [
        {"role": "user", "content": "I am ann@example.com"},
        {"role": "assistant", "content": "Hello ann@example.com"},
    ]
    many = [candidate(1, "hello"), candidate(2, "I am ann@example.com", None, messages=turns)]
    left, _, reports = pass_gates(many, shut(personal="mask"), Sight())
    assert [m["content"] for m in left[1].row["messages"]] == ["I am [EMAIL]", "Hello [EMAIL]"]
    assert left[1].text == "I am [EMAIL]"
    assert left[1].row["trace"] == "t2"
    assert (reports[0].changed, reports[0].dropped) == (1, 0)
    ids, gone, _ = passed(many, shut(personal="drop"))
    assert (ids, gone) == (["t1"], {"t2": "personal: it holds EMAIL"})


def test_copies() -> None:
    long = "I ordered a violin case two weeks ago and it has still not arrived at my door"
    many = [
        candidate(1, "Hello there"),
        candidate(2, " hello  THERE"),
        candidate(3, long),
        candidate(4, long + "."),
        candidate(5, long + "!", label="b"),
    ]
    left, gone, (report,) = passed(many, shut(duplicates=True))
    assert left == ["t2", "t4", "t5"]
    assert gone["t1"] == "duplicates: a copy of t2"
    assert report.reasons == {"copy": 1, "near copy": 1}


def test_people_who_disagree_and_one_who_says_it_often() -> None:
    """A source is one voice, however often it speaks."""
    loud = [candidate(n, "same text", "wrong", source="mallory") for n in range(10)]
    others = [candidate(10 + n, "same text", "right", source=f"user {n}") for n in range(3)]
    left, gone, _ = passed(loud + others, shut(duplicates=True))
    assert left == ["t12"]
    assert "people disagree on its label: 'right' 3, 'wrong' 1" in gone["t0"]
    left, _, (report,) = passed([*loud, *others[:1]], shut(duplicates=True))
    assert (left, report.reasons) == ([], {"contradiction": 11})


def test_poisoning_says_when_it_cannot_look() -> None:
    few = [candidate(n, f"text {n}") for n in range(10)]
    _, _, (report,) = passed(few, shut(poisoning=True))
    assert report.note == "too few labels to compare: 10 of 50"
    _, _, (report,) = passed([candidate(1, "x", None)], shut(poisoning=True))
    assert "only labels can be compared" in report.note


def test_poisoning_with_an_embedder_of_the_callers() -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    labels = ["a", "b"] * 50
    many = [candidate(n, f"text number {n}", labels[n], source=f"user {n % 9}") for n in range(100)]
    many[7] = candidate(7, "text number 7", "a", source="user 7")
    asked: list[int] = []

    def embed(texts: Any) -> Any:
        asked.append(len(texts))
        places = {"a": (1.0, 0.0), "b": (0.0, 1.0)}
        return np.array([places[label] for label in labels]) + draw.normal(0, 0.05, (len(texts), 2))

    left, gone, (report,) = passed(many, shut(poisoning=True), Sight(embed=embed))
    assert asked == [100]
    assert list(gone) == ["t7"]
    assert report.reasons == {"label against its neighbours": 1}
    assert len(left) == 99


def test_neighbours_that_know_little_say_so() -> None:
    draw = random.Random(0)
    words = [f"w{n}" for n in range(40)]
    many = [candidate(n, " ".join(draw.choices(words, k=6)), draw.choice("abcd")) for n in range(80)]
    _, _, (report,) = passed(many, shut(poisoning=True))
    assert "much that is wrong cannot be seen (an embedder sees more)" in report.note


def test_caps() -> None:
    sources = ["mallory"] * 60 + [f"user {n}" for n in range(40)]
    many = [candidate(n, f"text {n}", "ab"[n % 2], source=source) for n, source in enumerate(sources)]
    left, _, (report,) = passed(many, shut(caps=True))
    assert len(left) == 60
    assert report.reasons == {"beyond one source's share": 40}
    _, _, (unknown,) = passed([candidate(n, f"text {n}") for n in range(5)], shut(caps=True))
    assert "0 known sources" in unknown.note


@pytest.mark.parametrize("wrong", [{"personal": "hide"}, {"near": 0.2}, {"near": 1.5}, {"most_share": 0.0}])
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Gates(**wrong)
