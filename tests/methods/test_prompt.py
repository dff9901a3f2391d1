"""Prompt tuning: what its virtual tokens begin as, and its bounds."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny import HEAD, D

from luthier.core.errors import InputError
from luthier.methods._soft import drawn
from luthier.methods.prompt import Config, build
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

COUNTS = {kind: 20 * D + HEAD[kind] for kind in ("llama", "gpt2", "bert", "t5")}


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    return load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")


def prompt_of(model: LoadedModel) -> torch.Tensor:
    return inner_of(model).prompt_encoder["default"].embedding.weight.detach()


def test_begins_as_the_text_again_and_again(model: LoadedModel) -> None:
    text = "Is it a refund?"
    ids = model.tokenizer(text)["input_ids"]
    assert 1 < len(ids) < 17
    table = model.module.get_input_embeddings().weight.detach()
    got = prompt_of(build(model, Config(tokens=17, init="text", text=text)))
    assert torch.equal(got, table[torch.tensor((ids * 17)[:17])])


def test_begins_as_the_labels_then_as_words_of_the_vocabulary(model: LoadedModel) -> None:
    model.labels = ("billing", "delivery of parcels")
    table = model.module.get_input_embeddings().weight.detach()
    means = [table[torch.tensor(model.tokenizer(label)["input_ids"])].mean(0) for label in model.labels]
    got = prompt_of(build(model, Config(tokens=5, init="labels")))
    torch.testing.assert_close(got[:2], torch.stack(means))
    assert all((table == row).all(1).any() for row in got[2:])


def test_words_of_the_vocabulary_are_drawn_and_no_special_ones(model: LoadedModel) -> None:
    torch.manual_seed(5)
    ids = drawn(model, 200)
    torch.manual_seed(5)
    assert drawn(model, 200) == ids
    assert len(set(ids)) > 50
    assert not set(ids) & set(model.tokenizer.all_special_ids)
    assert all(any(map(str.isalpha, model.tokenizer.convert_ids_to_tokens(i))) for i in ids)


def test_noise_has_the_spread_of_the_embeddings(model: LoadedModel) -> None:
    table = model.module.get_input_embeddings().weight.detach()
    with torch.no_grad():
        table.mul_(torch.linspace(0.5, 2.0, D)).add_(torch.linspace(-1, 1, D))
    torch.manual_seed(0)
    got = prompt_of(build(model, Config(tokens=300, init="random")))
    assert not (got[:, None] == table).all(-1).any()
    torch.testing.assert_close(got.mean(0), table.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(got.std(0), table.std(0), rtol=0.25, atol=0)


def test_rows_in_training_have_what_is_left_of_the_context(model: LoadedModel) -> None:
    built = build(model, Config(tokens=12))
    assert (built.context_length, built.virtual_tokens) == (500, 12)


def test_bounds(model: LoadedModel) -> None:
    with pytest.raises(
        InputError, match=r"method\.tokens must leave room in the context of 512 tokens of tiny-decoder; got 512"
    ):
        build(model, Config(tokens=512))
    with pytest.raises(InputError, match="init labels needs labelled data"):
        build(model, Config(init="labels"))
    model.labels = ("a", "b", "c")
    with pytest.raises(
        InputError, match=r"method\.tokens must be at least 3 with init labels, one for each label; got 2"
    ):
        build(model, Config(tokens=2, init="labels"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"init": "text"}, "init text needs text"), ({"text": "Hello"}, "text is for init text; got init vocabulary")],
)
def test_a_text_belongs_to_init_text(options: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**options)  # type: ignore[arg-type]
