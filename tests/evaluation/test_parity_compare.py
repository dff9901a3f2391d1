"""Differences that are put in by hand are found, and said where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from luthier.core.message import Message, user
from luthier.data.render import Rendered, Renderer
from luthier.evaluation.parity_compare import (
    TOLERANCES,
    Tolerance,
    compare_answers,
    compare_ids,
    compare_numbers,
    compare_scores,
    compare_stops,
    compare_training,
)
from luthier.evaluation.parity_prompts import Case, built_in
from luthier.models.load import load_renderer
from luthier.models.token_scores import TokenScores

NAMES = ("renderer", "other")
CASES = [Case(f"prompt {n}", user(f"question {n}"), "answer") for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def renderer(tiny_decoder_path: Path) -> Renderer:
    return load_renderer(tiny_decoder_path)


def test_ids_that_differ_are_named(renderer: Renderer) -> None:
    ids = [renderer.prompt_ids(case.prompt) for case in CASES]
    assert compare_ids(NAMES, CASES, ids, ids, renderer).verdict == "equal"
    other = [list(row) for row in ids]
    other[1][4] = renderer.prompt_ids("z")[0]
    found = compare_ids(NAMES, CASES, ids, other, renderer)
    assert (found.verdict, found.equal, found.of) == ("differs", 2, 3)
    assert found.where.startswith("prompt 2, token 5: ") and "'z'" in found.where
    found = compare_ids(NAMES, CASES, ids, [ids[0], ids[1][:-1], None], renderer)
    assert "against nothing" in found.where and found.of == 2 and "1 prompts hold markup" in found.note
    assert compare_ids(NAMES, CASES, ids, [None] * 3, renderer).verdict == "not offered"


def test_training_and_serving_agree_on_the_built_in_prompts(renderer: Renderer) -> None:
    found = compare_training(renderer, built_in(32))
    assert [(c.what, c.verdict, c.equal, c.of) for c in found] == [
        (what, "equal", 32, 32) for what in ("prompt ids", "loss mask", "stop tokens")
    ]


@pytest.mark.parametrize(
    ("change", "what", "said"),
    [
        (lambda r: Rendered([0, *r.ids[1:]], r.mask), "prompt ids", "token 1 is 0 in training and 1 in serving"),
        (lambda r: Rendered(r.ids, [*r.mask[1:], False]), "loss mask", "bears loss on one side only"),
        (lambda r: Rendered(r.ids, [True] * len(r.mask)), "loss mask", "position 2 bears loss"),
        (lambda r: Rendered([5 if t == 2 and m else t for t, m in zip(r.ids, r.mask, strict=True)], r.mask), "stop tokens", "ends with 5"),
    ],
)  # fmt: skip
def test_training_that_reads_something_else(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, change: object, what: str, said: str
) -> None:
    real = renderer.training_ids_batch
    monkeypatch.setattr(
        renderer,
        "training_ids_batch",
        lambda rows, tools=None: [change(r) for r in real(rows, tools)],  # type: ignore[operator]
    )
    found = {c.what: c for c in compare_training(renderer, CASES)}
    assert found[what].verdict == "differs" and found[what].equal == 0
    assert found[what].where.startswith("prompt 1: ") and said in found[what].where


def test_a_template_that_rewrites_earlier_turns(tiny_decoder_path: Path) -> None:
    from luthier.data.render import Renderer as Made

    plain = load_renderer(tiny_decoder_path)
    changing = "{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    found = {c.what: c for c in compare_training(Made(plain.tokenizer, template=changing), CASES)}
    assert found["loss mask"].verdict == "differs" and "does not show assistant turn" in found["loss mask"].where


def test_prompts_without_an_answer_are_not_trained_on(renderer: Renderer) -> None:
    found = compare_training(renderer, [Case("prompt 1", (Message("user", "q"),), "")])
    assert {c.verdict for c in found} == {"not offered"}


def test_stop_tokens(renderer: Renderer) -> None:
    assert renderer.stop_ids == {2}
    tried = frozenset({0, 1, 2})
    assert compare_stops(NAMES, renderer, frozenset({2}), tried).verdict == "equal"
    more = compare_stops(NAMES, renderer, frozenset({0, 2}), tried)
    assert more.verdict == "equal" and "also stops at 0 '<|endoftext|>'" in more.note
    less = compare_stops(NAMES, renderer, frozenset({0}), tried)
    assert less.verdict == "differs" and "do not end at 2 '<|im_end|>'" in less.where


def scores(values: list[float], likeliest: list[int]) -> TokenScores:
    return TokenScores(np.array(values), np.array(likeliest))


def test_log_probabilities_within_and_beyond(renderer: Renderer) -> None:
    rows = [[70, 71], [72, 73], [74]]
    left = [scores([-1.0, -2.0], [7, 8]), scores([-3.0, -1.0], [9, 9]), scores([-1.0], [5])]
    right = [scores([-1.0, -2.0005], [7, 8]), scores([-3.0, np.nan], [9, -1]), scores([-1.0], [5])]
    numbers, top = compare_scores(NAMES, CASES, rows, left, right, TOLERANCES["fp32"], renderer)
    assert (numbers.verdict, numbers.equal, numbers.of) == ("within", 4, 4)
    assert numbers.worst == pytest.approx(5e-4) and numbers.mean == pytest.approx(5e-4 / 4)
    assert numbers.where.startswith("prompt 1, answer token 2 ") and (top.verdict, top.of) == ("equal", 4)
    right[2] = scores([-1.5], [6])
    numbers, top = compare_scores(NAMES, CASES, rows, left, right, TOLERANCES["fp32"], renderer)
    assert numbers.verdict == top.verdict == "differs"
    assert numbers.where.startswith("prompt 3, answer token 1 ") and "prompt 3, answer token 1" in top.where
    assert {c.verdict for c in compare_scores(NAMES, CASES, rows, left, right, Tolerance(1, 0.2, 0.7), renderer)} == {
        "within"
    }
    nothing = [scores([np.nan] * len(row), [-1] * len(row)) for row in rows]
    (only,) = compare_scores(NAMES, CASES, rows, left, nothing, TOLERANCES["fp32"], renderer)
    assert only.verdict == "not offered"


def test_answers_are_only_shown() -> None:
    assert compare_answers(NAMES, CASES, [[1], [2], [3]], [[1], [2], [3]]).verdict == "equal"
    found = compare_answers(NAMES, CASES, [[1], [2, 3], [3]], [[1], [2, 4], [3]])
    assert (found.verdict, found.equal, found.where) == ("shown", 2, "prompt 2, from answer token 2 on")


def test_figures_of_cases() -> None:
    found = compare_numbers(NAMES, "scores", CASES, [1.0, 2.0, 3.0], [1.0, 2.1, 3.0], Tolerance(0.2, 0.05, 1))
    assert (found.verdict, found.equal, found.where) == ("differs", 2, "prompt 2")
    assert compare_numbers(NAMES, "scores", [], [], [], Tolerance(1, 1, 1)).verdict == "not offered"
