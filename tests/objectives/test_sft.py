"""Supervised fine-tuning: which tokens bear loss, and the loss itself against a naive forward and against TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from luthier.core.catalog import load
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import Conversation, Message, user
from luthier.core.task import PromptTemplate
from luthier.data.read import read
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._rows import Limits
from luthier.objectives.sft import Config, Row, collate, loss, prepare
from luthier.store.database import open_store

CHATS: tuple[tuple[str, ...], ...] = (
    ("Hello, where is my violin?", "On its way."),
    ("Refund?", "Yes: 30 pounds.", "When?", "Within five days, to the card that you paid with."),
    ("我的包裹?", "还没有到。"),
)


def chat(turns: tuple[str, ...]) -> Conversation:
    return tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns))


def chats(turns: tuple[tuple[str, ...], ...] = CHATS) -> Dataset:
    return Dataset(
        "chats", "chat", tuple(Example(str(i), chat(t), source=f"chats.jsonl:{i + 1}") for i, t in enumerate(turns))
    )


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def rows_of(model: LoadedModel, dataset: Dataset, limits: Limits | None = None, **options: Any) -> list[Row]:
    return prepare(dataset, model, PromptTemplate(), Config(**options), limits or Limits(model.context_length))


def labelled_text(model: LoadedModel, row: Row) -> str:
    return model.tokenizer.decode([row.ids[place + 1] for place in row.places])


def test_only_what_the_assistant_says_bears_loss_end_of_turn_included(model: LoadedModel) -> None:
    rows = rows_of(model, chats())
    assert labelled_text(model, rows[0]) == "On its way.<|im_end|>"
    assert (
        labelled_text(model, rows[1])
        == "Yes: 30 pounds.<|im_end|>Within five days, to the card that you paid with.<|im_end|>"
    )
    assert [row.source for row in rows] == ["chats.jsonl:1", "chats.jsonl:2", "chats.jsonl:3"]
    last = rows_of(model, chats(), turns="last")
    assert labelled_text(model, last[1]) == "Within five days, to the card that you paid with.<|im_end|>"
    assert last[0].places == rows[0].places


def test_the_ids_before_a_response_are_the_prompt_at_serving(model: LoadedModel) -> None:
    assert model.renderer is not None
    for turns, row in zip(CHATS, rows_of(model, chats()), strict=True):
        assert row.ids[: row.places[0] + 1] == model.renderer.prompt_ids(chat(turns[:1]))


def naive_loss(model: LoadedModel, rows: list[Row]) -> tuple[torch.Tensor, int]:
    """One full forward a row, all logits, labels shifted by hand."""
    total, count = torch.zeros(()), 0
    for row in rows:
        logits = model.module(input_ids=torch.tensor([row.ids])).logits[0]
        labels = torch.full((len(row.ids),), -100)
        labels[[p + 1 for p in row.places]] = torch.tensor([row.ids[p + 1] for p in row.places])
        total = total + F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        count += len(row.places)
    return total / count, count


def test_loss_and_gradients_equal_the_naive_forward_on_a_padded_batch(model: LoadedModel) -> None:
    rows = rows_of(model, chats())
    model.module.requires_grad_(True)
    expected, count = naive_loss(model, rows)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.module.named_parameters()}
    model.module.zero_grad()
    found = loss(model, collate(rows, model), Config())
    found.value.backward()
    assert found.count == count == sum(row.weight for row in rows)
    torch.testing.assert_close(found.value, expected, rtol=1e-6, atol=1e-6)
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_architectures_that_change_their_logits_are_respected(model: LoadedModel) -> None:
    plain = loss(model, collate(rows_of(model, chats()), model), Config()).value.detach()
    model.module.config.final_logit_softcapping = 0.05
    capped = loss(model, collate(rows_of(model, chats()), model), Config()).value.detach()
    assert abs(float(plain) - float(capped)) > 1e-4


def test_equals_trl_on_the_same_rows(model: LoadedModel, tmp_path: Path) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    single = tuple(t for t in CHATS if len(t) == 2)
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in single
    ]
    settings = SFTConfig(output_dir=str(tmp_path), per_device_eval_batch_size=2, bf16=False, report_to=[], use_cpu=True)
    trainer = SFTTrainer(
        model.module,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
        processing_class=model.tokenizer,
    )
    theirs = trainer.evaluate()["eval_loss"]
    model.module.eval()
    # TRL also counts what the template writes after the end of the turn (a line break), which nobody generates.
    ids = [list(e["input_ids"]) for e in trainer.eval_dataset]
    masks = [[label != -100 for label in e["labels"]] for e in trainer.eval_dataset]
    mine = rows_of(model, chats(single))
    for row, whole, mask in zip(mine, ids, masks, strict=True):
        assert row.ids == whole
        row.places.append(len(whole) - 2)
        assert [i + 1 for i in row.places] == [i for i, labelled in enumerate(mask) if labelled]
    ours = loss(model, collate(mine, model), Config())
    assert ours.value.item() == pytest.approx(theirs, abs=1e-5)


def test_labelled_rows_go_through_the_prompt(model: LoadedModel) -> None:
    examples = (Example("a", user("where is it"), "delivery"), Example("b", user("pay me back"), "refund"))
    dataset = Dataset("tickets", "labelled", examples)
    prompt = PromptTemplate("Topics: {labels}", "Message: {input}", ("delivery", "refund"))
    row = prepare(dataset, model, prompt, Config(), Limits(512))[0]
    text = model.tokenizer.decode(row.ids)
    assert "Topics: delivery, refund" in text and "Message: where is it" in text
    assert labelled_text(model, row) == "delivery<|im_end|>"
    strange = Dataset("more", "labelled", (Example("c", user("x"), "other", source="more.jsonl:9"),))
    with pytest.raises(DataError, match=r"'other' does not occur in training \(more\.jsonl:9\)"):
        prepare(strange, model, prompt, Config(), Limits(512))


def test_overlong_rows(model: LoadedModel) -> None:
    lengths = [row.length for row in rows_of(model, chats())]
    short = sorted(lengths)[0]
    with pytest.raises(DataError, match=rf"2 rows are longer.*{short} tokens") as caught:
        rows_of(model, chats(), Limits(short))
    assert "chats.jsonl:2" in str(caught.value) and "data.overlong=truncate" in str(caught.value)
    dropping = Limits(short, "drop")
    assert len(rows_of(model, chats(), dropping)) == 1
    assert len(dropping.dropped) == 2
    cutting = Limits(max(lengths) - 3, "truncate")
    rows = rows_of(model, chats(), cutting)
    assert max(row.length for row in rows) == max(lengths) - 3
    assert cutting.truncated == ["chats.jsonl:2"]
    assert all(place + 1 < row.length for row in rows for place in row.places)
    gone = Limits(5, "truncate")  # nothing that bears loss is left
    assert rows_of(model, chats(), gone) == []
    assert len(gone.dropped) == 3


def test_what_it_cannot_train_on(model: LoadedModel, tiny_encoder: str) -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"needs data of kind chat or question or labelled or .* or extraction; pairs is preference",
    ):
        rows_of(model, Dataset("pairs", "preference", ()))
    encoder = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match="needs a decoder"):
        rows_of(encoder, chats())


def test_the_entry_configures() -> None:
    assert load("objectives", "sft").configure({"turns": "last"}).turns == "last"


def test_entities_are_taught_as_json(tiny_decoder: str, tmp_path: Path) -> None:
    """A decoder on annotated texts: sft with the instruction of all types, which is stored and asked with again."""
    import json

    from luthier.evaluation.evaluate import evaluate
    from luthier.training.tune import tune

    path = tmp_path / "ner.jsonl"
    names = ["Ada", "Bob", "Eve", "Kim"]
    rows = [
        {"text": f"{name} {n}", "entities": [{"type": "PERSON", "start": 0, "end": 3}]}
        for n, name in enumerate(names * 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = {"name": "ner", "model": tiny_decoder, "method": "lora", "data": {"path": str(path)}}
    result = tune({**run, "train": {"max_steps": 2, "dtype": "fp32"}})
    assert result.model.meta["objective"] == "sft"
    assert "Types of entities: PERSON" in result.model.meta["prompt"]["instruction"]
    task = tmp_path / "task.yaml"
    task.write_text(f"data: {{path: {path}}}\nmax_new_tokens: 8\n", encoding="utf-8")
    found = evaluate("ner", task)
    assert found.primary == "entity_f1" and found.score == 0.0  # two steps teach nothing
    model = load_model(open_store(), tiny_decoder, dtype="fp32")
    data = read(path)
    (row, *_) = prepare(data, model, PromptTemplate("x"), Config(), Limits(512))
    said = model.tokenizer.decode([row.ids[place + 1] for place in row.places])
    assert said == '{"entities": [{"type": "PERSON", "text": "Ada"}]}<|im_end|>'
