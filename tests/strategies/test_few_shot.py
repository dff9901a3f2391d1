from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.dataset import Example
from luthier.core.engine import Sampling, ScoreRequest
from luthier.core.errors import InputError, MismatchError, NotFoundError, StoreError, UnsupportedError
from luthier.core.message import user
from luthier.engines.fake import Config as FakeConfig
from luthier.engines.fake import FakeEngine
from luthier.store.database import open_store
from luthier.strategies import _load
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


def test_random_examples_follow_the_data_and_not_the_labels() -> None:
    chosen = prepare(Config(prompt=PROMPT, shots=40, choose="random"), TRAIN).examples
    assert Counter(label for _, label in chosen)["a"] > 20
    assert prepare(Config(prompt=PROMPT, shots=40, choose="random"), TRAIN[::-1]).examples == chosen


def test_fixed_examples_by_id_in_the_given_order() -> None:
    rows = [Example(f"{'abc'[i]}{'0' * 10}", user(f"text {i}"), LABELS[i]) for i in range(3)]
    config = prepare(Config(prompt=PROMPT, choose="fixed", ids=("c0000000", "a0000000000")), rows)
    assert config.examples == (("text 2", "c"), ("text 0", "a"))
    assert prepare(Config(prompt=PROMPT, ids=("b000000",)), rows).examples == (("text 1", "b"),)
    with pytest.raises(NotFoundError, match="no example of the train split has the id 'd000000'"):
        prepare(Config(prompt=PROMPT, ids=("d000000",)), rows)
    with pytest.raises(InputError, match="needs examples"):
        prepare(Config(prompt=PROMPT, choose="fixed"), rows)
    with pytest.raises(InputError, match="for choose: fixed; got choose: nearest"):
        prepare(Config(prompt=PROMPT, choose="nearest", ids=("b000000",)), rows)
    twins = [Example("same00-1", user("x"), "a"), Example("same00-2", user("y"), "b")]
    with pytest.raises(InputError, match="2 examples have an id that begins with 'same00'"):
        prepare(Config(prompt=PROMPT, ids=("same00",)), twins)


class TestNearest:
    """With the fake embedder, whose likeness is words in common."""

    ROWS = (
        ("the parcel is late", "a"),
        ("refund my money please", "b"),
        ("where is the parcel", "c"),
        ("money", "b"),
        ("new teacher", "a"),
    )
    TRAIN = tuple(Example(str(i), user(text), label) for i, (text, label) in enumerate(ROWS))
    CONFIG = Config(prompt=PROMPT, shots=2, choose="nearest", embedder="fake")

    @pytest.fixture
    def ready(self, home: Path) -> Config:
        return prepare(self.CONFIG, self.TRAIN, open_store())

    def test_the_nearest_come_last_and_first_of_all_the_likest(self, ready: Config, spy: Any) -> None:
        inner = spy(width=4096)
        engine = wrap(inner, ready, open_store())
        engine.generate([user("is the parcel late"), user("my money please now")], Sampling())
        shown = [[m.content for m in prompt if m.role == "user"] for prompt in inner.asked]
        assert shown[0] == ["where is the parcel", "the parcel is late", "is the parcel late"]
        assert shown[1][:2] == ["money", "refund my money please"]
        answers = [m.content for m in inner.asked[0] if m.role == "assistant"]
        assert answers == ["c", "a"]

    def test_the_order_is_that_of_the_cosine(self, ready: Config, home: Path) -> None:
        engine = wrap(FakeEngine("fake", FakeConfig()), ready, open_store())
        question = "where is my parcel please"
        embedder = FakeEngine("fake", FakeConfig())
        likeness = embedder.embed([text for text, _ in self.ROWS]) @ embedder.embed([question])[0]
        best = [self.ROWS[i] for i in np.argsort(-likeness, kind="stable")[:2]]
        (shots,) = engine.shots_for([question])  # type: ignore[attr-defined]
        assert list(shots) == best[::-1]

    def test_the_question_itself_is_not_among_its_examples(self, ready: Config, spy: Any) -> None:
        inner = spy()
        wrap(inner, ready, open_store()).score([ScoreRequest(user("the parcel is late"), ("a",))])
        (request,) = inner.scored
        assert [m.content for m in request.prompt].count("the parcel is late") == 1

    def test_a_stored_config_holds_a_digest_and_needs_no_train_split(self, ready: Config, spy: Any) -> None:
        assert ready.examples == ()
        assert len(ready.pool) == 64
        again = Config.model_validate(json.loads(ready.model_dump_json()))
        assert prepare(again, [], open_store()) == ready
        one, two = spy(), spy()
        for inner, config in ((one, ready), (two, again)):
            wrap(inner, config, open_store()).generate([user("money money")], Sampling())
        assert one.asked == two.asked
        assert prepare(self.CONFIG, self.TRAIN[::-1], open_store()).pool == ready.pool

    def test_the_pool_is_bounded(self, home: Path) -> None:
        config = self.CONFIG.model_copy(update={"pool_size": 3})
        engine = wrap(FakeEngine("fake", FakeConfig()), prepare(config, self.TRAIN, open_store()), open_store())
        assert len(engine._examples) == 3  # type: ignore[attr-defined]
        with pytest.raises(InputError, match="at most 1, the examples to choose from; got 2"):
            prepare(self.CONFIG.model_copy(update={"pool_size": 1}), self.TRAIN, open_store())

    def test_given_examples_may_be_the_pool(self, home: Path) -> None:
        config = self.CONFIG.model_copy(update={"examples": self.ROWS})
        assert prepare(config, [], open_store()).pool == prepare(self.CONFIG, self.TRAIN, open_store()).pool

    def test_everything_that_decides_is_in_the_digest(self, ready: Config, home: Path) -> None:
        fake = FakeEngine("fake", FakeConfig())
        fewer = prepare(self.CONFIG.model_copy(update={"shots": 1}), self.TRAIN, open_store())
        others = prepare(self.CONFIG, self.TRAIN[:4], open_store())
        digests = {wrap(fake, config, open_store()).info.prompt_digest for config in (ready, fewer, others)}
        assert len(digests) == 3

    def test_what_is_opened_is_closed(self, ready: Config, spy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        embedder, inner = spy(), spy()
        monkeypatch.setattr(_load, "load", lambda name, **_: embedder)
        wrap(inner, ready, open_store()).close()
        assert (embedder.closed, inner.closed) == (1, 1)

    def test_bad_input(self, ready: Config, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = FakeEngine("fake", FakeConfig())
        with pytest.raises(InputError, match="pool is empty"):
            wrap(fake, self.CONFIG, open_store())
        with pytest.raises(StoreError, match="not in this store"):
            wrap(fake, ready.model_copy(update={"pool": "0" * 64}), open_store())
        with pytest.raises(NotFoundError, match="minilm-l6"):
            prepare(self.CONFIG.model_copy(update={"embedder": "minilm-l6"}), self.TRAIN, open_store())
        with pytest.raises(MismatchError, match="is not the one that made the examples' vectors"):
            wrap(fake, ready.model_copy(update={"embedder": "fake:other"}), open_store())
        deaf = FakeEngine("deaf", FakeConfig())
        deaf._info = deaf.info.with_(capabilities=frozenset())
        monkeypatch.setattr(_load, "load", lambda name, **_: deaf)
        with pytest.raises(UnsupportedError, match="cannot embed"):
            prepare(self.CONFIG, self.TRAIN, open_store())
