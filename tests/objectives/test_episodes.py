"""Episodes: what they are made of, that they are drawn anew and the same after a resume, and what is too little to draw from."""

from __future__ import annotations

import pytest
import torch

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import user
from luthier.models.load import LoadedModel, load_model
from luthier.objectives import _episodes
from luthier.objectives._episodes import Episode, Row, Shape, collate, prepare
from luthier.objectives._rows import Limits
from luthier.store.database import open_store

COUNTS = {"billing": 8, "courier": 9, "delivery": 3, "lessons": 12, "refund": 7}
SHAPE = Shape(ways=3, shots=2, queries=4, episodes=6)


def many(counts: dict[str, int] | None = None) -> Dataset:
    """Every text says which row it is and of which label."""
    rows = [(label, i) for label, count in (counts or COUNTS).items() for i in range(count)]
    examples = (
        Example(f"{label}-{i}", user(f"{label} number {i} here"), label, source=f"m.jsonl:{n}")
        for n, (label, i) in enumerate(rows)
    )
    return Dataset("many", "labelled", tuple(examples))


@pytest.fixture
def model(tiny_encoder: str) -> LoadedModel:
    found = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu", labels=tuple(COUNTS))
    found.module.eval()
    return found


def rows_of(model: LoadedModel, shape: Shape = SHAPE, dataset: Dataset | None = None) -> list[Row]:
    return prepare(dataset or many(), model, shape, Limits(model.context_length), "prototype")


def shown(model: LoadedModel, part: _episodes.Part) -> list[str]:
    """The texts of a part, as the tokens say them."""
    return [
        model.tokenizer.decode([i for i, seen in zip(ids, mask, strict=True) if seen], skip_special_tokens=True)
        for ids, mask in zip(part.ids.tolist(), part.mask.tolist(), strict=True)
    ]


def test_what_an_episode_is_made_of(model: LoadedModel) -> None:
    rows = rows_of(model)
    assert len(rows) == 6 and rows[0].weight == 12 and rows[1].source == "many: episode 2"
    assert rows[0].length == pytest.approx(18 * sum(len(t.ids) for t in rows[0].pool.texts) / len(many()), abs=0.6)
    (episode,) = collate(rows[:1], model)
    assert episode.support.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert episode.query.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    support, query = shown(model, episode.support), shown(model, episode.query)
    assert len(set(support + query)) == 18
    for way in range(3):
        names = {text.split()[0] for text in support[2 * way : 2 * way + 2] + query[4 * way : 4 * way + 4]}
        assert len(names) == 1 and names <= {"billing", "courier", "lessons", "refund"}  # delivery has too few
    assert len({text.split()[0] for text in support}) == 3


def same(one: Episode, other: Episode) -> bool:
    pairs = ((one.support, other.support), (one.query, other.query))
    return one.seed == other.seed and all(torch.equal(a.ids, b.ids) for a, b in pairs)


def test_every_label_and_every_text_is_drawn(model: LoadedModel) -> None:
    (row, *_) = rows_of(model)
    model.module.train()
    torch.manual_seed(0)
    episodes = [collate([row], model)[0] for _ in range(60)]
    texts = {text for episode in episodes for text in shown(model, episode.support)}
    assert len(texts) == sum(COUNTS.values()) - COUNTS["delivery"]
    assert len({episode.seed for episode in episodes}) == 60


def test_drawn_anew_in_training_and_the_same_in_validation(model: LoadedModel) -> None:
    rows = rows_of(model)
    one, other = collate(rows, model), collate(rows, model)
    assert all(same(a, b) for a, b in zip(one, other, strict=True)) and not same(one[0], one[1])
    model.module.train()
    torch.manual_seed(5)
    first, second = collate(rows[:2], model), collate(rows[:2], model)
    assert not same(first[0], second[0])
    torch.manual_seed(5)
    assert all(same(a, b) for a, b in zip(first, collate(rows[:2], model), strict=True))


def test_too_few(model: LoadedModel, tiny_decoder: str) -> None:
    with pytest.raises(DataError, match="needs 5 labels with 6 examples each; 4 of 5 labels have that many"):
        rows_of(model, Shape(5, 2, 4, 1))
    with pytest.raises(DataError, match="longer than the model's context of 4 tokens"):
        prepare(many(), model, SHAPE, Limits(4), "maml")
    limits = Limits(5, "truncate")
    cut = prepare(many(), model, SHAPE, limits, "maml")
    assert max(len(text.ids) for text in cut[0].pool.texts) == 5 and len(limits.truncated) == len(many())
    assert {text.ids[-1] for text in cut[0].pool.texts} == {model.tokenizer.sep_token_id}
    decoder = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match="objective maml needs an encoder"):
        prepare(many(), decoder, SHAPE, Limits(64), "maml")
    plain = Dataset("plain", "text", many().examples)
    with pytest.raises(UnsupportedError, match="needs data of kind labelled"):
        rows_of(model, dataset=plain)
