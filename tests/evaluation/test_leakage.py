from __future__ import annotations

import random
from pathlib import Path

import pytest

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.data.dedupe import jaccard, normalise
from luthier.evaluation.leakage import leakage

PARCEL = "My parcel was due on Monday and now it is Thursday; the courier does not answer the phone."


def dataset(name: str, *rows: tuple[str, str] | tuple[str, str, str], kind: str = "labelled") -> Dataset:
    examples = tuple(
        Example(
            f"{name}{line}",
            user(row[0]),
            row[1],
            source=f"{name}.jsonl:{line}",
            meta={"customer": row[2]} if len(row) > 2 else {},
        )
        for line, row in enumerate(rows, 1)
    )
    return Dataset(name, kind, examples)  # type: ignore[arg-type]


def test_exact_normalised_and_near_copies_each_counted_once() -> None:
    train = dataset("train", (PARCEL, "delivery"), ("Where is my refund?", "billing"), ("Hello there", "other"))
    test = dataset(
        "test",
        (PARCEL, "delivery"),
        ("  where is MY refund?", "billing"),
        (PARCEL.replace("Monday", "Sunday"), "delivery"),
        ("Something else entirely.", "other"),
    )
    found = leakage({"train": train, "test": test})
    (pair,) = found.pairs
    assert [(c.kind, c.place, c.of) for c in pair.copies] == [
        ("exact", "test.jsonl:1", "train.jsonl:1"),
        ("normalised", "test.jsonl:2", "train.jsonl:2"),
        ("near", "test.jsonl:3", "train.jsonl:1"),
    ]
    assert [pair.count(kind) for kind in ("exact", "normalised", "near")] == [1, 1, 1]  # type: ignore[arg-type]
    assert pair.copies[2].similarity == pytest.approx(jaccard(normalise(PARCEL), normalise(test.examples[2].text)))
    assert not found.clean and pair.contradictions == 0
    assert found.as_dict()["pairs"][0]["counts"] == {"exact": 1, "normalised": 1, "near": 1}
    assert len(leakage({"train": train, "test": test}, near=False).pairs[0].copies) == 2


def test_near_copies_are_those_that_a_comparison_of_all_pairs_finds() -> None:
    draw = random.Random(0)
    words = [f"term{i}" for i in range(200)]
    train = [" ".join(draw.choices(words, k=25)) for _ in range(80)]
    test = [" ".join(draw.choices(words, k=25)) for _ in range(40)]
    for number in range(20):
        changed = train[number].split()
        for place in range(number % 5):
            changed[place * 5] = "other"
        test.append(" ".join(changed) + " end")
    found = leakage(
        {"train": dataset("train", *((t, "x") for t in train)), "test": dataset("test", *((t, "x") for t in test))}
    )
    wanted = {f"test.jsonl:{i + 1}" for i, t in enumerate(test) if max(jaccard(t, other) for other in train) >= 0.8}
    assert {c.place for c in found.pairs[0].copies} == wanted
    assert 5 < len(wanted) < 20


def test_labels_that_contradict_each_other_and_labels_of_one_split_only() -> None:
    train = dataset("train", (PARCEL, "delivery"), (PARCEL, "billing"), ("Hi", "spare"), ("Ho", "delivery"))
    test = dataset("test", (PARCEL, "delivery"), ("New", "returns"), ("Newer", "returns"))
    found = leakage({"train": train, "test": test})
    (pair,) = found.pairs
    assert pair.copies[0].labels == ("delivery", "billing") and pair.contradictions == 1
    assert (pair.unseen, pair.missing) == ({"returns": 2}, ("billing", "spare"))
    (conflict,) = found.conflicts
    assert (conflict.split, conflict.labels) == ("train", {"delivery": 1, "billing": 1})
    assert conflict.places == ("train.jsonl:1", "train.jsonl:2")


def test_a_label_that_only_training_has_is_no_fault() -> None:
    train = dataset("train", ("one", "a"), ("two", "b"))
    found = leakage({"train": train, "test": dataset("test", ("three", "a"))})
    assert found.clean and found.pairs[0].missing == ("b",)


def test_groups_that_stand_in_two_splits() -> None:
    train = dataset("train", ("one", "a", "ann"), ("two", "a", "bob"))
    test = dataset("test", ("three", "a", "bob"), ("four", "a", "bob"), ("five", "a", "cyd"))
    found = leakage({"train": train, "test": test}, group="customer")
    assert found.pairs[0].groups == {"bob": 2} and not found.clean
    with pytest.raises(InputError, match="Did you mean 'customer'"):
        leakage({"train": train, "test": test}, group="custmer")


def test_every_pair_of_three_splits() -> None:
    part = dataset("x", (PARCEL, "delivery"))
    found = leakage(Splits(part, part, part))
    assert [(p.first, p.second, len(p.copies)) for p in found.pairs] == [
        ("train", "validation", 1),
        ("train", "test", 1),
        ("validation", "test", 1),
    ]
    empty = Dataset("none", "labelled", ())
    assert [p.second for p in leakage(Splits(part, empty, part)).pairs] == ["test"]
    with pytest.raises(InputError, match="between splits"):
        leakage(Splits(part, empty, empty))


def test_questions_have_no_label_sets() -> None:
    train = dataset("train", ("What is one?", "1"), kind="question")
    test = dataset("test", ("What is two?", "2"), kind="question")
    assert leakage({"train": train, "test": test}).clean


def test_files(tmp_path: Path) -> None:
    from luthier.data.read import read

    (tmp_path / "train.jsonl").write_text('{"text": "same", "label": "a"}\n{"text": "other", "label": "b"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "same", "label": "a"}\n')
    found = leakage({name: read(tmp_path / f"{name}.jsonl") for name in ("train", "test")})
    assert found.pairs[0].copies[0].of == f"{tmp_path}/train.jsonl:1"
