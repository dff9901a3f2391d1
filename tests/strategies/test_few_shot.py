from __future__ import annotations

from collections import Counter

import pytest

from luthier.core.dataset import Example
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import FakeEngine
from luthier.strategies.few_shot import Config, prepare, wrap

LABELS = ("a", "b", "c")
PROMPT = {"instruction": "Classes: {labels}.", "labels": list(LABELS)}
TRAIN = [Example(f"{i:03}", user(f"text {i}"), LABELS[i % 3] if i < 30 else "a") for i in range(60)]


def test_examples_are_balanced_by_label_and_come_from_the_given_rows() -> None:
    chosen = prepare(Config(prompt=PROMPT, shots=6), TRAIN).examples
    assert Counter(label for _, label in chosen) == {"a": 2, "b": 2, "c": 2}
    assert len(set(chosen)) == 6
    assert set(chosen) <= {(e.text, e.target) for e in TRAIN}


def test_the_default_is_one_a_label() -> None:
    ready = prepare(Config(prompt=PROMPT), TRAIN)
    assert sorted(label for _, label in ready.examples) == ["a", "b", "c"]
    assert ready.shots == 3
    assert prepare(Config(prompt={}), TRAIN).shots == 4


def test_the_seed_decides_and_the_row_order_does_not() -> None:
    first = prepare(Config(prompt=PROMPT, shots=6), TRAIN)
    assert prepare(Config(prompt=PROMPT, shots=6), TRAIN[::-1]) == first
    assert prepare(Config(prompt=PROMPT, shots=6, seed=1), TRAIN).examples != first.examples


def test_a_prepared_config_needs_no_data_and_survives_json() -> None:
    ready = prepare(Config(prompt=PROMPT, shots=6), TRAIN)
    again = Config.model_validate_json(ready.model_dump_json())
    assert prepare(again, []) == again == ready
    fake = FakeEngine("fake", FakeConfig())
    assert wrap(fake, again).info.prompt_digest == wrap(fake, ready).info.prompt_digest
    other = prepare(Config(prompt=PROMPT, shots=6, seed=1), TRAIN)
    assert wrap(fake, other).info.prompt_digest != wrap(fake, ready).info.prompt_digest


def test_all_prompts_share_everything_before_the_question() -> None:
    engine = wrap(FakeEngine("fake", FakeConfig()), prepare(Config(prompt=PROMPT, shots=3), TRAIN))
    one, two = engine.rewrite(user("first")), engine.rewrite(user("second"))  # type: ignore[attr-defined]
    assert [m.role for m in one] == ["system", *["user", "assistant"] * 3, "user"]
    assert one[:-1] == two[:-1]


def test_more_shots_than_a_rare_label_has_are_taken_from_the_others() -> None:
    chosen = prepare(Config(prompt=PROMPT, shots=40), TRAIN).examples
    assert Counter(label for _, label in chosen) == {"a": 20, "b": 10, "c": 10}


def test_bad_input() -> None:
    with pytest.raises(InputError, match="train split, and that is empty"):
        prepare(Config(prompt=PROMPT), [])
    with pytest.raises(InputError, match="at most 60"):
        prepare(Config(prompt=PROMPT, shots=61), TRAIN)
    with pytest.raises(InputError, match="examples is empty"):
        wrap(FakeEngine("fake", FakeConfig()), Config(prompt=PROMPT, shots=2))
    with pytest.raises(InputError, match="shots is 2"):
        wrap(FakeEngine("fake", FakeConfig()), Config(prompt=PROMPT, shots=2, examples=(("x", "a"),)))
