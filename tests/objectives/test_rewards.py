"""Rewards: scorers and reward models, weighted and added up; what cannot give a reward is refused before anything is sampled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.objectives.preferences import pairs

from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.errors import DataError, InputError, MismatchError, NotFoundError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.score import Target, asked_of
from luthier.models.load import load_model
from luthier.models.reward import rewards as rewards_of
from luthier.objectives._rewards import Rewards, check_rows, models_of, parse, rewards
from luthier.store.database import open_store
from luthier.store.models import find
from luthier.training.tune import tune


def questions(*rows: tuple[str, str | None], **meta: Any) -> Dataset:
    made = (Example(str(i), user(q), target=a, source=f"q.jsonl:{i}", meta=meta) for i, (q, a) in enumerate(rows, 1))
    return Dataset("q", "question", tuple(made))


def reward_model(base: str, name: str) -> str:
    empty = Dataset("none", "preference", ())
    values = {
        "name": name,
        "model": base,
        "method": "full",
        "objective": "reward",
        "train": {"epochs": 1, "dtype": "fp32", "device": "cpu"},
    }
    return tune(values, splits=Splits(pairs(), empty, empty)).model.name


def test_scorers_with_weights_are_added_up() -> None:
    made = Rewards(
        [
            {"name": "number"},
            {"name": "regex", "pattern": r"^#### \d+$", "expect": "match", "weight": 0.25, "as": "form"},
            {"name": "overlong", "most": 3, "margin": 2, "weight": 0.5},
            {"name": "word_error_rate", "weight": 2},
        ]
    )
    target = Target("#### 7")
    asked = [user("3 + 4?")] * 3
    found = made(asked, [target] * 3, ["#### 7", "7", "it is 8 as far as I know"])
    assert [round(reward.total, 6) for reward in found] == [1.25, 1.0, -0.5 - 2 * 8.0]  # 8 words for 1
    assert found[0].parts == {"number": 1.0, "form": 1.0, "overlong": 0.0, "word_error_rate": 0.0}
    assert found[2].parts["overlong"] == -1.0 and found[2].parts["word_error_rate"] == 8.0
    assert made.spec[1] == {"name": "regex", "pattern": r"^#### \d+$", "expect": "match", "weight": 0.25, "as": "form"}


def test_a_part_that_cannot_say_adds_nothing() -> None:
    made = Rewards([{"name": "length", "relative": True}, "answered"])
    (found,) = made([user("?")], [Target("")], ["two words"])
    assert found.total == 1.0 and found.parts == {"length": None, "answered": 1.0}


def test_a_judge_is_asked_through_the_catalogue(home: Path) -> None:
    with pytest.raises(NotFoundError, match="no-such-model"):
        Rewards([{"name": "judge", "judge": "no-such-model"}])([user("?")], [Target("")], ["x"])
    made = Rewards([{"name": "judge", "judge": "fake", "retries": 0}])
    (found,) = made([user("?")], [Target("")], ["x"])
    assert set(found.parts) == {"judge"}
    made.close()
    made.close()


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "at least one scorer or reward model"),
        ([{"name": "exakt"}], r"scorer 'exakt' is not known. Did you mean 'exact'"),
        ([{"name": "exact", "casefolding": True}], r"scorer exact: unknown key 'casefolding'. Did you mean 'casefold'"),
        ([{"name": "exact", "model": "m"}], "part 1: must have either name .* or model"),
        ([{"pattern": "x"}], "part 1: must have either name"),
        ([{"name": "exact", "weight": 0}], "part 1: weight must be a number other than 0; got 0"),
        ([{"name": "exact", "weight": math.nan}], "weight must be a number"),
        ([{"name": "exact", "weight": True}], "weight must be a number"),
        (["exact", {"name": "exact", "casefold": True}], "part 2: 'exact' occurs twice; tell them apart with as"),
        ([{"model": "m", "casefold": True}], "part 1: a reward model takes weight and as; got casefold"),
    ],
)
def test_bad_parts(specs: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(specs)


def test_rows_without_what_a_scorer_compares_with_are_named() -> None:
    data = questions(("a?", "1"), ("b?", None), ("c?", " "), ("d?", "four"))
    with pytest.raises(
        DataError,
        match=r"2 rows of q cannot be rewarded:\n  q\.jsonl:2: exact compares with a right answer.*\n  q\.jsonl:3",
    ):
        check_rows(parse(["exact"]), data)
    with pytest.raises(DataError, match=r"q\.jsonl:4: number: the target has no number"):
        check_rows(parse(["number"]), questions(("a?", "1"), ("b?", "2"), ("c?", "3"), ("d?", "four")))
    with pytest.raises(DataError, match=r"q\.jsonl:1: instruction_following: the row has no instruction_id_list"):
        check_rows(parse(["instruction_following"]), data)
    with pytest.raises(DataError, match=r"q\.jsonl:1: perplexity: "):
        check_rows(parse(["perplexity"]), questions(("a?", "1")))
    silent = Dataset("t", "chat", (Example("1", (Message("assistant", "x"),), source="t:1"),))
    with pytest.raises(DataError, match="t:1: there is nothing to answer"):
        check_rows(parse(["answered"]), silent)
    check_rows(parse(["answered", {"name": "regex", "pattern": "x", "expect": "match"}, {"name": "length"}]), data)


def test_a_reward_model_says_what_it_says_alone(tiny_decoder: str, tiny_encoder: str) -> None:
    store = open_store()
    asked, answers = [user("Refund?"), user("Parcel?")], ["Yes, today.", "No."]
    for base in (tiny_decoder, tiny_encoder):
        name = reward_model(base, f"{base}-reward")
        made = Rewards([{"model": name, "weight": 2.0}], store, dtype="fp32", device="cpu")
        talks = [(*prompt, Message("assistant", text)) for prompt, text in zip(asked, answers, strict=True)]
        alone = rewards_of(load_model(store, name, dtype="fp32", device="cpu"), talks)
        found = made(asked, [Target("")] * 2, answers)
        assert [reward.total for reward in found] == pytest.approx([2 * value for value in alone], abs=1e-6)
        assert made.spec == [{"model": name, "weight": 2.0, "digest": find(store, name).digest}]
        assert Rewards([{"model": name}], store, dtype="fp32", device="cpu").model(name) is made.model(name)
        assert set(models_of(store, made.parts, find(store, tiny_decoder))) == {name}


def test_what_is_no_reward_model_for_this_model(tiny_decoder: str, tiny_t5: str) -> None:
    store = open_store()
    with pytest.raises(NotFoundError):
        rewards([{"model": "nobody"}])
    with pytest.raises(UnsupportedError, match="tiny-decoder is no reward model"):
        rewards([{"model": tiny_decoder}])
    name = reward_model(tiny_decoder, "judge-of-decoders")
    with pytest.raises(MismatchError, match="reward model judge-of-decoders has another tokenizer than tiny-t5"):
        models_of(store, parse([{"model": name}]), find(store, tiny_t5))


def test_rewards_see_the_row_as_scorers_do() -> None:
    data = questions(("2 + 2?", "4"), level=3)
    prompt, target = asked_of(data.examples[0])
    assert Rewards(["exact"])([prompt], [target], ["4"])[0].total == 1.0 and target.meta == {"level": 3}
