from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.core.dataset import Example
from luthier.core.errors import InputError
from luthier.core.message import Message, user
from luthier.data.corpus import Document, documents
from luthier.evaluation.contamination import compare_scores, contamination, parts_of, words
from luthier.evaluation.records import Record

VOCABULARY = [f"w{i}" for i in range(40)]
LONG = "the quick brown fox jumps over the lazy dog while seven grey geese look on and say nothing"


def question(text: str, answer: str | None = None, **more: object) -> Example:
    return Example(text[:12], user(text), answer, source=f"test.jsonl:{text[:4]}", **more)  # type: ignore[arg-type]


def texts(*given: str) -> list[Document]:
    return [Document(f"train.jsonl:{line}", text) for line, text in enumerate(given, 1)]


def naive(tests: list[str], train: list[str], n: int) -> set[int]:
    """Every run of n words by itself, as the definition says."""
    grams = {tuple(w[i : i + n]) for w in map(str.split, train) for i in range(len(w) - n + 1)}
    return {
        number
        for number, w in enumerate(map(str.split, tests))
        if any(tuple(w[i : i + n]) in grams for i in range(len(w) - n + 1))
    }


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_same_as_comparing_every_run_of_words(n: int) -> None:
    draw = random.Random(n)
    train = [" ".join(draw.choices(VOCABULARY, k=draw.randint(1, 60))) for _ in range(300)]
    tests = [" ".join(draw.choices(VOCABULARY, k=draw.randint(n, 30))) for _ in range(60)]
    for number in range(0, 60, 4):
        words_ = draw.choice([t for t in train if len(t.split()) > n]).split()
        at = draw.randint(0, len(words_) - n)
        tests[number] += " " + " ".join(words_[at : at + n])
    found = contamination([question(t) for t in tests], texts(*train), n=n, shortest=n, common=10**9)
    assert {o.index for o in found.contaminated} == naive(tests, train, n)
    assert 15 <= len(found.contaminated) <= 60
    assert (found.documents, found.words) == (300, sum(len(t.split()) for t in train))


def test_case_punctuation_and_width_do_not_matter_and_the_text_is_told() -> None:
    train = texts("unrelated", f"He said: {LONG.upper().replace(' ', ' — ')}!", "also unrelated words here")
    found = contamination([question("Well, " + LONG + ", and more of it follows")], train)
    (overlap,) = found.contaminated
    assert overlap.text == LONG
    assert (overlap.words, overlap.part, overlap.documents, overlap.where) == (18, "input", 1, ("train.jsonl:2",))
    assert overlap.coverage == pytest.approx(18 / 24)
    assert words("Ａ１ Don't") == ["a1", "don", "t"]


def test_runs_do_not_cross_documents() -> None:
    half = LONG.split()
    found = contamination([question(LONG)], texts(" ".join(half[:9]), " ".join(half[9:])))
    assert not found.contaminated


def test_chinese_counts_characters() -> None:
    text = "我的包裹还没有到请帮我查一下快递在哪里"
    assert words("包裹 ABC") == ["包", "裹", "abc"]
    found = contamination([question("请问:" + text)], texts("前文。" + text[2:16] + "。后文"))
    assert found.contaminated[0].text == text[2:16]
    assert not contamination([question(text)], texts(text[2:14])).contaminated, "12 characters are not 13"


def test_short_examples_must_occur_as_a_whole_and_very_short_ones_say_nothing() -> None:
    eight, three = "seven grey geese look on and say nothing", "seven grey geese"
    train = texts(LONG)
    found = contamination([question(eight), question(eight + " today"), question(three)], train)
    assert [o.index for o in found.contaminated] == [0]
    assert found.short == 1
    assert found.share == pytest.approx(1 / 2)
    assert [o.index for o in contamination([question(three)], train, shortest=3).contaminated] == [0]


def test_phrases_that_everybody_uses_are_told_apart() -> None:
    boiler = "all rights reserved no part of this book may be copied without written leave of the owner"
    many = texts(*(f"{boiler} {i}" for i in range(11)))
    found = contamination([question(boiler), question(LONG)], [*many, *texts(LONG)])
    assert [o.index for o in found.contaminated] == [1]
    assert [o.index for o in found.common] == [0]
    assert found.common[0].documents == 11
    again = contamination([question(boiler)], texts(*[boiler] * 30))
    assert len(again.contaminated) == 1, "thirty copies of one document are one document"


def test_question_choices_and_answer_are_looked_for() -> None:
    example = question("Which?", "b", choices=("one", "two"), references=("b", LONG))
    assert parts_of(example) == {"input": "Which?\none\ntwo", "answer": f"b\n{LONG}"}
    assert contamination([example], texts(LONG)).contaminated[0].part == "answer"
    chat = Example("c", (Message("user", "Tell me."), Message("assistant", LONG)))
    assert contamination([chat], texts(LONG)).contaminated[0].part == "answer"


def test_files_larger_than_a_block_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    filler = json.dumps({"text": "other words entirely " * 500}) + "\n"
    path.write_text(filler * 300 + json.dumps({"text": LONG}) + "\n" + filler * 300)
    found = contamination([question(LONG)], documents([path]))
    assert found.contaminated[0].where == (f"{path}:301",)
    assert found.documents == 601


@pytest.mark.parametrize(
    ("options", "said"),
    [({"n": 1}, "n must be"), ({"shortest": 14}, "shortest must be"), ({"common": 0}, "common must be")],
)
def test_options_out_of_range(options: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        contamination([question(LONG)], texts(LONG), **options)
    with pytest.raises(InputError, match="no test example"):
        contamination([], texts(LONG))


def test_scores_of_the_two_parts() -> None:
    from luthier.core import catalog
    from luthier.evaluation.loop import Scorer

    entry = catalog.load("scorers", "accuracy")
    scorer = Scorer("accuracy", entry, entry.configure({}))
    record = Record(0, "a", "", "q", "yes", "yes", {"accuracy": 1.0})
    right = [replace(record, index=i) for i in range(40)]
    mixed = [
        replace(record, index=i, answer="yes" if i % 2 else "no", scores={"accuracy": i % 2}) for i in range(40, 80)
    ]
    found = compare_scores("run_1", scorer, right + mixed, frozenset(range(40)))
    assert (found.contaminated["value"], found.clean["value"]) == (1.0, 0.5)
    assert found.difference["value"] == pytest.approx(0.5)
    assert 0.3 < found.difference["low"] < 0.45 and 0.55 < found.difference["high"] < 0.7
    with pytest.raises(InputError, match="two of each"):
        compare_scores("run_1", scorer, right, frozenset(range(40)))
