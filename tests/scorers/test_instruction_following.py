"""IFEval's instructions: what follows each and what does not, as the published checks decide."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.scorers import instruction_following
from luthier.scorers._instructions import CHECKS, followed, language_of
from luthier.scorers._score import Answer, Score, Target
from luthier.scorers.instruction_following import Config, score

ENGLISH = "the weather was fine all day and we went to the park with our friends before dinner."
FOLLOWED: list[tuple[str, dict[str, Any], str, bool]] = [
    ("keywords:existence", {"keywords": ["Rain", "sun"]}, "rainy days and SUNNY days", True),
    ("keywords:existence", {"keywords": ["rain", "snow"]}, "rain only", False),
    ("keywords:existence", {"keywords": ["c++ (lang)"]}, "I like C++ (lang).", True),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea, tea!", True),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "Tea, tea!", False),
    ("keywords:forbidden_words", {"forbidden_words": ["rain"]}, "Rainy", True),
    ("keywords:forbidden_words", {"forbidden_words": ["rain"]}, "No Rain.", False),
    ("keywords:letter_frequency", {"letter": "t", "let_frequency": 3, "let_relation": "at least"}, "Tat tat", True),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 1, "let_relation": "at least"}, "none", False),
    ("language:response_language", {"language": "en"}, ENGLISH, True),
    ("language:response_language", {"language": "de"}, ENGLISH, False),
    ("language:response_language", {"language": "zh-cn"}, "今天天气很好,我们和朋友一起去公园散步。", True),
    ("language:response_language", {"language": "hi"}, "आज मौसम बहुत अच्छा है और हम पार्क में घूमने गए थे।", True),
    ("language:response_language", {"language": "fr"}, "12345 ...", True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Mr. Two.", True),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One. Two.", False),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "it's two", True),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one, two - three", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo\n***\n", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n\nTwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\n \n***\nTwo", False),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "First this.\n\n'then, that.",
        True,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First this.\n\nthen that.\n\nmore",
        False,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "then"},
        "then",
        False,
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name], see [address].", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name [address].", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. more", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.S. more", False),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. more", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* one\n- two\n  * three\n** bold **", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* one\n* two", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "*\n* one\n* two\n*", True),
    ("detectable_format:constrained_response", {}, "Hm. My answer is maybe.", True),
    ("detectable_format:constrained_response", {}, "My answer is perhaps.", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and * *", False),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        True,
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSECTION 2\nb",
        False,
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', True),
    ("detectable_format:json_format", {}, 'So: {"a": 1}', False),
    ("detectable_format:title", {}, "<<A day out>>\nIt rained.", True),
    ("detectable_format:title", {}, "<< >>\nIt rained.", False),
    ("combination:two_responses", {}, "One.\n******\nTwo.", True),
    ("combination:two_responses", {}, "One.\n******\nOne.", False),
    ("combination:two_responses", {}, "One.\n******\n\n******\nTwo.", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hello "}, "say hello\nHello!", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hello"}, "Sure. Say hello", False),
    ("startend:end_checker", {"end_phrase": "That is all."}, '"It rained. that is all."', True),
    ("startend:end_checker", {"end_phrase": "That is all."}, "That is all. Bye.", False),
    ("startend:quotation", {}, ' "It rained." ', True),
    ("startend:quotation", {}, '"', False),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA met the EU.",
        True,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "A U-TURN. NO WAY.",
        False,
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), True),
    ("change_case:english_capital", {}, ENGLISH, False),
    ("change_case:english_lowercase", {}, ENGLISH, True),
    ("change_case:english_lowercase", {}, "das wetter war den ganzen tag schön und wir gingen in den park.", False),
    ("change_case:english_lowercase", {}, ENGLISH.capitalize(), False),
    ("punctuation:no_comma", {}, "no commas; none", True),
    ("punctuation:no_comma", {}, "one, two", False),
]


@pytest.mark.parametrize(("name", "arguments", "text", "good"), FOLLOWED)
def test_strict(name: str, arguments: dict[str, Any], text: str, good: bool) -> None:
    assert followed(name, text, arguments, loose=False) is good


def test_all_twenty_five_are_there_and_tested_both_ways() -> None:
    assert len(CHECKS) == 25
    assert {(name, good) for name, _, _, good in FOLLOWED} == {
        (name, good) for name in CHECKS for good in (True, False)
    }


@pytest.mark.parametrize("name", CHECKS)
def test_an_empty_answer_follows_nothing(name: str) -> None:
    arguments = next(given_ for of, given_, _, _ in FOLLOWED if of == name)
    assert not followed(name, " \n", arguments, loose=True)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('Sure, here it is:\n"It rained."', "startend:quotation", {}),
        ('"It rained."\nDoes that help?', "startend:quotation", {}),
        ('Sure:\n"It rained."\nAnything else?', "startend:quotation", {}),
        ("Sure!\n**say hello**\nHello!", "combination:repeat_prompt", {"prompt_to_repeat": "Say hello"}),
    ],
)
def test_loose_forgives_politeness_and_markdown(text: str, name: str, arguments: dict[str, Any]) -> None:
    assert not followed(name, text, arguments, loose=False)
    assert followed(name, text, arguments, loose=True)


def test_languages() -> None:
    assert language_of("12 + 3") == ""
    assert language_of("Погода сегодня хорошая, и мы пошли в парк.") == "ru"
    assert language_of("Das Wetter war den ganzen Tag schön und wir gingen in den Park.") == "de"


META = {
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words", "startend:quotation"],
    "kwargs": [{"num_words": None}, {"num_words": 3, "relation": "at least", "keyword": None}, None],
}


@pytest.mark.parametrize(
    ("text", "level", "mode", "value"),
    [
        ('"one two three"', "prompt", "strict", 1.0),
        ('"one, two three"', "prompt", "strict", 0.0),
        ('"one, two three"', "instruction", "strict", 2 / 3),
        ('Sure, here:\n"one two three"', "instruction", "strict", 1 / 3),
        ('Sure, here:\n"one two three"', "prompt", "loose", 1.0),
        ("", "instruction", "loose", 0.0),
    ],
)
def test_levels_and_modes(text: str, level: str, mode: str, value: float) -> None:
    config = Config.model_validate({"level": level, "mode": mode})
    assert score(Answer(text), Target("", meta=META), config).value == pytest.approx(value)


def test_the_detail_names_them() -> None:
    found = score(Answer('"one, two"'), Target("", meta=META), Config())
    assert found.detail == {
        "followed": ["startend:quotation"],
        "missed": ["punctuation:no_comma", "length_constraints:number_words"],
    }


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({}, "no instruction_id_list"),
        ({"instruction_id_list": []}, "no instruction_id_list"),
        ({"instruction_id_list": ["punctuation:no_commas"]}, "near: punctuation:no_comma"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "one mapping for each of the 1"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": ["x"]}, "one mapping"),
        ({"instruction_id_list": ["length_constraints:number_words"]}, "arguments of length_constraints:number_words"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "'less than' or 'at least'",
        ),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": 3}]}, "cannot be used"),
    ],
)
def test_rows_that_cannot_be_checked_are_unscored(meta: dict[str, Any], reason: str) -> None:
    found = score(Answer("words"), Target("", meta=meta), Config())
    assert found.value is None
    assert reason in found.detail["reason"]


def test_instructions_of_a_set_are_counted_together() -> None:
    """3 of 3 and 0 of 1 are 3 of 4, not the mean of 1 and 0."""
    scores = [
        Score(1.0, {"followed": ["a", "b", "c"], "missed": []}),
        Score(0.0, {"followed": [], "missed": ["a"]}),
        Score(None, {"reason": "x"}),
    ]
    for level, figure in (("instruction", 3 / 4), ("prompt", 1 / 2)):
        config = Config.model_validate({"level": level})
        totals = instruction_following.sums_of(scores, config).sum(axis=0, keepdims=True)
        assert instruction_following.combine(totals, config) == pytest.approx([figure])
    assert np.isnan(instruction_following.combine(np.zeros((1, 2)), Config())).all()


@settings(max_examples=100)
@given(st.text(alphabet=st.sampled_from(list('aA .,!?*-"[]<>#\n{}`今。S1'))))
def test_any_answer_is_followed_or_not(text: str) -> None:
    for name, arguments, _, _ in FOLLOWED[::2]:
        strict, loose = (followed(name, text, arguments, loose=mode) for mode in (False, True))
        assert isinstance(strict, bool)
        assert loose or not strict


@pytest.mark.parametrize("unit", ["[", "*", "<<", "-\n", "***", "a.", "\n\n", "P.", "Section "])
def test_long_answers_take_no_long_time(unit: str) -> None:
    text = unit * (60_000 // len(unit))
    start = time.process_time()
    for name, arguments, _, _ in FOLLOWED:
        followed(name, text, arguments, loose=False)
    assert time.process_time() - start < 10.0
