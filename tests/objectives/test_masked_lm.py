"""Masked language modelling: which tokens are asked and what is shown, token by token, and the loss against transformers' own heads."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.catalog import load
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import InputError, MismatchError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_folder, load_model
from luthier.models.masked_head import FILE, masked_head
from luthier.objectives import masked_lm
from luthier.objectives._rows import Limits
from luthier.objectives.masked_lm import Config, Row, choose, collate, heads, loss, masked, prepare
from luthier.store.database import open_store
from luthier.store.models import find
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Halt
from luthier.training.loop import train
from luthier.training.work import Work

TEXTS = (
    "The parcel has not arrived and the courier does not answer.",
    "Please refund the deposit for the violin I returned in March, [MASK] included.",
    "billing",
)
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "bert": SIZES,
    "roberta": {**SIZES, "bos_token_id": 2, "eos_token_id": 3},
    "distilbert": {"vocab_size": 300, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128},
    "electra": {**SIZES, "embedding_size": 32},
    "albert": {**SIZES, "embedding_size": 16},
    "modernbert": {**SIZES, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
}  # fmt: skip


def documents(texts: tuple[str, ...] = TEXTS) -> Dataset:
    examples = (Example(str(i), user(t), source=f"c.jsonl:{i + 1}") for i, t in enumerate(texts))
    return Dataset("corpus", "text", tuple(examples))


def pretrained(family: str, tiny_encoder_path: Path, folder: Path) -> Any:
    """A random model of a family with its language-model head, saved with the tiny encoder's tokenizer."""
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    torch.manual_seed(0)
    whole = AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    for parameter in whole.parameters():  # biases and norms too, so that none can be forgotten
        parameter.data += 0.05 * torch.randn_like(parameter)
    whole.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(tiny_encoder_path)).save_pretrained(str(folder))
    return whole.eval()


@pytest.fixture
def model(tiny_encoder: str) -> LoadedModel:
    """The tiny encoder, whose files have no language-model head."""
    found = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    torch.manual_seed(0)
    heads(found, Config())
    return found


def rows_of(model: LoadedModel, dataset: Dataset, limits: Limits | None = None, **options: Any) -> list[Row]:
    return prepare(dataset, model, PromptTemplate(), Config(**options), limits or Limits(model.context_length))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(
    family: str, tiny_encoder: str, tiny_encoder_path: Path, tmp_path: Path
) -> None:
    whole = pretrained(family, tiny_encoder_path, tmp_path)
    record = find(open_store(), tiny_encoder)
    model = load_folder(tmp_path, record, record, dtype="fp32", device="cpu")
    heads(model, Config(train_head=True))
    assert model.module.lm_head.own
    rows = rows_of(model, documents())
    batch = collate(rows, model)
    labels = torch.full_like(batch.ids, -100)
    labels.view(-1)[batch.places] = batch.targets
    theirs = whole(input_ids=batch.ids, attention_mask=batch.mask, labels=labels)
    found = loss(model, batch, Config())
    torch.testing.assert_close(found.value, theirs.loss, rtol=1e-6, atol=1e-6)
    right = (theirs.logits.argmax(-1) == labels)[labels != -100].float().mean()
    assert found.metrics["accuracy"] == pytest.approx(float(right))
    assert found.count == sum(row.weight for row in rows)
    torch.autograd.backward(found.value)
    torch.autograd.backward(theirs.loss)
    wanted = sorted(float(p.grad.double().norm()) for p in whole.parameters() if p.grad is not None)
    slopes = sorted(float(p.grad.double().norm()) for p in model.module.parameters() if p.grad is not None)
    assert slopes == pytest.approx(wanted, rel=1e-3, abs=1e-6)  # the head's and the body's, each tied matrix once
    embeddings = model.module.body.get_input_embeddings().weight.grad
    torch.testing.assert_close(embeddings, whole.get_input_embeddings().weight.grad, rtol=1e-4, atol=1e-6)


def test_a_head_that_the_files_lack_is_new_and_trained(
    model: LoadedModel, tiny_encoder: str, tiny_encoder_path: Path, tmp_path: Path
) -> None:
    head = model.module.lm_head
    assert not head.own and all(p.requires_grad for p in head.parameters())
    names = {name for name, _ in head.named_parameters()}
    assert len(names) == 5 and sum(p.numel() for p in head.parameters()) == 32 * 32 + 32 + 2 * 32 + 300
    pretrained("bert", tiny_encoder_path, tmp_path)
    record = find(open_store(), tiny_encoder)
    other = load_folder(tmp_path, record, record, dtype="fp32", device="cpu")
    heads(other, Config())
    assert other.module.lm_head.own and not any(p.requires_grad for p in other.module.lm_head.parameters())


def test_what_is_shown_and_asked_token_by_token(model: LoadedModel) -> None:
    decode = model.tokenizer.convert_ids_to_tokens
    rows = rows_of(model, documents(), share=0.3)
    batch = collate(rows, model)
    at, width = 0, batch.ids.shape[1]
    for number, row in enumerate(rows):
        shown = batch.ids[number, : row.length].tolist()
        whole = [*row.recipe.before, *row.ids, *row.recipe.after]
        assert (decode(whole)[0], decode(whole)[-1]) == ("[CLS]", "[SEP]") and "[MASK]" not in decode(row.ids)
        assert batch.mask[number].tolist() == [1] * row.length + [0] * (width - row.length)
        asked = [place - number * width for place in batch.places[at : at + row.weight].tolist()]
        assert asked == sorted(set(asked)) and asked[0] >= 1 and asked[-1] < row.length - 1
        assert batch.targets[at : at + row.weight].tolist() == [whole[place] for place in asked]
        assert all(shown[i] == whole[i] for i in range(row.length) if i not in asked)
        at += row.weight
        assert row.weight == max(1, round(0.3 * len(row.ids)))
    assert at == len(batch.targets) == len(batch.places)


def test_eighty_ten_ten(model: LoadedModel) -> None:
    (row, *_) = rows_of(model, documents(), share=0.5)
    fates: Counter[str] = Counter()
    places: Counter[int] = Counter()
    others = set()
    for seed in range(600):
        ids, asked = masked(row, torch.Generator().manual_seed(seed))
        places.update(asked)
        for at in asked:
            kind = "mask" if ids[at] == row.recipe.mask_id else "kept" if ids[at] == row.ids[at] else "random"
            fates[kind] += 1
            others |= {ids[at]} if kind == "random" else set()
    total = fates.total()
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert fates["random"] / total == pytest.approx(0.1, abs=0.02)
    assert fates["kept"] / total == pytest.approx(0.1, abs=0.02)
    assert len(others) > 0.8 * row.recipe.vocabulary and max(others) < row.recipe.vocabulary
    assert set(places) == set(range(len(row.ids))) and max(places.values()) < 1.3 * min(places.values())


def test_whole_words(model: LoadedModel) -> None:
    (row, _, lone) = rows_of(model, documents(("unforeseen violinists telephoned the courier", "a", "untranslatable")), whole_word=True, share=0.4)  # fmt: skip
    tokens = model.tokenizer.convert_ids_to_tokens(row.ids)
    assert row.words is not None and row.words == [i for i, t in enumerate(tokens) if not t.startswith("##")]
    assert len(row.words) == 5 < len(tokens)
    edges = [*row.words, len(tokens)]
    words = [set(range(*pair)) for pair in itertools.pairwise(edges)]
    seen = set()
    for seed in range(100):
        chosen = set(choose(row, torch.Generator().manual_seed(seed)))
        parts = [number for number, word in enumerate(words) if chosen & word]
        assert chosen == set().union(*(words[number] for number in parts)) and 0 < len(chosen) <= row.chosen
        seen |= set(parts)
    assert len(seen) > 2
    assert choose(lone, torch.Generator()) == list(range(len(lone.ids)))  # one word, longer than its share


def trained(model: LoadedModel, folder: Path, *, stop_at: int = 0) -> dict[str, torch.Tensor]:
    rows, config = rows_of(model, documents()), Config()
    work = Work(rows, lambda r: collate(r, model), lambda b: loss(model, b, config))

    def watch(record: Mapping[str, Any]) -> None:
        if record["step"] == stop_at:
            raise Halt("enough")

    def validate() -> dict[str, float]:
        return {"loss": float(loss(model, collate(rows, model), config).value.detach())}

    settings = TrainConfig(epochs=4, batch_size=2, learning_rate=1e-2, checkpoint_every=1)
    point = checkpoint.latest(folder)
    train(model.module, work, settings, folder=folder, metrics=watch, validate=validate, resume=point)
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def test_other_masks_every_epoch_and_the_same_ones_after_a_resume(tiny_encoder: str, tmp_path: Path) -> None:
    def fresh() -> LoadedModel:
        torch.manual_seed(3)
        found = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
        found.module.requires_grad_(False)
        lora = load("methods", "lora")
        built: LoadedModel = lora(found, lora.configure())
        heads(built, Config())
        return built

    straight = trained(fresh(), tmp_path / "a")
    with pytest.raises(Halt):
        trained(fresh(), tmp_path / "b", stop_at=3)
    resumed = trained(fresh(), tmp_path / "b")
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[n], resumed[n]) for n in straight)
    model = fresh()
    rows = rows_of(model, documents())
    assert torch.equal(collate(rows, model).ids, collate(rows, model).ids)
    assert torch.equal(
        collate(rows[1:2], model).targets, collate(rows, model).targets[rows[0].weight :][: rows[1].weight]
    )
    model.module.train()
    assert len({tuple(collate(rows, model).places.tolist()) for _ in range(5)}) > 1


def test_the_head_is_kept_beside_the_weights(model: LoadedModel, tmp_path: Path) -> None:
    head = model.module.lm_head
    head.save(tmp_path)
    again = masked_head(model)
    assert not again.own
    again.read(tmp_path / FILE)
    hidden = torch.randn(3, 32)
    assert again.own and torch.equal(again(hidden), head(hidden)) and torch.equal(again.bias, head.bias)
    (tmp_path / "other").mkdir()
    head.bias = torch.nn.Parameter(torch.zeros(7))
    head.save(tmp_path / "other")
    with pytest.raises(MismatchError, match="does not fit the encoder's language-model head"):
        masked_head(model).read(tmp_path / "other" / FILE)


def test_long_documents_in_windows(model: LoadedModel) -> None:
    (whole,) = rows_of(model, documents(TEXTS[:1]))
    found = rows_of(model, documents(TEXTS[:1]), length=10)
    assert len(found) > 1 and all(row.length == 10 for row in found)
    assert [i for row in found[:-1] for i in row.ids] == whole.ids[: 8 * (len(found) - 1)]
    assert found[-1].ids == whole.ids[-8:]


def test_what_it_cannot_train_on(model: LoadedModel, tiny_decoder: str) -> None:
    with pytest.raises(UnsupportedError, match="masked_lm needs a model of architecture encoder"):
        rows_of(load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu"), documents())
    with pytest.raises(InputError, match="mask and random must sum to at most 1"):
        load("objectives", "masked_lm").configure({"mask": 0.8, "random": 0.3})
    model.tokenizer.mask_token = None
    with pytest.raises(UnsupportedError, match="needs a mask token"):
        rows_of(model, documents())
    assert masked_lm.DEFAULT_FOR == ("text",)


def test_bf16(tiny_encoder: str) -> None:
    losses = []
    for dtype in ("fp32", "bf16"):
        model = load_model(open_store(), tiny_encoder, dtype=dtype, device="cpu")
        torch.manual_seed(0)
        heads(model, Config())
        found = loss(model, collate(rows_of(model, documents()), model), Config())
        torch.autograd.backward(found.value)
        assert {p.dtype for p in model.module.lm_head.parameters()} == {model.dtype}
        assert all(p.grad is not None for p in model.module.lm_head.parameters())
        losses.append(float(found.value.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
