from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import DataError, InputError
from luthier.core.message import user
from luthier.data.dedupe import content_key
from luthier.data.read import examples_from_rows
from luthier.data.split import NAMES, check_labels, split


def labelled(rows: list[tuple[str, str]]) -> Dataset:
    return examples_from_rows((("f", n, {"text": t, "label": x}) for n, (t, x) in enumerate(rows, 1)), name="d")


def counts(splits: Splits) -> dict[str, Counter[str]]:
    return {name: getattr(splits, name).label_counts() for name in NAMES}


def test_labels_are_cut_in_proportion() -> None:
    dataset = labelled([(f"{x} {n}", x) for x, size in (("a", 100), ("b", 40), ("c", 20)) for n in range(size)])
    assert counts(split(dataset)) == {
        "train": Counter(a=60, b=24, c=12),
        "validation": Counter(a=15, b=6, c=3),
        "test": Counter(a=25, b=10, c=5),
    }
    assert split(dataset).train.name == "d/train"


@pytest.mark.parametrize(
    "size, expected",
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (7, (4, 1, 2)), (10, (6, 1, 3)), (20, (12, 3, 5))],
)
def test_tiny_classes(size: int, expected: tuple[int, int, int]) -> None:
    dataset = labelled([(f"a {n}", "a") for n in range(100)] + [(f"rare {n}", "rare") for n in range(size)])
    found = counts(split(dataset))
    assert tuple(found[name]["rare"] for name in NAMES) == expected


ROWS = st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.sampled_from("xyz")), min_size=8, max_size=60)


@given(
    ROWS, st.integers(0, 3), st.sampled_from([(0.6, 0.15, 0.25), (0.8, 0.0, 0.2), (1.0, 0.0, 0.0), (0.1, 0.45, 0.45)])
)
def test_no_text_on_two_sides_and_every_row_once(
    rows: list[tuple[str, str]], seed: int, shares: tuple[float, float, float]
) -> None:
    dataset = labelled(rows)
    wanted = [name for name, share in zip(NAMES, shares, strict=True) if share]
    fractions = dict(zip(NAMES, shares, strict=True))
    texts = {content_key(e) for e in dataset.examples}
    if len(texts) < len(wanted):
        with pytest.raises(DataError, match="cannot fill"):
            split(dataset, **fractions, seed=seed)
        return
    splits = split(dataset, **fractions, seed=seed)
    parts = [getattr(splits, name) for name in NAMES]
    assert Counter(e.id for p in parts for e in p.examples) == Counter(e.id for e in dataset.examples)
    sides = [{content_key(e) for e in p.examples} for p in parts]
    assert sum(map(len, sides)) == len(texts)
    assert [bool(len(p)) for p in parts] == [bool(share) for share in shares]


def test_neither_order_nor_time_matters_but_the_seed_does() -> None:
    rows = [(f"text {n % 70}", "xyz"[n % 3]) for n in range(100)]
    shuffled = rows[:]
    random.Random(5).shuffle(shuffled)
    assert split(labelled(rows)).digest == split(labelled(shuffled)).digest
    assert split(labelled(rows), seed=1).digest != split(labelled(rows)).digest


def test_copies_with_other_spelling_stay_together() -> None:
    rows = [
        (text, "x")
        for n in range(20)
        for text in (f"Refund  number {n}", f"refund number {n} ", f"ＲＥＦＵＮＤ number {n}")
    ]
    for part in (split(labelled(rows)).train, split(labelled(rows)).test):
        assert set(Counter(content_key(e) for e in part.examples).values()) == {3}


def test_conversations_are_cut_by_what_is_asked() -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {n // 2}"},
                {"role": "assistant", "content": f"answer {n}"},
            ]
        }
        for n in range(40)
    ]
    dataset = examples_from_rows((("f", n, row) for n, row in enumerate(rows)), name="d")
    splits = split(dataset, train=0.5, validation=0.25, test=0.25)
    assert [len(getattr(splits, name)) for name in NAMES] == [20, 10, 10]
    sides = [{e.text for e in getattr(splits, name).examples} for name in NAMES]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]


def test_answers_of_questions_are_not_labels() -> None:
    dataset = examples_from_rows((("f", n, {"question": f"q{n}", "answer": f"a{n}"}) for n in range(100)), name="d")
    assert [len(getattr(split(dataset), name)) for name in NAMES] == [60, 15, 25]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"train": 0.5}, r"train \+ validation \+ test must be 1; got 0\.9"),
        ({"test": 1.5}, r"test must be a fraction between 0 and 1; got 1\.5"),
        ({"validation": float("nan")}, "validation must be a fraction"),
        ({"train": 0.0, "validation": 0.5, "test": 0.5}, "train must be above 0"),
    ],
)
def test_impossible_fractions(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(labelled([("a", "x")] * 9), **wrong)


def test_too_few_texts() -> None:
    with pytest.raises(DataError, match="d has 2 different texts, which cannot fill 3 splits"):
        split(labelled([("a", "x"), ("A ", "x"), ("b", "y")]))


def test_labels_that_cannot_be_learned() -> None:
    one = labelled([(f"a{n}", "x") for n in range(9)])
    with pytest.raises(DataError, match="got only one label: 'x'"):
        check_labels(split(one))
    two, other = labelled([("a", "x"), ("b", "y")]), labelled([("c", "z"), ("d", "w"), ("e", "z")])
    with pytest.raises(DataError, match=r"label 'w' occurs in test \(1 rows\) but never in train \(also 'z'\)"):
        check_labels(Splits(two, two, other))
    with pytest.raises(DataError, match="occurs in validation"):
        check_labels(Splits(two, other, two))
    check_labels(Splits(two, two, two))
    chat = examples_from_rows([("f", 1, {"prompt": "a", "completion": "b"})], name="c")
    check_labels(Splits(chat, chat, chat))


def test_pairs_of_one_anchor_stay_on_one_side() -> None:
    rows = [{"anchor": f"q{n // 4}", "positive": f"p{n}"} for n in range(400)]
    splits = split(examples_from_rows((("f", n, row) for n, row in enumerate(rows, 1)), name="d"))
    sides = [{e.text for e in getattr(splits, name).examples} for name in NAMES]
    assert [len(side) for side in sides] == [60, 15, 25]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]
    assert splits.train.kind == "pairs"


def test_one_book_is_cut_in_reading_order() -> None:
    text = "".join(f"Paragraph {n} says something.\n\n" for n in range(100))
    book = examples_from_rows([("book.txt", 1, {"text": text})], name="book")
    found = split(book, train=0.8, validation=0.1, test=0.1)
    parts = [found.train.examples[0].text, found.validation.examples[0].text, found.test.examples[0].text]
    assert "\n\n".join(parts) + "\n\n" == text  # nothing is lost, and cuts are between paragraphs
    assert [round(len(part) / len(text), 1) for part in parts] == [0.8, 0.1, 0.1]
    assert len({found.train.examples[0].id, found.validation.examples[0].id, book.examples[0].id}) == 3
    assert split(book, train=1.0, validation=0, test=0).train.examples[0].text == text
    with pytest.raises(DataError, match="too short to be cut for 3 splits"):
        split(examples_from_rows([("a.txt", 1, {"text": "a"})], name="a"))


def test_numbers_are_cut_in_proportion_of_their_ranks() -> None:
    rows = tuple(Example(str(n), user(f"text {n}"), str(n), score=float(n**3)) for n in range(200))
    cut = split(Dataset("d", "number", rows), train=0.5, validation=0.25, test=0.25)
    for part, share in ((cut.train, 0.5), (cut.validation, 0.25), (cut.test, 0.25)):
        for tenth in range(10):
            low, high = (20 * tenth) ** 3, (20 * tenth + 19) ** 3
            assert sum(low <= (e.score or 0) <= high for e in part.examples) == 20 * share


def test_rare_types_of_entities_are_on_every_side() -> None:
    def row(n: int) -> dict[str, object]:
        kinds = ["COMMON", "RARE"] if n % 20 == 0 else ["COMMON"]
        found = [{"type": kind, "start": 2 * at, "end": 2 * at + 1} for at, kind in enumerate(kinds)]
        return {"text": f"a b text {n}", "entities": found}

    cut = split(
        examples_from_rows((("f", n, row(n)) for n in range(100)), name="d"), train=0.6, validation=0.2, test=0.2
    )
    for part, count in ((cut.train, 3), (cut.validation, 1), (cut.test, 1)):
        assert sum("RARE" in (e.target or "") for e in part.examples) == count
