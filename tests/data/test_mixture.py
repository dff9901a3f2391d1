"""Instruction mixtures: what each format holds, what never gets in, and that the same settings make the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.core.errors import DataError, InputError
from luthier.data.instructions import OWN, Template, filled
from luthier.data.mixture import Mixed, mixture
from luthier.data.read import read


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def news(tmp_path: Path) -> str:
    rows = [{"text": f"item {n} of the {label}", "label": label} for n in range(20) for label in ("Sports", "World")]
    return lines(tmp_path / "news.jsonl", rows)


@pytest.fixture
def sums(tmp_path: Path) -> str:
    rows = [
        {"question": f"What is {n} + 2?", "answer": f"First, {n}+2=<<{n}+2={n + 2}>>{n + 2}.\n#### {n + 2}"}
        for n in range(15)
    ]
    return lines(tmp_path / "sums.jsonl", rows)


def made(sources: list[Any], **settings: Any) -> Mixed:
    return mixture({"sources": sources, **settings})


def said(example: Any) -> tuple[str, str]:
    ask, answer = example.messages
    return ask.content, answer.content


ONLY: Mapping[str, Mapping[str, float]] = {
    "zero_shot": {"few_shot": 0, "chain_of_thought": 0, "few_shot_chain_of_thought": 0},
    "few_shot": {"zero_shot": 0, "chain_of_thought": 0, "few_shot_chain_of_thought": 0},
    "chain_of_thought": {"zero_shot": 1e-9, "few_shot": 0, "few_shot_chain_of_thought": 0},
    "few_shot_chain_of_thought": {"zero_shot": 1e-9, "few_shot": 0, "chain_of_thought": 0},
    "inverted": {
        "zero_shot": 1e-9,
        "few_shot": 0,
        "chain_of_thought": 0,
        "few_shot_chain_of_thought": 0,
        "inverted": 1,
    },
}


def test_the_places_of_a_template_are_filled_once() -> None:
    assert filled("{input} {other} {labels}", {"input": "{labels}", "labels": "a"}) == "{labels} {other} a"


def test_zero_shot_asks_for_a_label_among_all(news: str) -> None:
    found = made([{"path": news, "asks": "topic"}], formats=ONLY["zero_shot"])
    assert found.counts == {"news": {"zero_shot": 40}}
    for example in found.dataset.examples:
        ask, answer = said(example)
        assert answer in ("Sports", "World")
        assert "Sports, World" in ask
        assert "topic" in ask
        assert f"of the {answer}" in ask
    assert {e.meta["template"] for e in found.dataset.examples} == {f"labelled/en/{n}" for n in range(1, 6)}


def test_few_shot_shows_other_rows_with_their_answers(news: str) -> None:
    template = {"kind": "labelled", "instruction": "Topic?", "input": "T: {input}", "cue": "A:"}
    found = made([{"path": news, "templates": [template]}], formats=ONLY["few_shot"], shots=[2, 3])
    for example in found.dataset.examples:
        ask, answer = said(example)
        instruction, *shown, asked = ask.split("\n\n")
        assert instruction == "Topic?"
        assert len(shown) == example.meta["shots"] in (2, 3)
        assert asked.endswith("\nA:")
        own = asked.split("\n")[0]
        assert own.endswith(answer)
        for shot in shown:
            text, given = shot.split("\nA: ")
            assert text != own, "a row is no example of itself"
            assert text.endswith(given)
    assert {e.meta["shots"] for e in found.dataset.examples} == {2, 3}


def test_a_chain_of_thought_is_the_worked_answer_without_its_marks(sums: str) -> None:
    found = made([{"path": sums}], formats=ONLY["chain_of_thought"])
    for example in found.dataset.examples:
        ask, answer = said(example)
        assert "####" not in answer
        assert "<<" not in answer
        number = int(ask.split("What is ")[1].split(" ")[0])
        assert answer.startswith(f"First, {number}+2={number + 2}.\n")
        assert answer.endswith(f"answer is {number + 2}.")
    plain = made([{"path": sums}], formats=ONLY["zero_shot"])
    assert all(said(e)[1].isdecimal() for e in plain.dataset.examples), "without the reasoning the final answer alone"
    shown = made([{"path": sums}], formats=ONLY["few_shot_chain_of_thought"])
    assert all("First, " in said(e)[0] for e in shown.dataset.examples)


def test_a_field_may_hold_the_rationale(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": "ab"[n % 2], "why": f"because {n}", "reasoning": "no"} for n in range(8)]
    source = {"path": lines(tmp_path / "r.jsonl", rows), "rationale": "why"}
    found = made([source], formats=ONLY["chain_of_thought"])
    assert all(said(e)[1].startswith("because ") for e in found.dataset.examples)


def test_inversion_asks_for_the_text(news: str, sums: str) -> None:
    found = made([{"path": news}, {"path": sums}], formats=ONLY["inverted"])
    for example in found.dataset.examples:
        ask, answer = said(example)
        if example.meta["source"] == "news":
            assert answer.startswith("item ")
            assert answer.rsplit(" ", 1)[1] in ask
        else:
            assert answer.startswith("What is ")
            assert "First, " in ask, "a bare number says too little of the question"


def test_chinese_rows_are_asked_in_chinese(tmp_path: Path) -> None:
    rows = [{"text": f"房间{n}很干净,服务也好", "label": "positive"} for n in range(6)]
    rows += [{"text": f"房间{n}太吵", "label": "negative"} for n in range(6)]
    names = {"positive": "正面", "negative": "负面"}
    found = made([{"path": lines(tmp_path / "h.jsonl", rows), "labels": names, "asks": "情感"}])
    for example in found.dataset.examples:
        ask, answer = said(example)
        assert "情感" in ask
        assert answer in ("正面", "负面")
        assert "负面、正面" in ask
        assert str(example.meta["template"]).startswith("labelled/zh/")


def test_sources_are_mixed_by_their_rows_up_to_a_limit(news: str, sums: str) -> None:
    assert {n: sum(c.values()) for n, c in made([{"path": news}, {"path": sums}], cap=20).counts.items()} == {
        "news": 20,
        "sums": 15,
    }
    own = made([{"path": news, "cap": 5}, {"path": sums}], rows=40, formats={"zero_shot": 1, "few_shot": 1})
    assert sum(own.counts["news"].values()) + sum(own.counts["sums"].values()) + own.copies == 40
    assert sum(own.counts["news"].values()) == 10


def test_the_same_settings_make_the_same_rows(news: str, sums: str, tmp_path: Path) -> None:
    settings = {"sources": [{"path": news}, {"path": sums}], "formats": {"inverted": 0.3}}
    first, again, other = (
        mixture({**settings, "seed": seed}, out=tmp_path / f"{name}.jsonl")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.path is not None
    assert again.path is not None
    assert first.path.read_bytes() == again.path.read_bytes()
    assert first.dataset.digest != other.dataset.digest
    back = read(first.path)
    assert (back.kind, back.digest) == ("chat", first.dataset.digest)
    assert {"source", "format", "template"} <= set(back.examples[0].meta)
    assert len({json.dumps([m.as_dict() for m in e.messages]) for e in back.examples}) == len(back)


def test_rows_of_a_test_file_are_refused_or_left_out_also_as_examples(news: str, tmp_path: Path) -> None:
    held = lines(
        tmp_path / "test.jsonl", [{"text": "Item  3 of the sports", "label": "Sports"}, {"text": "x", "label": "World"}]
    )
    with pytest.raises(DataError, match="1 rows of source news stand in a test file") as error:
        made([{"path": news}], tests=[held])
    assert "overlap=drop" in str(error.value.hint)
    found = made([{"path": news}], tests=[held], overlap="drop", formats=ONLY["few_shot"])
    assert found.overlapping == 1
    assert len(found.dataset) == 39
    assert not any("item 3 of the Sports" in said(e)[0] for e in found.dataset.examples)


def test_copies_of_a_row_are_one(tmp_path: Path) -> None:
    rows = [
        {"question": "Same?", "answer": "yes"},
        {"question": "same? ", "answer": "yes"},
        {"question": "Other?", "answer": "no"},
    ]
    found = made([{"path": lines(tmp_path / "q.jsonl", rows)}], formats=ONLY["zero_shot"])
    assert len(found.dataset) == 2


def test_conversations_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}", "output": str(n)} for n in range(5)]
    found = made([{"path": lines(tmp_path / "chat.jsonl", rows)}])
    assert found.counts == {"chat": {"chat": 5}}
    assert {said(e) for e in found.dataset.examples} == {(f"Say {n}", str(n)) for n in range(5)}


def test_long_examples_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": f"{n} " + "word " * 30, "label": "ab"[n % 2]} for n in range(10)]
    found = made([{"path": lines(tmp_path / "l.jsonl", rows)}], formats=ONLY["few_shot"], max_characters=500)
    assert all(len(said(e)[0]) <= 500 for e in found.dataset.examples)
    assert {e.meta["format"] for e in found.dataset.examples} <= {"few_shot", "zero_shot"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": [3, 1]}, "least and the most"),
        ({"formats": {"zero_shot": 0, "few_shot": 0}}, "zero_shot or few_shot must be above 0"),
        ({"formats": {"zeroshot": 1}}, "unknown key"),
        ({"sources": []}, "at least 1 item"),
        ({"rows": 0}, "rows"),
    ],
)
def test_settings_that_do_not_fit(news: str, change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mixture({"sources": [{"path": news}], **change})
    with pytest.raises(InputError, match="two sources are called 'news'"):
        made([{"path": news}, {"path": news}])


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    pairs = lines(tmp_path / "p.jsonl", [{"anchor": "a", "positive": "b"}])
    with pytest.raises(DataError, match="source p is pairs"):
        made([{"path": pairs}])


def test_templates_say_what_they_are() -> None:
    kinds = {(t.kind, t.language): [u for u in OWN if (u.kind, u.language) == (t.kind, t.language)] for t in OWN}
    assert len(kinds) == 4
    for of in kinds.values():
        assert sum(not t.inverts and not t.reasons for t in of) >= 4
        assert sum(t.reasons for t in of) >= 2
        assert sum(t.inverts for t in of) == 2
    with pytest.raises(ValidationError, match="input must hold"):
        Template(kind="labelled", input="nothing")
    with pytest.raises(ValidationError, match="must ask with"):
        Template(kind="labelled", input="Write.", answer="{input}")
