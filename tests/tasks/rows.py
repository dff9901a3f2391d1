"""A few rows for every benchmark, in the published field names, written for these tests."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def _exam(count: int, subject: str, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question": f" Which number is {i}? ",
            "choices": [str(i + k) for k in range(4)] if i % 2 else [str(i - 3 + k) for k in range(4)],
            "answer": 0 if i % 2 else 3,
            "subject": subject,
        }
        for i in range(start, start + count)
    ]


def _chinese(count: int, subject: str, start: int = 0) -> list[dict[str, Any]]:
    letters = "ABCD"
    return [
        {
            "question": f"第{i}题选几？",
            **{k: f"{i + n}" for n, k in enumerate(letters)},
            "answer": letters[i % 4],
            "subject": subject,
        }
        for i in range(start, start + count)
    ]


def _science(count: int, start: int = 0, question: str = "question") -> list[dict[str, Any]]:
    labels = ["1", "2", "3"] if start else ["A", "B", "C"]
    return [
        {
            "id": f"q{i}",
            question: f"What melts at {i} degrees?",
            "choices": {"text": [f"wax {i}", "stone", "iron and steel"], "label": labels},
            "answerKey": labels[i % 3],
        }
        for i in range(start, start + count)
    ]


def _endings(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "activity_label": "Baking bread",
            "ctx_a": f"A baker takes loaf {i} [header] out of the oven.",
            "ctx_b": "then she" if i % 2 else "",
            "endings": [f"puts it on a rack. [title] Done {i}", "throws it  at the moon.", "eats the oven.", "sings."],
            "label": str(i % 4),
        }
        for i in range(start, start + count)
    ]


def _goals(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"goal": f"Open jar {i}", "sol1": "Turn the lid.", "sol2": "Paint the lid blue.", "label": i % 2}
        for i in range(start, start + count)
    ]


def _passages(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"passage": f"Boat {i} is made of wood.", "question": f"is boat {i} made of wood", "idx": i, "label": i % 2}
        for i in range(start, start + count)
    ]


def _blanks(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "sentence": f"Ann gave Bea {i} pears because _ was hungry.",
            "option1": "Ann",
            "option2": "Bea",
            "answer": "12"[i % 2],
        }
        for i in range(start, start + count)
    ]


def _articles(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"s{i}",
            "title": "Lighthouse",
            "context": f"The lighthouse was built in {1800 + i} by Ole Dahl.",
            "question": "When was it built?" if i % 2 == 0 else "Who painted it?",
            "answers": {"text": [str(1800 + i), f"in {1800 + i}"] if i % 2 == 0 else [], "answer_start": []},
        }
        for i in range(start, start + count)
    ]


def _sums(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Tom has {i} pens and gets 2 more. How many?",
            "answer": f"{i} + 2 = <<{i}+2={i + 2}>>{i + 2}\n#### {i + 2}",
        }
        for i in range(start, start + count)
    ]


def _programs(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "task_id": n,
            "text": f"Write a function that adds {n}.",
            "code": f"def add(x):\r\n  return x + {n}",
            "test_list": [f"assert add({k}) == {k + n}" for k in range(3)],
            "test_setup_code": "",
        }
        for n in numbers
    ]


_FUNCTION = 'def twice(x):\n    """Two times x.\n    >>> twice(2)\n    4\n    """\n'
_TRUTHS = {"question": "Can fish read?", "mc1_targets": {"choices": ["No.", "Yes.", "Only maps."], "labels": [1, 0, 0]},
           "mc2_targets": {"choices": ["No.", "They cannot.", "Yes."], "labels": [1, 1, 0]}}  # fmt: skip

GLUE: Mapping[str, Rows] = {
    "cola": [{"sentence": "The cat sat.", "label": 1}, {"sentence": "Cat the sat.", "label": 0}],
    "sst2": [{"sentence": "a fine film", "label": 1}, {"sentence": "dull ", "label": 0}],
    "mrpc": [{"sentence1": "He left.", "sentence2": "He went away.", "label": 1}, {"sentence1": "a", "sentence2": "b", "label": 0}],
    "qqp": [{"question1": "How old?", "question2": "What age?", "label": 1}, {"question1": "a?", "question2": "b?", "label": 0}],
    "stsb": [{"sentence1": "a", "sentence2": "a", "label": 5.0}, {"sentence1": "a", "sentence2": "b", "label": 0.25}],
    "mnli": [{"premise": "It rains.", "hypothesis": "It is wet", "label": 0}, {"premise": "p", "hypothesis": " h. ", "label": 2}],
    "qnli": [{"question": "Who?", "sentence": "Ann did.", "label": 0}, {"question": "When?", "sentence": "No.", "label": 1}],
    "rte": [{"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0}, {"sentence1": "a", "sentence2": "b", "label": 1}],
    "wnli": [{"sentence1": "Bo met Al.", "sentence2": "They met.", "label": 1}, {"sentence1": "a", "sentence2": "b", "label": 0}],
}  # fmt: skip

FILES: Mapping[str, Mapping[str, Rows]] = {
    "mmlu": {
        "dev": _exam(3, "anatomy", 10) + _exam(3, "us_foreign_policy", 20),
        "test": _exam(2, "anatomy") + _exam(2, "us_foreign_policy", 30),
    },
    "cmmlu": {"dev": _chinese(3, "anatomy", 10), "test": _chinese(2, "anatomy")},
    "ceval": {"dev": _chinese(3, "law", 10), "val": _chinese(2, "law")},
    "arc": {"train": _science(5, 10), "test": _science(3)},
    "openbookqa": {"train": _science(5, 10, "question_stem"), "test": _science(3, 0, "question_stem")},
    "hellaswag": {"train": _endings(5, 10), "validation": _endings(3)},
    "piqa": {"train": _goals(5, 10), "validation": _goals(3)},
    "boolq": {"train": _passages(5, 10), "validation": _passages(3)},
    "winogrande": {"train": _blanks(5, 10), "validation": _blanks(3)},
    "truthfulqa": {"validation": [_TRUTHS]},
    "lambada": {"test": [{"text": "She put the kettle on and made some tea"}, {"text": "one\ntwo three"}]},
    "wikitext": {"test": [{"page": " = Bread = \n \n Bread 's crust , baked at 200 ° C , is brown . \n"}, {"page": "Two @-@ part ( a ) 1 @,@ 000 ."}]},
    "gsm8k": {"train": _sums(6, 10), "test": _sums(3)},
    "humaneval": {
        "test": [
            {
                "task_id": "T/0",
                "prompt": _FUNCTION,
                "entry_point": "twice",
                "canonical_solution": "    return 2 * x\n",
                "test": "def check(candidate):\n    assert candidate(3) == 6\n",
            }
        ]
    },
    "mbpp": {"mbpp": _programs([1, 2, 3, 4, 5, 11, 12, 601])},
    "squad": {"train": _articles(5, 10), "validation": _articles(4)},
    "glue": {"validation": GLUE["sst2"], "train": GLUE["sst2"]},
    "ifeval": {
        "train": [
            {
                "key": 1,
                "prompt": "Write a poem without commas.",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{"num_words": None}],
            }
        ]
    },
    "mt_bench": {
        "questions": [
            {"question_id": 1, "category": "writing", "turns": ["Write a line about rain.", "Now make it rhyme."]},
            {"question_id": 2, "category": "math", "turns": ["What is 2+2?", "Double it."], "reference": ["4", "8"]},
        ]
    },
    "spider": {
        "train": [{"db_id": "shop", "question": "List all items.", "query": "SELECT name FROM item"}],
        "validation": [
            {"db_id": "shop", "question": "How many items are there?", "query": "SELECT count(*) FROM item"},
            {"db_id": "shop", "question": "What is the highest price?", "query": "SELECT max(price) FROM item"},
        ],
    },
}  # fmt: skip
"""Benchmark -> file -> rows."""

OVERRIDES: Mapping[str, Sequence[str]] = {
    "mmlu": ["shots=2"],
    "cmmlu": ["shots=2"],
    "ceval": ["shots=2"],
    "mbpp": ["data={folder}/mbpp.jsonl"],
    "mt_bench": ["judge=fake:7"],
}
"""What a benchmark needs beside its data."""


def write(folder: Path, name: str) -> Path:
    """The benchmark's files in ``folder``."""
    for part, rows in FILES.get(name, {}).items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if name == "spider":
        place = folder / "databases" / "shop"
        place.mkdir(parents=True)
        with closing(sqlite3.connect(place / "shop.sqlite")) as connection:
            connection.executescript(
                "CREATE TABLE item (name TEXT, price REAL);INSERT INTO item VALUES ('pen', 2), ('cup', 5);"
            )
    return folder


def options(folder: Path, name: str) -> list[str]:
    """``key=value`` texts with which the benchmark builds from its files."""
    if name not in FILES:
        return []
    told = [each.replace("{folder}", str(folder)) for each in OVERRIDES.get(name, ())]
    return told if any(each.startswith("data=") for each in told) else [f"data={folder}", *told]
