"""tag against transformers' BertForTokenClassification; alignment, decoding, what is saved, served and evaluated."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tests.objectives.preferences import close, gradients, loaded

from luthier.core.dataset import Dataset
from luthier.core.engine import Sampling
from luthier.core.entities import Entity
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.data.read import examples_from_rows
from luthier.evaluation.evaluate import evaluate
from luthier.gateway.serve import running
from luthier.models.load import LoadedModel, load_model
from luthier.models.tagging import classes, entities_of, likeliest, tag_rows, tokenise
from luthier.objectives._rows import Limits
from luthier.objectives.tag import Config, Row, collate, figures, heads_for, loss, prepare
from luthier.store.database import open_store
from luthier.strategies._load import load
from luthier.training.tune import tune

ROWS: list[dict[str, Any]] = [
    {
        "text": "The parcel has not arrived and the courier does not answer.",
        "entities": [("THING", 4, 10), ("WHO", 35, 42)],
    },
    {"text": "My lesson was cancelled twice.", "entities": [("THING", 3, 9)]},
    {"text": "ok", "entities": []},
    {"text": "我的包裹还没有到,请帮我查一下。", "entities": [("THING", 2, 4), ("WHO", 11, 12)]},
]


def annotated(rows: list[dict[str, Any]] = ROWS) -> Dataset:
    made = [{**row, "entities": [{"type": t, "start": s, "end": e} for t, s, e in row["entities"]]} for row in rows]
    return examples_from_rows((("a.jsonl", n, row) for n, row in enumerate(made, 1)), name="a")


def with_head(name: str, config: Config | None = None, data: Dataset | None = None) -> LoadedModel:
    model = loaded(name)
    torch.manual_seed(1)
    heads_for(model, data or annotated(), config or Config())
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def rows_of(model: LoadedModel, config: Config, data: Dataset | None = None, limits: Limits | None = None) -> list[Row]:
    return prepare(data or annotated(), model, PromptTemplate(), config, limits or Limits(128))


@pytest.mark.parametrize("subtokens", ["first", "all"])
def test_equals_transformers(tiny_encoder: str, tiny_encoder_path: Path, subtokens: str) -> None:
    from transformers import BertForTokenClassification

    config = Config(subtokens=subtokens)  # type: ignore[arg-type]
    model = with_head(tiny_encoder, config)
    rows = rows_of(model, config)
    theirs = BertForTokenClassification.from_pretrained(str(tiny_encoder_path), num_labels=5, dtype="float32").eval()
    with torch.no_grad():
        theirs.classifier.weight.copy_(model.head.weight)
        theirs.classifier.bias.copy_(model.head.bias)
    width = max(row.length for row in rows)
    ids, mask, labels = (torch.full((len(rows), width), fill) for fill in (0, 0, -100))
    for n, row in enumerate(rows):
        ids[n, : row.length] = torch.tensor(row.text.ids)
        mask[n, : row.length] = 1
        labels[n, row.text.places] = torch.tensor(row.labels)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected.backward()
    found = loss(model, collate(rows, model), config)
    found.value.backward()
    assert found.count == sum(row.weight for row in rows) == int((labels != -100).sum())
    assert abs(float(found.value.detach()) - float(expected.detach())) < 1e-6
    own = {name.removeprefix("body."): grad for name, grad in gradients(model.module).items()}
    wanted = {name.removeprefix("bert."): grad for name, grad in gradients(theirs).items()}
    wanted = {name.replace("classifier.", "head."): grad for name, grad in wanted.items()}
    close(own, wanted)


def test_class_weights(tiny_encoder: str) -> None:
    plain, config = Config(), Config(weights={"O": 0.1, "WHO": 3.0})
    model = with_head(tiny_encoder)
    rows = rows_of(model, plain)
    batch = collate(rows, model)
    states = model.module.states(batch.ids, batch.mask).reshape(-1, 32)[batch.places]
    each = torch.nn.functional.cross_entropy(model.head(states), batch.labels, reduction="none")
    factors = torch.tensor([0.1, 1.0, 1.0, 3.0, 3.0])[batch.labels]  # O, B and I of THING, B and I of WHO
    assert float(loss(model, batch, config).value.detach()) == pytest.approx(
        float((each * factors).mean().detach()), abs=1e-6
    )


def test_which_tokens_have_which_class(tiny_encoder: str) -> None:
    """A word of two tokens: the first one speaks for it, or each for itself."""
    text = "The parcels arrived."
    data = annotated([{"text": text, "entities": [("THING", 4, 11)]}])
    model = with_head(tiny_encoder, data=data)
    (row,) = rows_of(model, Config(), data)
    tokens = model.tokenizer.convert_ids_to_tokens(row.text.ids)
    read = [
        (tokens[place], label, text[slice(*span)])
        for place, label, span in zip(row.text.places, row.labels, row.text.spans, strict=True)
    ]
    assert read[:2] == [("The", 0, "The"), ("parcel", 1, "parcels")] and [word for *_, word in read] == [
        "The",
        "parcels",
        "arrived",
        ".",
    ]
    config = Config(subtokens="all")
    model = with_head(tiny_encoder, config, data)
    (row,) = rows_of(model, config, data)
    assert row.labels == [0, 1, 2, 0, 0] and row.text.spans[1:3] == [(4, 10), (10, 11)]


def test_entities_come_back_from_their_classes() -> None:
    spans, types = [(0, 3), (4, 6), (6, 8), (9, 12)], ("A", "B")
    entities = [Entity(0, 3, "B"), Entity(4, 8, "A"), Entity(9, 12, "A")]
    assert classes(spans, entities, types) == [3, 1, 2, 1]
    assert entities_of([3, 1, 2, 1], spans, types) == entities
    assert classes(spans, [Entity(5, 10, "C")], types) == [0, -100, -100, -100]
    assert entities_of([2, 4, 0, 2], spans, types) == [Entity(0, 3, "A"), Entity(4, 6, "B"), Entity(9, 12, "A")]


def test_decoding_is_the_best_legal_sequence() -> None:
    """Against every sequence of four tokens and two types."""
    draw = np.random.default_rng(0)
    legal = [
        each
        for each in itertools.product(range(5), repeat=4)
        if all(now not in (2, 4) or before in (now - 1, now) for before, now in zip((0, *each), each, strict=False))
    ]
    for _ in range(50):
        scores = draw.normal(size=(4, 5))
        best = max(legal, key=lambda each: sum(scores[at, label] for at, label in enumerate(each)))
        assert tuple(likeliest(scores)) == best
    assert likeliest(np.zeros((0, 5))) == []


def test_figures_are_those_of_all_rows() -> None:
    found = figures([{"A": (1, 2, 1), "B": (0, 1, 0)}, {"A": (1, 1, 3)}], Config())
    assert found["entity_precision"] == 2 / 4 and found["entity_recall"] == 2 / 4 and found["entity_f1"] == 0.5
    assert found["entity_macro_f1"] == pytest.approx((4 / 7 + 0) / 2)
    assert figures([{}], Config())["entity_f1"] == 0.0


def test_long_texts_are_read_in_windows(tiny_encoder: str) -> None:
    model = with_head(tiny_encoder)
    text = " ".join(row["text"] for row in ROWS[:2] * 20)
    (row,) = tokenise(model, [text], "first")
    whole = model.tokenizer(text)["input_ids"]
    assert row.ids == whole and len(whole) > 3 * 40
    (found,) = tag_rows(model, [row], 40, 80)  # every token was read: a missing one would be nan and so never outside
    assert found and found[-1].end <= len(text)
    short = tokenise(model, [ROWS[0]["text"]], "first")
    assert tag_rows(model, short, 128, 80) == tag_rows(model, short, len(short[0].ids), 80)


def test_bad_input(tiny_encoder: str, tiny_decoder: str) -> None:
    crossing = annotated([{"text": "a b c", "entities": [("X", 0, 3), ("Y", 2, 5)]}])
    model = with_head(tiny_encoder, data=crossing)
    with pytest.raises(DataError, match=r"a.jsonl:1: X at 0 to 3 and Y at 2 to 5 overlap"):
        rows_of(model, Config(), crossing)
    with pytest.raises(DataError, match="no entity at all"):
        heads_for(loaded(tiny_encoder), annotated(ROWS[2:3]), Config())
    with pytest.raises(InputError, match="'WHOM' is no type of a"):
        heads_for(loaded(tiny_encoder), annotated(), Config(weights={"WHOM": 2.0}))
    with pytest.raises(UnsupportedError, match="objective: sft"):
        heads_for(loaded(tiny_decoder), annotated(), Config())
    long = annotated([{"text": "parcel " * 200, "entities": [("THING", 0, 6), ("THING", 7 * 199, 7 * 199 + 6)]}])
    model = with_head(tiny_encoder, data=long)
    with pytest.raises(DataError, match=r"a.jsonl:1: 202 tokens"):
        rows_of(model, Config(), long)
    (cut,) = rows_of(model, Config(), long, Limits(128, "truncate"))
    assert cut.length == 128 and cut.text.ids[-1] == model.tokenizer.sep_token_id
    assert cut.entities == [Entity(0, 6, "THING")] and len(cut.labels) == 126


def test_a_type_that_training_lacks_bears_no_loss_and_is_missed(tiny_encoder: str) -> None:
    model = with_head(tiny_encoder)
    strange = annotated([{"text": "The parcel has not arrived.", "entities": [("NEW", 4, 10)]}])
    (row,) = rows_of(model, Config(), strange)
    assert row.labels == [0, -100, 0, 0, 0, 0] and row.weight == 5
    found = loss(model, collate([row], model), Config())
    assert found.count == 5 and found.outcomes[0]["NEW"][:2] == (0, 1)


def _file(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.conll"
    parts = []
    for n in range(24):
        thing, who = ("parcel", "courier") if n % 2 else ("violin", "teacher")
        parts.append(f"The O\n{thing} B-THING\nand O\nthe O\n{who} B-WHO\n{n} O\n")
    path.write_text("-DOCSTART- O\n\n" + "\n".join(parts), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["lora", "full", "linear_probe"])
def test_tuned_served_and_evaluated(tiny_encoder: str, method: str, tmp_path: Path) -> None:
    path = _file(tmp_path)
    train = {"epochs": 30, "learning_rate": 2e-2, "dtype": "fp32", "metric": "validation_entity_f1"}
    result = tune({"name": "ner", "model": tiny_encoder, "method": method, "data": {"path": str(path)}, "train": train})
    assert result.model.meta["objective"] == "tag" and result.model.meta["answers"] == "tags"
    assert result.summary["validation_entity_f1"] == 1.0
    model = load_model(open_store(), "ner", dtype="fp32")
    assert (model.head.types, model.head.subtokens) == (("THING", "WHO"), "first")
    engine = load("ner", options={"dtype": "fp32"})
    text = "The violin and the teacher"
    (answer,) = engine.generate([user(text)], Sampling(temperature=1.0))
    wanted = [
        {"type": "THING", "start": 4, "end": 10, "text": "violin"},
        {"type": "WHO", "start": 19, "end": 26, "text": "teacher"},
    ]
    assert json.loads(answer.text) == wanted
    with pytest.raises(UnsupportedError, match="cannot score"):
        engine.score([])
    task = tmp_path / "task.yaml"
    task.write_text(f"data: {{path: {path}}}\n", encoding="utf-8")
    found = evaluate(engine, task)
    assert found.primary == "entity_f1" and {each["value"] for each in found.scores.values()} == {1.0}
    with pytest.raises(UnsupportedError, match="reads the bare text"):
        evaluate(engine, task, strategy="zero_shot")
    with running({"ner": engine}) as url:
        body = {"model": "ner", "messages": [{"role": "user", "content": text}]}
        said = httpx.post(f"{url}/chat/completions", json=body).json()
    assert json.loads(said["choices"][0]["message"]["content"]) == wanted
