from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.strategies._answers import AnswerForm, cut_at, final_answer, form_in_words, form_of, same_answer

FORMS = get_args(AnswerForm)
LABELS = ("billing", "delivery", "billing_dispute", "退款")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3 + 4 = 7 eggs. The answer is 7.", "7"),
        ("The answer is $1,234.50 in total", "1234.50"),
        ("The answer is 18 dollars for 5 days", "18"),
        ("The answer is 3 * 6 = 18", "18"),
        ("First the answer is 4. No: the answer is 5", "5"),
        ("16 - 3 - 4 = 9 eggs, at 2 each 9 * 2 = $18 a day", "18"),
        ("#### 42", "42"),
        ("So it is \\boxed{-3}", "-3"),
        ("答案是 25 个", "25"),
        ("所以答案：１２", "12"),
        ("A range of 5-3", "3"),
        ("it fell to -12 degrees", "-12"),
        ("7", "7"),
        ("no number here", "no number here"),
        ("the answer is unknown, though 6 is near", "6"),
        ("", ""),
    ],
)
def test_numbers(text: str, answer: str) -> None:
    assert final_answer(text, "number") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (B).", "B"),
        ("Answer: C", "C"),
        ("B. because it is warm", "B"),
        ("D", "D"),
        ("It cannot be (A), so it is (C).", "C"),
        ("答案是D", "D"),
        ("The answer is B because it is warm", "B"),
        ("A dog is an animal", "A dog is an animal"),
        ("I think about it", "I think about it"),
        ("nothing of the kind", "nothing of the kind"),
    ],
)
def test_letters(text: str, answer: str) -> None:
    assert final_answer(text, "letter") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is Billing.", "billing"),
        ("Not billing but delivery", "delivery"),
        ("It is a billing dispute.", "billing_dispute"),
        ("billings are not it", "billings are not it"),
        ("答案是退款。", "退款"),
        ("The answer is: delivery\nI first thought of billing", "delivery"),
    ],
)
def test_labels(text: str, answer: str) -> None:
    assert final_answer(text, "label", LABELS) == answer
    assert final_answer(text, "auto", LABELS) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He went home.\nThe answer is Paris.", "Paris"),
        ("Thoughts\n\nParis", "Paris"),
        ('The answer is "Paris".', "Paris"),
        ("答案是“巴黎”。", "巴黎"),
        ("**Final answer:** 12 apples", "12 apples"),
    ],
)
def test_texts(text: str, answer: str) -> None:
    assert final_answer(text, "text") == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("18", "18.0", True),
        ("$1,000", "1000", True),
        ("18", "-18", False),
        ("0", "-0.0", True),
        ("Paris.", " paris", True),
        ("Paris", "London", False),
        ("10", "1e1", True),
        ("３", "3", True),
        ("!", "?", False),
    ],
)
def test_when_two_answers_are_one(one: str, other: str, same: bool) -> None:
    assert (same_answer(one) == same_answer(other)) is same


@pytest.mark.parametrize(
    ("answers", "labels", "form"),
    [
        (["18", "1,000", "-3.5"], (), "number"),
        (["A", "D"], (), "letter"),
        (["A", "12"], (), "text"),
        (["18"], ("18", "19"), "label"),
        ([], (), "text"),
        (["nan"], (), "text"),
    ],
)
def test_the_form_that_known_answers_have(answers: list[str], labels: tuple[str, ...], form: str) -> None:
    assert form_of(answers, labels) == form


def test_words_for_each_form_in_both_languages() -> None:
    assert form_in_words("label", ("a", "b"), "what?") == "one of these labels: a, b"
    assert form_in_words("auto", (), "what?") == "the answer"
    assert form_in_words("number", (), "一共有多少个苹果") == "数字"


def test_cut_at_the_first_stop_text() -> None:
    assert cut_at("a b c d", ("d", "b")) == "a "
    assert cut_at("a b", ("x", "")) == "a b"


@given(st.text(alphabet=st.sampled_from("aA B.#:$,-=019答案是\n\\{}boxedanswer "), max_size=80), st.sampled_from(FORMS))
def test_any_text_gives_an_answer_that_it_holds(text: str, form: AnswerForm) -> None:
    answer = final_answer(text, form, LABELS)
    assert (
        answer in (*LABELS, text.strip())
        or answer in text
        or answer in text.replace(",", "").replace("$", "").replace(" ", "")
    )
    assert same_answer(answer) == same_answer(f" {answer} ")
