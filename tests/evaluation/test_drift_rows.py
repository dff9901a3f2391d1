from __future__ import annotations

from typing import Any

import pytest

from luthier.core.trace import Trace
from luthier.evaluation.drift_rows import language_of, read_window, refuses, texts_window


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("Sorry, I cannot do this.", True),
        ("As an AI language model, I have no opinion.", True),
        ("Unfortunately, I am not able to say.", True),
        ("抱歉，我无法回答这个问题。", True),
        ("我不能提供这些信息。", True),
        ("Your parcel is on its way. I'm sorry for the delay!", False),
        ("I can help you with that.", False),
        ("As an aid to memory, write it down.", False),
        ("可以，请稍等。", False),
    ],
)
def test_refusals(answer: str, refusal: bool) -> None:
    assert refuses(answer) is refusal


def trace(number: int, **changes: Any) -> Trace:
    given: dict[str, Any] = {
        "messages": ({"role": "user", "content": f"where is my parcel number {number}"},),
        "answer": "on its way",
        "parameters": {"user": "ann"},
        "completion_tokens": 4,
        "details": {"answer": [{"logprob": -2.0}]},
        "model_digest": "d1",
    }
    return Trace(
        f"t{number:05d}",
        f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}.000Z",
        "m",
        "chat",
        **given | changes,
    )


def test_figures_of_a_request() -> None:
    window = read_window(
        "w",
        [
            trace(1),
            trace(2, error="down", answer="", completion_tokens=0, details={"error": [{"kind": "engine_error"}]}),
            trace(3, messages=(), answer="", parameters={}, session="s"),
            trace(
                4,
                answer="[REDACTED: 9 characters]",
                messages=({"role": "user", "content": "[REDACTED: 5 characters]"},),
            ),
        ],
    )
    fine, failed, bare, redacted = window.rows
    assert (fine.who, fine.words, fine.turns, fine.language) == ("local//ann", 6, 1, "en")
    assert (fine.answer_tokens, fine.logprob, fine.label, fine.refused) == (4, -0.5, "on its way", False)
    assert (failed.error, failed.refused, failed.logprob) == ("engine_error", None, None)
    assert (bare.who, bare.words, bare.language) == ("local//s", 0, "")
    assert redacted.refused is None
    assert list(window.prompts) == ["t00001", "t00002"]
    assert window.digests() == {"d1": 4}


def test_events_are_found_on_the_way() -> None:
    same = ({"role": "user", "content": "where is my parcel"},)
    window = read_window("w", [trace(n, messages=same, session="s") for n in range(3)])
    assert window.events == {"t00000": {"regenerated"}, "t00001": {"regenerated"}}


def test_the_sample_of_prompts_is_even_and_the_same_each_time() -> None:
    many = [trace(n) for n in range(400)]
    one, two = (read_window("w", many, most_texts=50) for _ in range(2))
    assert len(one.rows) == 400
    assert one.prompts == two.prompts
    numbers = [int(name[1:]) for name in one.prompts]
    assert len(numbers) == 50
    assert 120 < sum(numbers) / 50 < 280, "not the first or the last"


def test_texts_of_a_dataset() -> None:
    window = texts_window("train.jsonl", [f"text number {n}" for n in range(1500)])
    assert (len(window.rows), len(window.prompts), window.only_prompts) == (1500, 1000, True)
    assert len({row.who for row in window.rows}) == 1500


def test_languages() -> None:
    assert language_of("Wo ist mein Paket, das ich am Montag bestellt habe?") == "de"
    assert language_of("我的包裹在哪里？我星期一就已经下单了。") == "zh"
    assert language_of("ok") == "?"
