"""The battery over every scorer: what a perfect answer, a worse one and an empty one get, and that resamples are what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from luthier.core import catalog
from luthier.core.catalog import Entry
from luthier.core.document import Chunk, Citation, Hit
from luthier.core.errors import InputError, NotFoundError
from luthier.scorers._score import Answer, Figure, Option, Resources, Score, Target, score_all

TEXTS = [
    "the cat sat on the mat",
    "a dog ran over the hill",
    "no bird sang in spring",
    "很多人喜欢喝热茶",
    "the old clock has stopped",
]
OTHERS = [
    "a car drove into town",
    "nothing like it at all",
    "这完全是另外一回事",
    "please do try it again",
    "seven green bottles fell",
]


@dataclass(frozen=True)
class Case:
    """Questions of one scorer, with an answer that is perfect and one that is wrong for each."""

    targets: Sequence[Target]
    perfect: Sequence[Answer]
    wrong: Sequence[Answer]
    options: Mapping[str, Any] = field(default_factory=dict)
    best: float | None = 1.0  # of a perfect answer; None where there is no such figure
    ordered: bool = True  # whether a perfect answer beats a wrong one


def texts() -> Case:
    return Case([Target(t) for t in TEXTS], [Answer(t) for t in TEXTS], [Answer(t) for t in OTHERS])


def labels(options: Mapping[str, Any] | None = None) -> Case:
    wanted = ["退款", "billing", "account", "billing", "退款"]
    given = ["billing", "account", "退款", "I cannot say", "account"]
    return Case([Target(t) for t in wanted], [Answer(t) for t in wanted], [Answer(t) for t in given], options or {})


def numbers() -> Case:
    wanted = ["3", "#### 1,234.50", "-7", "一百二十", "3/4"]
    perfect = ["it is 3", "so 1234.5 in all", "\\boxed{-7}", "答案是120", "0.75"]
    wrong = ["40", "#### 12", "8", "十", "-900"]
    return Case([Target(t) for t in wanted], [Answer(t) for t in perfect], [Answer(t) for t in wrong])


def choices(best: float | None = 1.0) -> Case:
    def answer(first: float, second: float) -> Answer:
        options = (Option(" yes", first, 1), Option(" 不是", second, 2))
        return Answer(options[0].text if first >= second else options[1].text, options)

    right = [0, 1, 1, 0, 1]
    targets = [Target((" yes", " 不是")[i], (), (" yes", " 不是"), (i,)) for i in right]
    good, bad = (-0.5, -9.0), (-9.0, -0.5)
    perfect = [answer(*(good if i == 0 else bad)) for i in right]
    return Case(targets, perfect, [answer(*(bad if i == 0 else good)) for i in right], best=best)


def likelihoods(best: float | None) -> Case:
    def answer(text: str, each: float, greedy: bool) -> Answer:
        return Answer(text if greedy else "", (Option(text, each * len(text), len(text), greedy),))

    perfect = [answer(t, 0.0, True) for t in TEXTS]
    return Case([Target(t) for t in TEXTS], perfect, [answer(t, -2.0, False) for t in TEXTS], best=best)


def schemas() -> Case:
    schema = {"type": "object", "properties": {"城市": {"type": "string"}}, "required": ["城市"]}
    good = [json.dumps({"城市": t}, ensure_ascii=False) for t in TEXTS]
    return Case([Target("", meta={"schema": schema})] * 5, [Answer(t) for t in good], [Answer('{"城市": 1}')] * 5)


def calls() -> Case:
    wanted = [json.dumps({"name": "find", "arguments": {"query": t, "most": 3}}, ensure_ascii=False) for t in TEXTS]
    tagged = [f"好的。<tool_call>\n{one}\n</tool_call>" for one in wanted]
    return Case([Target(t) for t in wanted], [Answer(t) for t in tagged], [Answer(t) for t in OTHERS])


def entities() -> Case:
    """The first word is a thing; a wrong answer names another word, and another kind."""
    words = [text.split()[0] for text in TEXTS]
    told = [json.dumps([{"type": "THING", "text": word, "start": 0, "end": len(word)}]) for word in words]
    other = [json.dumps([{"type": "PLACE", "text": text[1:3], "start": 1, "end": 3}]) for text in TEXTS]
    return Case([Target(t) for t in told], [Answer(t) for t in told], [Answer(t) for t in other])


def instructions() -> Case:
    meta = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    perfect = [Answer(f'"{t}"') for t in TEXTS]
    return Case([Target("", meta=meta)] * 5, perfect, [Answer(f"well, {t}") for t in OTHERS])


def passages(options: Mapping[str, Any] | None = None) -> Case:
    """Answers that are a passage of their own, found first and cited; wrong ones were shown, say and cite others."""

    def answer(text: str, number: int) -> Answer:
        hit = Hit(Chunk(f"c{number}", text, number, (0, 0)), f"doc_{number}", f"/files/{number}.txt")
        return Answer(f"{text} [1]", hits=(hit,), citations=(Citation(1, hit),))

    perfect = [answer(text, number) for number, text in enumerate(TEXTS)]
    wrong = [replace(answer(text, 9), text="quite invented stuff [1]") for text in OTHERS]
    targets = [Target(text, meta={"source": f"{number}.txt"}) for number, text in enumerate(TEXTS)]
    return Case(targets, perfect, wrong, options or {})


def refusals() -> Case:
    said = ["It is not in the documents.", "文档中没有答案。", "I cannot answer this.", "无法回答", "No information."]
    targets = [Target("", meta={"answerable": False})] * 5
    return Case(targets, [Answer(text) for text in said], [Answer(text) for text in OTHERS])


CASES: Mapping[str, Case] = {
    "retrieval": passages({"measure": "ndcg"}),
    "context_precision": passages(),
    "context_recall": passages(),
    "lexical_support": passages(),
    "citation": passages(),
    "abstention": refusals(),
    "number": numbers(),
    "mae": replace(numbers(), best=0.0),
    "rmse": replace(numbers(), best=0.0),
    "entity_f1": entities(),
    "extraction_f1": entities(),
    "pearson": numbers(),
    "spearman": numbers(),
    "accuracy": labels(),
    "precision": labels(),
    "recall": labels(),
    "f1": labels({"average": "weighted"}),
    "macro_f1": labels(),
    "matthews": labels(),
    "multiple_choice": choices(),
    "probability_mass": choices(None),
    "perplexity": likelihoods(1.0),
    "bits_per_byte": likelihoods(0.0),
    "bits_per_character": likelihoods(0.0),
    "greedy_match": likelihoods(1.0),
    "json_valid": Case([Target("")] * 5, [Answer('{"茶": [1, 2]}')] * 5, [Answer("{'茶': 1}")] * 5),
    "json_schema": schemas(),
    "tool_call": calls(),
    "instruction_following": instructions(),
    "answered": Case(texts().targets, texts().perfect, [Answer(" ")] * 5),
    "length": Case(
        [Target(t) for t in TEXTS], [Answer(t) for t in TEXTS], [Answer(t) for t in OTHERS], {}, None, False
    ),
    "overlong": Case(texts().targets, texts().perfect, [Answer("far too long " * 9)] * 5, {"most": 12}, 0.0),
    "bleu": Case(texts().targets, texts().perfect, texts().wrong, {"tokenize": "char"}),
    "meteor": Case(texts().targets, texts().perfect, texts().wrong, {}, None),
    "character_error_rate": Case(texts().targets, texts().perfect, texts().wrong, {}, 0.0),
    "word_error_rate": Case(texts().targets, texts().perfect, texts().wrong, {}, 0.0),
    "ter": Case(texts().targets, texts().perfect, texts().wrong, {"normalized": True, "asian_support": True}, 0.0),
}
"""What is asked of each scorer; one that is not here compares texts with no options."""

NEEDS_MORE = (
    "judge", "code", "pass_at_k", "sql_execution", "embedding_similarity", "bert_score", "faithfulness", "answer_relevance",
    "embedding_support",
)  # fmt: skip
"""Scorers that need an engine, a sandbox or a database: their own tests hold their cases."""

NAMES = [name for name in catalog.names("scorers") if name not in NEEDS_MORE]


def opened(name: str) -> tuple[Entry, Any, Case]:
    entry, case = catalog.load("scorers", name), CASES.get(name) or texts()
    return entry, entry.configure(case.options), case


def scored(entry: Entry, config: Any, answers: Sequence[Answer], targets: Sequence[Target]) -> list[Score]:
    return score_all(entry, config, answers, targets, Resources())


def figure_of(entry: Entry, config: Any, answers: Sequence[Answer], targets: Sequence[Target]) -> Figure:
    values = [one.value for one in scored(entry, config, answers, targets)]
    return Figure(entry, config, answers, targets, values)


def is_lower_better(entry: Entry) -> bool:
    return bool(entry.optional("LOWER_IS_BETTER"))


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_answer_scores_best_and_a_wrong_one_worse(name: str) -> None:
    entry, config, case = opened(name)
    good, bad = (scored(entry, config, given, case.targets) for given in (case.perfect, case.wrong))
    assert all(one.value is not None and math.isfinite(one.value) for one in (*good, *bad))
    if case.best is not None:
        assert [one.value for one in good] == pytest.approx([case.best] * len(good), abs=1e-9)
        assert figure_of(entry, config, case.perfect, case.targets).value == pytest.approx(case.best, abs=1e-9)
    if case.ordered:
        sign = -1.0 if is_lower_better(entry) else 1.0
        assert all(sign * a.value > sign * b.value for a, b in zip(good, bad, strict=True))  # type: ignore[operator]
        figures = [figure_of(entry, config, given, case.targets).value for given in (case.perfect, case.wrong)]
        assert sign * figures[0] > sign * figures[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_over_a_resample_is_that_of_the_drawn_examples(name: str) -> None:
    entry, config, case = opened(name)
    draw = np.random.default_rng(3)
    places = np.tile(np.arange(len(case.targets)), 6)
    targets = [case.targets[i] for i in places]
    answers = [(case.perfect if draw.random() < 0.6 else case.wrong)[i] for i in places]
    rows = draw.integers(0, len(places), size=(5, len(places)))
    counts = np.stack([np.bincount(row, minlength=len(places)) for row in rows]).astype(np.float32)
    expected = [figure_of(entry, config, [answers[i] for i in row], [targets[i] for i in row]).value for row in rows]
    figure = figure_of(entry, config, answers, targets)
    assert figure(counts) == pytest.approx(expected)
    assert figure(np.ones((1, len(places)), dtype=np.float32)) == pytest.approx([figure.value])
    without = [np.delete(np.arange(len(places)), i) for i in range(3)]
    left = [figure_of(entry, config, [answers[i] for i in row], [targets[i] for i in row]).value for row in without]
    assert figure.left_out()[:3] == pytest.approx(left)


@pytest.mark.parametrize("name", NAMES)
def test_empty_answers_and_targets_never_crash(name: str) -> None:
    entry, config, case = opened(name)
    nothing, blank = Target(""), Target(" \n")
    targets = [*case.targets, nothing, blank, case.targets[0], nothing, case.targets[1]]
    answers = [*case.perfect, Answer(""), Answer("   "), Answer(""), Answer("something"), Answer("\n")]
    for one in scored(entry, config, answers, targets):
        assert one.value is None or math.isfinite(one.value)
        json.dumps(one.detail)
    counts = np.vstack([np.ones(len(targets)), np.eye(len(targets))]).astype(np.float32)
    figures = figure_of(entry, config, answers, targets)(counts)
    assert figures.shape == (len(counts),)
    assert np.isfinite(figures[0])
    assert not np.isinf(figures).any()


@pytest.mark.parametrize("name", NAMES)
def test_odd_texts_never_crash(name: str) -> None:
    entry, config, case = opened(name)
    odd = [
        "\x00\u202e",
        "\ud800",
        "😀" * 50,
        "{" * 300,
        "[" * 900,
        "(" * 2000,
        "####",
        "\\boxed{",
        "<tool_call>",
        "1e999",
        "9" * 5000,
        "﷽",
        "```",
    ]
    for text in odd:
        for target in (case.targets[0], Target(text)):
            one = scored(entry, config, [Answer(text)], [target])[0]
            assert one.value is None or math.isfinite(one.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_scorer_says_what_it_is(name: str) -> None:
    entry = catalog.load("scorers", name)
    assert catalog.summary("scorers", name)
    assert entry.config_class.__doc__
    assert len(entry.config_class.model_fields) <= 15


def test_every_case_is_of_a_scorer() -> None:
    assert set(CASES) <= set(catalog.names("scorers"))


def test_an_aggregate_without_a_fast_path_is_resampled_by_repetition() -> None:
    entry, config, case = opened("spearman")

    class Slow:
        module = entry.module

        def optional(self, name: str) -> object:
            return None if name == "resampled" else entry.optional(name)

    given = [*case.perfect[:3], *case.wrong[3:]]
    counts = np.array([[2, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=np.float32)
    fast = Figure(entry, config, given, case.targets, [None] * 5)(counts)
    slow = Figure(Slow(), config, given, case.targets, [None] * 5)(counts)  # type: ignore[arg-type]
    assert slow == pytest.approx(fast)


def test_what_could_not_be_scored_is_left_out_of_the_mean() -> None:
    entry = catalog.load("scorers", "contains")
    config = entry.configure()
    targets = [Target("x"), Target(""), Target("x")]
    figure = figure_of(entry, config, [Answer("x"), Answer("x"), Answer("y")], targets)
    assert figure.value == pytest.approx(0.5)
    only_unscored = figure(np.array([[0, 3, 0]], dtype=np.float32))
    assert np.isnan(only_unscored).all()


def test_unknown_scorers_and_options_are_named() -> None:
    with pytest.raises(NotFoundError, match="macro_f1"):
        catalog.load("scorers", "macrof1")
    with pytest.raises(InputError, match="casefold"):
        catalog.load("scorers", "exact").configure({"casefolded": True})
