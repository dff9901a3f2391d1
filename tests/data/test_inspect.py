from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.errors import DataError, InputError
from luthier.data.inspect import Inspection, inspect
from luthier.data.read import examples_from_rows
from luthier.data.render import Renderer

LONG = "The parcel has not arrived and the courier does not answer my calls at all, number {}."


def of(*rows: dict[str, Any], **options: Any) -> Inspection:
    return inspect(
        examples_from_rows((("f", n, row) for n, row in enumerate(rows, 1)), name="d", skip_bad=True), **options
    )


def test_luthier_inspect_is_this_function() -> None:
    assert luthier.inspect is inspect


def test_counts_and_lengths_in_words() -> None:
    report = of(
        *[{"text": "one two three 你好", "label": "a", "source": "web"}] * 1,
        *[{"text": f"w{n}", "label": "b"} for n in range(3)],
    )
    assert (report.rows, report.kind, report.format, report.broken) == (4, "labelled", "text_label", 0)
    assert report.fields == {"text": 4, "label": 4, "source": 1}
    assert report.labels == {"b": 3, "a": 1}
    words = report.lengths
    assert (words.unit, words.total, words.mean, words.p50, words.max) == ("words", 8, 2.0, 1, 5)
    assert (report.characters.unit, report.characters.max) == ("characters", 16)


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 1000])
def test_quantiles_are_those_of_the_nearest_rank_and_bins_hold_all(count: int) -> None:
    texts = [f"{'x' * (n + 1)} " for n in range(count)]
    lengths = of(*({"text": text} for text in texts), tokenizer=lambda text: len(text.strip())).lengths
    assert lengths.unit == "tokens"
    assert lengths.p50 == -(-count // 2)
    assert lengths.p90 == -(-count * 9 // 10)
    assert lengths.p99 == -(-count * 99 // 100)
    assert sum(rows for _, _, rows in lengths.histogram) == count
    for low, high, rows in lengths.histogram:
        assert rows == sum(low <= n <= high for n in range(1, count + 1))
    assert len(lengths.histogram) <= 14


def test_contradictions_copies_and_near_copies() -> None:
    report = of(
        {"text": LONG.format(1), "label": "delivery"},
        {"text": LONG.format(1).upper(), "label": "delivery"},
        {"text": LONG.format(1), "label": "billing"},
        {"text": LONG.format(2), "label": "delivery"},
        {"text": "Where is my refund?", "label": "billing"},
    )
    assert report.duplicates == 1
    assert report.duplicate_rows[0].sources == ("f:1", "f:2")
    assert report.conflicts == 1
    assert report.conflict_rows[0].labels == {"delivery": 2, "billing": 1}
    assert report.near_duplicates == 1
    assert report.near_duplicate_rows[0].sources == ("f:1", "f:4")
    said = "\n".join(report.warnings)
    assert "1 texts have more than one label" in said
    assert "1 rows (20.0%) are copies" in said


def test_same_question_with_another_answer_is_no_copy() -> None:
    report = of(*({"prompt": "Hello", "completion": answer} for answer in ("a", "b", "b")))
    assert (report.duplicates, report.conflicts) == (1, 0)


def test_languages_are_guessed_on_a_sample() -> None:
    english = [{"text": f"{LONG.format(n)} Please help me with this order."} for n in range(3000)]
    report = of(*english, {"text": "ok"}, *[{"text": "我的包裹还没有到,请帮我查一下它现在在哪里吧"}] * 999)
    assert report.language_sample == 2000
    assert set(report.languages) <= {"en", "zh", "?"}
    assert report.languages["en"] == 1500


def test_label_warnings() -> None:
    assert any(
        "only one label ('a')" in w for w in of({"text": "x", "label": "a"}, {"text": "y", "label": "a"}).warnings
    )
    rows = [{"text": f"x {n}", "label": "a"} for n in range(40)] + [{"text": f"y {n}", "label": "b"} for n in range(4)]
    assert any("labels are uneven: a has 40 rows, b 4" in w for w in of(*rows).warnings)
    rows += [{"text": f"z {n}", "label": "A"} for n in range(2)]
    said = "\n".join(of(*rows).warnings)
    assert "labels with fewer than 3 rows: A" in said
    assert "labels that differ only in spelling: 'a', 'A'" in said


def test_conversations() -> None:
    two = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    report = of({"messages": two}, {"messages": [*two, {"role": "user", "content": "r"}]})
    assert report.turns == {2: 1, 3: 1}
    assert any("1 conversations do not end with an assistant turn" in w for w in report.warnings)


def test_marks_unanswered_questions_and_plain_text_are_pointed_out() -> None:
    assert any(
        "one marked answer, not a pair" in w for w in of({"prompt": "q", "completion": "a", "label": True}).warnings
    )
    assert any("1 questions have no answer" in w for w in of({"question": "q", "answers": []}).warnings)
    assert any("if one of topic is the label" in w for w in of({"text": "q", "topic": "a"}).warnings)


def test_broken_rows_are_counted_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "", "label": "x"}\n{\n')
    report = inspect(path)
    assert (report.rows, report.broken) == (1, 2)
    assert str(report.problems[0]) == f"{path}:2: text is empty"
    assert any("2 rows cannot be used" in w for w in report.warnings)
    json.dumps(report.as_dict())
    path.write_text("{\n")
    with pytest.raises(DataError, match="no row can be used"):
        inspect(path)


def test_context_length_needs_tokens() -> None:
    with pytest.raises(InputError, match="context_length counts tokens"):
        of({"text": "a"}, context_length=5)
    report = of({"text": "a b c"}, {"text": "a b"}, tokenizer=lambda text: len(text.split()), context_length=2)
    assert (report.overlong, report.overlong_rows) == (1, ("f:1",))
    assert any("1 rows are longer than the context of 2 tokens" in w for w in report.warnings)


@pytest.fixture(scope="module")
def renderer(tiny_decoder_path: Path) -> Renderer:
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(str(tiny_decoder_path)))


def test_lengths_of_rendered_rows(renderer: Renderer) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    whole = len(renderer.prompt_ids("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>"))
    assert of({"messages": talk}, renderer=renderer).lengths.max == whole + 1
    assert of({"question": "hi", "answer": "yo"}, renderer=renderer).lengths.max == whole
    assert of({"text": "hi", "label": "yo"}, renderer=renderer).lengths.max == whole
    assert of({"prompt": "hi", "chosen": "yo", "rejected": "y"}, renderer=renderer).lengths.max == whole + 1
    assert of({"prompt": "hi", "completion": "yo", "label": False}, renderer=renderer).lengths.max == whole + 1
    assert of({"text": "hi"}, renderer=renderer).lengths.max == len(renderer.prompt_ids("hi"))


def test_rows_that_the_template_cannot_show_are_counted_as_bare_text(renderer: Renderer) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "track", "arguments": "{"}]}
    talk = [
        {"role": "user", "content": "hi"},
        call,
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "yo"},
    ]
    report = of({"messages": talk, "tools": [{"name": "track"}]}, renderer=renderer)
    assert report.lengths.max == len(renderer.prompt_ids("hi\n\n1\nyo"))
    assert any("arguments are not JSON" in w for w in report.warnings)


def test_pairs_and_scored_texts() -> None:
    report = of(
        {"anchor": "one", "positive": "two three", "negatives": ["four five six"]},
        {"anchor": "ONE", "positive": "two  Three"},
        {"anchor": "one", "positive": "other"},
        {"anchor": "seven", "positive": "eight"},
    )
    assert (report.kind, report.format, report.rows) == ("pairs", "anchor_positive", 4)
    assert report.duplicates == 1
    assert report.fields == {"anchor": 4, "positive": 4, "negatives": 1}
    assert (report.lengths.max, report.lengths.total) == (
        3,
        7,
    )  # the longest text of each row, since each is read alone
    scored = of(
        {"sentence1": "one", "sentence2": "two", "score": 4},
        {"sentence1": "Two", "sentence2": "one", "score": 4.0},
        {"sentence1": "one", "sentence2": "two", "score": 1},
    )
    assert (scored.kind, scored.duplicates) == ("similarity", 1)


def test_numbers_are_described() -> None:
    report = of(*({"text": f"text {n}", "target": n} for n in range(5)))
    assert report.kind == "number"
    assert report.numbers == pytest.approx(
        {"least": 0, "25%": 1, "median": 2, "75%": 3, "largest": 4, "mean": 2, "deviation": 2**0.5}
    )
    same = of({"text": "a", "target": 2}, {"text": "b", "target": 2})
    assert "every target is 2: nothing to predict" in same.warnings


def test_types_of_entities_are_counted() -> None:
    person = {"type": "P", "start": 0, "end": 3}
    report = of(
        {
            "text": "Ada and Bob",
            "entities": [person, {"type": "P", "start": 8, "end": 11}, {"type": "L", "start": 0, "end": 2}],
        },
        {"text": "Eve", "entities": [person]},
    )
    assert (report.kind, report.labels) == ("entities", {"P": 3, "L": 1})
    assert "1 rows have entities that overlap: objective tag takes flat entities only" in report.warnings
    assert "types with fewer than 3 entities: L" in report.warnings
