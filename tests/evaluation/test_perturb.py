from __future__ import annotations

import random

import pytest

from luthier.core.dataset import Example
from luthier.core.errors import InputError
from luthier.core.message import Message, user
from luthier.evaluation.perturb import CHANGES, SYNONYMS, SYNONYMS_ZH, perturb, rotate_options

TEXT = (
    "Hello, my parcel number 48213 has not arrived yet; please ask the company whether the problem is fixed. "
    "I need it now, because my children were happy about the movie! See https://example.org/track?id=48213 for details."
)
CHINESE = "我在网上购买的电影票一直没有到，非常着急！请问现在可以帮助我吗？"
LETTERED = "What is the capital of France?\nA. Berlin\nB. Paris\nC. Rome\nD. Madrid\nAnswer:"


def example(text: str = TEXT, **changes: object) -> Example:
    return Example("e1", user(text), "label", **changes)  # type: ignore[arg-type]


def lettered(right: int = 1, **changes: object) -> Example:
    letters = ("A", "B", "C", "D")
    values = {"target": letters[right], "choices": letters, "correct": (right,)}
    return Example("e1", user(LETTERED), **values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("text", [TEXT, CHINESE])
def test_equal_seeds_give_equal_texts_and_the_rest_of_the_example_stays(change: str, text: str) -> None:
    before = example(text, meta={"k": 1})
    first, again = perturb(before, change, 3), perturb(before, change, 3)
    assert first == again
    if first is before:
        assert text is CHINESE and change in ("lower_case", "upper_case"), "Chinese has no case"
        return
    assert first.text != before.text and first.id != before.id
    assert (first.target, first.meta) == (before.target, before.meta)


@pytest.mark.parametrize("change", ["typos", "synonyms", "punctuation", "white_space"])
def test_another_seed_changes_other_words(change: str) -> None:
    assert len({perturb(example(), change, seed).text for seed in range(20)}) > 3


@pytest.mark.parametrize("change", ["typos", "synonyms", "punctuation"])
def test_numbers_and_links_stay(change: str) -> None:
    for seed in range(30):
        text = perturb(example(), change, seed).text
        assert text.count("48213") == 2 and "https://example.org/track?id=48213" in text


def test_each_change_does_what_its_name_says() -> None:
    draw = random.Random(0)
    assert CHANGES["lower_case"]("ABC Déjà", draw) == "abc déjà"
    assert CHANGES["upper_case"]("abc", draw) == "ABC"
    spaced = perturb(example(), "white_space").text
    assert spaced.split() == TEXT.split() and spaced != TEXT
    letters = [c for c in perturb(example(), "punctuation").text if c.isalnum()]
    assert letters == [c for c in TEXT if c.isalnum()]
    typed = perturb(example(), "typos").text.split()
    wrong = [(a, b) for a, b in zip(TEXT.split(), typed, strict=True) if a != b]
    assert 1 <= len(wrong) <= len(TEXT.split()) / 3
    assert all(abs(len(a) - len(b)) <= 1 and a[0] == b[0] for a, b in wrong)


def test_synonyms_keep_case_and_work_in_both_directions() -> None:
    swapped = {perturb(example("Buy the FILM. 因为喜欢，所以购买。"), "synonyms", seed).text for seed in range(12)}
    assert any(text.startswith("Purchase the MOVIE") for text in swapped)
    assert any("由于" in text and "因此" in text for text in swapped)
    for a, b in (*SYNONYMS, *SYNONYMS_ZH):
        assert a != b


def test_chinese_typing_errors_sound_alike() -> None:
    changed = {perturb(example(CHINESE), "typos", seed).text for seed in range(20)} - {CHINESE}
    assert changed and all(len(text) == len(CHINESE) for text in changed)


def test_options_under_letters_are_left_out_of_the_changes() -> None:
    for change in CHANGES:
        text = perturb(lettered(), change, 1).text
        assert text.endswith("\nA. Berlin\nB. Paris\nC. Rome\nD. Madrid\nAnswer:")


def test_a_raw_prompt_changes_with_its_question_and_its_worked_examples_stay() -> None:
    before = lettered(raw=(f"Worked.\nA. one\nB. two\nC. three\nD. four\nAnswer: A\n\n{LETTERED}",))
    after = perturb(before, "upper_case")
    assert after.raw == (f"Worked.\nA. one\nB. two\nC. three\nD. four\nAnswer: A\n\n{after.text}",)
    assert "WHAT IS THE CAPITAL" in after.text
    turned = rotate_options(before, 1)
    assert turned.raw[0].startswith("Worked.\nA. one\nB. two\nC. three\nD. four\nAnswer: A")
    assert turned.raw[0].endswith("A. Madrid\nB. Berlin\nC. Paris\nD. Rome\nAnswer:")


@pytest.mark.parametrize("right", [0, 1, 3])
def test_rotations_move_options_and_the_right_letter(right: int) -> None:
    texts = ["Berlin", "Paris", "Rome", "Madrid"]
    seen = set()
    for shift in range(1, 4):
        after = rotate_options(lettered(right), shift)
        lines = after.text.split("\n")[1:5]
        assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "]
        place = after.correct[0]
        assert lines[place][3:] == texts[right]
        assert after.target == after.choices[place]
        seen.add(place)
    assert seen == set(range(4)) - {right}, "all cyclic rotations"
    assert rotate_options(lettered(right), 4) == lettered(right)


def test_choices_that_are_texts_are_moved_themselves() -> None:
    before = Example("e", user("Capital of France?"), "Paris", choices=("Berlin", "Paris", "Rome"), correct=(1,))
    after = rotate_options(before, 1)
    assert after.choices == ("Rome", "Berlin", "Paris")
    assert (after.correct, after.target) == ((2,), "Paris")
    assert rotate_options(example(), 1) == example()
    apart = Example("e", user("q"), "x", choices=("x", "y"), correct=(0,), raw=("q x", "q y"))
    assert rotate_options(apart, 1) == apart


def test_earlier_turns_stay() -> None:
    talk = (Message("user", "please ask"), Message("assistant", "yes"), Message("user", "please ask the company"))
    after = perturb(Example("e", talk, "x"), "upper_case")
    assert after.messages == (*talk[:2], Message("user", "PLEASE ASK THE COMPANY"))


def test_an_unknown_change_is_named() -> None:
    with pytest.raises(InputError, match=r"'typo' is not known\. Did you mean 'typos'"):
        perturb(example(), "typo")
