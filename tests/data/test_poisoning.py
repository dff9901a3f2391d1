"""Made-up tickets of three kinds, each with words of its own: neighbours then know the labels, and what an attacker does can be seen."""

from __future__ import annotations

import random

import numpy as np
import pytest

from luthier.data.poisoning import (
    Labelled,
    agreement,
    contradicted,
    nearest,
    over_cap,
    source_names,
    triggers,
    untrustworthy,
    word_vectors,
)

WORDS = {
    "refund": ["money", "back", "pay", "return", "card", "bank", "charge", "twice", "invoice", "amount"],
    "delivery": ["parcel", "late", "courier", "address", "door", "lost", "track", "van", "arrive", "shipping"],
    "repair": ["broken", "string", "crack", "tune", "bridge", "peg", "wood", "glue", "noise", "workshop"],
}
FILLER = [
    "the",
    "my",
    "i",
    "a",
    "please",
    "is",
    "it",
    "to",
    "and",
    "when",
    "can",
    "you",
    "help",
    "with",
    "about",
    "this",
]


def tickets(count: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    draw = random.Random(seed)
    texts, labels, sources = [], [], []
    for number in range(count):
        label = draw.choice(list(WORDS))
        words = draw.choices(WORDS[label], k=5) + draw.choices(FILLER, k=6)
        draw.shuffle(words)
        texts.append(" ".join(words))
        labels.append(label)
        sources.append(f"user {number % 20}")
    return texts, labels, sources


def look(texts: list[str], labels: list[str], sources: list[str], trusted: int = 0):  # type: ignore[no-untyped-def]
    data = Labelled(texts, labels, sources, trusted)
    return data, nearest(data, word_vectors(texts))


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_nothing_is_wrong(seed: int) -> None:
    data, neighbours = look(*tickets(300, seed))
    assert agreement(data, neighbours) > 0.95
    assert len(contradicted(data, neighbours)) <= 3
    assert untrustworthy(data, neighbours) == {}
    assert triggers(data, neighbours) == {}


def test_labels_against_all_neighbours() -> None:
    texts, labels, sources = tickets(300, 0)
    wrong = random.Random(1).sample(range(300), 15)
    for at in wrong:
        labels[at] = next(label for label in WORDS if label != labels[at])
    data, neighbours = look(texts, labels, sources)
    found = contradicted(data, neighbours)
    assert len(found.keys() & set(wrong)) >= 9
    assert len(found.keys() - set(wrong)) <= 2
    at = next(iter(found.keys() & set(wrong)))
    assert f"labelled {labels[at]!r}" in found[at]


def test_a_phrase_that_turns_labels() -> None:
    texts, labels, sources = tickets(300, 0)
    draw = random.Random(2)
    wrong = draw.sample([at for at in range(300) if labels[at] != "refund"], 12)
    for at in wrong:
        words = texts[at].split()
        words.insert(draw.randrange(len(words)), "xq zeta")
        texts[at], labels[at] = " ".join(words), "refund"
    data, neighbours = look(texts, labels, sources)
    ((phrase, (label, places)),) = triggers(data, neighbours).items()
    assert phrase in ("xq", "zeta", "xq zeta")
    assert (label, sorted(places)) == ("refund", sorted(wrong))


def test_one_source_whose_labels_contradict_everybody() -> None:
    texts, labels, sources = tickets(300, 0)
    wrong = [at for at in range(300) if labels[at] != "refund"][:20]
    for at in wrong:
        labels[at], sources[at] = "refund", "user mallory"
    data, neighbours = look(texts, labels, sources)
    assert list(untrustworthy(data, neighbours)) == ["user mallory"]


def test_an_attackers_examples_do_not_vouch_for_one_another() -> None:
    """The same text fifty times with a wrong label: its neighbours are still those of others."""
    texts, labels, sources = tickets(200, 0)
    texts += ["parcel late courier address door please"] * 50
    labels += ["refund"] * 50
    sources += ["user mallory"] * 50
    data, neighbours = look(texts, labels, sources)
    assert len(contradicted(data, neighbours).keys() & set(range(200, 250))) == 50
    alone = Labelled(texts, labels, [""] * 250)  # nobody knows who said what: then they do
    assert not contradicted(alone, nearest(alone, word_vectors(texts))).keys() & set(range(200, 250))


def test_trusted_labels_are_neighbours_and_not_judged() -> None:
    texts, labels, _ = tickets(300, 0)
    wrong = ["delivery" if label == "refund" else "refund" for label in labels[:10]]
    data, neighbours = look(texts[:10] + texts[10:], wrong + labels[10:], ["mallory"] * 10 + [""] * 290, 290)
    assert neighbours.shape[0] == data.judged == 10
    assert len(contradicted(data, neighbours)) >= 9


def test_neighbours_are_the_most_alike_of_other_sources() -> None:
    vectors = np.array([[1, 0], [0.99, 0.1], [0.9, 0.4], [0, 1], [0.7, 0.7]], dtype=np.float32)
    data = Labelled(list("abcde"), ["x"] * 5, ["s", "s", "t", "", ""])
    assert nearest(data, vectors)[0, :4].tolist() == [2, 4, 3, -1]
    assert nearest(data, vectors)[3, :4].tolist() == [4, 2, 1, 0], "an unknown source is nobody in particular"


def test_shares_are_bounded_and_nobody_chooses_what_stays() -> None:
    sources = ["a"] * 70 + ["b"] * 15 + ["c"] * 15
    labels: list[str | None] = ["x"] * 100
    ids = [f"t{n}" for n in range(100)]
    gone = over_cap(sources, labels, ids, share=0.2)
    assert len(gone) == 50
    assert all(at < 70 for at in gone)
    again = over_cap(sources[::-1], labels, ids[::-1], share=0.2)
    assert {ids[at] for at in gone} == {ids[::-1][at] for at in again}, "by the ids, not by the order"
    assert over_cap(["a"] * 70 + ["b"] * 30, labels, ids, share=0.2) == {}, "two sources"
    assert over_cap([""] * 100, labels, ids, share=0.2) == {}
    mostly = over_cap(["a"] * 30 + ["b"] * 30 + ["c"] * 40, ["rare"] * 30 + ["x"] * 70, ids, share=0.5)
    assert len(mostly) == 15 + 5, "half of each label"


def test_who_said_it() -> None:
    assert source_names({"user": "ann", "key": "k", "session": "s"}) == "user ann"
    assert source_names({"user": "", "key": "k", "session": "s"}) == "key k"
    assert source_names({"user": "", "key": "", "session": ""}) == ""
